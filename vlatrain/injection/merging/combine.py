"""New adapters from trained ones, tensor by tensor; no backbone is needed.

- The weighted sum of adapters of one shape: the mean is that of Chronopoulou et al., "AdapterSoup" (EACL 2023 Findings,
  arXiv:2302.07027); other weights are task arithmetic, Ilharco et al., "Editing Models with Task Arithmetic" (ICLR 2023,
  arXiv:2212.04089), for adapters Zhang et al., "Composing Parameter-Efficient Modules with Arithmetic Operations" (NeurIPS 2023,
  arXiv:2306.14870).
- Of LoRA, averaging both factors is not averaging their products. Here the products are: the factors are put side by side, so that
  the change of the weights is the weighted sum of the changes, exactly, in a rank that is the sum of the ranks.
- A fusion without its least used sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlatrain.config import UserError
from vlatrain.injection.peft_method import CHILD, UNITS
from vlatrain.injection.saved import differences, few, shapes_of
from vlatrain.injection.sources import Source

Saved = tuple[dict[str, Any], dict[str, Tensor]]  # an adapter's configuration and its tensors


def summed(sources: Sequence[Source], weights: Sequence[float]) -> Saved:
    """The weighted sum of adapters of one shape, each tensor by itself.

    Args:
        sources: runs of one design, with the same points and options.
        weights: a factor for each.

    Raises:
        UserError: tensors that not all have, or in different shapes.
    """
    return dict(sources[0].adapter), added([source.weights for source in sources], weights)


def added(files: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of files of tensors.

    Args:
        files: the files.
        weights: a factor for each.

    Raises:
        UserError: tensors that not all have, or in different shapes.
    """
    stored = [load_file(file) for file in files]
    for file, other in zip(files, stored, strict=True):
        if told := differences(shapes_of(other), shapes_of(stored[0])):
            raise UserError(f"sources: {file} has not the tensors that {files[0]} has: {told}")
    tensors = {}
    for key, first in stored[0].items():
        parts = [weight * tensors[key].float() for weight, tensors in zip(weights, stored, strict=True)]
        tensors[key] = torch.stack(parts).sum(0).to(first.dtype)
    return tensors


def side_by_side(sources: Sequence[Source], weights: Sequence[float]) -> Saved:
    """LoRA whose change of each weight is the weighted sum of the sources' changes, B A = sum_i w_i s_i B_i A_i, with scaling 1.

    Args:
        sources: runs of plain LoRA with the same targets; their ranks may differ.
        weights: a factor for each.

    Raises:
        UserError: tensors that not all have.
    """
    stored = [load_file(source.weights) for source in sources]
    for source, other in zip(sources, stored, strict=True):
        if told := differences(dict.fromkeys(other, ()), dict.fromkeys(stored[0], ())):
            raise UserError(f"sources: {source.weights} has not the tensors that {sources[0].weights} has: {told}")
    factors = [
        weight * source.adapter["lora_alpha"] / source.adapter["r"]
        for weight, source in zip(weights, sources, strict=True)
    ]
    tensors = {}
    for key in stored[0]:
        parts = [other[key] for other in stored]
        if ".lora_B." in key:
            parts = [factor * part for factor, part in zip(factors, parts, strict=True)]
        tensors[key] = torch.cat(parts, dim=1 if ".lora_B." in key else 0)  # A: (r, in), B: (out, r)
    rank = sum(source.adapter["r"] for source in sources)
    return {**sources[0].adapter, "r": rank, "lora_alpha": rank}, tensors


def pruned(source: Source, keep: int) -> tuple[Saved, list[int]]:
    """A fusion with only its most used sources; of a point without any of them nothing is left.

    Args:
        source: the run of a fusion.
        keep: how many sources.

    Returns:
        The fusion, and the numbers of the sources that it keeps, in their order.

    Raises:
        UserError: a point's attention is not in its file.
    """
    tensors, fused = load_file(source.weights), source.adapter["options"]["sources"]
    wanted = [f"{_unit(place)}attention.usage" for place in source.points.values()]
    if missing := [name for name in wanted if name not in tensors]:
        raise UserError(
            f"sources: {source.weights}: {len(missing)} of {len(wanted)} attentions missing ({few(missing)})"
        )
    usage = {point: tensors[f"{_unit(place)}attention.usage"].tolist() for point, place in source.points.items()}
    here = {point: [n for n, other in enumerate(fused) if point in other["points"]] for point in source.points}
    used = [sum(usage[point][here[point].index(n)] for point in here if n in here[point]) for n in range(len(fused))]
    kept = sorted(sorted(range(len(fused)), key=lambda n: -used[n])[:keep])
    points: dict[str, Any] = {}
    left: dict[str, Tensor] = {}
    for point, place in source.points.items():
        if staying := [n for n in here[point] if n in kept]:
            points[point] = place
            left |= _pruned_point(tensors, _unit(place), here[point], staying, kept)
    heads = {key: tensor for key, tensor in tensors.items() if f".{UNITS}." not in key}
    options = {**source.adapter["options"], "sources": [fused[n] for n in kept]}
    overrides = {point: values for point, values in source.adapter["overrides"].items() if point in points}
    return ({**source.adapter, "points": points, "options": options, "overrides": overrides}, {**heads, **left}), kept


def _pruned_point(
    tensors: Mapping[str, Tensor], unit: str, here: list[int], staying: list[int], kept: list[int]
) -> dict[str, Tensor]:
    """The tensors of a point: sources get their new numbers; a single one needs neither query nor key."""
    found = {}
    for key in [key for key in tensors if key.startswith(unit)]:
        name = key.removeprefix(unit)
        numbered = re.match(r"sources\.(\d+)\.", name)
        if numbered:
            if (number := int(numbered[1])) in staying:
                found[f"{unit}sources.{kept.index(number)}.{name[numbered.end() :]}"] = tensors[key]
        elif name == "attention.usage":
            shares = tensors[key][[here.index(n) for n in staying]]
            found[key] = shares / shares.sum()
        elif len(staying) > 1 or not name.startswith(("attention.query.", "attention.key.")):
            found[key] = tensors[key]
    return found


def _unit(place: Mapping[str, Any]) -> str:
    """What the saved keys of a place start with."""
    return f"base_model.model.{place['output']}.{CHILD}.{UNITS}."
