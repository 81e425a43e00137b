"""Every backbone at a size that builds in milliseconds: what its `model.config` is overridden with.

Sizes are unlike each other as in real models, lest two coincide and one pass for the other: the widths of towers, of heads (which
are no fraction of the width where the family has it so), of feed-forward layers and features; the numbers of heads, of key-value
heads and of layers of each tower. What a family wants equal is so, and named in test_small.py, which holds all others apart.
"""

from __future__ import annotations

from typing import Any

TOWER: dict[str, Any] = {  # heads of 16
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
IMAGE: dict[str, Any] = {**TOWER, "image_size": 40, "patch_size": 8}  # 25 patches
VISION: dict[str, Any] = {**IMAGE, "projection_dim": 20}
WORDS: dict[str, Any] = {  # heads of 8
    "hidden_size": 32,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 400,
}
TEXT: dict[str, Any] = {**WORDS, "max_position_embeddings": 64, "projection_dim": 20}
DUAL: dict[str, Any] = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 20}
SIGLIP: dict[str, Any] = {
    "vision_config": IMAGE,
    "text_config": {
        **WORDS,
        "max_position_embeddings": 24,
        "projection_size": 48,
    },  # its features: as wide as the image's
}
DECODER: dict[str, Any] = {  # three heads share a key-value head
    "hidden_size": 72,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 512,
}
LLAMA: dict[str, Any] = {**DECODER, "head_dim": 10}
QWEN: dict[str, Any] = {  # heads of 8
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_heads": 4,
    "patch_size": 8,
    "out_hidden_size": 72,
}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
QFORMER: dict[str, Any] = {
    "num_query_tokens": 5,
    "vision_config": IMAGE,
    "qformer_config": {**WORDS, "num_hidden_layers": 4, "vocab_size": 390, "encoder_hidden_size": 48},
}

SETTINGS: dict[str, dict[str, Any]] = {
    "blip": {
        **DUAL,
        "text_config": {**TEXT, "hidden_size": 48, "encoder_hidden_size": 48},  # for answers: as wide as the image's
        "image_text_hidden_size": 20,
    },
    "clip": DUAL,
    "metaclip2": DUAL,
    "chinese_clip": DUAL,
    "altclip": {**DUAL, "text_config": {**TEXT, "project_dim": 24}},
    "aimv2": DUAL,
    "siglip": SIGLIP,
    "siglip_so400m": SIGLIP,
    "siglip2": SIGLIP,
    "siglip2_naflex": {**SIGLIP, "vision_config": {**IMAGE, "image_size": None, "num_patches": 25}},
    "vilt": {
        **TOWER,
        "image_size": 40,
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
    "llava": {"vision_config": {**VISION, "num_hidden_layers": 4}, "text_config": LLAMA},  # the last one is not used
    "llava_onevision": {
        "vision_config": IMAGE,
        "text_config": LLAMA,
        "image_grid_pinpoints": [[40, 40], [40, 80], [80, 40], [80, 80]],
    },
    "qwen2_5_vl": {
        "vision_config": {**QWEN, "window_size": 32, "fullatt_block_indexes": [1]},
        "text_config": {
            **DECODER,
            "rope_parameters": {**ROPE, "mrope_section": [2, 1, 3]},
        },  # heads of 12, which fill the width
    },
    "qwen3_vl": {
        "vision_config": {**QWEN, "num_position_embeddings": 25, "deepstack_visual_indexes": [0]},
        "text_config": {**LLAMA, "rope_parameters": {**ROPE, "mrope_section": [2, 1, 2]}},
    },
    "smolvlm": {"scale_factor": 2, "vision_config": {**IMAGE, "image_size": 48}, "text_config": LLAMA},
    "paligemma": {
        "projection_dim": 72,
        "hidden_size": 72,
        "vision_config": IMAGE,
        "text_config": {**LLAMA, "vocab_size": 1700},  # its processor adds 1,152 tokens for places and shapes
    },
    "florence2": {
        "vision_config": {
            "image_size": 64,
            "depths": [1, 1, 2, 1],
            "embed_dim": [8, 16, 32, 48],
            "num_heads": [2, 4, 4, 3],
            "num_groups": [1, 2, 8, 6],
            "window_size": 4,
            "projection_dim": 72,
        },
        "text_config": {
            "vocab_size": 400,
            "d_model": 72,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 6,
            "encoder_ffn_dim": 88,
            "decoder_ffn_dim": 76,
            "max_position_embeddings": 128,
        },
    },
    "blip2_opt": {
        **QFORMER,
        "text_config": {
            "vocab_size": 400,
            "hidden_size": 72,
            "word_embed_proj_dim": 72,
            "ffn_dim": 88,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "max_position_embeddings": 128,
        },
    },
    "blip2_t5": {
        **QFORMER,
        "text_config": {
            "d_model": 72,
            "d_kv": 10,
            "d_ff": 88,
            "num_layers": 5,  # not fewer than in the decoder, for which transformers' cache is made
            "num_decoder_layers": 2,
            "num_heads": 6,
            "vocab_size": 400,
        },
    },
    "instructblip": {**QFORMER, "text_config": LLAMA},
    "blip2_itm": {**QFORMER, "image_text_hidden_size": 20},
}
SETTINGS |= {
    **{name: {"vision_config": IMAGE} for name in ("vit", "clip_vision", "siglip_vision")},
    "dinov2": {
        # wider by 3, as its feed-forward layers are told; positions for larger images than it gets
        "vision_config": {**IMAGE, "intermediate_size": None, "mlp_ratio": 3, "image_size": 56},
    },
    "dinov3": {"vision_config": {**IMAGE, "num_register_tokens": 2}},
    "convnext": {"vision_config": {"depths": [2, 1, 3, 2], "hidden_sizes": [8, 16, 24, 40], "image_size": 64}},
}
SETTINGS |= {"qwen2_5_vl_3b": SETTINGS["qwen2_5_vl"], "smolvlm_2b": SETTINGS["smolvlm"]}

BY_TASK: dict[str, dict[str, dict[str, Any]]] = {  # where a task's model can be of other sizes than the others'
    "blip": {task: {"text_config": {"hidden_size": 32}} for task in ("captioning", "retrieval", "classification")},
}
