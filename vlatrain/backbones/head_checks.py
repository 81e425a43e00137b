"""Whether a vision tower's head, or one for boxes, can be had as a configuration asks: what the descriptions alone can tell. No
torch here."""

from __future__ import annotations

from collections.abc import Iterator

from vlatrain.backbones.describe import has_trained_head, settings_of
from vlatrain.config import TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.config.families import VISION_TOWERS
from vlatrain.config.keys import did_you_mean
from vlatrain.config.methods import BARE, PROBE, components

BOXES = "box_head"  # of the modules that a task trains, that which finds boxes
ALONE = "vision towers alone do (model=dinov2, vit, clip_vision, ...)"


def ill_headed(config: TrainConfig) -> Iterator[str]:
    """What is wrong with the pooling of a vision tower's features, and with a method that would leave its new head as it is; and
    with one that trains a head which the backbone has not."""
    model, name = config.model, config.adapter.name
    if model.family not in VISION_TOWERS:
        if name == PROBE:
            yield Incompatible(
                f"adapter={PROBE}: model={model.name} has no head of its own that could train alone; {ALONE}"
            )
        return
    pool, pools = model.options.get("pool", "class"), [*model.options.get("pools", ())]
    if pool not in pools:
        yield f"model.options.pool={pool}: model={model.name} has {', '.join(pools)}{did_you_mean(str(pool), pools)}"
    if name not in BARE and any("other" in method.needs for method in components(config.adapter).values()):
        yield Incompatible(
            f"adapter={name}: model={model.name} gets no states of another modality: it sees images alone"
        )
    if name == "none" and has_trained_head(model, config.task.name) is False:
        yield Incompatible(
            f"adapter=none: the head of model={model.name} is new and would take all classes alike; "
            f"adapter=knn trains nothing, adapter={PROBE} trains the head alone"
        )


def gridless(config: TrainConfig) -> Iterator[str]:
    """That a head for boxes would read patches of which nobody knows where they lie: those of images of any aspect ratio, as
    SigLIP 2 NaFlex has them, and features that were extracted before."""
    model, task = config.model, config.task.name
    if BOXES not in model.tasks[task].trained:
        return
    vision = model.submodels.get("vision")
    features = vision is not None and vision.architecture == "features"
    if features or settings_of(model, task).get("vision_config", {}).get("num_patches"):
        why = "images come as features" if features else "its images come in any aspect ratio"
        yield Incompatible(
            f"task={task}: model={model.name} has no square grid of patches, {why}; a head for boxes needs one: model=siglip2 "
            "has, and task=grounding_words needs none"
        )
