"""Which of a model's weights what comes of its forward passes depends on: others may be missing in a checkpoint.

It is found by asking autograd for their gradients, on shapes. A mask token that only pre-training put in has none, nor has a pooler
whose output nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlatrain.backbones.base import blank_text
from vlatrain.backbones.box_head import NAME as BOX_HEAD
from vlatrain.backbones.describe import settings_of
from vlatrain.backbones.shapes import Shapes

if TYPE_CHECKING:
    from vlatrain.backbones.base import Backbone
    from vlatrain.config import ModelConfig

LENGTH = 4  # tokens of the texts that are run


def used_weights(kind: type[Backbone], config: ModelConfig, task: str) -> set[str] | None:
    """The names of the weights that a task's forward passes use.

    Args:
        kind: the family.
        config: the backbone's description, with folders for checkpoints.
        task: the task.

    Returns:
        The names; None: it cannot be told, as no pass can be run on shapes.
    """
    reached: set[str] = set()
    with torch.device("meta"), Shapes():
        model = kind.build(config, task, settings_of(config, task)).eval()
        named = dict(model.named_parameters())
        # images of the size that the settings say: the checkpoint's image processor is not looked at here, and may be wrong
        backbone = kind(replace(config, random_init=True), task, model, None, "")
        for question in (LENGTH, 0):
            try:
                ends = [end.float().sum() for end in _run(backbone, question) if end.requires_grad]
            except (
                AttributeError,
                KeyError,
                TypeError,
            ):  # some are asked and some are not: one has no encoder of questions
                continue
            except (RuntimeError, ValueError):  # its settings do not fit together: what it would use is not known
                return None
            if ends:
                found = torch.autograd.grad(ends, list(named.values()), allow_unused=True)
                reached |= {name for name, gradient in zip(named, found, strict=True) if gradient is not None}
    if not reached:
        return None
    same = {id(named[name]) for name in reached}  # under all its names, where a tensor has several
    return {
        *(name for name, tensor in model.named_parameters(remove_duplicate=False) if id(tensor) in same),
        *(name for name, _ in model.named_buffers()),
    }


def _run(backbone: Any, question: int) -> Iterator[Tensor]:
    """What comes of all that a backbone does with an image and a text."""
    inputs, text = backbone.blank(1, "meta", question), blank_text(1, LENGTH, "meta")
    served = backbone.config.tasks[backbone.task]
    if BOX_HEAD in served.trained:
        patches, words, _ = backbone.grounding_states(inputs)
        yield from (patches, words)
        return
    if getattr(backbone, "dense", False):
        yield backbone.patch_logits(inputs)
        return
    if hasattr(backbone, "class_logits"):
        yield backbone.class_logits(inputs)
        return
    # BLIP and ViLT do either, each with a model of its own
    compares = "classifier" not in served.trained and (bool(served.features) or not hasattr(backbone, "logits"))
    if not compares and hasattr(backbone, "logits"):
        context = backbone.context(inputs)
        yield from (value for value in context.values() if isinstance(value, Tensor))  # not all of it is read on shapes
        yield backbone.logits(context, text)
    if not compares and hasattr(backbone, "answer_logits"):
        yield backbone.answer_logits(inputs)
    if compares and hasattr(backbone, "pair_scores"):
        yield backbone.pair_scores(backbone.image_context(inputs), text)
    if compares and hasattr(backbone, "text_features"):
        features, states = backbone.image_features(inputs)
        yield from (features, backbone.text_features(text), backbone.logit_scale())
        if hasattr(backbone, "logit_bias"):
            yield backbone.logit_bias()
        if backbone.matches:
            yield backbone.match(states, text)
