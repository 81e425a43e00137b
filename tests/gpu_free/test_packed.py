"""Packed trunks in mixed precision: what they are packed from, and that they stay as they are. test_checkpointing.py has runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import texts_of
from vlatrain.training.modes import FrozenWeightsMoved, frozen_hashes, refuse_moved
from vlatrain.training.setup import new_setup

bnb = pytest.importorskip("bitsandbytes")
BITS = (8, 4)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_packed_from_the_type_that_is_computed_in(bits: int) -> None:
    config = small_config("blip")
    config.quantize = bits
    backbone = load(config, "captioning", texts=texts_of(make_samples()), dtype=torch.bfloat16)
    packed = [m for m in backbone.model.modules() if isinstance(m, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit))]
    assert {layer.bias.dtype for layer in packed if layer.bias is not None} == {torch.bfloat16}
    for layer in packed:
        if layer.bias is not None:
            layer.bias.data.normal_()  # those of random weights are zero, which no rounding changes
    if bits == 4:
        assert {layer.weight.quant_state.dtype for layer in packed} == {torch.bfloat16}
    before = frozen_hashes(backbone.model)
    for layer in packed:
        for dtype in (torch.float32, torch.bfloat16):  # bitsandbytes casts the bias to what the states are in
            layer(torch.randn(2, layer.in_features, dtype=dtype))
    refuse_moved(before, backbone.model)


def test_frozen_means_equal_in_value() -> None:
    model = nn.Linear(4, 4).requires_grad_(False).to(torch.bfloat16)
    before = frozen_hashes(model)
    model.to(torch.float32)
    refuse_moved(before, model)
    model.bias[1] += 1e-6
    with pytest.raises(FrozenWeightsMoved, match="1 frozen weights or buffers changed in training: bias"):
        refuse_moved(before, model)


@pytest.mark.parametrize(
    "overrides", [{"trunk": ["biases"]}, {"options": {"bias": "all"}}], ids=["trunk", "PEFT's option"]
)
def test_biases_of_packed_layers_are_refused_by_name(overrides: dict) -> None:
    config = TrainConfig(
        task=TaskConfig(name="captioning", points=["decoder"]),
        model=small_config("blip"),
        adapter=adapter_config("lora", dim=2, **overrides),
        trainer=TrainerConfig(device="cpu", precision="bf16"),
    )
    config.model.quantize = 8
    named = r"model.quantize=8: \d+ biases of packed layers cannot train: \S+\.layers?\.0\.\S+\.bias"
    with pytest.raises(UserError, match=named):
        new_setup(config, {"train": make_samples()})
    config.model.quantize = None
    new_setup(config, {"train": make_samples()})
