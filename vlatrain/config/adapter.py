"""Configuration of the method: what is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AdapterConfig:
    """A parameter-efficient method and its size.

    Attributes:
        name: name of the method: bottleneck, lora, full (everything trains) or none (nothing does).
        dim: bottleneck width, or rank of LoRA.
        points: injection points as patterns (`vision.*.attn`, `decoder.6-11.{cross,ffn}`, `text.last4.*`); null takes
            the task's.
        activation: bottleneck: non-linearity between the projections (gelu, relu, silu, tanh, ...).
        dropout: drop rate on the bottleneck (LoRA: on its input).
        scaling: factor on the adapter's output; LoRA: alpha / r.
        bias: whether the adapter's projections have biases.
        init: how the adapter starts: `zero` (the up-projection; the adapted model equals the base) or `normal`.
        init_std: standard deviation of `init=normal`.
        heads: also train the task's heads (projections, matching head), with `optim.groups.head` as their rate.
    """

    name: str = "bottleneck"
    dim: int = 16
    points: list[str] | None = None
    activation: str = "gelu"
    dropout: float = 0.0
    scaling: float = 4.0
    bias: bool = True
    init: str = "zero"
    init_std: float = 0.02
    heads: bool = False
