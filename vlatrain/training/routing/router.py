"""A router: what it reads, what it chooses, and the runs that answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlatrain.adapters.router import Controller, RouterOptions, fit
from vlatrain.config import AdapterConfig, TrainConfig, UserError
from vlatrain.config.files import replace_folder, write_json
from vlatrain.config.spec import QUESTION
from vlatrain.data.choices import asked, lacking
from vlatrain.data.sample import Sample, Turn
from vlatrain.injection.routes import NOTE, WEIGHTS, Route, read_note, read_routes
from vlatrain.runs import RunFolder
from vlatrain.tasks.base import Answer, Batches, Collate, Made, Result, move
from vlatrain.training.batches import chunks
from vlatrain.training.display import SILENT, Display
from vlatrain.training.precision import autocast
from vlatrain.training.routing.hosts import Host, Routed, load_hosts
from vlatrain.training.routing.reader import Reader, States, image_tower, shared_layers
from vlatrain.training.setup import load_setup

CLOCKS = {"ms": time.perf_counter, "cpu_ms": time.process_time}
"""What it is measured by what choosing costs."""


class Router:
    """The runs of a router, loaded, and what chooses among them.

    Args:
        config: the router's configuration.
        device: where it computes.
        precision: fp32, bf16 or fp16.
        run: the folder of the trained router; None: it is yet to be trained (`train`).

    Raises:
        UserError: runs that are gone or have changed, weights that cannot be had, or no tower to read.
    """

    def __init__(self, config: TrainConfig, device: torch.device, precision: str, run: Path | None = None) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.options = RouterOptions(**config.adapter.settings)
        note = read_note(run) if run is not None else None
        self.routes = read_routes(config.adapter.sources, note)
        self.names = [route.name for route in self.routes]
        self.hosts = load_hosts(self.routes, config, device, precision)
        self.host_of = {name: host for host in self.hosts for name in host.adapters}
        self.size = config.trainer.samples_per_evaluation_pass
        self.reader = self._reader(note)
        for host in self.hosts:
            host.goes_on = self.reader.lend(host.setup.backbone)
        self.controller: Controller | None = self._loaded(run, note) if run is not None and note else None

    def _reader(self, note: Mapping[str, Any] | None) -> Reader:
        """The backbone without adapters: as it serves the first run that is asked questions, for its words."""
        route = next((route for route in self.routes if route.asks), self.routes[0])
        bare = replace(route.config, adapter=AdapterConfig(name="none"), trainer=self.config.trainer)
        backbone = load_setup(bare, route.folder, self.device, self.precision, shared=False).backbone
        tower, depth = image_tower(backbone.model, backbone.config, backbone.task)
        if note:
            return Reader(backbone, note["reads"]["tower"], note["reads"]["layers"], self.precision)
        common = shared_layers([host.setup.backbone for host in self.hosts], tower)
        if self.options.reads == "prefix" and not common:
            raise UserError(
                f"adapter.options.reads=prefix: a run has adapters in the first layer of {tower}; reads=tower reads the frozen "
                "backbone besides"
            )
        layers = depth if self.options.reads == "tower" or not common else common
        return Reader(backbone, tower, layers, self.precision)

    @property
    def reads_again(self) -> list[str]:
        """The runs for which an image is read a second time."""
        return [name for host in self.hosts if not host.goes_on for name in host.adapters]

    def said(self, route: Route | None, sample: Sample) -> str:
        """What is said about a sample: its question, or what it is asked for by the run that it is of, where a run is given."""
        if sample.turns:
            return sample.turns[-1].user
        if sample.question or route is None:
            return sample.question
        return self.options.requests.get(route.config.task.name, "")

    def seen(self, samples: Sequence[Sample], display: Display = SILENT) -> Tensor:
        """What the reader sees of samples, for `choose`."""
        with self.computing():
            return self.reader.seen(samples, self.size, display, self.config.trainer.loaders)

    def train(self, samples: Mapping[str, Sequence[Sample]], display: Display = SILENT) -> dict[str, Any]:
        """Train the controller on samples by run. Samples of a task that is asked nothing are learned twice: as they are, and with
        what a user may say to get it.

        Returns:
            What there is to tell: the numbers of samples and features, and how many parameters have trained.
        """
        features, labels = [], []
        for number, route in enumerate(self.routes):
            own = samples[route.name]
            seen, silent = self.seen(own, display), [self.said(None, sample) for sample in own]
            requested = [self.said(route, sample) for sample in own]
            for said in [silent, requested] if requested != silent else [silent]:
                features.append(self.reader.features(seen, said))
                labels.append(torch.full((len(own),), number))
        together, label = torch.cat(features), torch.cat(labels)
        self.controller = fit(together, label, len(self.routes), self.options, self.config.seed)
        return {
            "samples": {name: len(own) for name, own in samples.items()},
            "features": together.shape[1],
            "parameters": sum(own.numel() for own in self.controller.parameters()),
            "temperature": float(self.controller.temperature),
            "threshold": float(self.controller.threshold) if self.options.abstain else None,
        }

    def choose(self, samples: Sequence[Sample], said: Sequence[str], seen: Tensor) -> list[Routed]:
        """What is chosen for each sample.

        Args:
            samples: the samples.
            said: what is said about each; without a word, no run is asked that answers questions; a run that words its questions by
                columns is asked where these are there.
            seen: what the reader sees of each.

        Raises:
            UserError: no run can be asked about a sample.
        """
        assert self.controller is not None, "the router has not been trained"
        lacks = [[_lacks(route, *one) for route in self.routes] for one in zip(samples, said, strict=True)]
        for sample, own in zip(samples, lacks, strict=True):
            if all(own):
                needs = "; ".join(f"{lack} ({name})" for name, lack in zip(self.names, own, strict=True))
                raise UserError(f"{sample.id}: no run of this router can be asked, for lack of {needs}")
        possible = torch.tensor([[not lack for lack in own] for own in lacks])
        choice = self.controller.choose(self.reader.features(seen, said), self.options.k, possible)
        found = []
        for number, shares, far in zip(
            choice.best.tolist(), choice.weights.tolist(), choice.abstains.tolist(), strict=True
        ):
            name, weights = self.names[number], {self.names[n]: share for n, share in enumerate(shares) if share}
            found.append(Routed(name, weights, far and self.host_of[name].can_abstain))
        return found

    def ask(
        self, samples: Sequence[Sample], alternatives: int = 1, said: Sequence[str] = ()
    ) -> Iterator[tuple[Routed, Sequence[Answer]]]:
        """For each sample what was chosen, and the best answers, as they come.

        Args:
            samples: the samples. A batch is read once by the frozen backbone, and the runs that can go on from there.
            alternatives: the most answers, of tasks that know several.
            said: what is said about each; empty: their questions.
        """
        said = said or [self.said(None, sample) for sample in samples]
        for places in chunks(len(samples), self.size):
            own = samples[places.start : places.stop]
            with self.computing():
                states = self.reader.states(own)
                chosen = self.choose(own, said[places.start : places.stop], states.seen)
                answers = self.answers(own, chosen, alternatives, states)
            yield from zip(chosen, answers, strict=True)

    def answers(
        self, samples: Sequence[Sample], chosen: Sequence[Routed], alternatives: int = 1, states: States | None = None
    ) -> list[Sequence[Answer]]:
        """The best answers to each of a batch of samples, by what was chosen: a pass for each model that is asked.

        Args:
            samples: the samples.
            chosen: what was chosen for each.
            alternatives: the most answers, of tasks that know several.
            states: what the reader has read of them; None: images are read from the start.
        """
        found: list[Sequence[Answer]] = [()] * len(samples)
        passes: dict[tuple[int, bool], list[int]] = {}
        for place, one in enumerate(chosen):
            host = self.host_of[one.best]
            passes.setdefault((self.hosts.index(host), host.key(one)), []).append(place)
        for (number, _), places in passes.items():
            host, own = self.hosts[number], [chosen[place] for place in places]
            if host.goes_on:
                self.reader.hand_on(host.setup.backbone, states)
            collate, answer = host.task.asking()
            batch = move(collate([asked_of(host, samples[place]) for place in places]), self.device)
            count = alternatives if host.task.config.spec.alternatives else 1
            with self.computing(), host.answering(own):
                for place, best in zip(places, answer(batch, count), strict=True):
                    found[place] = best
            if host.goes_on:
                self.reader.hand_on(host.setup.backbone, None)
        return found

    def extra_time(
        self, samples: Sequence[Sample], said: Sequence[str], chosen: Sequence[Routed], rounds: int = 15
    ) -> dict[str, float]:
        """What choosing costs: milliseconds a sample with it, and where it is known beforehand, by the clock and in this process's
        CPU time, which other work on the machine hardly disturbs. Medians of rounds in turn, and of the differences in each.

        Args:
            samples: the samples, a batch or a few.
            said: what is said about each.
            chosen: what is chosen for each.
            rounds: how often.
        """

        def known() -> None:
            for places in chunks(len(samples), self.size):
                self.answers(samples[places.start : places.stop], chosen[places.start : places.stop])

        def routed() -> None:
            for _ in self.ask(samples, said=said):
                pass

        def timed(way: Callable[[], None]) -> list[float]:
            began = [clock() for clock in CLOCKS.values()]
            way()
            return [
                1000 * (clock() - start) / len(samples) for clock, start in zip(CLOCKS.values(), began, strict=True)
            ]

        # the first round warms up
        pairs = [(timed(known), timed(routed)) for _ in range(rounds + 1)][1:]
        found: dict[str, float] = {}
        for place, name in enumerate(CLOCKS):
            before = median(one[place] for one, _ in pairs)
            extra = median(other[place] - one[place] for one, other in pairs)
            found |= {
                f"{name}_routed": median(other[place] for _, other in pairs),
                f"{name}_known": before,
                f"{name}_extra": extra,
                f"{name.removesuffix('ms')}percent_extra": 100 * extra / before,
            }
        return found

    def save(self, folder: Path) -> None:
        """Write the controller, and what it chooses among, by hash."""
        assert self.controller is not None
        state = {name: tensor.contiguous() for name, tensor in self.controller.state_dict().items()}
        note = {
            "sources": [{"name": route.name, "folder": str(route.folder), "hash": route.hash} for route in self.routes],
            "options": asdict(self.options),
            "reads": {"tower": self.reader.tower, "layers": self.reader.layers},
            "features": int(self.controller.mean.numel()),
            "backbone": {"hash": self.reader.hash, "precision": self.precision, "device": self.device.type},
        }

        def write(into: Path) -> None:
            save_file(state, into / WEIGHTS, metadata={"format": "pt"})
            write_json(into / NOTE, note)

        replace_folder(folder, write)

    def _loaded(self, run: Path, note: Mapping[str, Any]) -> Controller:
        backbone = note["backbone"]
        same = (backbone["precision"], backbone["device"]) == (self.precision, self.device.type)
        if same and backbone["hash"] != self.reader.hash:
            raise UserError(
                f"{RunFolder(run).adapter}: the router was trained on another backbone ({self.config.model.name}, by hash of its "
                f"{self.reader.tower} tower); train it anew"
            )
        options = RouterOptions(**note["options"])
        controller = Controller(note["features"], len(self.routes), options.router, options.dim)
        file = RunFolder(run).adapter / WEIGHTS
        try:
            controller.load_state_dict(load_file(file))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{file}: {' '.join(str(error).split())[:400]}") from error
        return controller.eval().requires_grad_(False)

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.no_grad(), autocast(self.device, self.precision):
            yield


def asked_of(host: Host, sample: Sample) -> Sample:
    """A sample as a run's task is asked about it: what is said is its question, or a turn of a conversation."""
    spec = host.task.config.spec
    if "conversations" in spec.given and not sample.turns:
        return replace(sample, turns=(Turn(sample.question),), question="")
    if spec.query == QUESTION and sample.turns and not sample.question:
        sample = replace(sample, question=sample.turns[-1].user)
    return worded_for(host, sample)


def worded_for(host: Host, sample: Sample) -> Sample:
    """A sample whose question is worded as a run's task words it."""
    if not (wording := host.task.config.wording).template:
        return sample
    return replace(sample, question=asked(sample.question, sample.options, wording, dict(sample.extra)))


def _lacks(route: Route, sample: Sample, said: str) -> str:
    """What a run cannot be asked about a sample without; empty: it can be asked."""
    if route.asks and not said:
        return "a question"
    return ", ".join(lacking(sample, route.config.task.wording))


@dataclass(frozen=True)
class RowBatches:
    """Batches of a task's evaluation in which each sample has what was chosen for it.

    Attributes:
        batches: the batches.
        host: the model.
        chosen: by the sample's id.
    """

    batches: Batches
    host: Host
    chosen: Mapping[str, Routed]

    def __call__(
        self, samples: Sequence[Sample], collate: Collate[Made], compute: Callable[[Made], Result]
    ) -> Iterator[Result]:
        """What `compute` returns of each batch."""

        def marked(own: Sequence[Sample]) -> Any:
            return {**collate(own), "chosen": [self.chosen[sample.id] for sample in own]}

        def answered(batch: Any) -> Result:
            chosen = batch.pop("chosen")
            with self.host.answering(chosen):
                return compute(batch)

        return self.batches(cast(Any, samples), marked, answered)

    def map(self, compute: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """What `compute` returns of each item: texts of classes, which are read by the one adapter that there is."""
        return self.batches.map(compute, items)
