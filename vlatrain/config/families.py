"""What a family of backbones reads of `model.options`: data, so that an option that is none is refused before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class DualOptions:
    """What one dual encoder has otherwise than another. The defaults are CLIP's.

    Attributes:
        logit_scale: the parameter whose exponential similarities are multiplied by.
        max_logit_scale: the most that it counts for; null: without limit.
        temperature: the parameter that similarities are divided by instead (ALIGN).
        logit_bias: the parameter that is added to them (SigLIP); empty: none.
        start: by name, the value that a parameter has where weights are random and transformers' start is not the paper's.
        pad_to_end: texts are padded to the longest the model can take, and padding is attended to, as SigLIP was trained.
        states_norm: the norm that the image's last states must still go through before they are handed to the text tower.
        words: path of the module that makes the states of words, where the tower's own last ones are projected (AltCLIP).
        pool: how the image's features come from these states: `first` (a state) or `mean`, and paths of modules.
    """

    logit_scale: str = "logit_scale"
    max_logit_scale: float | None = 100.0
    temperature: str = ""
    logit_bias: str = ""
    start: dict[str, float] = field(default_factory=dict)
    pad_to_end: bool = False
    states_norm: str = "vision_model.post_layernorm"
    words: str = ""
    pool: Sequence[str] = ("first", "visual_projection")


@dataclass(frozen=True)
class ChatOptions:
    """What one such model has otherwise than another.

    Attributes:
        lead: where there is no chat template: what stands between prompt and reply.
        end: where there is no chat template: the text that ends a reply; empty: the tokenizer's end token.
        images: arguments for the image processor, as `size: {longest_edge: 1003520}` for at most so many pixels.
        stacked: whether the model takes the image states of a batch as one tensor, and not as a list.
        tokens: random weights: by key of the settings, the special tokens whose ids stand there; the first is an image's.
        more_tokens: random weights: further special tokens of its processor and template.
        frame: random weights: what the tokenizer makes of a text, as `[DEC] $A`.
        template: random weights: the chat template.
    """

    lead: str = ""
    end: str = ""
    images: dict[str, Any] = field(default_factory=dict)
    stacked: bool = False
    tokens: dict[str, str] = field(default_factory=dict)
    more_tokens: Sequence[str] = ()
    frame: str = ""
    template: str = ""


@dataclass(frozen=True)
class VisionOptions:
    """What a vision tower alone has otherwise than another.

    Attributes:
        pool: how an image's features come of its states: `class` (the class token), `mean` (of the patches), `both` (side by
            side), `attention` (a learned query for each head), or `own` (what the tower itself makes of them: SigLIP's attention
            pooling, ConvNeXt's normed mean).
        pools: those of these ways that there are; with `class`, its first state is a class token.
    """

    pool: str = "class"
    pools: Sequence[str] = ("class", "mean", "both", "attention", "own")


#: By option of a composite what it may be: its choices, or its type.
COMPOSITE: Mapping[str, Any] = {
    "visual": ("tokens", "adapters", "both"),
    "norm": ("layer", "rms"),
    "boxes": bool,
    "order": bool,
    "added_tokens": int,
    "visual_tokens": int,
    "chat": bool,
}

_DUAL = tuple(option.name for option in fields(DualOptions))
_VISION = tuple(option.name for option in fields(VisionOptions))
_CHAT = tuple(option.name for option in fields(ChatOptions))
FORMER = ("clip",)  # what runs of earlier versions call `dual`
DUALS = ("dual", *FORMER)
COMPOSITES = ("causal_composite", "seq2seq_composite")
VISION_TOWERS = ("vision_tower",)
TOLD = (*COMPOSITES, "chat", "prefix", "seq2seq")  # those that are given `model.prompts`
SEVERAL_IMAGES = (*COMPOSITES, "chat")  # those that take several images for a text

#: By family the names of its options; `vlatrain.backbones.loading.FAMILIES` has the same families.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("blip", "blip2", "vilt"), ()),
    **dict.fromkeys(DUALS, _DUAL),
    **dict.fromkeys(("chat", "prefix", "seq2seq"), _CHAT),
    **dict.fromkeys(COMPOSITES, tuple(COMPOSITE)),
    **dict.fromkeys(VISION_TOWERS, _VISION),
}
