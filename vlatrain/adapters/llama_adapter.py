"""LLaMA-Adapter: attention to a learned prompt beside the frozen one, behind a gate that starts at zero.

Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Large Language Models with Zero-initialized Attention" (ICLR 2024,
arXiv:2303.16199). The frozen projections of a self-attention make the prompt's keys and values and the tokens' queries; each
head's result is scaled by the tanh of a gate of its own. The softmax is over the prompt alone, so that the frozen attention is
as it was.

Deviations: no image is added to the prompt (the cross-modal designs do that); in the paper the uppermost layers have one, here
the chosen points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vlatrain.adapters.base import Adapter, Call

FUSED = ("query", "key", "value")  # the thirds of a fused `qkv`


class LlamaAdapter(Adapter):
    """`out(tanh(gate) * softmax(query(x) key(prompt)^T / sqrt(d)) value(prompt))`, added to the attention's output.

    Parameters: `dim * width + heads`: 7,692 for width 768, dim 10 and 12 heads.

    Args:
        width: width of the states.
        dim: tokens of the prompt.
        init_std: standard deviation of the prompt at the start.
        heads: attention heads.

    Raises:
        ValueError: the heads do not divide the width.
    """

    wants = ("heads",)
    reads = "input"

    def __init__(self, width: int, dim: int = 10, init_std: float = 1.0, heads: int = 1) -> None:
        super().__init__()
        if not heads or width % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {width}")
        self.heads = heads
        self.prompt = nn.Parameter(torch.randn(dim, width) * init_std)
        self.gate = nn.Parameter(torch.zeros(heads))

    def forward(self, states: Tensor, call: Call) -> Tensor:
        """What to add to the attention's output, from its input (B, L, width).

        Raises:
            ValueError: the place is no self-attention.
        """
        if not {"out"} <= set(call.frozen) or not ({"qkv", *FUSED} & set(call.frozen)):
            raise ValueError("needs an attention's query, key, value (or qkv) and out: choose points at attn sites")
        query = self._split(project(call.frozen, "query", states))  # (B, heads, L, d)
        prompt = self.prompt.to(states.dtype)
        key, value = (self._split(project(call.frozen, role, prompt)) for role in ("key", "value"))  # (heads, dim, d)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, heads, L, dim)
        found = scores.float().softmax(dim=-1).to(value.dtype) @ value  # (B, heads, L, d)
        found = found * torch.tanh(self.gate)[:, None, None].to(found.dtype)
        # (B, heads, L, d) -> (B, L, heads * d); without the bias: the frozen attention has added it
        joined = found.transpose(-2, -3).flatten(-2)
        return linear(joined, weight_of(call.frozen["out"]).to(joined.dtype)).to(states.dtype)

    def _split(self, states: Tensor) -> Tensor:
        """(..., L, width) -> (..., heads, L, d)."""
        return states.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def project(frozen: Mapping[str, nn.Module], role: str, states: Tensor) -> Tensor:
    """The query, key or value of states, by a module of its own or by its third of a fused one."""
    module = frozen[role] if role in frozen else frozen["qkv"]
    weight, bias = weight_of(module), module.bias
    if role not in frozen:
        third = FUSED.index(role)
        weight = weight.chunk(3)[third]
        bias = None if bias is None else bias.chunk(3)[third]  # type: ignore[operator]
    return linear(states, weight, bias)  # type: ignore[arg-type]


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight, (out, in)."""
    assert isinstance(module.weight, Tensor)
    return module.weight
