"""Configuration of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from vlatrain.config.limits import DROP_RATE, NOT_NEGATIVE, POSITIVE, Choice

Group = Literal["adapter", "head", "trunk"]
PARAMETER_GROUPS: tuple[Group, ...] = get_args(Group)


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
        groups: learning rate by parameter group where it differs from `lr`: `adapter` (what a method adds, and what one of
            PEFT trains), `head` (the task's heads), `trunk` (the backbone's own weights that train: norms, biases, or all).
    """

    lr: Annotated[float, POSITIVE] = 1e-3
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    beta1: Annotated[float, DROP_RATE] = 0.9
    beta2: Annotated[float, DROP_RATE] = 0.999
    eps: Annotated[float, POSITIVE] = 1e-8
    schedule: Annotated[str, Choice("linear", "cosine", "constant")] = "cosine"
    warmup: Annotated[float, NOT_NEGATIVE] = 0.05
    clip: Annotated[float, NOT_NEGATIVE] = 1.0
    groups: dict[str, float] = field(default_factory=dict)
