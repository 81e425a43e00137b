"""The trunk in 8 or 4 bit, so that a 7B model and the training of its adapters fit a 24 GB card. By bitsandbytes.

4 bit: NF4 with double quantisation (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023); 8 bit:
vector-wise with outliers in the higher precision (Dettmers et al., "LLM.int8()", NeurIPS 2022).

What is quantised are the linear layers inside the towers' layers (but for T5's `wo`); embeddings, norms, heads and whatever
trains keep their precision. One layer after the other is quantised on its way to the device, which hence never holds the whole
model in a higher precision; a model with random weights is even drawn layer by layer, and no machine ever holds it whole.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense
from transformers.pytorch_utils import Conv1D

from vlatrain.config import ModelConfig

BYTES = {8: 1.0, 4: 0.5 + 0.516 / 8}
"""Of a weight. In 4 bit, 0.127 bit for the scale of each block of 64 come on top, itself in 8 bit; here rounded up."""


def layers_of(model: nn.Module, config: ModelConfig, task: str) -> list[nn.Module]:
    """Every layer of every tower that serves a task."""
    towers = [config.towers[name] for name in config.tasks[task].towers]
    return [layer for tower in towers for layer in model.get_submodule(tower.layers).children()]


def linears(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The linear layers in some layers that are packed: the module that each is a child of, its name there, and itself.

    T5's `wo` is not, as with transformers: what it puts out is more than fp16's largest number, and T5 casts the states to the
    type of its weights, which in 4 bit are bytes.
    """
    for layer in layers:
        for parent in layer.modules():
            for name, child in parent.named_children():
                exact = name == "wo" and isinstance(parent, (T5DenseActDense, T5DenseGatedActDense))
                if type(child) in (nn.Linear, Conv1D) and not exact:
                    yield parent, name, child


def quantise(
    model: PreTrainedModel, layers: Iterable[nn.Module], bits: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Quantise the linear layers in some layers of a frozen model, in place, and draw what has no values yet.

    Args:
        model: the model, on the CPU; what is on the meta device is drawn from torch's generator as transformers does it.
        layers: the layers.
        bits: 8 or 4.
        device: where the quantised weights go.
        dtype: type to compute in. The weights are rounded to it before they are packed, so that they are unpacked into it; so
            are the biases, as bitsandbytes casts them to it anyway, in place.
    """
    inside = {id(child): (parent, name) for parent, name, child in linears(layers)}
    drawn = False
    for module, init in _with_init(model, model):
        if any(tensor.is_meta for tensor in _own(module)):
            module.to_empty(device="cpu", recurse=False)
            for tensor in _own(module):
                tensor.detach().zero_()  # biases that transformers leaves as they are made
            init(module)
            drawn = True
        if id(module) in inside:
            parent, name = inside[id(module)]
            setattr(parent, name, _quantised(module, bits, device, dtype))
    if drawn:
        model.tie_weights()
    setattr(model, f"is_loaded_in_{bits}bit", True)  # PEFT asks for it


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _with_init(module: nn.Module, owner: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Every module below its children's, with the function that draws its weights: that of the model it is in."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    for child in list(module.children()):
        yield from _with_init(child, owner)
    yield module, torch.no_grad()(owner._init_weights)


def _quantised(linear: nn.Module, bits: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    bnb: Any = importlib.import_module("bitsandbytes")

    weight: Tensor = linear.weight.data.to(dtype)  # type: ignore
    if isinstance(linear, Conv1D):
        weight = weight.T
    outputs, inputs = weight.shape
    with torch.device("meta"):
        if bits == 8:
            made = bnb.nn.Linear8bitLt(inputs, outputs, linear.bias is not None, has_fp16_weights=False, threshold=6.0)
            made.weight = bnb.nn.Int8Params(weight.contiguous(), requires_grad=False, has_fp16_weights=False)
        else:
            made = bnb.nn.Linear4bit(
                inputs,
                outputs,
                linear.bias is not None,
                compute_dtype=dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
            made.weight = bnb.nn.Params4bit(
                weight.contiguous(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
            )
            made.support_avx512bf16_for_cpu = False  # it would repack the frozen weights in place
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data.to(dtype), requires_grad=False)  # type: ignore
    packed: nn.Module = made.to(device).train(linear.training)
    return packed


def keep_others_exact(model: nn.Module) -> None:
    """Make fp32 of what is not packed: embeddings, norms and heads of a model that was read in a lower precision."""
    bnb: Any = importlib.import_module("bitsandbytes")

    for module in model.modules():
        if not isinstance(module, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)):
            for tensor in _own(module):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.float()


def trained_biases(model: nn.Module) -> list[str]:
    """Names of the biases of packed layers that require gradients: bitsandbytes rounds them to the type it computes in at every
    call, so they cannot train."""
    bnb: Any = importlib.import_module("bitsandbytes")

    return [
        f"{name}.bias"
        for name, module in model.named_modules()
        if isinstance(module, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit))
        and module.bias is not None
        and module.bias.requires_grad
    ]


def size_of(parameter: Tensor) -> int:
    """Number of weights that a parameter holds: in 4 bit two are in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
