"""The small backbones are like real ones: no two of their sizes coincide, but where the family wants it so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.backbones.composites import LANGUAGE, small
from tests.backbones.small import SETTINGS
from tests.conftest import small_config
from vlatrain.backbones.describe import number_in, settings_of
from vlatrain.config import ModelConfig

KINDS = {
    "widths": (
        "hidden_size", "intermediate_size", "head_dim", "d_model", "d_kv", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim",
        "n_embd", "n_inner", "image_text_hidden_size", "project_dim", "vocab_size", "max_position_embeddings", "n_positions",
    ),
    "heads": (
        "num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads",
    ),
    "layers": ("num_hidden_layers", "depth", "n_layer", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"),
}  # fmt: skip
ALIKE = {  # what a family wants equal: one of the two
    ("blip", "vqa"): "text_config.hidden_size",  # the decoder can attend to the image's states and the question's
    ("paligemma", "vqa"): "hidden_size",  # the text's, once more
}


def sizes(settings: dict[str, Any], names: tuple[str, ...], key_prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every size of these names, with its path; lists (of the stages of a tower) are not looked into."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from sizes(value, names, f"{key_prefix}{key}.")
        elif key in names and isinstance(value, int):
            yield key_prefix + key, value


def head_sizes(settings: dict[str, Any], config: ModelConfig, task: str) -> Iterator[tuple[str, int]]:
    """Where the settings have none, width over heads."""
    for tower in config.tasks[task].towers:
        heads = config.towers[tower].heads
        part = settings.get(heads.partition(".")[0], {})
        if heads and heads.count(".") == 1 and not {"head_dim", "d_kv"} & {*(part if isinstance(part, dict) else ())}:
            found = [number_in(settings, config, tower, what) for what in ("width", "heads")]
            yield f"a head of {heads}", found[0] // found[1]


def coinciding(name: str, config: ModelConfig, task: str) -> list[str]:
    """What has a size that something else of its kind has, too."""
    settings, found = settings_of(config, task), []
    for kind, names in KINDS.items():
        every = dict(sizes(settings, names))
        every.pop(ALIKE.get((name, task), ""), None)
        if kind == "widths":
            every |= head_sizes(settings, config, task)
        often = Counter(every.values())
        found += [f"{name} for {task}: {key} is {size}" for key, size in every.items() if often[size] > 1]
    return found


def test_no_two_sizes_of_a_small_backbone_coincide() -> None:
    found = []
    for name in SETTINGS:
        config = small_config(name)
        for task in {str(settings_of(config, task)): task for task in reversed(config.tasks)}.values():
            found += coinciding(name, config, task)
    assert not found


@pytest.mark.parametrize("language", LANGUAGE)
def test_nor_of_a_small_composite(language: str) -> None:
    assert not coinciding(language, small("clip", language), "captioning")


def test_heads_of_the_small_decoders_are_grouped_and_no_fraction_of_the_width() -> None:
    for name in ("llava", "llava_onevision", "smolvlm", "qwen3_vl", "paligemma", "instructblip"):
        text = SETTINGS[name]["text_config"]
        assert 1 < text["num_key_value_heads"] < text["num_attention_heads"]
        assert text["head_dim"] * text["num_attention_heads"] != text["hidden_size"]
