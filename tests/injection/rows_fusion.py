"""Rows of fusion, and the finished runs that it takes its sources from."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from tests.conftest import small_config
from tests.injection.table import Row, method, randomise
from vlatrain.adapters import Fusion
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, TaskConfig, TrainConfig
from vlatrain.injection.attach import attach, save
from vlatrain.injection.merging.fuse import fill
from vlatrain.injection.points import Sites
from vlatrain.injection.sources import read_sources
from vlatrain.runs import RunFolder, save_config

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
    save(model, RunFolder(folder).adapter)
    save_config(run, folder)
    return folder


PLACES = [("blip", "vqa"), ("blip", "captioning"), ("clip", "retrieval")]  # where they were trained


def folders(family: str, task: str) -> list[str]:
    return [str(Path(KEPT.name) / family / task / name) for name in SOURCES]


def write_all() -> None:
    """The runs that the rows name."""
    for place in PLACES:
        for folder, config in zip(folders(*place), SOURCES.values(), strict=True):
            written(Path(folder), *place, config)


def row(family: str, task: str, value: str, unfit: dict[tuple[str, str], str]) -> Row:
    config = method("fusion", dim=3, sources=folders(family, task), options={"value": value})

    def finish(model: nn.Module, name: str) -> Any:
        fill(model, read_sources(config.sources, "sources"), name)

    def count(where: Sites) -> int:
        there = sites(small_config(family), task, ["*"]).places  # a fusion goes where its sources have adapters
        return sum(Fusion.count(place.width, 3, value) for point, place in where.places.items() if point in there)

    return Row(
        config,
        count,
        unfit=unfit,
        inexact="starts as the mean of its sources",
        tolerance=math.inf,
        finish=finish,
    )


CLIP = {("clip", "retrieval"): "trained in model=blip, not in model="}
BLIP = dict.fromkeys(
    [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval")], "trained in model=clip, not in model="
)
NARROWER = dict.fromkeys([("blip", "captioning"), ("blip", "retrieval")], "with states of width 48; here it is 32")
ROWS: dict[str, Row] = {
    "fusion": row("blip", "vqa", "identity", CLIP | NARROWER),
    "fusion, full value": row(
        "blip", "captioning", "full", CLIP | {("blip", "vqa"): "with states of width 32; here it is 48"}
    ),
    "fusion, of clip": row("clip", "retrieval", "full", BLIP),
}
