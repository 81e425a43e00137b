"""Weights that are stored in 16 bit are read as they are stored, and end as if they had been read in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.gpu_free.families import NAMES, config_of, set_up
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.loading import load, write
from vlatrain.backbones.weights import SAFE as WEIGHTS
from vlatrain.backbones.weights import type_of, weight_files
from vlatrain.config import ModelConfig, TrainConfig
from vlatrain.training.modes import cast_trunk, keep_from_overflow
from vlatrain.training.setup import _trunk_type

QUICK = ("siglip", "llava", "clip+gpt2")
CELLS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]


def stored(name: str, dtype: torch.dtype, folder: Path, **save: Any) -> tuple[ModelConfig, str]:
    """A family's checkpoint in a type, and a task that it serves."""
    config = config_of(name)
    backbone, settings = set_up(config)
    backbone.model.to(dtype)
    write(backbone, backbone.model, folder)
    if save:
        backbone.model.save_pretrained(str(folder), **save)
        (folder / WEIGHTS).unlink()
    config.random_init, config.checkpoint = False, str(folder)
    return config, settings.name


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return backbone.model.state_dict()


def assert_equal(found: Backbone, expected: Backbone) -> None:
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    for key, tensor in other.items():
        assert one[key].dtype == tensor.dtype, key
        assert torch.equal(one[key], tensor), key


@pytest.mark.parametrize("name", CELLS)
def test_the_trunk_is_the_same_and_never_in_fp32(name: str, tmp_path: Path) -> None:
    config, task = stored(name, torch.float16, tmp_path)
    found = load(config, task, dtype=torch.bfloat16)
    held = [parameter for parameter in found.model.parameters() if parameter.dtype == torch.float16]
    # transformers keeps BLIP-2's Q-Former and T5's output projections whole, the larger part of models as small as these
    assert sum(map(torch.numel, held)) > 0.4 * sum(map(torch.numel, found.model.parameters()))
    expected = load(config, task)
    assert all(tensor.dtype == torch.float32 for tensor in weights(expected).values() if tensor.is_floating_point())
    for backbone in (found, expected):
        keep_from_overflow(backbone.model)
        cast_trunk(backbone.model, torch.bfloat16)
    assert_equal(found, expected)


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_packed_weights_are_the_same_and_the_others_fp32(bits: int, tmp_path: Path) -> None:
    config, task = stored("clip+gpt2", torch.bfloat16, tmp_path)
    config.quantize = bits
    found = load(config, task, dtype=torch.bfloat16)
    for file in tmp_path.glob("*.safetensors"):
        save_file({key: tensor.float() for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert type_of(weight_files(tmp_path, "")) == torch.float32
    assert_equal(found, load(config, task, dtype=torch.bfloat16))
    norms = [tensor for key, tensor in weights(found).items() if "norm" in key or "ln_" in key]
    assert norms
    assert all(tensor.dtype == torch.float32 for tensor in norms)


def test_the_type_is_that_of_the_files_and_not_what_the_settings_say(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    config, task = stored("blip", torch.bfloat16, folder, max_shard_size="300KB")
    index = json.loads((folder / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert type_of(weight_files(folder, "")) == torch.bfloat16
    assert next(load(config, task, dtype=torch.float16).model.parameters()).dtype == torch.bfloat16

    file = folder / index[min(index)]
    save_file({key: tensor.float() for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    assert said["dtype"] == "bfloat16"
    assert type_of(weight_files(folder, "")) == torch.float32, "nothing of what is stored whole is rounded"


@pytest.mark.parametrize(
    ("device", "quantize", "adapter", "dtype"),
    [
        ("cuda", None, "bottleneck", torch.bfloat16),
        ("cuda", None, "full", torch.float32),
        ("cpu", None, "bottleneck", torch.float32),
        ("cpu", 8, "bottleneck", torch.bfloat16),
    ],
)
def test_where_the_trunk_is_in_a_lower_type(device: str, quantize: int, adapter: str, dtype: torch.dtype) -> None:
    config = TrainConfig()
    config.model.quantize, config.adapter.name = quantize, adapter
    assert _trunk_type(config, torch.device(device), "bf16") == dtype
