"""Finished runs that a router chooses among: the configuration that they make, and what keeps them apart. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vlatrain.config import joint
from vlatrain.config.adapter import AdapterConfig
from vlatrain.config.data import DataConfig
from vlatrain.config.errors import Incompatible, UserError
from vlatrain.config.limits import AT_LEAST_ONE, DROP_RATE, SPLIT, Choice, Range
from vlatrain.config.methods import ROUTER
from vlatrain.config.saved import typed
from vlatrain.config.schema import TrainConfig
from vlatrain.config.spec import QUESTION, TEXT, shipped_spec, with_shipped_specs
from vlatrain.config.task import TaskConfig
from vlatrain.config.wording import BY_TEXT, Wording
from vlatrain.injection.sources import Source, read_sources
from vlatrain.runs import RunFolder

KEY = "adapter.sources"
NOTE = "router.json"  # what a router is, beside its weights
WEIGHTS = "router.safetensors"
HASHED = (".safetensors", "adapter_config.json")  # files of an adapter that say what it computes
NOT_ROUTED = ("full", "none", ROUTER)  # methods that leave no adapter of the backbone that all runs have in common
LIMITS: Mapping[str, Any] = {
    "k": AT_LEAST_ONE,
    "samples": Range(lambda value: value >= 5, "5 or more"),
    "held_out": SPLIT,
    "abstain": DROP_RATE,
    "epochs": AT_LEAST_ONE,
    "reads": Choice("auto", "prefix", "tower"),
}
"""What the options of `conf/adapter/router.yaml` may be."""


@dataclass(frozen=True)
class Route:
    """A run that a router may choose.

    Attributes:
        name: what it is called: its task, or its folder where several runs are of one task.
        folder: its folder.
        hash: of what it has trained.
        config: its configuration.
        source: what its files say.
    """

    name: str
    folder: Path
    hash: str
    config: TrainConfig
    source: Source

    @property
    def asks(self) -> bool:
        """Whether it cannot be asked without a question."""
        return self.config.task.spec.query == QUESTION


def options_wrong(config: AdapterConfig) -> list[str]:
    """What is wrong with the options of a router, beyond their types."""
    found = [
        problem
        for name, limit in LIMITS.items()
        if name in config.options
        for problem in limit.problems(f"adapter.options.{name}", config.options[name])
    ]
    requests = config.options.get("requests") or {}
    found += [f"adapter.options.requests.{task}: a text is missing" for task, text in requests.items() if not text]
    if config.points is not None:
        found.append("adapter.points: adapter=router puts nothing into the backbone; its runs have points of their own")
    return found


def routed(config: TrainConfig) -> TrainConfig:
    """A router's configuration with what its runs say: their tasks and data as subtasks, and their backbone.

    Args:
        config: as it was written.

    Raises:
        UserError: everything that keeps the runs from being routed, a line each.
    """
    if wrong := options_wrong(config.adapter):
        raise UserError(wrong)
    routes = read_routes(config.adapter.sources)
    first = routes[0].config
    whole = TaskConfig(name=joint.JOINT, metric=joint.MEAN, spec=shipped_spec(joint.JOINT))
    trainer = config.trainer
    if trainer.batch_size == "auto":
        sizes = [route.config.trainer.batch_size for route in routes]
        trainer = replace(trainer, batch_size=min((size for size in sizes if isinstance(size, int)), default=16))
    return replace(
        config,
        task=replace(whole, subtasks={route.name: unworded(route.config.task) for route in routes}),
        data=replace(DataConfig(), subtasks={route.name: route.config.data for route in routes}),
        model=first.model,
        trainer=replace(trainer, accumulate=1),
        adapter=replace(config.adapter, sources=[str(route.folder.resolve()) for route in routes]),
    )


def unworded(task: TaskConfig) -> TaskConfig:
    """A run's task as a router reads samples of it: with the question as it is, by which it chooses, and the options beside it. The
    run that is asked words both in its own way."""
    wording = task.wording
    return replace(task, prompt="", answers=BY_TEXT if wording.lists else task.answers) if wording.template else task


def read_routes(folders: Sequence[str], noted: Mapping[str, Any] | None = None) -> list[Route]:
    """The runs in folders, in this order.

    Args:
        folders: the folders.
        noted: what a trained router has noted of them (`NOTE`): they must be the same; None: it is yet to be trained.

    Raises:
        UserError: a run that is missing or has changed, is of another backbone, is none that can be routed, or is there twice.
    """
    if noted is not None and (gone := [folder for folder in folders if not Path(folder).is_dir()]):
        raise UserError(
            f"{KEY}: {folder}: the run is gone; put it back, or set {KEY} to where it is now" for folder in gone
        )
    sources = read_sources(folders, KEY)
    if len(sources) < 2:
        raise UserError(f"{KEY}: adapter=router chooses among two finished runs or more, and there are {len(sources)}")
    if noted is not None and len(sources) != len(noted["sources"]):
        named = ", ".join(own["name"] for own in noted["sources"])
        raise UserError(f"{KEY}: {len(sources)} runs, and the router was trained for {len(noted['sources'])}: {named}")
    if wrong := [problem for source in sources for problem in _of_source(source)]:
        raise UserError(wrong)
    configs = [typed(source.run, str(RunFolder(source.folder).config)) for source in sources]
    names = [own["name"] for own in noted["sources"]] if noted else names_of(configs, sources)
    routes = [
        Route(name, source.folder, hash_of(RunFolder(source.folder).adapter), config, source)
        for name, source, config in zip(names, sources, configs, strict=True)
    ]
    problems = [*_unlike(routes), *_twice(routes), *(_changed(routes, noted) if noted else [])]
    if problems:
        raise UserError(problems)
    return routes


def names_of(configs: Sequence[TrainConfig], sources: Sequence[Source]) -> list[str]:
    """A name for each run, as subtasks have them: its task's, where no other run is of that, else its folder's."""
    of_task = Counter(config.task.name for config in configs)
    names: list[str] = []
    for config, source in zip(configs, sources, strict=True):
        folder = re.sub(r"[^A-Za-z0-9_-]+", "-", source.folder.resolve().name)
        name = config.task.name if of_task[config.task.name] == 1 else folder
        name = name if re.match(r"[A-Za-z]", name) else f"run-{name}"
        taken = sum(known == name or known.startswith(f"{name}--") for known in names)
        names.append(f"{name}--{taken + 1}" if taken else name)
    return names


def hash_of(adapter: Path) -> str:
    """A hash of all that a run has trained."""
    digest = hashlib.sha256()
    for file in sorted(path for path in adapter.rglob("*") if path.is_file() and path.name.endswith(HASHED)):
        digest.update(f"{file.relative_to(adapter)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def read_note(run: Path) -> dict[str, Any]:
    """What a trained router has noted.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    file = RunFolder(run).adapter / NOTE
    try:
        note: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return note
    except OSError as error:
        raise UserError(f"{file}: there is none; the router's training has not finished") from error
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error


def one_pass(route: Route) -> str:
    """What runs must have in common to answer in one forward pass, each row by its own adapter; empty: this run cannot.

    Rows choose among adapters of vlatrain's own that add to what sub-layers put out; heads and weights of the trunk that trained
    with an adapter are those of one run.
    """
    saved, config = route.source.adapter, route.config
    if not route.source.is_ours or route.source.trunk or saved.get("tasks") or saved.get("modules_to_save"):
        return ""
    if any(key.split(".")[0] == "features" or key.endswith(".layer") or ":" in key for key in route.source.points):
        return ""
    task = asdict(
        replace(config.task, points=[], max_length="auto", decode=replace(config.task.decode, max_new_tokens="auto"))
    )
    return json.dumps([task, config.adapter.drop_layers], sort_keys=True, default=str)


def _of_source(source: Source) -> Iterator[str]:
    where, task = f"{KEY}: {source.folder}", source.run.get("task") or {}
    if source.method in NOT_ROUTED:
        what = {"full": "has weights of its own", "none": "has trained nothing"}.get(source.method, "chooses itself")
        yield Incompatible(f"{where}: is adapter={source.method}, which {what}; adapter=router chooses among adapters")
    if (prompt := task.get("prompt")) and _answers(task) and not Wording(prompt).asks:
        yield Incompatible(
            f"{where}: its questions are made of other columns (task.prompt={prompt!r} has no {{question}}), and a router "
            "chooses by what is asked"
        )
    if task.get("name") == joint.JOINT:
        yield Incompatible(f"{where}: is a joint run; adapter=router takes runs of one task each")
    elif with_shipped_specs(task)["spec"].get("query") == TEXT:
        yield Incompatible(
            f"{where}: task={task.get('name')} compares all images with all texts, for which they must have one adapter; "
            "adapter=router chooses one for each image"
        )


def _answers(task: Mapping[str, Any]) -> bool:
    return "answers" in with_shipped_specs(task)["spec"].get("fields", ())


def _unlike(routes: Sequence[Route]) -> Iterator[str]:
    """Runs whose backbone is not that of the first one."""
    first = routes[0]
    for route in routes[1:]:
        for key, there, here in _facts(route, first):
            if there != here:
                yield Incompatible(f"{KEY}: {route.folder}: is of {key}={there}, and {first.folder} of {key}={here}")
                break


def _facts(route: Route, first: Route) -> Iterator[tuple[str, Any, Any]]:
    one, other = route.config.model, first.config.model
    for key in ("name", "checkpoint", "random_init", "quantize", "submodels", "options"):
        yield "model" if key == "name" else f"model.{key}", getattr(one, key), getattr(other, key)
    if one.random_init:
        yield "seed", route.config.seed, first.config.seed
        yield "tokenizer", _processor(route.folder), _processor(first.folder)


def _processor(run: Path) -> str:
    """A hash of the tokenizer of a random backbone, which was made of its training data."""
    file = RunFolder(run).processor / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "none"


def _twice(routes: Sequence[Route]) -> Iterator[str]:
    known: dict[str, Route] = {}
    for route in routes:
        if (other := known.setdefault(route.hash, route)) is not route:
            yield f"{KEY}: {route.folder}: has the same adapter as {other.folder}; name each once"


def _changed(routes: Sequence[Route], noted: Mapping[str, Any]) -> Iterator[str]:
    for route, own in zip(routes, noted["sources"], strict=True):
        if route.hash != own["hash"]:
            yield (
                f"{KEY}: {route.folder}: its adapter is not the one that the router was trained for ({own['name']}, "
                f"{own['hash'][:12]}, and now {route.hash[:12]}); train the router anew"
            )
