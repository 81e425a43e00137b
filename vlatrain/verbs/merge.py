"""`vlatrain merge`: from finished runs a new adapter, in a run folder of its own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vlatrain.config import AdapterConfig, MergeConfig, TrainConfig
from vlatrain.config.files import replace_folder, write_json, write_manifest
from vlatrain.injection.merging.combine import Saved, added, pruned, side_by_side, summed
from vlatrain.injection.sources import TRUNK, Source, read_sources
from vlatrain.reporting.console import RichConsole as Console
from vlatrain.runs import RunFolder, save_config

NOTE = "merge.json"  # says in the result what it was made of


@dataclass(frozen=True)
class Merged:
    """What `merge` has made.

    Attributes:
        folder: where it is.
        note: the content of its `merge.json`.
    """

    folder: Path
    note: dict[str, Any]


def merge(config: MergeConfig, console: Console | None = None) -> Merged:
    """Merge finished runs as the configuration says.

    Args:
        config: the first run's configuration, with what is to be merged.
        console: where to print.

    Raises:
        UserError: adapters that do not fit together, or weights that cannot be had.
    """
    console = console or Console()
    sources = read_sources(config.sources, "sources")
    output = Path(config.output).expanduser()
    saved, method, note = _combined(config, sources)
    trunks = [source.trunk for source in sources if source.trunk]  # all of them or none, as has been checked
    tensors = {"adapter_model.safetensors": saved[1]} | ({TRUNK: added(trunks, note["weights"])} if trunks else {})
    _write_run(config, method, saved[0], tensors, sources[0], output)
    write_json(output / NOTE, note)
    console.print(f"In [bold]{output}[/]: {_described(note)}\nNext:\n  vlatrain eval run={output}", soft_wrap=True)
    return Merged(output, note)


def _combined(config: MergeConfig, sources: list[Source]) -> tuple[Saved, AdapterConfig, dict[str, Any]]:
    """The new adapter, its method, and what is to be noted of it."""
    if config.keep is not None:
        saved, kept = pruned(sources[0], config.keep)
        named = [sources[0].adapter["options"]["sources"][number]["name"] for number in kept]
        folders = [config.adapter.sources[number] for number in kept]
        note: dict[str, Any] = {"kind": "pruned", "sources": [str(sources[0].folder)], "kept": named}
        return saved, dataclasses.replace(config.adapter, sources=folders), note
    weights = config.weights or [1 / len(sources)] * len(sources)
    note = {"kind": "weighted sum", "sources": [str(source.folder) for source in sources], "weights": weights}
    if sources[0].is_ours:
        return summed(sources, weights), config.adapter, note
    saved = side_by_side(sources, weights)
    size = {"r": saved[0]["r"], "lora_alpha": saved[0]["lora_alpha"]}
    method = dataclasses.replace(config.adapter, dim=size["r"], scaling=1.0, options={**config.adapter.options, **size})
    return saved, method, note


def _write_run(
    config: MergeConfig,
    method: AdapterConfig,
    about: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    first: Source,
    output: Path,
) -> None:
    """A run folder: what eval and predict need of one. The configuration comes last: with it, it is a run."""

    def write_adapter(folder: Path) -> None:
        write_json(folder / "adapter_config.json", about)
        for name, group in tensors.items():
            plain = {key: tensor.contiguous() for key, tensor in group.items()}
            save_file(plain, folder / name, metadata={"format": "pt"})
        write_manifest(folder)

    replace_folder(RunFolder(output).adapter, write_adapter)
    if (processor := RunFolder(first.folder).processor).is_dir():
        shutil.copytree(processor, RunFolder(output).processor)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    save_config(TrainConfig(**{**values, "adapter": method}), output)
    RunFolder(output).seal()


def _described(note: dict[str, Any]) -> str:
    if note["kind"] == "pruned":
        return f"the fusion {note['sources'][0]} with {', '.join(note['kept'])} alone"
    terms = (f"{weight:g} x {source}" for weight, source in zip(note["weights"], note["sources"], strict=True))
    return f"the adapter {' + '.join(terms)}"
