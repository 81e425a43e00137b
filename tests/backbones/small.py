"""Every backbone at a size that builds in milliseconds: what its `model.config` is overridden with.

Widths are 32 and towers have 2 layers; images have 32 pixels a side, in 4 x 4 patches.
"""

from __future__ import annotations

from typing import Any

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = {**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 16}
TEXT: dict[str, Any] = {**TOWER, "vocab_size": 400, "max_position_embeddings": 64, "projection_dim": 16}
DUAL: dict[str, Any] = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 16}
SIGLIP: dict[str, Any] = {
    "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
    "text_config": {**TOWER, "vocab_size": 400, "max_position_embeddings": 24},
}

SETTINGS: dict[str, dict[str, Any]] = {
    "blip": {
        **DUAL,
        "text_config": {**TEXT, "encoder_hidden_size": 32},
        "image_text_hidden_size": 16,
    },
    "clip": DUAL,
    "metaclip2": DUAL,
    "chinese_clip": DUAL,
    "altclip": {**DUAL, "text_config": {**TEXT, "project_dim": 24}},
    "aimv2": DUAL,
    "siglip": SIGLIP,
    "siglip_so400m": SIGLIP,
    "siglip2": SIGLIP,
    "siglip2_naflex": {**SIGLIP, "vision_config": {**TOWER, "image_size": None, "patch_size": 8, "num_patches": 16}},
    "align": {
        "vision_config": {
            "image_size": 64,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.3,
            "hidden_dim": 80,
            "initializer_range": 0.3,  # with 0.02 the untrained norms of its blocks leave nothing of an image
        },
        "text_config": TEXT,
        "projection_dim": 80,
        "temperature_init_value": 0.07,
    },
}
