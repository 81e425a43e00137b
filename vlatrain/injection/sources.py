"""Finished runs whose adapters are combined: what their files say, and whether a fusion can take them. No torch here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatrain.config.errors import Incompatible, UserError
from vlatrain.config.methods import BARE
from vlatrain.injection.points import Place, Point
from vlatrain.runs import RunFolder, is_run, read_config, refuse_changed

OURS = "VLATRAIN"  # what the name of our method starts with in a saved adapter
TRUNK = "trunk.safetensors"  # weights of the trunk that trained with an adapter, beside it


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        name: name of its folder; the whole path where several runs have the same.
        folder: the run folder.
        run: its configuration.
        adapter: its `adapter_config.json`; empty if it has none.
    """

    name: str
    folder: Path
    run: Mapping[str, Any]
    adapter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of its method."""
        return str(self.run.get("adapter", {}).get("name", ""))

    @property
    def model(self) -> str:
        """Name of its backbone."""
        return str(self.run.get("model", {}).get("name", ""))

    @property
    def weights(self) -> Path:
        """The file of its adapter's tensors."""
        return RunFolder(self.folder).adapter / "adapter_model.safetensors"

    @property
    def trunk(self) -> Path | None:
        """The file of the trunk's weights that trained with it, if any did."""
        file = RunFolder(self.folder).adapter / TRUNK
        return file if file.is_file() else None

    @property
    def points(self) -> dict[str, dict[str, Any]]:
        """Its places by point; empty for a method of PEFT's."""
        points: dict[str, dict[str, Any]] = self.adapter.get("points", {})
        return points

    @property
    def is_ours(self) -> bool:
        """Whether it is one of vlatrain's own designs."""
        return str(self.adapter.get("peft_type")).startswith(OURS)

    def described(self) -> dict[str, Any]:
        """What a fusion keeps of it, plain JSON values."""
        kept = {key: self.adapter[key] for key in ("design", "options", "overrides")}
        return {"name": self.name, **kept, "points": list(self.points)}


def read_sources(folders: Sequence[str], key: str) -> list[Source]:
    """The runs in folders, in this order.

    Args:
        folders: the folders.
        key: the configuration's key that names them, for messages.

    Raises:
        UserError: folders that are no finished run, and the same twice; all of them.
    """
    sources, problems = [], []
    paths = [Path(folder).expanduser() for folder in folders]
    names = Counter(path.resolve().name for path in paths)
    for path, times in Counter(path.resolve() for path in paths).items():
        if times > 1:
            problems.append(f"{key}: {path} is named {times} times")
    for path in paths:
        if not is_run(path):
            problems.append(f"{key}: {path}: no finished run there (it has no {RunFolder(path).config.name})")
            continue
        name, inside = path.resolve().name, RunFolder(path).adapter
        try:
            if inside.is_dir():
                refuse_changed(inside)
            run, adapter = read_config(path), _read_adapter(path)
        except UserError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
            continue
        sources.append(Source(name if names[name] == 1 else str(path.resolve()), path, run, adapter))
        if not adapter and sources[-1].method not in BARE and not run.get("adapter", {}).get("components"):
            problems.append(f"{key}: {path}: no {inside.name}/adapter_config.json there; the run has not finished")
        elif adapter and not sources[-1].weights.is_file():
            problems.append(
                f"{key}: {path}: no {inside.name}/{sources[-1].weights.name} there; the run has not finished"
            )
    if problems:
        raise UserError(problems)
    return sources


def _read_adapter(run: Path) -> dict[str, Any]:
    file = RunFolder(run).adapter / "adapter_config.json"
    if not file.is_file():
        return {}
    try:
        adapter: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return adapter
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error


def unfusable(folders: Sequence[str], model: str, places: Mapping[Point, Place]) -> Iterator[str]:
    """What keeps runs from being fused.

    Args:
        folders: the runs.
        model: name of the backbone.
        places: the points that the fusion may have.
    """
    try:
        sources = read_sources(folders, "adapter.sources")
    except UserError as error:
        yield from error.problems
        return
    found = [problem for source in sources for problem in _of_source(source, model, places)]
    yield from found
    if found:
        return
    met = Counter(point for source in sources for point in source.points if Point.parse(point) in places)
    if max(met.values()) < 2:
        yield (
            "adapter.sources: there is no point at which two of the runs have an adapter, so there is nothing to weigh; "
            "name two runs or more with points in common"
        )


def _of_source(source: Source, model: str, places: Mapping[Point, Place]) -> Iterator[str]:
    where = f"adapter.sources: {source.folder}"
    if source.model != model:
        yield Incompatible(f"{where}: trained in model={source.model}, not in model={model}")
        return
    if not source.is_ours:
        yield Incompatible(
            f"{where}: is adapter={source.method}; only vlatrain's own adapters can be fused, such as bottleneck"
        )
        return
    if source.trunk:
        yield Incompatible(
            f"{where}: its adapters go with weights of the trunk that trained with them, and fit no other trunk"
        )
        return
    if source.adapter.get("tasks"):
        yield Incompatible(f"{where}: has adapters for each task (adapter.by_task=true), of which none is the run's")
        return
    points = {text: Point.parse(text) for text in source.points}
    if any(point.tower == "features" or point.site == "layer" or ":" in point.site for point in points.values()):
        yield Incompatible(
            f"{where}: adapter={source.method} does not adapt the output of sub-layers, and cannot be fused"
        )
        return
    common = {text: point for text, point in points.items() if point in places}
    if not common:
        yield Incompatible(
            f"{where}: has adapters at {', '.join([*points][:3])}, ..., none of which is among the points here"
        )
    facts = ["width"]
    if "other" in source.run.get("adapter", {}).get("needs", []):
        facts.append("other_width")
    for fact in facts:
        differing = [
            text for text, point in common.items() if source.points[text].get(fact, 0) != getattr(places[point], fact)
        ]
        if differing:
            there, here = source.points[differing[0]].get(fact, 0), getattr(places[points[differing[0]]], fact)
            what = "states" if fact == "width" else "states of the other modality"
            yield Incompatible(
                f"{where}: at {differing[0]} it was trained with {what} of width {there}; here it is {here or 'none'}"
            )
