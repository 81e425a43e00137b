"""Ladder side-tuning with its whole side network: attention, cross-attention and feed-forward layers beside the frozen ones.

Sung, Cho and Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning" (NeurIPS 2022,
arXiv:2206.06522). The side is a small encoder, or encoder and decoder, of a fraction of the trunk's width. It starts from the
tower's embeddings, projected down; beside each layer it takes the layer's output, projected down and mixed by a learned gate with
its own states; its decoder attends to the last states of its encoder; at the end its states are projected up and added to the
trunk's. `vlatrain.adapters.ladder` is the same with feed-forward layers only.

Nothing goes back through the trunk: its layers get detached inputs, and what trains before the first layer (a visual projection)
learns through the side. In generation the side's keys and values are in the trunk's key-value cache, as further layers of it.

Deviations: attention is scaled. Only the feed-forward halves start from the trunk's, pruned, each layer for itself. The
up-projection starts at zero and adds to the trunk's output before its final norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vlatrain.adapters.base import Adapter, Call, Facts
from vlatrain.adapters.bottleneck import ACTIVATIONS, one_of
from vlatrain.adapters.ladder import EXPANSION, STATES, begin_as, check_sizes, detached

NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
TABLE, HEARD = "positions", "heard"
FURTHEST = 128  # distance from which on all are alike


@dataclass(frozen=True)
class LstOptions:
    """Options of `Lst`.

    Attributes:
        activation: a key of `bottleneck.ACTIVATIONS`.
        scaling: factor on what is added to the trunk's output.
        bias: whether the layers' linear maps have biases; the projections down and up always have.
        reduction: the trunk's width in side widths.
        temperature: of the gate; the lower, the faster it moves.
        norm: `rms` or `layer`.
        buckets: of the table of relative positions; 0: it has none.
        reads: what cross-attention attends to: the `side` of the other tower, or the `trunk`.
    """

    activation: str = "relu"
    scaling: float = 1.0
    bias: bool = False
    reduction: int = 4
    temperature: float = 0.1
    norm: str = "rms"
    buckets: int = 32
    reads: str = "side"


class Lst(Adapter):
    """A rung: `s = g down(x) + (1 - g) s_before` with `g = sigmoid(gate / temperature)`, then a transformer layer on s: attention,
    cross-attention where the tower's layers have it, feed-forward, each behind a norm and with a residual.

    Parameters, with the side width `d = width // reduction`, `n = d` for an RMS norm and `2 d` for a layer norm, and without
    `bias`: `width * d + d` down and 1 for the gate; `4 d^2 + n` for attention, `2 d^2 + 2 d s + n` for cross-attention to states of
    width s (`cross_width // reduction`, with `reads="trunk"` `cross_width`), `8 d^2 + n` for feed-forward. The first of a tower has
    `width * d + d` for the embeddings and `buckets * heads` for positions; the last a norm, and `d * width + width` up where the
    tower ends in a head. See `count`.

    Raises:
        ValueError: an unknown name, sizes that do not go together, or no side to attend to.
    """

    Options = LstOptions
    at: ClassVar[str] = "layer"
    exclusive: ClassVar[bool] = True

    def __init__(self, facts: Facts, options: LstOptions) -> None:
        super().__init__(facts, options)
        width, heads, reduction = facts.width, facts.heads, options.reduction
        check_sizes(width, options.activation, reduction, options.temperature)
        one_of("norm", options.norm, NORMS)
        one_of("reads", options.reads, ("side", "trunk"))
        side, beside = width // reduction, options.reads == "side"
        if not heads or side % heads:
            raise ValueError(
                f"reduction={reduction}: the trunk's {heads} attention heads do not divide a side of {side}"
            )
        if facts.cross and beside and facts.cross not in facts.towers:
            raise ValueError(f"reads=side: the {facts.tower} tower attends to {facts.cross}, which has no side")
        self.scaling, self.temperature, self.buckets = options.scaling, options.temperature, options.buckets
        self.tower, self.causal, self.heads = facts.tower, facts.causal, heads
        self.index, self.own_index = facts.index, facts.layers + facts.index
        self.beside, self.read = beside, bool(facts.readers)
        kind, bias = NORMS[options.norm], options.bias
        self.embed = nn.Linear(width, side) if facts.first else None
        table = facts.first and self.buckets
        self.positions = nn.Parameter(torch.zeros(self.buckets, heads)) if table else None
        self.down, self.gate = nn.Linear(width, side), nn.Parameter(torch.zeros(()))
        self.attention_norm, self.attention = kind(side), Attention(side, side, heads, bias)
        source = facts.cross_width // reduction if beside else facts.cross_width
        self.cross_norm = kind(side) if facts.cross else None
        self.cross = Attention(side, source, heads, bias) if facts.cross else None
        self.norm = kind(side)
        self.inner, self.out = nn.Linear(side, EXPANSION * side, bias), nn.Linear(EXPANSION * side, side, bias)
        self.activation = ACTIVATIONS[options.activation]()
        self.end_norm = kind(side) if facts.last else None
        self.up = nn.Linear(side, width) if facts.last and facts.end else None
        if self.up is not None:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def enter(self, arguments: dict[str, Any], call: Call) -> dict[str, Any]:
        """The layer's arguments, detached; the first rung begins the side from the states among them: if these are the embeddings,
        from what made them."""
        states: Tensor = arguments["hidden_states"]  # (B, L, width)
        if self.index > 0:
            states = states.detach()
        cache = arguments.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length(self.index))
        if self.embed is not None:
            call.carried[STATES] = self.embed(states.to(self.embed.weight.dtype))  # (B, L, d)
        causal = self.causal or bool(arguments.get("is_causal"))
        mask = kept(arguments.get("attention_mask"))
        if mask is None and causal:
            length = states.shape[1]
            mask = torch.ones(1, 1, length, past + length, dtype=torch.bool, device=states.device).tril(past)
        if self.embed is not None:
            call.carried[TABLE] = None if self.positions is None else self.table(states.shape[1], past, mask)
        other = arguments.get("encoder_hidden_states")
        call.carried[HEARD] = cache, mask, other, kept(arguments.get("encoder_attention_mask"))
        return detached(arguments)

    def table(self, length: int, past: int, mask: Tensor | None) -> Tensor:
        """What positions add to the scores of tokens (L) with those before and themselves (K = past + L); padding has no position.

        Args:
            length: L.
            past: tokens before them.
            mask: (B, 1, L or 1, K) True for what may be attended to; None: everything.

        Returns:
            (B or 1, heads, L, K).
        """
        assert self.positions is not None
        shown = torch.ones(1, past + length, device=self.positions.device) if mask is None else mask[:, 0, -1]
        where = shown.long().cumsum(dim=1)  # (B, K)
        distance = where[:, None] - where[:, -length:, None]  # (B, L, K), of key from query
        return self.positions[buckets_of(distance, self.buckets, self.causal)].permute(0, 3, 1, 2)

    def forward(self, states: Tensor, call: Call) -> Tensor | None:
        """What the last rung of a tower with a head adds to the trunk's output, (B, L, width); the others add nothing."""
        cache, mask, other, other_mask = call.carried.pop(HEARD)
        share = torch.sigmoid(self.gate / self.temperature)
        # (B, L, d)
        side = share * self.down(states.to(self.down.weight.dtype)) + (1 - share) * call.carried.pop(STATES)
        side = side + self.attention(self.attention_norm(side), None, mask, call.carried[TABLE], cache, self.own_index)
        if self.cross is not None and self.cross_norm is not None and other is not None:
            source = self.source(other, call)
            side = side + self.cross(self.cross_norm(side), source, other_mask)
        side = side + self.out(self.activation(self.inner(self.norm(side))))
        if self.end_norm is None:
            call.carried[STATES] = side
            return None
        del call.carried[TABLE]
        side = self.end_norm(side)
        if self.read:
            call.exported.clear()  # of the towers before it, none is attended to any more
            call.exported[self.tower] = side
        return None if self.up is None else (self.scaling * self.up(side)).to(states.dtype)

    def source(self, other: Tensor, call: Call) -> Tensor:
        """What cross-attention attends to, beside the trunk's states of the other tower (B, S, cross_width): (B, S, that or d).

        Raises:
            ValueError: the other tower's side is of other states than these.
        """
        if not self.beside:
            return other.detach()
        # of the tower that ran last (b, S, d); there may be several rows here (beams) for each
        name, found = next(iter(call.exported.items()), ("", None))
        if found is None or len(other) % len(found) or found.shape[1] != other.shape[1]:
            last = (
                f"the last one, of {name}, has run for {tuple(found.shape[:2])}"
                if found is not None
                else "none has run"
            )
            wanted = tuple(other.shape[:2])
            raise ValueError(
                f"the side of {self.tower} attends to that of the states {wanted} that the layer is given, but {last}"
            )
        return found.repeat_interleave(len(other) // len(found), dim=0)

    def adopt(self, frozen: Mapping[str, nn.Module]) -> None:
        """Start the feed-forward half from the trunk's, cut down as in `Ladder`."""
        begin_as(frozen, self.inner, self.out)

    @staticmethod
    def count(width: int, layers: int, heads: int, cross: int = 0, end: bool = True, reduction: int = 4) -> int:
        """Number of parameters of a tower's side, with RMS norms, 32 buckets, and without biases in its layers; `cross`: width of
        what its cross-attention attends to, 0: it has none."""
        side = width // reduction
        down, attention = width * side + side, 4 * side * side + side
        crossing = 2 * side * side + 2 * side * cross + side if cross else 0
        layer = attention + crossing + 2 * EXPANSION * side * side + side + down + 1
        return layers * layer + down + 32 * heads + side + (side * width + width if end else 0)


class Attention(nn.Module):
    """Multi-head attention of states (B, L, d) to themselves or to others (B, S, source).

    Args:
        width: d.
        source: width of what it attends to.
        heads: number of heads.
        bias: whether the four linear maps have biases.
    """

    def __init__(self, width: int, source: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width, bias), nn.Linear(width, width, bias)
        self.key, self.value = nn.Linear(source, width, bias), nn.Linear(source, width, bias)

    def forward(
        self,
        states: Tensor,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        table: Tensor | None = None,
        cache: Any = None,
        index: int = 0,
    ) -> Tensor:
        """What is attended to, (B, L, d).

        Args:
            states: (B, L, d).
            source: (B, S, source); None: the states themselves, with those before them that the cache has.
            mask: (B or 1, 1, L or 1, K) True for what may be attended to; None: everything.
            table: (B or 1, heads, L, K) what positions add to the scores.
            cache: of keys and values.
            index: the layer of the cache that is this one's.
        """
        given = states if source is None else source.to(self.key.weight.dtype)
        query, key, value = (self._split(own) for own in (self.query(states), self.key(given), self.value(given)))
        if source is None and cache is not None:
            key, value = remembered(cache, index, key, value)
        scores = None
        if mask is not None or table is not None:
            scores = query.new_zeros(1, 1, 1, 1) if table is None else table.to(query.dtype)
            if mask is not None:  # the lowest number, and not infinity: a row that sees nothing stays finite
                scores = torch.where(mask, scores, torch.finfo(query.dtype).min)
            scores = scores.expand(len(query), self.heads, query.shape[2], key.shape[2])
        found = scaled_dot_product_attention(query, key, value, attn_mask=scores)  # (B, heads, L, d / heads)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out

    def _split(self, states: Tensor) -> Tensor:
        """(B, L, d) -> (B, heads, L, d / heads)."""
        split: Tensor = states.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split


def kept(mask: Tensor | None) -> Tensor | None:
    """A layer's mask, boolean or additive, (B, S) or (B, 1, L or 1, K), as a boolean one of four dimensions."""
    if mask is None:
        return None
    if mask.dim() == 2:
        mask = mask[:, None, None].bool()
    return mask if mask.dtype == torch.bool else mask > -1


def buckets_of(distance: Tensor, buckets: int, causal: bool) -> Tensor:
    """The bucket of each distance of a key from a query, as in T5 (Raffel et al., JMLR 2020): one for each of the nearest, wider
    and wider ones further off, those in front and behind apart; a causal tower has only those behind."""
    start = torch.zeros_like(distance)
    if causal:
        distance = (-distance).clamp(min=0)
    else:
        buckets //= 2
        start, distance = (distance > 0).long() * buckets, distance.abs()
    near = max(buckets // 2, 1)
    # logarithmic between `near` and `FURTHEST`; of nearer ones the logarithm is not used, and must be finite
    share = (distance.clamp(min=near).float() / near).log() / math.log(FURTHEST / near)
    far = (near + (share * (buckets - near)).long()).clamp(max=buckets - 1)
    return start + torch.where(distance < near, distance, far)


def remembered(cache: Any, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with those before them, kept in a further layer of the trunk's cache: it follows the beams as all do.

    Raises:
        ValueError: it is a cache that does not grow.
    """
    layers = getattr(cache, "self_attention_cache", cache).layers
    kind = type(layers[0])
    if not getattr(layers[0], "is_croppable", False) or getattr(layers[0], "is_sliding", False):
        raise ValueError(f"a side network needs a key-value cache that grows with the text, not a {kind.__name__}")
    while len(layers) <= index:
        layers.append(kind())
    both: tuple[Tensor, Tensor] = layers[index].update(key, value)
    return both
