"""The frozen prefix of every sample, computed once: by the first run that needs it, for all its epochs and all runs to come.

`cache_prefix` finds what is frozen (`backbones.frontier`), computes what the store (`store`) lacks, and leaves a `PrefixCache` at
the backbone: from then on tasks feed the model kept states where they would have loaded images, and the frozen layers do
nothing. A kept state is found by content: the prefix's weights and settings name the folder, image and text name the state.

On a CPU in fp32 the course of a training is bit for bit the one without; texts are padded to multiples of `backbones.base.BUCKET`,
as with other lengths sums are rounded otherwise. In a lower precision states are kept in the type they are computed in, or in a
lower one if all that reads them casts them to it (`stored_type`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor

from vlatrain.backbones.base import Backbone
from vlatrain.backbones.prefix import PrefixReplay, padded
from vlatrain.config import TrainConfig
from vlatrain.config.files import kept_folder
from vlatrain.config.joint import JOINT, tasks
from vlatrain.data.augment import Augmented
from vlatrain.data.choices import reordering
from vlatrain.data.lazy import joined, select
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import group_of
from vlatrain.training.display import Display
from vlatrain.training.modes import hash_of
from vlatrain.training.precision import DTYPES
from vlatrain.training.prefix_cache.build import Builder, at_once, loaded, size_of
from vlatrain.training.prefix_cache.frontier import Frontier, frontiers, needed
from vlatrain.training.prefix_cache.shared import Shared
from vlatrain.training.prefix_cache.store import (
    Disk,
    Memory,
    Store,
    Unwritable,
    folders,
    sizes,
    unwritable,
)
from vlatrain.training.prefix_cache.stored_type import read_low
from vlatrain.training.processes import count, from_main, gather, neighbours, rank

log = logging.getLogger("vlatrain")

# raise it when what a prefix computes or a shard says changes: nothing kept under other rules is used again
RULES = "vlatrain-prefix-4"
TRIED = 2  # batches that `trainer.cache=auto` measures
SHARE = 0.5  # of the free memory, or of the free disk, that may be used
OTHER = "options in another order each time"


@dataclass
class PrefixCache:
    """What is kept of a backbone's prefix.

    Attributes:
        frontiers: of the towers that are kept.
        stores: where, by tower.
        lengths: the tokens that questions are cut to, by subtask of a joint task; under an empty name for any other task.
        facts: what there is to tell of it, as `metrics.json` holds it.
    """

    frontiers: dict[str, Frontier]
    stores: Mapping[str, Store]
    lengths: Mapping[str, int]
    facts: dict[str, Any] = field(default_factory=dict)

    def read(self, samples: Sequence[Sample], asked: bool, length: int | None = None) -> dict[str, Tensor]:
        """By tower, the states (B, taps, L, width) of samples, of images (N, ...), those of a sample one after the other; empty if
        those of one are not there.

        Args:
            samples: the samples.
            asked: whether their questions are put.
            length: of the questions, in tokens.
        """
        found: dict[str, Tensor] = {}
        for tower in self.towers(asked):
            store, states = self.stores[tower], []
            for key in (key for sample in samples for key in self.keys(tower, sample)):
                state = store.get(key)
                if state is None:
                    return {}
                states.append(state)
            found[tower] = padded(states, length if "question" in self.frontiers[tower].of else None)
        return found

    def towers(self, asked: bool) -> list[str]:
        """The towers whose states a call needs."""
        return needed(self.frontiers, asked)

    def keys(self, tower: str, sample: Sample) -> list[str]:
        """For each image of a sample, what a tower's states are a function of; a question as it is cut."""
        of = self.frontiers[tower].of
        question = f"{self.lengths[sample.subtask]} {sample.question}"
        parts = ([one.key if what == "image" else question for what in of] for one in sample.pictures)
        return [hashlib.blake2b("\0".join(own).encode(), digest_size=16).hexdigest() for own in parts]


def cache_prefix(
    backbone: Backbone,
    config: TrainConfig,
    samples: Mapping[str, Sequence[Sample]],
    uses: Mapping[str, float],
    precision: str,
    display: Display,
    runs: int = 1,
) -> PrefixCache | None:
    """Keep the prefix of samples, if that saves time, and let the backbone use it.

    Of several processes the first one decides, by its clock, memory and disk, and each computes its share.

    Args:
        backbone: on its device, adapters in it, in eval mode.
        config: the configuration; `trainer.cache` says how.
        samples: by split.
        uses: by split, how often each sample will be seen.
        precision: fp32, bf16 or fp16.
        display: where progress is shown.
        runs: how many runs, this one included, are to come that need the same states: those kept on disk serve them all.
    """
    way = config.trainer.cache
    if way == "off":
        return None
    places = ["disk", "memory"] if way == "auto" else [way]
    if rank() == 0 and "disk" in places and not os.path.isdir(kept_folder()) and (fault := unwritable()):
        _warn(fault)  # even if there is nothing to keep: what VLATRAIN_CACHE says has no effect
        places.remove("disk")
    train, seen = samples.get("train", ()), uses.get("train", 1)
    if isinstance(train, Augmented):
        views = train.every()
        if views is None:
            log.info("Cache: off, as images are cropped or flipped anew each time; data.views=4 keeps 4 views of each")
            return None
        samples, uses = {**samples, "train": views}, {**uses, "train": seen * len(train) / len(views)}
    found = frontiers(backbone.model, config.model, config.task.name)
    if reordering(config):  # no question comes twice
        found = {
            name: replace(own, boundary=None, pinned=OTHER) if "question" in own.of else own
            for name, own in found.items()
        }
    kept = {name: frontier for name, frontier in found.items() if frontier.boundary is not None}
    if not kept:
        if way != "auto":
            log.info(
                "Cache: nothing can be kept: %s", "; ".join(f"{n} {f.pinned}" for n, f in found.items()) or "no tower"
            )
        return None
    work = _Work(backbone, config, kept, precision, display)
    # what one measures and may write is not what another does
    where = from_main(work.place(places, samples, uses, runs) if rank() == 0 else None)
    if where is None:
        return None
    work.fill(where, joined(samples.values()))
    backbone.prefix_replay, backbone.cache = work.prefix_replay, work.result
    return work.result


def _warn(fault: str, then: str = "nothing is kept on disk") -> None:
    log.warning(
        "Cache: %s; %s. Make room, or set VLATRAIN_CACHE to a folder that can be written; "
        "trainer.cache=memory or off does without", fault, then,
    )  # fmt: skip


class _Work:
    """Deciding where to keep a prefix, and computing it."""

    def __init__(
        self,
        backbone: Backbone,
        config: TrainConfig,
        kept: dict[str, Frontier],
        precision: str,
        display: Display,
    ) -> None:
        self.backbone, self.config, self.precision, self.display = backbone, config, precision, display
        subtasks = tasks(config.task) if config.task.name == JOINT else {"": config.task}
        self.result = PrefixCache(
            kept, {}, {name: backbone.longest(task, "question") for name, task in subtasks.items()}
        )
        self.prefix_replay = PrefixReplay({name: f.boundary for name, f in kept.items() if f.boundary}, {})
        ways = (False, True) if config.task.name == JOINT else ("question" in config.task.spec.fields,)
        self.needed = list(dict.fromkeys(tower for asked in ways for tower in self.result.towers(asked)))
        low = read_low(config.task, backbone, {name: kept[name] for name in self.needed}, precision)
        self.types = dict.fromkeys(low, DTYPES[precision])
        self.builder = Builder(backbone, self.prefix_replay, precision, True in ways, self.types)
        self.machine = neighbours()
        self.shares = len(self.machine) > 1 and Shared.possible  # whether memory is one for the processes of a machine

    def place(
        self, places: Sequence[str], samples: Mapping[str, Sequence[Sample]], of_run: Mapping[str, float], runs: int
    ) -> str | None:
        """Where to keep the states, the first of the places (disk, memory) that has room; None: in none, or it would not pay."""
        auto = self.config.trainer.cache == "auto"
        every = joined(samples.values())
        need = 0
        for where in places:
            self.result.stores = self._stores(where)
            if next(self._lacking(every), None) is None:
                return where
            uses = {name: of_run.get(name, 1) * (runs if where == "disk" else 1) for name in samples}
            if auto and not self._again(samples, uses):
                continue
            missing = self._missing(every)
            need = self._bytes(missing)
            if not self._room(where, need):
                continue
            try:
                if not auto or self._pays(missing[: TRIED * self._pass], samples, uses):
                    return where
            except Unwritable as error:
                _warn(str(error))
                self._withdraw()
                continue
            self._withdraw()
            return None
        if need:
            limit = self.config.trainer.cache_gb
            log.info("Cache: off; %.1f GB have no room (trainer.cache_gb=%g is the most on disk)", need / 1e9, limit)
        return None

    def _stores(self, where: str) -> dict[str, Store]:
        if where == "disk":
            return {name: self._disk(name) for name in self.needed}
        return {name: Shared() if self.shares else Memory() for name in self.needed}

    def _withdraw(self) -> None:
        for store in self.result.stores.values():
            store.withdraw()

    @property
    def _pass(self) -> int:
        """Samples of a pass that is known to fit: of an evaluation's on a GPU, of a step's on a CPU."""
        trainer = self.config.trainer
        gpu = self.backbone.device.type == "cuda"
        return trainer.samples_per_evaluation_pass if gpu else trainer.samples_per_pass

    def _disk(self, tower: str) -> Disk:
        name = content(self.backbone, self.result.frontiers, tower, self.precision, self.types.get(tower))
        boundary = self.result.frontiers[tower].boundary
        assert boundary is not None
        note = {"model": self.config.model.name, "source": self.backbone.source, "task": self.config.task.name}
        note |= {"prefix": boundary.name, "precision": self.precision}
        return Disk(kept_folder() / name, name, note, 1e9 * self.config.trainer.cache_gb)

    def _missing(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those whose states are not all there, one of those with the same states."""
        found: dict[tuple[str, ...], int] = {}
        for place, keys in self._lacking(samples):
            found.setdefault(keys, place)
        return select(samples, list(found.values()))

    def _lacking(self, samples: Sequence[Sample]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Place, and the keys of the states, of each sample whose states are not all there."""
        for place, sample in enumerate(samples):
            towers = self.result.towers(self.builder.asked(sample))
            keys = [(tower, key) for tower in towers for key in self.result.keys(tower, sample)]
            if not all(key in self.result.stores[tower] for tower, key in keys):
                yield place, tuple(key for _, key in keys)

    def _again(self, samples: Mapping[str, Sequence[Sample]], uses: Mapping[str, float]) -> float:
        """How often a sample is seen that has been seen before."""
        return max(0.0, sum(len(split) * (uses.get(name, 1) - 1) for name, split in samples.items()))

    def _pays(
        self,
        tried: Sequence[Sample],
        samples: Mapping[str, Sequence[Sample]],
        uses: Mapping[str, float],
    ) -> bool:
        """Whether keeping states takes less time than computing them again, measured on a few samples, which are then kept."""
        once = sum(len(split) for split in samples.values())
        again = once + self._again(samples, uses)
        started = time.perf_counter()
        memory = self._in_memory(tried)
        computing = (time.perf_counter() - started) / len(tried)
        started = time.perf_counter()
        for name, store in memory.items():
            own = self.result.stores[name]
            own.add(store.states, store.in_tuple)
            own.flush()
            for key in store.states:
                if (state := own.get(key)) is not None:
                    state.clone()
        reading = (time.perf_counter() - started) / len(tried)
        pays = computing * once + reading * (once + again) < computing * again
        log.info(
            "Cache: the frozen prefix takes %.1f ms a sample, keeping and reading it %.1f ms, for %.1f uses: %s",
            1000 * computing, 1000 * reading, again / once, "kept" if pays else "off, computing it anew is faster",
        )  # fmt: skip
        return pays

    def _bytes(self, samples: Sequence[Sample]) -> int:
        """Bytes of the states of samples, from those of one."""
        if not samples:
            return 0
        memory = self._in_memory(samples[:1])
        return len(samples) * sum(store.bytes for store in memory.values())

    def _in_memory(self, samples: Sequence[Sample]) -> dict[str, Memory]:
        """By tower, the states of samples, computed and not kept."""
        memory = {name: Memory() for name in self.needed}
        with self.display.track("trying the frozen prefix", len(samples)) as track:
            self.builder.build(replace(self.result, stores=memory), samples, self._pass, track)
        return memory

    def _room(self, where: str, need: int) -> bool:
        if where == "memory":
            copies = 1 if self.shares else len(self.machine)
            return copies * need <= SHARE * psutil.virtual_memory().available
        if fault := unwritable():
            _warn(fault)
            return False
        used = sum(sizes(folder) for folder in folders())
        return need <= min(self.config.trainer.cache_gb * 1e9 - used, SHARE * shutil.disk_usage(kept_folder()).free)

    def fill(self, where: str, samples: Sequence[Sample]) -> None:
        """Compute what is not there, each process its share."""
        if rank():
            self.result.stores = self._stores(where)
        missing = self._missing(samples)
        own = self._share(where, missing)
        started, fault = time.perf_counter(), ""
        try:
            size, workers = self._at_once(own), self.config.trainer.loaders
            with self.display.track("keeping the frozen prefix", len(own)) as track:
                self.builder.build(self.result, own, size, track, workers)
            for store in self.result.stores.values():
                store.flush()
        except Unwritable as error:
            fault = str(error)
        left = self._join(missing, fault)
        boundaries = [self.result.frontiers[name].boundary for name in self.result.stores]
        self.result.facts = {
            "where": where,
            "towers": [boundary.name for boundary in boundaries if boundary],
            "bytes": sum(store.bytes for store in self.result.stores.values()),
            "computed": len(missing) - left,
            "seconds": time.perf_counter() - started,
        }
        log.info(
            "Cache: %s of %s samples, %.2f GB %s; %s computed in %.1f s",
            ", ".join(self.result.facts["towers"]), f"{len(samples):,}", self.result.facts["bytes"] / 1e9,
            f"in {kept_folder()}" if where == "disk" else "in memory", f"{len(missing) - left:,}", self.result.facts["seconds"],
        )  # fmt: skip

    def _at_once(self, samples: Sequence[Sample]) -> int:
        """Samples computed at once: on a CPU a step's, as more are no faster, and would set the run's peak of memory."""
        device, workers = self.backbone.device, self.config.trainer.loaders
        if device.type != "cuda" or len(samples) <= self._pass:
            return self._pass
        for _ in range(2):  # the first pass allocates what stays
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self._in_memory(samples[:1])
        need = torch.cuda.max_memory_allocated(device) - before
        length = self.result.lengths[samples[0].subtask] if self.builder.asked(samples[0]) else 0
        return at_once(self._pass, need, size_of(loaded(self.backbone, length, samples[:1])), workers)

    def _share(self, where: str, missing: Sequence[Sample]) -> Sequence[Sample]:
        """What this process computes: on disk all of them share the work, in memory those that share it, if any do."""
        together = list(range(count())) if where == "disk" else self.machine if self.shares else [rank()]
        place = together.index(rank())
        return select(missing, [n for n, one in enumerate(missing) if self._number(one) % len(together) == place])

    def _join(self, missing: Sequence[Sample], fault: str) -> int:
        """Wait for all processes, and know what they have kept; of how many prefixes that cannot be said, is told and returned."""
        stores = self.result.stores
        everyone = gather((fault, {name: store.own for name, store in stores.items() if isinstance(store, Shared)}))
        for name, store in stores.items():
            if isinstance(store, Shared):
                store.take_in(path for number in self.machine for path in everyone[number][1][name])
            elif isinstance(store, Disk):
                store.refresh()
                store.touch()
            self.prefix_replay.in_tuple[name] = store.in_tuple
        faults = [found for found, _ in everyone if found]
        left: int = max(gather(len(self._missing(missing))))
        for store in stores.values():
            if isinstance(store, Shared):
                store.close()
        if faults or left:
            fault = faults[0] if faults else "what one process keeps cannot be read by another"
            _warn(fault, f"{left:,} of {len(missing):,} prefixes are not kept, and computed each time")
        return left

    def _number(self, sample: Sample) -> int:
        """A number by which processes share the samples, whatever each of them has found on disk."""
        return int(self.result.keys(self.result.towers(self.builder.asked(sample))[0], sample)[0], 16)


def content(
    backbone: Backbone, frontiers: Mapping[str, Frontier], tower: str, precision: str, dtype: torch.dtype | None = None
) -> str:
    """Hash of all that a tower's kept states depend on besides the sample: weights, settings, versions, boundary, precision, and
    the type that they are cast to (None: to none)."""
    frontier = frontiers[tower]
    assert frontier.boundary is not None
    processor = backbone.image_processor.to_dict()
    about: dict[str, Any] = {
        "rules": RULES,
        "boundary": [frontier.boundary.layers, *frontier.boundary.taps],
        "precision": [precision, str(dtype or "")],
        "device": backbone.device.type,
        "versions": [torch.__version__, transformers.__version__],
        "images": processor,
        "jpeg_side": backbone.jpeg_side,
    }
    if "question" in frontier.of:
        words = json.loads(backbone.tokenizer.backend_tokenizer.to_str())
        about["words"] = {**words, "truncation": None, "padding": None}  # both are as the last call left them
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(weights_before(backbone, frontiers, tower)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hash_of(tensor)}".encode())
    return digest.hexdigest()


def weights_before(backbone: Backbone, frontiers: Mapping[str, Frontier], tower: str) -> list[tuple[str, Tensor]]:
    """Parameters and buffers before a tower's boundary, and those of what it reads."""
    towers = {tower, *(name for name in frontiers[tower].reads if name in frontiers)}
    boundary = frontiers[tower].boundary
    assert boundary is not None
    path = backbone.config.towers[tower].layers
    roots = tuple(f"{backbone.config.towers[name].layers.split('.')[0]}." for name in towers)
    tensors = []
    for name, tensor in [*backbone.model.named_parameters(), *backbone.model.named_buffers()]:
        if not name.startswith(roots) or tensor.requires_grad or group_of(name) != "trunk":
            continue
        behind = name.startswith(f"{path}.") and int(name[len(path) + 1 :].split(".")[0]) >= boundary.layers
        if not behind:
            tensors.append((name, tensor))
    return tensors
