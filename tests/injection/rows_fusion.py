"""Rows of fusion, and the finished runs that it takes its sources from."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from tests.conftest import small_config
from tests.injection.table import WIDTH, Row, each, method, randomise
from vlatrain.adapters import Fusion
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, TaskConfig, TrainConfig
from vlatrain.config.paths import ADAPTER, save_config
from vlatrain.injection.attach import attach, save
from vlatrain.injection.fuse import fill
from vlatrain.injection.sources import read_sources

KEPT = tempfile.TemporaryDirectory(prefix="vlatrain-sources-")  # until the process ends
SOURCES = {
    "one": method("bottleneck", dim=4),
    "two": method("bottleneck", dim=6, options={"placement": "parallel"}, share={"what": "down", "over": ["layer"]}),
}


def written(folder: Path, family: str, task: str, config: AdapterConfig, points: list[str] | None = None) -> Path:
    """A run folder as a training leaves it, with an adapter of random values in a small backbone."""
    run = TrainConfig(task=TaskConfig(name=task, points=points or ["*"]), model=small_config(family), adapter=config)
    backbone = load(run.model, task, texts=["a red picture"])
    model = attach(backbone.model, config, sites(run.model, task, run.points))
    randomise(model, seed=sum(map(ord, folder.name)))
    save(model, folder / ADAPTER)
    save_config(run, folder)
    return folder


def folders(family: str) -> list[str]:
    return [str(Path(KEPT.name) / family / name) for name in SOURCES]


def write_all() -> None:
    """The runs that the rows name."""
    for family, task in (("blip", "vqa"), ("clip", "retrieval")):
        for folder, config in zip(folders(family), SOURCES.values(), strict=True):
            written(Path(folder), family, task, config)


def row(family: str, value: str, elsewhere: list[tuple[str, str]]) -> Row:
    config = method("fusion", dim=3, sources=folders(family), options={"value": value})

    def finish(model: nn.Module, name: str) -> Any:
        fill(model, read_sources(config.sources, "sources"), name)

    return Row(
        config,
        each(Fusion.count(WIDTH, 3, value)),
        unfit=dict.fromkeys(elsewhere, f"trained in model={family}, not in model="),
        inexact="starts as the mean of its sources",
        tolerance=math.inf,
        finish=finish,
    )


BLIP = [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval")]
ROWS: dict[str, Row] = {
    "fusion": row("blip", "identity", [("clip", "retrieval")]),
    "fusion, full value": row("blip", "full", [("clip", "retrieval")]),
    "fusion, of clip": row("clip", "full", BLIP),
}
