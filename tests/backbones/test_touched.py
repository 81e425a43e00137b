"""What a forward pass does not depend on is known by name, for every backbone and task."""

from __future__ import annotations

import re

import pytest

from tests.backbones.composites import small
from tests.backbones.small import SETTINGS
from tests.conftest import small_config
from vlatrain.backbones.loading import family_of, meta_model
from vlatrain.backbones.touched import used_weights
from vlatrain.config import ModelConfig

MASK = "vision.embeddings.mask_token"
SCALE = {"logit_scale", "logit_bias", "temperature"}
FEATURES = {  # what makes features of states, which boxes are not found by
    *SCALE, "*_projection.*", "*_proj.*", "itm_head.*", "vision_model.post_layernorm.*", "*_model.head.*", "text_model.pre_LN.*",
    "text_model.transformation.*",
}  # fmt: skip
DUAL = {"vqa": SCALE, "grounding": FEATURES}  # answers are chosen by a classifier
#: Weights that a backbone has and no pass of a task uses, by task or, under an empty name, of all; `*` for what is below. All
#: others are used.
UNUSED: dict[str, dict[str, set[str]]] = {
    **dict.fromkeys(
        ("clip", "siglip", "siglip_so400m", "siglip2", "siglip2_naflex", "metaclip2", "altclip", "aimv2"), DUAL
    ),
    "chinese_clip": DUAL,
    "blip": {"grounding": FEATURES},
    "align": {"": {"text_model.pooler.dense.*"}, **DUAL},
    "llava": {
        "": {
            "model.vision_tower.encoder.layers.3.*",
            "model.vision_tower.post_layernorm.*",
        },  # the last but one is read
    },
    "llava_onevision": {"": {"model.vision_tower.post_layernorm.*"}},
    "dinov2": {"": {MASK}},
    "dinov3": {"": {MASK}},
    "siglip_vision": {"segmentation": {"vision.head.*"}},
    "dinov2+t5": {
        "": {MASK},
        "grounding": {"language.decoder.block.*", "language.decoder.final_layer_norm.*"},
    },  # words are read by the encoder alone
    "dinov3+llama": {"": {MASK}},
    "siglip+bart": {"": {"vision.head.*"}, "grounding": {"language.model.decoder.*"}},
}
QUICK = ("clip",)
PAIRS = ("clip+gpt2", "dinov2+t5", "siglip+bart", "dinov3+llama", "features+gpt2")
CELLS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*SETTINGS, *PAIRS)]


def config_of(name: str) -> ModelConfig:
    vision, _, language = name.partition("+")
    return small(vision, language) if language else small_config(name)


@pytest.mark.parametrize("name", CELLS)
def test_all_but_these_are_used(name: str) -> None:
    config = config_of(name)
    tasks = [task for task in config.tasks if task != "joint" and (name, task) != ("siglip2_naflex", "grounding")]
    for task in tasks[: 1 if name in QUICK else None]:
        used = used_weights(family_of(config), config, task)
        assert used is not None, task
        there = {key for key, _ in meta_model(config, task).named_parameters(remove_duplicate=False)}
        there = {key for key in there if not key.startswith("box_head.")}
        patterns = UNUSED.get(name, {}).get("", set()) | UNUSED.get(name, {}).get(task, set())
        known = [re.compile(pattern.replace(".", r"\.").replace("*", ".*")) for pattern in patterns]
        described = {key for key in there if any(pattern.fullmatch(key) for pattern in known)}
        # those of boxes are described for several backbones at once
        assert there - used <= described if task == "grounding" else there - used == described, task
