"""What the command line can do, one file a verb. This table needs neither Hydra nor torch."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_announced = threading.Event()


def announce_loading() -> None:
    """Say, once, that PyTorch is to be loaded, which takes seconds; nothing where it is there."""
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0" and not _announced.is_set():
        _announced.set()
        print("Loading PyTorch and transformers ...", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Verb:
    """One word of the command line.

    Attributes:
        does: what it does, in a line of the help.
        function: module and function that a checked configuration is given to.
        plain: whether it is given the words as they are: it has no configuration.
    """

    does: str
    function: str
    plain: bool = False

    @property
    def call(self) -> Callable[..., Any]:
        """The function; torch is imported with it."""
        announce_loading()
        module, _, name = self.function.rpartition(".")
        verb: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return verb


VERBS = {
    "train": Verb(
        "train an adapter and evaluate it (the default: the word may be left out)", "vlatrain.verbs.train.train"
    ),
    "eval": Verb("score a finished run again, on the same or on other data", "vlatrain.verbs.eval.evaluate"),
    "predict": Verb("ask a trained model about your images", "vlatrain.verbs.predict.predict"),
    "merge": Verb("average adapters, or prune a fusion", "vlatrain.verbs.merge.merge"),
    "export": Verb("hand a finished run on: a folder or the hub, with a model card", "vlatrain.verbs.export.export"),
    "inspect": Verb("show what a training would adapt and cost; loads no weights", "vlatrain.verbs.inspect.inspect"),
    "check": Verb("look at the data of a training; loads no weights", "vlatrain.verbs.check.check"),
    "report": Verb("write a page of a run, or of several side by side", "vlatrain.verbs.report.report", plain=True),
    "cache": Verb("list and remove what runs have kept of frozen prefixes", "vlatrain.verbs.cache.show", plain=True),
}
