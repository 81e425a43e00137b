"""Running a model on shapes alone (the meta device)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class Shapes(TorchFunctionMode):
    """Lets code run on shapes that looks at values: all masks are full, and what has values meets what has none.

    Args:
        fused: whether attention is one kernel that keeps none of its weights, as it is on devices; on shapes torch writes out its
            products, by which operations are counted.
    """

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is torch.Tensor.__bool__ or (func is torch.Tensor.item and _is_mask(own)):
            return True
        if func is torch.Tensor.__getitem__ and own is not None and _is_mask(args[1]):
            return own.flatten(0, args[1].ndim - 1)
        if (
            self.fused
            and func is scaled_dot_product_attention
            and (out := _attended(*args, **(kwargs or {}))) is not None
        ):
            return out
        if func is torch.Tensor.masked_scatter and own is not None and own.shape[-1] != args[2].shape[-1]:
            raise RuntimeError(
                f"what it reads of images has a width of {args[2].shape[-1]}, its texts one of {own.shape[-1]}"
            )
        if func is torch.Tensor.tolist and hasattr(own, "counted"):
            return [own.counted] * len(own)  # type: ignore[union-attr,arg-type]
        try:
            found = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "not on the expected device" not in str(error):
                raise
            args, kwargs = tree_map_only(torch.Tensor, lambda value: value.to("meta"), (args, kwargs))
            found = func(*args, **(kwargs or {}))
        if func is torch.Tensor.sum and own is not None and _is_mask(own):
            found.counted = own.numel() // found.numel()
        return found


def _attended(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any) -> Any:
    """What fused attention keeps of (B, heads, L, head): its result, and a number for each row. None: it cannot take these."""
    if query.ndim != 4 or query.shape[-1] != value.shape[-1] or not query.is_meta:
        return None
    groups = query.shape[1] // key.shape[1]
    key, value = (one.expand(query.shape[0], -1, -1, -1) for one in (key, value))
    if groups > 1:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    mask = None if attn_mask is None else attn_mask.to("meta")
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, attn_mask=mask)[0]


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and value.dtype == torch.bool
