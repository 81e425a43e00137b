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
LLAMA: dict[str, Any] = {**TOWER, "num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": 512}
QWEN: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 32,
}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QFORMER: dict[str, Any] = {
    "num_query_tokens": 4,
    "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
    "qformer_config": {**TOWER, "encoder_hidden_size": 32, "vocab_size": 400},
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
    "vilt": {
        **TOWER,
        "image_size": 32,
        "patch_size": 8,
        "vocab_size": 400,
        "max_position_embeddings": 40,
        "num_labels": 7,
        "initializer_range": 0.2,  # with less, an untrained one is too quiet for adapters to tell images by
    },
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
    "llava": {"vision_config": VISION, "text_config": LLAMA},
    "llava_onevision": {
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
        "text_config": LLAMA,
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
    },
    "qwen2_5_vl": {
        "vision_config": {**QWEN, "window_size": 32, "fullatt_block_indexes": [1]},
        "text_config": {**LLAMA, "rope_parameters": ROPE},
    },
    "qwen3_vl": {
        "vision_config": {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        "text_config": {**LLAMA, "head_dim": 16, "rope_parameters": ROPE},
    },
    "smolvlm": {"scale_factor": 2, "vision_config": {**TOWER, "image_size": 32, "patch_size": 8}, "text_config": LLAMA},
    "paligemma": {
        "projection_dim": 32,
        "hidden_size": 32,
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
        "text_config": {
            **LLAMA,
            "head_dim": 16,
            "vocab_size": 1700,
        },  # its processor adds 1,152 tokens for places and shapes
    },
    "florence2": {
        "vision_config": {
            "image_size": 64,
            "depths": [1, 1, 2, 1],
            "embed_dim": [8, 16, 32, 32],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "window_size": 4,
            "projection_dim": 32,
        },
        "text_config": {
            "vocab_size": 400,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 128,
        },
    },
    "blip2_opt": {
        **QFORMER,
        "text_config": {
            "vocab_size": 400,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
        },
    },
    "blip2_t5": {
        **QFORMER,
        "text_config": {
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 2,
            "vocab_size": 400,
        },
    },
    "instructblip": {**QFORMER, "text_config": LLAMA},
    "blip2_itm": {**QFORMER, "image_text_hidden_size": 16},
}
SETTINGS |= {"qwen2_5_vl_3b": SETTINGS["qwen2_5_vl"], "smolvlm_2b": SETTINGS["smolvlm"]}
