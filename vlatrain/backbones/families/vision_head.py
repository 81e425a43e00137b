"""A vision tower of transformers with a head of its own: one torch module with the children `vision` and `head`. How images are put
through it is `vlatrain.backbones.families.vision_tower`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from vlatrain.backbones.architecture import model_class
from vlatrain.backbones.describe import HEADED


class HeadedConfig(PretrainedConfig):
    """The settings of a vision tower and of its head. The classes are `id2label`.

    Attributes:
        vision_config: settings of the tower; vision_class: its class in transformers.
        vision_norm: path, in the tower, of a norm that its last states must still go through; empty: none.
        pool: how features come of states, see `vlatrain.config.families.VisionOptions`.
        dense: whether each patch is classified, and not the image.
    """

    model_type = HEADED
    sub_configs = {"vision_config": AutoConfig}

    vision_config: dict[str, Any] | PretrainedConfig | None = None
    vision_class: str = ""
    vision_norm: str = ""
    pool: str = "class"
    dense: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Make a configuration of the tower's plain settings, as they are in `config.json`."""
        if not isinstance(self.vision_config, PretrainedConfig):
            self.vision_config = AutoConfig.for_model(**{"model_type": "vit", **(self.vision_config or {})})
        super().__post_init__(**kwargs)


class Head(nn.Module):
    """A linear layer on features that are pooled from states: `width * classes + classes` parameters, twice the width with `both`.

    `attention` has one learned query of each head, which weighs the states' own channels (as "efficient probing", Psomas et al.,
    2025, arXiv:2506.10178, has it; there several queries are mixed by a further layer): `width * heads` more parameters.

    All of it starts at zero: attention as the mean, the classes alike. So a head needs no seed, and the logits of a frozen tower
    do not depend on a draw.

    Args:
        width: of the states.
        heads: of attention.
        pool: `class`, `mean`, `both` (side by side, as DINOv2 is probed), `attention` or `own`.
        classes: outputs.
    """

    def __init__(self, width: int, heads: int, pool: str, classes: int) -> None:
        super().__init__()
        self.pool = pool
        self.query = nn.Linear(width, heads, bias=False) if pool == "attention" else None
        self.linear = nn.Linear(width * (2 if pool == "both" else 1), classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def pooled(self, states: Tensor, leading: int, own: Tensor | None) -> Tensor:
        """Features (B, D) of an image.

        Args:
            states: (B, S, width), the class token first, then registers, then patches.
            leading: so many states before those of patches.
            own: (B, width) what the tower itself makes of them.
        """
        if self.pool == "own":
            assert own is not None, "a tower that has features of its own"
            return own
        patches = states[:, leading:]
        if self.query is not None:
            weights = self.query(patches.to(self.query.weight.dtype)).softmax(dim=1)  # (B, P, heads)
            # each head weighs its share of the channels: (B, P, heads, width / heads)
            apart = patches.unflatten(-1, (weights.shape[-1], -1))
            attended: Tensor = (weights[..., None] * apart).sum(dim=1).flatten(1)  # (B, width)
            return attended
        if self.pool == "class":
            return states[:, 0]
        mean = patches.mean(dim=1)
        return torch.cat([states[:, 0], mean], dim=-1) if self.pool == "both" else mean

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., classes) of features (..., D)."""
        logits: Tensor = self.linear(features)
        return logits


class Headed(PreTrainedModel):
    """A vision tower and its head.

    Args:
        config: the settings.
        vision: the tower, a model of transformers; None: made new from the settings.

    Raises:
        UserError: a class that transformers does not have.
    """

    config_class = HeadedConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    config: Any

    def __init__(self, config: HeadedConfig, vision: Any = None) -> None:
        super().__init__(config)
        settings: Any = config.vision_config
        if vision is None:
            vision = model_class(config.vision_class, "model.submodels.vision.architecture")(settings)
        if hasattr(vision, "pooler"):
            vision.pooler = None  # ViT's, which no published checkpoint has trained, and no feature here comes from
        self.vision = vision
        sizes = getattr(settings, "hidden_sizes", None)  # of a convolutional tower's stages
        width = sizes[-1] if sizes else settings.hidden_size
        heads = getattr(settings, "num_attention_heads", None) or 1
        self.head = Head(width, heads, "mean" if config.dense else config.pool, len(config.id2label or ()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the tower has drawn its weights, and the head starts at zero."""
