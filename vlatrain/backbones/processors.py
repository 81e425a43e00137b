"""Processors of models that see an image among the tokens of a text: read from a checkpoint, or made for random weights.

Images are processed by PIL, equal on every machine. A processor that handles videos too is used without that part, which would
need torchvision; a checkpoint written with such a processor has no settings for videos.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import transformers
from tokenizers.processors import TemplateProcessing
from transformers import PretrainedConfig, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from vlatrain.backbones import tokenizers
from vlatrain.backbones.architecture import image_processor_class, transformers_config
from vlatrain.backbones.pretrained import model_type, read_image_processor, read_tokenizer
from vlatrain.config import UserError

log = logging.getLogger("vlatrain")

# settings that processors want to know, under the same name
FACTS = (
    "patch_size",
    "temporal_patch_size",
    "image_grid_pinpoints",
    "num_query_tokens",
    "vision_feature_select_strategy",
    "vision_aspect_ratio",
)


@cache
def processor_class(name: str) -> type[ProcessorMixin]:
    """A processor class of transformers, without its video processor.

    Raises:
        UserError: there is no such class. The name may come from a checkpoint, which must not be able to name anything else.
    """
    if name not in PROCESSOR_MAPPING_NAMES.values():
        raise UserError(f"{name} is no processor of transformers")
    found = getattr(transformers, name)
    still = [attribute for attribute in found.get_attributes() if "video" not in attribute]
    own = {
        "get_attributes": classmethod(lambda cls: still),
        "__module__": found.__module__,
        "__reduce__": lambda self: (_again, (name, vars(self))),  # pickling looks for a class by its name
    }
    return type(name, (found,), own)


def _again(name: str, attributes: dict[str, Any]) -> ProcessorMixin:
    kind = processor_class(name)
    processor = kind.__new__(kind)
    vars(processor).update(attributes)
    return processor


def read(checkpoint: str) -> Any:
    """The processor of a checkpoint.

    Raises:
        OSError: it cannot be had.
        UserError: it is of a kind that transformers does not have, or has no vocabulary or image processor.
    """
    settings, _ = ProcessorMixin.get_processor_dict(checkpoint)
    name = settings.get("processor_class") or _of_model(model_type(checkpoint))
    found: Any = processor_class(name)
    parts = [
        read_image_processor(checkpoint)
        if attribute == "image_processor"
        else read_tokenizer(checkpoint, "" if attribute == "tokenizer" else attribute)
        for attribute in found.get_attributes()
    ]
    processor = found.from_args_and_dict(parts, settings)
    _take_facts(processor, found, settings, checkpoint)
    return processor


def _take_facts(processor: Any, kind: Any, stated: Mapping[str, Any], checkpoint: str) -> None:
    """Take from a model's settings what its processor must know and does not state, as that of LLaVA before 2024, and say so."""
    model = PretrainedConfig.get_config_dict(checkpoint)[0]
    if "model_type" not in model:  # a run's folder, which has the processor alone
        return
    known = _facts(transformers_config(model))
    asked = [
        name for name in (*FACTS, "num_additional_image_tokens") if name in inspect.signature(kind.__init__).parameters
    ]
    taken = []
    for name in (name for name in asked if name in known and name not in stated):
        if getattr(processor, name, None) != known[name]:
            setattr(processor, name, known[name])
            taken.append(f"{name}={known[name]}")
    if taken:
        log.warning("%s: its processor does not say %s: from its config.json", checkpoint, ", ".join(taken))


def make(
    settings: Mapping[str, Any],
    texts: Sequence[str],
    tokens: Mapping[str, str],
    more: Iterable[str] = (),
    frame: str = "",
    template: str = "",
) -> Any:
    """A processor for random weights.

    Args:
        settings: the model's settings; what a processor must know of it is taken from there.
        texts: what its tokenizer is made from.
        tokens: by key of the settings, the special tokens whose ids stand there; the first is an image's.
        more: further special tokens.
        frame: what the tokenizer makes of a text, as `[DEC] $A`; empty: nothing is added.
        template: the chat template; empty: there is none.
    """
    config = transformers_config(dict(settings))
    kind: Any = processor_class(_of_model(config.model_type))
    facts = _facts(config)
    images = image_processor_class(config.model_type)
    image_processor = images(do_center_crop=False, **{n: value for n, value in facts.items() if hasattr(images, n)})
    image_processor.image_seq_length = facts["image_seq_length"]
    bridged = hasattr(config, "qformer_config")  # BLIP-2's processors name the image token themselves
    parts = {
        "image_processor": image_processor,
        "tokenizer": _tokenizer(texts, config.text_config.vocab_size, [*tokens.values(), *more], frame, not bridged),
    }
    if "qformer_tokenizer" in kind.get_attributes():
        parts["qformer_tokenizer"] = tokenizers.make_wordpiece(texts, config.qformer_config.vocab_size)
    asked = inspect.signature(kind.__init__).parameters
    arguments = {name: value for name, value in facts.items() if name in asked}
    return kind(**parts, **arguments, **({"chat_template": template} if template else {}))


def _facts(config: Any) -> dict[str, Any]:
    """What processors and image processors are told of a model, under the names that they use."""
    vision = config.vision_config
    facts = {
        name: value for name in FACTS for part in (config, vision) if (value := getattr(part, name, None)) is not None
    }
    side = int(getattr(vision, "image_size", None) or 0)
    stride = math.prod(vision.patch_stride) if hasattr(vision, "patch_stride") else vision.patch_size
    cells = (side // stride) ** 2
    facts["merge_size"] = getattr(vision, "spatial_merge_size", 1)
    facts["num_image_tokens"] = cells
    facts["image_seq_len"] = cells // getattr(config, "scale_factor", 1) ** 2
    facts["image_seq_length"] = cells + hasattr(vision, "patch_stride")  # Florence-2 adds their mean
    facts["num_additional_image_tokens"] = int(vision.model_type == "clip_vision_model")  # the class token
    if hasattr(config, "scale_factor"):  # Idefics3: an image is cut into tiles of this size
        facts |= {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
    elif side:
        facts |= {name: {"height": side, "width": side} for name in ("size", "crop_size")}
    return facts


def _tokenizer(texts: Sequence[str], size: int, special: Sequence[str], frame: str, named: bool) -> Any:
    """A tokenizer with special tokens of its own, which are in its vocabulary of at most so many. The first is an image's, and
    is `named` so."""
    special = list(dict.fromkeys(special))
    made = tokenizers.make_wordpiece(texts, size - len(special)).backend_tokenizer
    made.add_special_tokens(special)
    start, end = tokenizers.START, tokenizers.SPECIAL["sep_token"]
    made.post_processor = TemplateProcessing(
        single=frame or "$A", special_tokens=[(name, made.token_to_id(name)) for name in (start, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        extra_special_tokens=special[named:],
        bos_token=start,
        eos_token=end,
        model_input_names=["input_ids", "attention_mask"],
        **{name: tokenizers.SPECIAL[name] for name in ("pad_token", "unk_token")},
        **({"image_token": special[0]} if named else {}),
    )


def _of_model(model_type: str) -> str:
    if model_type not in PROCESSOR_MAPPING_NAMES:
        raise UserError(f"model_type={model_type}: transformers has no processor for it")
    return PROCESSOR_MAPPING_NAMES[model_type]
