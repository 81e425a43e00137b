"""Whether finished runs can be merged, from what their files say. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlatrain.config import MergeConfig, UserError
from vlatrain.injection.sources import Source, read_sources

FUSION = "fusion"
LORA = "LORA"  # PEFT's name
# variants of LoRA whose factors do not simply add up
VARIANTS = (
    "use_dora", "use_rslora", "use_qalora", "rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices",
    "layer_replication", "lora_bias", "modules_to_save",
)  # fmt: skip


def unmergeable(config: MergeConfig) -> list[str]:
    """Everything that keeps runs from being merged as is asked."""
    try:
        sources = read_sources(config.sources, "sources")
    except UserError as error:
        return error.problems
    if config.keep is not None:
        return list(_prune(sources[0], config.keep))
    return list(_average(sources, sum(config.weights) if config.weights else 1.0))


def _prune(source: Source, keep: int) -> Iterator[str]:
    if not source.is_ours or source.adapter["design"] != FUSION:
        yield f"keep={keep}: {source.folder} is adapter={source.method}; only a fusion has sources to choose from"
    elif keep >= (number := len(source.adapter["options"]["sources"])):
        yield f"keep={keep}: {source.folder} has {number} sources; keep fewer"


def _average(sources: list[Source], total: float) -> Iterator[str]:
    found = [problem for source in sources for problem in _only(source)]
    yield from found
    if found:
        return
    first = sources[0]
    for other in sources[1:]:
        same_kind = other.adapter["peft_type"] == first.adapter["peft_type"]
        for what, one, two in _compared(first, other) if same_kind else [("method", first.method, other.method)]:
            if one != two:
                there, here = _described(one, two)
                those = "those" if here.startswith("are") else "that"
                yield f"sources: {other.folder}: its {what} {here}, {those} of {first.folder} {there}"
    if abs(total - 1) > 1e-6 and any(source.adapter.get("modules_to_save") or source.trunk for source in sources):
        yield (
            f"weights: they add to {total:g}, but the runs have trained heads (adapter.heads=true) or weights of the trunk, which "
            "are whole weights and not changes: use weights that add to 1"
        )


def _only(source: Source) -> Iterator[str]:
    title = f"sources: {source.folder}: adapter={source.method}"
    if source.is_ours:
        return
    if source.adapter.get("peft_type") != LORA:
        yield f"{title} cannot be averaged; adapters of vlatrain's own designs and of LoRA can"
        return
    for variant in VARIANTS:
        if source.adapter.get(variant):
            yield f"{title} cannot be averaged with {variant}, as its factors do not add up"
    if source.adapter.get("bias", "none") != "none":
        yield f"{title} cannot be averaged: it has trained the biases of the trunk (bias={source.adapter['bias']})"


def _compared(one: Source, two: Source) -> Iterator[tuple[str, Any, Any]]:
    """What must be the same of two runs: what it is, there and there."""
    yield "backbone", one.model, two.model
    yield "trained trunk", _trunk(one), _trunk(two)
    if not one.is_ours:
        yield (
            "targets",
            sorted(one.adapter.get("target_modules") or []),
            sorted(two.adapter.get("target_modules") or []),
        )
        return
    yield "design", one.adapter["design"], two.adapter["design"]
    yield "points", _outputs(one), _outputs(two)
    for key in ("options", "overrides", "share", "tasks", "modules_to_save"):
        yield key, _but_dropout(one.adapter.get(key)), _but_dropout(two.adapter.get(key))


def _trunk(source: Source) -> Any:
    """What of the trunk has trained: as asked for, else whether new modules have."""
    return source.run.get("adapter", {}).get("trunk") or ("new modules" if source.trunk else "nothing")


def _outputs(source: Source) -> dict[str, str]:
    return {point: place["output"] for point, place in source.points.items()}


def _but_dropout(options: Any) -> Any:
    """Dropout is of training alone."""
    return (
        {key: value for key, value in options.items() if key != "dropout"} if isinstance(options, Mapping) else options
    )


def _described(one: Any, two: Any) -> tuple[str, str]:
    """Two values that differ, in words; of several, those that do: `is lora`, `are dim=8`."""
    if not isinstance(one, Mapping) or not isinstance(two, Mapping):
        return f"is {_short(one)}", f"is {_short(two)}"
    differing = [key for key in [*one, *(key for key in two if key not in one)] if one.get(key) != two.get(key)]
    shown = (", ".join(f"{key}={value[key]}" for key in differing if key in value) for value in (one, two))
    first, second = (f"are {_short(text) or 'none'}" for text in shown)
    return first, second


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
