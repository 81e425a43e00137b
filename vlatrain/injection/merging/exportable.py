"""Whether a finished run can be handed on in a form, from what its files say: where it cannot, a line says so, and what can.

No torch here, but for a run of a design of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlatrain.config import ExportConfig, UserError
from vlatrain.config.methods import BARE, ROUTER
from vlatrain.injection.merging.mergeable import LORA
from vlatrain.injection.routes import read_note, read_routes
from vlatrain.injection.sources import Source, read_sources

BY_VLATRAIN = "form=adapter can, which vlatrain loads"
BY_PEFT = "form=adapter can, which vlatrain loads, and PEFT after `import vlatrain`"


def unexportable(config: ExportConfig, plain: bool) -> list[str]:
    """Everything that keeps a run from being exported in its form.

    Args:
        config: the run's configuration, and what is asked for.
        plain: whether one class of transformers is the whole backbone.
    """
    try:
        if config.adapter.name == ROUTER:
            return _of_router(config)
        (source,) = read_sources([config.source], "run")
    except UserError as error:
        return error.problems
    title = f"run={source.folder}: adapter={source.method}"
    if source.method == "none":
        return [f"{title} has trained nothing that could be exported"]
    found = {"merged": _unmerged, "peft-lora": _no_lora}.get(config.form)
    return list(found(source, title, plain)) if found else []


def _of_router(config: ExportConfig) -> list[str]:
    read_routes(config.adapter.sources, read_note(Path(config.source)))  # all of them must be there, and as they were
    if config.form == "adapter":
        return []
    title = f"form={config.form}: run={config.source}: adapter=router"
    return [
        f"{title} picks among other runs; form=adapter can, which carries them, and each of them can be exported itself"
    ]


def changes_weights(design: Any) -> bool:
    """Whether a design of our own, or from outside the package, is a change of weights, and says which (`Adapter.change_of`)."""
    from vlatrain.adapters import DESIGNS, Adapter  # with torch

    return design in DESIGNS and DESIGNS[design].change_of is not Adapter.change_of


def _unmerged(source: Source, title: str, plain: bool) -> Iterator[str]:
    if source.run.get("adapter", {}).get("components"):
        yield f"form=merged: {title} has several methods, which cannot all go into the weights; {BY_VLATRAIN}"
    elif source.adapter.get("tasks"):
        yield f"form=merged: {title} has adapters for each task (adapter.by_task=true); {BY_PEFT}"
    elif source.is_ours and not changes_weights(source.adapter.get("design")):
        yield f"form=merged: {title} is no change of weights, so that no checkpoint does the same; {BY_PEFT}"


def _no_lora(source: Source, title: str, plain: bool) -> Iterator[str]:
    if source.run.get("adapter", {}).get("components"):
        yield f"form=peft-lora: {title} has several methods; {BY_VLATRAIN}"
    elif source.method in BARE:
        yield f"form=peft-lora: {title} has trained weights where they are; form=merged can, a whole checkpoint"
    elif source.is_ours:
        other = "form=merged can, a whole checkpoint, and " if changes_weights(source.adapter.get("design")) else ""
        yield f"form=peft-lora: {title} is no LoRA of PEFT's; {other}{BY_PEFT}"
    elif source.adapter.get("peft_type") != LORA:
        yield f"form=peft-lora: {title} is no LoRA; form=adapter can, which PEFT itself loads, and form=merged"
    elif source.trunk:
        yield f"form=peft-lora: {title} has trained weights of the trunk, too; form=merged can, with all of them"
    elif not plain:
        yield f"form=peft-lora: {title}: transformers has no class that is all of model={source.model}; {BY_VLATRAIN}"
