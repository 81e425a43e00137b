"""A vision tower and a language model joined by a visual projection: one torch module with the children `vision`, `projection`
and `language`. How text is asked for and written is `vlatrain.backbones.families.composite`.

The projection is that of Sung, Cho, Bansal, "VL-Adapter" (CVPR 2022, arXiv:2112.06825), after Cho et al., "Unifying
Vision-and-Language Tasks via Text Generation" (ICML 2021, arXiv:2102.02779): a linear layer and a norm; if wanted the same for
each token's box and area; if wanted an embedding of the image's number.

Deviation: as tokens, the projected states are scaled to the size of the word embeddings (their root mean square), among which they
stand; a norm's output is many times as large as the words of most models. Adapters read them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from vlatrain.backbones.architecture import model_class

FEATURES = "features"  # the architecture of a vision submodel without a tower
IMAGES = 2  # images that the order embedding tells apart


class FeaturesConfig(PretrainedConfig):
    """The settings of features that come ready made.

    Attributes:
        hidden_size: their width; tokens: how many there usually are for an image.
    """

    model_type = "vlatrain_features"
    hidden_size: int = 2048
    tokens: int = 36


AutoConfig.register(FeaturesConfig.model_type, FeaturesConfig)


class JoinedConfig(PretrainedConfig):
    """The settings of the submodels, and of what joins them.

    Attributes:
        vision_config: settings of the vision tower; text_config: of the language model.
        vision_class: its class in transformers, or `features`; language_class: the language model's.
        vision_norm: path, in the vision tower, of a norm that its last states must still go through; empty: none.
        visual_tokens: how many states the patches are pooled to; 0: all states are taken as they are.
        norm: of the projection: `layer`, or `rms`, which has no bias.
        boxes: whether the projection has one of boxes; order: whether it has an embedding of the image's number.
    """

    model_type = "vlatrain_joined"
    # transformers 5.20 derives it, older ones read it
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict[str, Any] | PretrainedConfig | None = None
    text_config: dict[str, Any] | PretrainedConfig | None = None
    vision_class: str = FEATURES
    language_class: str = ""
    vision_norm: str = ""
    visual_tokens: int = 0
    norm: str = "layer"
    boxes: bool = False
    order: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Make configurations of the submodels' plain settings, as they are in `config.json`."""
        for name, usual in (("vision_config", FeaturesConfig.model_type), ("text_config", "gpt2")):
            settings = getattr(self, name)
            if not isinstance(settings, PretrainedConfig):
                setattr(self, name, AutoConfig.for_model(**{"model_type": usual, **(settings or {})}))
        super().__post_init__(**kwargs)


class VisualProjection(nn.Module):
    """States of an image (B, S, in) -> (B, S, out): `norm(linear(x))`, and with boxes and order `+ norm(linear(box)) + order[i]`.

    Parameters: `in * out + out` and a norm; boxes `5 * out + out` and a norm; order `2 * out`. A layer norm has `2 * out`, an RMS
    norm `out`: 1,582,848 for 2048 -> 768 with all and layer norms.

    Args:
        inputs: width of the states.
        outputs: width of the language model.
        norm: `layer` or `rms`.
        boxes: whether to tell where in a square grid each state lies.
        order: whether to add an embedding of the image's number, which is 0 for the only one; those after the second have its.
    """

    def __init__(
        self, inputs: int, outputs: int, norm: str = "layer", boxes: bool = False, order: bool = False
    ) -> None:
        super().__init__()
        kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm]
        self.linear, self.norm = nn.Linear(inputs, outputs), kind(outputs, eps=1e-6)
        self.boxes = nn.Sequential(nn.Linear(5, outputs), kind(outputs, eps=1e-6)) if boxes else None
        self.order = nn.Embedding(IMAGES, outputs) if order else None

    def forward(self, states: Tensor, places: Sequence[int] = ()) -> Tensor:
        """Projected states, in the parameters' type; of images that are the so manieth of their rows, all the first by default."""
        weight = self.linear.weight
        projected = self.norm(self.linear(states.to(weight.dtype)))
        if self.boxes is not None:
            projected = projected + self.boxes(grid_boxes(states.shape[1], states.device).to(weight.dtype))
        found: Tensor = projected
        if self.order is not None:
            found = found + self.order.weight[[min(place, IMAGES - 1) for place in places or [0]]][:, None]
        return found


def grid_boxes(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Box and area (count, 5) of each of an image's states: x1, y1, x2, y2 and area, in shares of the image.

    The states are the cells of the largest square grid that they suffice for, row by row; those in front of it (a class token,
    registers) have the whole image.
    """
    side = math.isqrt(count)
    cells = torch.arange(side * side, device=device)
    x, y = cells % side, cells // side
    edges = torch.stack([x, y, x + 1, y + 1, torch.full_like(x, 1)], dim=1).float() / side  # (side * side, 5)
    edges[:, 4] = 1 / (side * side)
    return torch.cat([edges.new_tensor([0.0, 0.0, 1.0, 1.0, 1.0]).expand(count - side * side, 5), edges])


def pooled(states: Tensor, count: int) -> Tensor:
    """Patches of an image averaged to `count` states, (B, S, width) -> (B, count, width): means over a square grid (adaptive
    average pooling, as in DeCo, Yao et al., 2024, arXiv:2405.20985). What is in front of the patches is left out.

    Raises:
        ValueError: there are fewer patches, or `count` is no square.
    """
    side, wanted = math.isqrt(states.shape[1]), math.isqrt(count)
    if wanted > side or wanted**2 != count:
        raise ValueError(f"{side * side} patches cannot be pooled to {count}: a square number, and no more")
    grid = states[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))  # (B, width, side, side)
    return adaptive_avg_pool2d(grid, wanted).flatten(2).transpose(1, 2)  # (B, count, width)


class Joined(PreTrainedModel):
    """A vision tower, a visual projection and a language model.

    Args:
        config: the settings.
        vision: the vision tower, a model of transformers; None: made new from the settings (`features`: there is none).
        language: the language model; None: made new.

    Raises:
        UserError: a class that transformers does not have.
    """

    config_class = JoinedConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    config: Any

    def __init__(self, config: JoinedConfig, vision: Any = None, language: Any = None) -> None:
        super().__init__(config)
        settings: Any = config
        if vision is None and config.vision_class != FEATURES:
            vision = model_class(config.vision_class, "model.submodels.vision.architecture")(settings.vision_config)
        if language is None:
            language = model_class(config.language_class, "model.submodels.language.architecture")(settings.text_config)
        self.vision, self.language = vision, language
        inputs, outputs = settings.vision_config.hidden_size, language.get_input_embeddings().weight.shape[1]
        self.projection = VisualProjection(inputs, outputs, config.norm, config.boxes, config.order)
        self.post_init()

    def see(self, pixels: Tensor) -> Tensor:
        """All states of images (B, 3, H, W), or as many as patches are pooled to: (B, S, width)."""
        assert self.vision is not None
        states = self.vision(pixel_values=pixels).last_hidden_state
        norm = self.config.vision_norm
        seen: Tensor = self.vision.get_submodule(norm)(states) if norm else states
        return pooled(seen, self.config.visual_tokens) if self.config.visual_tokens else seen

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings (N, L, d) of token ids (N, L)."""
        embedded: Tensor = self.language.get_input_embeddings()(ids)
        return embedded

    def as_tokens(self, projected: Tensor) -> Tensor:
        """Projected states (B, S, d) as visual tokens: of the size and the type of word embeddings."""
        return (projected * self.word_size()).to(self.language.get_input_embeddings().weight.dtype)

    def word_size(self) -> float:
        """Root mean square of the word embeddings, as it was when it was first asked for: of up to 1,024 words."""
        words = self.language.get_input_embeddings().weight
        if words.is_meta:
            return 1.0
        if "_size" not in self.__dict__:
            with torch.no_grad():
                some = self.embedded(torch.arange(min(len(words), 1024), device=words.device)).float()
                self.__dict__["_size"] = float(some.pow(2).mean().sqrt())
        size: float = self.__dict__["_size"]
        return size
