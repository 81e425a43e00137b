"""Adapters' weights in autocast's type, cast all together: autocast would cast each one, with a kernel of its own."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vlatrain.adapters.projections import Dense, autocasts


class Lowering:
    """The context of a forward pass: under autocast, trained dense layers of adapters have their weights in its type.

    Gradients reach the fp32 parameters. What is recomputed in the backward pass, outside the context, is cast by autocast, which
    gives the same numbers.

    Args:
        model: the model, adapters in it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for layer in model.modules() if isinstance(layer, Dense) and layer.weight.requires_grad]

    def __enter__(self) -> None:
        if not self.layers or not autocasts(self.layers[0].weight):
            return
        dtype = torch.get_autocast_dtype(self.layers[0].weight.device.type)
        trained = [own for layer in self.layers for own in layer.parameters() if own.requires_grad]
        found = {id(own): own for own in trained}  # a shared one once
        cast = dict(zip(found, _Cast.apply(dtype, *found.values()), strict=True))
        for layer in self.layers:
            weight, bias = (cast.get(id(own), own) for own in (layer.weight, layer.bias))
            layer.lowered = weight, bias

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self.layers:
            layer.lowered = None


def lower_for_good(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of adapters' dense layers once for all calls under autocast: of a model that trains no more."""
    for layer in model.modules():
        if isinstance(layer, Dense):
            bias = layer.bias if layer.bias is None else layer.bias.detach().to(dtype)
            layer.lowered = layer.weight.detach().to(dtype), bias


class _Cast(torch.autograd.Function):
    """Tensors in another type, by one kernel for all, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_cast(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        found = iter(_cast(given, torch.float32))
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def _cast(tensors: Any, dtype: torch.dtype) -> list[Tensor]:
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if made:
        torch._foreach_copy_(made, list(tensors))
    return made
