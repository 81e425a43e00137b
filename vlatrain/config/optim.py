"""Configuration of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OptimConfig:
    """AdamW with warm-up, a schedule and clipping.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay; not applied to biases, norms and other vectors.
        beta1: AdamW's first moment decay.
        beta2: AdamW's second moment decay.
        eps: AdamW's epsilon.
        schedule: shape after warm-up: linear (to 0), cosine (to 0) or constant.
        warmup: optimizer steps of linear warm-up; below 1, a share of all steps.
        clip: largest gradient norm; 0 leaves gradients as they are.
        groups: learning rate by parameter group (adapter, norm, head, trunk) where it differs from `lr`.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 1.0
    groups: dict[str, float] = field(default_factory=dict)
