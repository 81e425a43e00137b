from __future__ import annotations

import pytest

from vlatrain.cli.compose import composed
from vlatrain.verbs.inspect import without_values
from vlatrain.verbs.towers import towers

CASES = {
    "bottleneck": ({"vision", "fusion"}, {"attn", "ffn", "cross"}, set()),
    "lora": ({"vision", "fusion"}, {"attn", "ffn", "cross"}, set()),
    "bitfit": ({"vision", "fusion"}, {"attn", "ffn", "cross"}, set()),
    "full": ({"vision", "fusion", "decoder"}, {"attn", "ffn", "cross"}, {"trunk"}),
    "none": (set(), set(), set()),
}


@pytest.mark.parametrize("method", CASES)
def test_every_parameter_that_trains_has_its_place(method: str) -> None:
    config = composed("train", [f"adapter={method}"])
    _, model = without_values(config)
    where, at, elsewhere = CASES[method]
    found = towers(config, model)
    assert {tower for tower, about in found["towers"].items() if about["trainable"]} == where
    assert {key.rpartition(".")[2] for about in found["towers"].values() for key in about["trainable"]} == at
    assert set(found.get("trainable_elsewhere", {})) == elsewhere
    counted = sum(sum(about["trainable"].values()) for about in found["towers"].values())
    counted += sum(found.get("trainable_elsewhere", {}).values())
    assert counted == sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert found["towers"]["vision"]["layers"] == 4
