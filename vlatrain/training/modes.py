"""Frozen stays frozen: which modules are in train mode, what may be cast, and the proof that nothing else moved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import T5PreTrainedModel

from vlatrain.adapters import Adapter
from vlatrain.config import UserError
from vlatrain.injection.context import recomputed
from vlatrain.injection.site import Site
from vlatrain.metrics.precision import full_precision


class FrozenWeightsMoved(RuntimeError):  # noqa: N818, what it says
    """Training has changed weights or buffers that are frozen, which nothing may."""


NORMS = (nn.LayerNorm, nn.GroupNorm)  # autocast computes them in fp32


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_roots(model: nn.Module) -> Iterator[nn.Module]:
    """The topmost modules all of whose parameters are trained. Their dropout and buffers are theirs to use; everything
    else is frozen, a trunk's dropout (which has no parameters to tell by) too.

    A layer that wraps a frozen one (PEFT's tuner layers: LoRA's dropout has no parameters either) counts as trained but
    for what it wraps.
    """
    parameters = list(model.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        yield model
        return
    if not any(parameter.requires_grad for parameter in parameters):
        return
    wrapped = getattr(model, "base_layer", None)
    for child in model.children():
        if isinstance(wrapped, nn.Module) and child is not wrapped and not any(True for _ in child.parameters()):
            yield child
        else:
            yield from trained_roots(child)


def train_mode(model: nn.Module) -> None:
    """Put what is trained into train mode and everything else into eval mode."""
    model.eval()
    for root in list(trained_roots(model)):
        root.train()
    for module in model.modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module) and any(trained_roots(module)):
            module.training = True  # DoRA asks its own flag whether to apply dropout


def moving_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of the trained modules, by name: a fully trained model's batch norms move theirs."""
    roots = {id(module) for root in trained_roots(model) for module in root.modules()}
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        if id(module) in roots
        for name, buffer in module.named_buffers(recurse=False)
    }


def frozen_hashes(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the values of every frozen parameter and buffer, by name; of a shard, of what this process holds.

    Those in a type below fp32 are hashed as fp32, which loses nothing: bitsandbytes recasts the biases of packed layers in place.
    """
    moving = moving_buffers(model)
    tensors: dict[str, Tensor] = {name: tensor for name, tensor in model.named_parameters() if not tensor.requires_grad}
    tensors |= {name: tensor for name, tensor in model.named_buffers() if name not in moving}
    return {name: _hash(tensor) for name, tensor in tensors.items()}


def fingerprint(model: nn.Module) -> str:
    """One hash over all that is frozen: names, shapes and values of parameters and buffers."""
    return combined(frozen_hashes(model))


def combined(hashes: dict[str, str]) -> str:
    """One hash over `frozen_hashes`."""
    return hashlib.sha256("\n".join(f"{name} {hashes[name]}" for name in sorted(hashes)).encode()).hexdigest()


def hash_of(tensor: Tensor) -> str:
    """SHA-256 of a parameter's or buffer's values: of the whole, where it is a shard."""
    return getattr(tensor, "hash", None) or _hash(tensor)


def _hash(tensor: Tensor) -> str:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.detach().cpu().float()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_moved(before: dict[str, str], model: nn.Module) -> None:
    """Make sure that nothing frozen has changed since `frozen_hashes` returned `before`.

    Raises:
        FrozenWeightsMoved: something has; it names what.
    """
    after = frozen_hashes(model)
    moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if moved:
        raise FrozenWeightsMoved(
            f"{len(moved)} frozen weights or buffers changed in training: {', '.join(moved[:5])}; the adapter is saved, "
            "but was trained on the changed ones"
        )


def cast_trunk(model: nn.Module, dtype: torch.dtype, low_norms: bool = False) -> None:
    """Cast the frozen weights to a lower precision, in place, however they are stored; what is trained becomes (and stays) fp32.

    Single numbers (a temperature, SigLIP's scale and bias of shape (1,)), layer norms (autocast computes them in fp32, and would
    cast other weights in each call) and modules with running statistics (batch norm) keep theirs: they save nothing and lose much.
    So do the frozen parts of adapters, which are fp32 as all of an adapter is, heads whose outputs order things
    (`Backbone.scoring`), and under fp16 what would overflow there (`keep_from_overflow`).

    Args:
        model: the model.
        dtype: the type.
        low_norms: cast the weights of layer norms too, and have them put out this type: see `LowNorm`.
    """
    exact = {id(parameter) for parameter in kept_exact(model)}
    exact |= {id(layer.weight) for layer in model.modules() if type(layer) is ExactLinear}
    ours = {id(module) for adapter in model.modules() if isinstance(adapter, Adapter) for module in adapter.modules()}
    for module in model.modules():
        lower = low_norms and type(module) is nn.LayerNorm and not _trains(module) and id(module) not in ours
        if lower:
            module.__class__ = LowNorm
        fp32 = id(module) in ours or (isinstance(module, NORMS) and not lower)
        fp32 = fp32 or any(buffer.is_floating_point() for buffer in module.buffers(recurse=False))  # statistics
        for parameter in module.parameters(recurse=False):
            whole = parameter.requires_grad or parameter.numel() == 1 or fp32 or id(parameter) in exact
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.float32 if whole else dtype)
        for buffer in module.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.data = buffer.data.float()


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class LowNorm(nn.LayerNorm):
    """A layer norm that puts out the type of its weights under autocast too, where others put out fp32, which each linear layer
    after them casts back. The kernel computes in fp32 either way; what is rounded is the sum of a layer's branches, where a norm
    comes after it."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., width) -> (..., width), of the weights' type."""
        with full_precision(input.device):
            return super().forward(input.to(self.weight.dtype))


class ExactLinear(nn.Linear):
    """A linear layer that computes in fp32 under autocast too."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out), fp32."""
        with full_precision(input.device):
            return linear(input.float(), self.weight, self.bias)


def keep_from_overflow(model: nn.Module) -> None:
    """Let T5's `wo` compute in fp32, as transformers does under fp16: what it puts out is more than fp16's largest number
    (https://github.com/huggingface/transformers/issues/20287). Weights in fp32 alone are not enough: autocast casts them."""
    for module in model.modules():
        if isinstance(module, T5PreTrainedModel):
            for name, layer in module.named_modules():
                if "wo" in name.split(".") and type(layer) is nn.Linear:
                    layer.__class__ = ExactLinear
                    layer.float()


def kept_exact(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that stay fp32 because a model says so, in the way of transformers: by parts of their names."""
    for module in model.modules():
        if names := getattr(module, "_keep_in_fp32_modules_strict", None):
            for name, parameter in module.named_parameters():
                if not set(names).isdisjoint(name.split(".")):
                    yield parameter


def checkpoint_gradients(model: nn.Module, layers: Iterable[nn.Module], compiled: bool = False) -> None:
    """Recompute the layers' activations in the backward pass instead of keeping them (non-reentrant).

    The model's own switch (`gradient_checkpointing_enable` of transformers) would not do: it heeds only layers in train mode,
    and in train mode the frozen layers of OPT, BART and others drop out. Call it after the adapters are in.

    Args:
        model: the model.
        layers: the layers of its towers.
        compiled: whether they are compiled, which a context of a recomputation does not go with.

    Raises:
        UserError: the layers are compiled, and adapters in them need the context.
    """
    contextual = any(isinstance(module, Site) and module.contextual for module in model.modules())
    if compiled and contextual:
        raise UserError(
            "trainer.compile=true and trainer.gradient_checkpointing=true: these adapters depend on what a layer was called with, "
            "which a compiled layer does not bring back; choose one of the two"
        )
    options: dict[str, Any] = {"use_reentrant": False} | ({"context_fn": recomputed(model)} if contextual else {})
    for layer in layers:
        _wrap(layer, options)


def _wrap(layer: nn.Module, options: dict[str, Any]) -> None:
    forward = layer.forward
    if getattr(forward, "recomputes", False):
        return

    def checkpointed(*args: object, **kwargs: object) -> object:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(partial(forward, **kwargs), *args, **options)

    checkpointed.recomputes = True  # type: ignore[attr-defined]
    layer.forward = checkpointed


def compile_layers(layers: Sequence[nn.Module], backend: str = "inductor", fullgraph: bool = False) -> None:
    """`torch.compile` each layer where it is: names and weights stay as they are. `fullgraph` makes a graph break an error."""
    # an adapter's hook makes each layer its own code, in train and eval mode, and for some shapes; past the limit torch
    # would silently leave the rest uncompiled
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(layers))
    for layer in layers:
        layer.compile(backend=backend, fullgraph=fullgraph)
