"""Soft prompts: learned tokens among those of a tower.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning" (EMNLP 2021, arXiv:2104.08691): in front of the first
layer. `deep`: Jia et al., "Visual Prompt Tuning" (ECCV 2022, arXiv:2203.12119), VPT-deep: fresh ones in every layer. `hidden`: a
small network makes them from learned vectors, as in Li and Liang, "Prefix-Tuning" (ACL 2021, arXiv:2101.00190), and in Sung et al.,
"VL-Adapter" (CVPR 2022, arXiv:2112.06825).

A layer is given the tokens with the prompt, and what it makes of the prompt is taken off its output again and handed to the next
layer, so that nothing outside a layer notices: neither positions, nor whoever reads hidden states or the tower's output (but for
the recorded input of the first layer). A layer without a point goes without the prompt.

In the memory of a causal tower the prompt stands behind the tokens; that it is in front is a matter of the mask: all tokens see
it, and it sees no token. So a key-value cache never holds it: it is cut off after each layer. Instead it is computed again with
each token that is generated, which costs `dim` tokens a step, and makes generation with and without a cache equal. In other towers
it stands in front, so that relative positions (T5's) are those of a prompt in front.

Deviations: such a model does not start as the frozen one, as the prompt takes part in the softmax. A decoder does not attend to the
prompt of its encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts

STATES, CACHE = "prompt", "cache"


@dataclass(frozen=True)
class PromptOptions:
    """Options of `Prompt`.

    Attributes:
        dim: number of tokens.
        init_std: standard deviation of the tokens at the start.
        deep: fresh tokens in every layer.
        hidden: width of the network's hidden layer; 0: the tokens are learned as they are.
    """

    dim: int = 16
    init_std: float = 0.5
    deep: bool = False
    hidden: int = 0


class Prompt(Adapter):
    """The prompt in one layer.

    Parameters: `dim * width` for a tower, and with `hidden` another `2 * width * hidden + hidden + width`; with `deep` for each
    layer.
    """

    Options = PromptOptions
    at: ClassVar[str] = "layer"
    residual: ClassVar[bool] = False

    def __init__(self, facts: Facts, options: PromptOptions) -> None:
        super().__init__(facts, options)
        dim, hidden, width = options.dim, options.hidden, facts.width
        if hidden < 0:
            raise ValueError(f"hidden={hidden}: must be 0 or more")
        self.dim, self.index, self.causal, self.whole = dim, facts.index, facts.causal, facts.whole
        self.passes = not options.deep and not facts.last  # whether the next layer goes on with what becomes of them
        begins = options.deep or facts.first
        self.tokens = nn.Parameter(torch.randn(dim, width) * options.init_std) if begins else None
        self.network: nn.Module | None = None
        if hidden and self.tokens is not None:
            self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def enter(self, arguments: dict[str, Any], call: Call) -> dict[str, Any]:
        """The layer's arguments with the prompt among the states, and masks that know of it.

        Raises:
            ValueError: positions or masks of a kind that cannot be extended.
        """
        if arguments.get("position_embeddings") is not None:
            raise ValueError("soft prompts do not work with rotary positions, which this tower's layers are given")
        if "position_bias" in arguments and (self.causal or not self.whole):
            raise ValueError("with relative positions, soft prompts work in all layers of an encoder, and nowhere else")
        states: Tensor = arguments["hidden_states"]  # (B, L, width)
        if self.tokens is None:
            prompt = call.carried.pop(STATES)  # (B, dim, width)
        else:
            tokens = self.tokens if self.network is None else self.network(self.tokens)
            prompt = tokens.expand(len(states), -1, -1)
        cache = arguments.get("past_key_values")
        call.carried[CACHE] = cache
        mask = arguments.get("attention_mask")
        causal = self.causal or bool(arguments.get("is_causal"))
        if mask is None and causal:
            length, past = states.shape[1], 0 if cache is None else cache.get_seq_length(self.index)
            mask = torch.ones(1, 1, length, past + length, dtype=torch.bool, device=states.device).tril(past)
        changed = {"hidden_states": self.joined(states, prompt.to(states.dtype), 1)}  # (B, L + dim, width)
        if mask is not None:
            changed["attention_mask"] = self.seen(mask, states.shape[1], causal)
        other = arguments.get("encoder_attention_mask")
        if other is not None and other.dim() == 4 and other.shape[2] > 1:  # else one row serves all
            # (B, 1, L, S) -> (B, 1, L + dim, S): the prompt sees of the other modality what the tokens do
            changed["encoder_attention_mask"] = self.joined(other, other[:, :, :1].expand(-1, -1, self.dim, -1), 2)
        return arguments | changed

    def joined(self, tokens: Tensor, prompt: Tensor, dim: int) -> Tensor:
        """What belongs to the tokens and to the prompt, in the order in which they stand in memory."""
        return torch.cat([tokens, prompt] if self.causal else [prompt, tokens], dim=dim)

    def seen(self, mask: Tensor, length: int, causal: bool) -> Tensor:
        """The mask of self-attention, with the prompt among the tokens.

        Args:
            mask: (B, 1, L or 1, K), boolean (True: seen) or additive.
            length: L, the tokens of this call; K is more by those in the cache.
            causal: whether a token sees only those before it.

        Returns:
            (B, 1, L + dim, K + dim) of the same kind.

        Raises:
            ValueError: a mask of another shape.
        """
        if mask.dim() != 4:
            raise ValueError(f"soft prompts know masks of four dimensions, not {tuple(mask.shape)}")
        mask = mask.expand(-1, -1, length, -1)
        first = mask[:, :, :1]  # without causality, all tokens see the same
        if causal:
            first = torch.full_like(first, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
        rows = self.joined(mask, first.expand(-1, -1, self.dim, -1), 2)  # (B, 1, L + dim, K)
        new = torch.ones if mask.dtype == torch.bool else torch.zeros
        columns = new((*rows.shape[:3], self.dim), dtype=mask.dtype, device=mask.device)
        return self.joined(rows, columns, 3)

    def forward(self, states: Tensor, call: Call) -> Tensor:
        """The layer's output (B, L + dim, width) without the prompt: (B, L, width)."""
        if (cache := call.carried.pop(CACHE)) is not None:
            forget(cache, self.index, self.dim)
        sizes = [states.shape[1] - self.dim, self.dim]
        parts = states.split(sizes if self.causal else sizes[::-1], dim=1)
        tokens: Tensor = parts[0 if self.causal else 1]
        if self.passes:
            call.carried[STATES] = parts[1 if self.causal else 0]
        return tokens


def forget(cache: Any, layer: int, count: int) -> None:
    """Take the last tokens off a layer of a key-value cache.

    Raises:
        ValueError: it is a cache that cannot shrink.
    """
    own = getattr(cache, "self_attention_cache", cache).layers[layer]
    if not getattr(own, "is_croppable", False):
        raise ValueError(f"soft prompts need a key-value cache that can shrink, not a {type(own).__name__}")
    own.crop(-count)
