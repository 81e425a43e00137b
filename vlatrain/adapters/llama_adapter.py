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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vlatrain.adapters.base import Adapter, Call, Facts

FUSED = ("query", "key", "value")  # the thirds of a fused `qkv`


@dataclass(frozen=True)
class LlamaAdapterOptions:
    """Options of `LlamaAdapter`.

    Attributes:
        dim: tokens of the prompt.
        init_std: standard deviation of the prompt at the start.
    """

    dim: int = 10
    init_std: float = 1.0


class LlamaAdapter(Adapter):
    """`out(tanh(gate) * softmax(query(x) key(prompt)^T / sqrt(d)) value(prompt))`, added to the attention's output.

    The size d of a head is the query's outputs over the heads, which need not be the width over the heads (Gemma, Qwen3). In
    grouped-query attention (Ainslie et al., EMNLP 2023) key and value have fewer heads, each for a group of the query's.

    Parameters: `dim * width + heads`: 7,692 for width 768, dim 10 and 12 heads.

    Raises:
        ValueError: no attention heads.
    """

    Options = LlamaAdapterOptions
    reads = "input"

    def __init__(self, facts: Facts, options: LlamaAdapterOptions) -> None:
        super().__init__(facts, options)
        if facts.heads < 1:
            raise ValueError(f"heads={facts.heads}: the tower has no attention heads")
        self.heads = facts.heads
        self.prompt = nn.Parameter(torch.randn(options.dim, facts.width) * options.init_std)
        self.gate = nn.Parameter(torch.zeros(facts.heads))

    def forward(self, states: Tensor, call: Call) -> Tensor:
        """What to add to the attention's output, from its input (B, L, width).

        Raises:
            ValueError: the place is no self-attention.
        """
        if not {"out"} <= set(call.frozen) or not ({"qkv", *FUSED} & set(call.frozen)):
            raise ValueError("needs an attention's query, key, value (or qkv) and out: choose points at attn sites")
        query = projected(call.frozen, "query", states)  # (B, L, heads * d)
        size = query.shape[-1] // self.heads
        query = query.unflatten(-1, (self.heads, size)).transpose(-2, -3)  # (B, heads, L, d)
        prompt = self.prompt.to(states.dtype)
        key, value = (self._by_head(projected(call.frozen, role, prompt), size) for role in ("key", "value"))
        scores = query @ key.transpose(-1, -2) / size**0.5  # (B, heads, L, dim)
        found = scores.float().softmax(dim=-1).to(value.dtype) @ value  # (B, heads, L, d)
        found = found * torch.tanh(self.gate)[:, None, None].to(found.dtype)
        # (B, heads, L, d) -> (B, L, heads * d); without the bias: the frozen attention has added it
        joined = found.transpose(-2, -3).flatten(-2)
        return without_bias(call.frozen["out"], joined).to(states.dtype)

    def _by_head(self, states: Tensor, size: int) -> Tensor:
        """(dim, key-value heads * d) -> (heads, dim, d): each is repeated for the heads of its group."""
        split = states.unflatten(-1, (-1, size)).transpose(0, 1)  # (key-value heads, dim, d)
        repeated: Tensor = split.repeat_interleave(self.heads // len(split), dim=0)
        return repeated


def projected(frozen: Mapping[str, nn.Module], role: str, states: Tensor) -> Tensor:
    """The query, key or value of states, by a module of its own or by its third of a fused one."""
    made: Tensor
    if role in frozen:
        made = plain(frozen[role]).forward(states)
        return made
    whole, third = plain(frozen["qkv"]), FUSED.index(role)
    if type(whole) is nn.Linear:  # the other two need not be computed
        return linear(states, whole.weight.chunk(3)[third], None if whole.bias is None else whole.bias.chunk(3)[third])
    made = whole.forward(states).chunk(3, dim=-1)[third]
    return made


def without_bias(module: nn.Module, states: Tensor) -> Tensor:
    """What a linear layer makes of states, but for its bias."""
    made: Tensor = plain(module).forward(states)
    bias: Tensor | None = module.bias  # type: ignore[assignment]  # a linear layer's
    return made if bias is None else made - bias.to(made.dtype)


def plain(module: nn.Module) -> nn.Module:
    """The frozen layer itself, without what a method of PEFT has put around it. Of whatever kind it is (quantised, GPT-2's Conv1D),
    its `forward` knows its weights; called as a module, it would run the hooks of other adapters on a prompt that is not theirs."""
    return getattr(module, "base_layer", module)
