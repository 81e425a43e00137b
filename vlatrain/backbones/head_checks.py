"""Whether a vision tower's head can be had as a configuration asks: what the descriptions alone can tell. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from vlatrain.backbones.describe import has_trained_head
from vlatrain.config import TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.config.families import VISION_TOWERS
from vlatrain.config.keys import did_you_mean
from vlatrain.config.methods import BARE, PROBE, components

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
    if name == "none" and not has_trained_head(model, config.task.name):
        yield Incompatible(
            f"adapter=none: the head of model={model.name} is new and would take all classes alike; "
            f"adapter=knn trains nothing, adapter={PROBE} trains the head alone"
        )
