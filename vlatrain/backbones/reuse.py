"""One backbone for the jobs of a sweep that run in one process: reading a large one takes longer than a short job trains.

What was read is kept as it was, and each job gets a copy of the model's modules, with hooks and settings of its own, on the same
weights: a copy costs no memory. A job that has shown that they are what they were gives the backbone back; the next one takes it if
its description is the same. What was not given back is read anew: a job may have failed, or trained weights in place.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from vlatrain.backbones.describe import checkpoints_of
from vlatrain.config import ModelConfig

LITTLE = 0.1  # share of a backbone that a job may have a second time
_ALLOWED: ContextVar[bool] = ContextVar("_ALLOWED", default=False)


@dataclass(frozen=True)
class Source:
    """A backbone as it was read.

    Attributes:
        model: the model.
        processor: its processor.
        name: where it comes from.
        seed: the seed of the weights that were drawn; None: none was.
    """

    model: PreTrainedModel
    processor: Any
    name: str
    seed: int | None = None

    def copied(self) -> Source:
        """The same on the same weights, for one job."""
        same: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.data, requires_grad=False) for parameter in self.model.parameters()
        }
        return Source(copy.deepcopy(self.model, same), copy.deepcopy(self.processor), self.name, self.seed)


class _Shelf:
    """What is kept, of one backbone at a time."""

    def __init__(self) -> None:
        self.key, self.source, self.is_in = "", None, False  # type: str, Source | None, bool


_shelf = _Shelf()


@contextmanager
def reusing() -> Iterator[None]:
    """While inside, backbones that are read are kept for those who want the same one."""
    token = _ALLOWED.set(True)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def key_of(config: ModelConfig, task: str, texts: Iterable[str], run: Path | None, stored: bool) -> str:
    """A name for everything that a backbone read depends on, but for the seed: its description, and its files as they are now."""
    files = [_files(Path(name)) for name in checkpoints_of(config, task).values()] if not config.random_init else []
    words = hashlib.blake2b("\n".join(texts).encode()).hexdigest() if config.random_init else ""
    own = str(run) if config.random_init and run is not None else ""
    about = [asdict(config), task, files, words, own, stored]
    return hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _files(checkpoint: Path) -> list[Any]:
    if not checkpoint.is_dir():
        return [str(checkpoint)]  # of a hub, whose snapshots do not change
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(checkpoint.iterdir())]
    return [str(checkpoint), *found]


def kept_or(read: Callable[[], Source], key: Callable[[], str], seed: int) -> Source:
    """A copy of the backbone that is kept, if it is that one and nobody has it; else one that is read, and kept for the next.

    Outside of `reusing` it is just read: nothing is compared, and what was kept is let go.

    Args:
        read: reads it.
        key: its name, see `key_of`.
        seed: the seed of weights that no checkpoint has.
    """
    allowed, kept = _ALLOWED.get(), _shelf.source
    name = key() if allowed else ""
    if kept and allowed and _shelf.is_in and _shelf.key == name and kept.seed in (None, seed):
        _shelf.is_in = False
        return kept.copied()
    clear()  # before another is read: not both at once
    kept = None
    source = read()
    if not allowed:
        return source
    _shelf.key, _shelf.source = name, source
    return source.copied()


def clear() -> None:
    """Let go of the backbone that is kept."""
    _shelf.key, _shelf.source, _shelf.is_in = "", None, False


def separate(trained: Iterable[nn.Parameter]) -> None:
    """Give parameters of the backbone's own that a job is to train weights of its own, unless they are much of it.

    Args:
        trained: the parameters that it trains.
    """
    if _shelf.source is None or _shelf.is_in:
        return
    own = {parameter.data_ptr(): parameter.numel() for parameter in _shelf.source.model.parameters()}
    shared = [parameter for parameter in trained if parameter.data_ptr() in own]
    if sum(parameter.numel() for parameter in shared) < LITTLE * sum(own.values()):
        for parameter in shared:
            parameter.data = parameter.data.clone()


def give_back(trained: Iterable[Tensor]) -> None:
    """Let the next job have the backbone: this one has shown that no frozen weight has moved.

    Args:
        trained: the parameters that it has trained. If one is the backbone's own, it keeps it.
    """
    if _shelf.source is None:
        return
    own = {parameter.data_ptr() for parameter in _shelf.source.model.parameters()}
    _shelf.is_in = not own & {parameter.data_ptr() for parameter in trained}
