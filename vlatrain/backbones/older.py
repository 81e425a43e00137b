"""What transformers 5.17 lacks of its later releases. This file goes when the package's range begins with 5.18.

Each difference is found by looking for what is lacking, never by comparing versions.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
import transformers
from torch import Tensor

GIVEN = "mm_encoder_outputs"  # the argument by which later releases take an image's states


def admit_pil_processors(package: Any) -> None:
    """Make the image processor of Idefics3 that works with PIL available without torchvision.

    5.17 hides it, because its file mentions a class that needs torchvision in a comment.

    Args:
        package: transformers, as the caller has it: while it is imported, 5.17 puts another module in its own place.
    """
    name = "Idefics3ImageProcessorPil"
    if not getattr(getattr(package, name), "is_dummy", False):
        return
    kind = getattr(import_module("transformers.models.idefics3.image_processing_pil_idefics3"), name)
    for module in (package, transformers, sys.modules["transformers"], import_module("transformers.models.idefics3")):
        setattr(module, name, kind)


def in_rows(states: Any, ids: Tensor, image: int) -> list[Tensor]:
    """States of images as a tensor (S, d) for each row of a batch.

    Args:
        states: what the model's tower returns: a list of such tensors, one tensor (B, S, d), or, in 5.17, one of all rows' tokens
            (sum of S, d) or tiles (T, S, d).
        ids: the prompts' tokens (B, L), in which each state has a place.
        image: the token that marks these places.
    """
    if not isinstance(states, Tensor) or (states.ndim == 3 and len(states) == len(ids)):
        return list(states)
    flat = states.flatten(0, -2)  # (all states, d)
    # blank inputs are of one image, repeated
    lengths = [len(flat) // len(ids)] * len(ids) if ids.is_meta else (ids == image).sum(dim=1).tolist()
    return list(flat.split(lengths))


@contextmanager
def encoded(model: Any, features: Any, inputs: dict[str, Tensor], stacked: bool = False) -> Iterator[dict[str, Any]]:
    """The arguments by which a model takes the states of images that it has encoded before, for calls inside the context.

    5.17 has none: there the model encodes row numbers in the place of pixels, for which it is given the states of these rows. (A
    beam search repeats them as it repeats pixels.)

    Args:
        model: a model that continues text after an image.
        features: the states, as its `get_image_features` returns them in later releases: `pooler_output` has one entry a row.
        inputs: what else it is called with.
        stacked: whether the model takes the states as one tensor: where rows have more or fewer, of images, all of one size.
    """
    uneven = stacked and not isinstance(features.pooler_output, Tensor)
    if GIVEN in inspect.signature(model.forward).parameters:
        if uneven:
            size = math.gcd(*map(len, features.pooler_output))
            features = replace(features, pooler_output=torch.cat(features.pooler_output).unflatten(0, (-1, size)))
        yield {GIVEN: {"image": features}}
        return
    base = model.base_model
    grid = inputs.get("image_grid_thw")  # with it, pixels come as so many patches of each image
    if grid is not None and len(grid) > len(features.pooler_output):
        features = _by_image(features, grid)
    states = features.pooler_output
    patches = torch.ones(len(states), dtype=torch.long) if grid is None else grid.prod(dim=1).cpu()
    numbers = torch.arange(len(states)).repeat_interleave(patches).to(states[0].device)

    def known(pixel_values: Tensor, image_grid_thw: Tensor | None = None, **_: Any) -> Any:
        if pixel_values.is_meta:
            return _joined(base, features, range(len(states)), uneven)
        first = pixel_values
        if image_grid_thw is not None:
            lengths = image_grid_thw.prod(dim=1)
            first = pixel_values[lengths.cumsum(dim=0) - lengths]
        return _joined(base, features, first.tolist(), uneven)

    base.get_image_features = known
    try:
        yield {"pixel_values": numbers}
    finally:
        del base.get_image_features


def _by_image(features: Any, grid: Tensor) -> Any:
    """The states of rows as those of their images, the patches of which are in a grid (N, 3)."""
    patches = grid.prod(dim=1).cpu()

    def split(states: Any) -> list[Tensor]:
        whole = torch.cat(list(states))  # (all states, d)
        return list(whole.split((patches // (patches.sum() // len(whole))).tolist()))

    found = replace(features, pooler_output=split(features.pooler_output))
    if (deep := getattr(features, "deepstack_features", None)) is not None:
        found.deepstack_features = [split(level) for level in deep]
    return found


def _joined(base: Any, features: Any, rows: Any, uneven: bool = False) -> Any:
    """The states of rows as 5.17 wants them."""
    states = features.pooler_output
    picked: Any = states[torch.as_tensor([*rows], device=states.device)] if isinstance(states, Tensor) else None
    if picked is None:
        picked = [states[row] for row in rows]
        if hasattr(base, "inputs_merger"):  # Idefics3 takes all rows' together
            picked = torch.cat(picked)
        elif uneven:
            picked = torch.cat(picked)[None]
    found = replace(features, pooler_output=picked)
    if (deep := getattr(features, "deepstack_features", None)) is not None:
        found.deepstack_features = [torch.cat([level[row] for row in rows]) for level in deep]
    return found
