"""A run's saved configuration is what it was, or is refused by name."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.conftest import adapter_config, model_config
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.config.saved import typed

CONFIG = TrainConfig(
    task=TaskConfig(name="captioning", prompt="a ${picture} of"),
    model=model_config("tiny_blip"),
    adapter=adapter_config("bottleneck", dim=5),
    seed=7,
)


def test_it_comes_back() -> None:
    values = asdict(CONFIG)
    values["task"]["prompt"] = "a \\${picture} of"  # as `read_config` has it: nothing in it is interpolated
    assert typed(values, "config.yaml") == CONFIG


def test_what_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"config.yaml: .*dmi"):
        typed({**asdict(CONFIG), "adapter": {"dmi": 4}}, "config.yaml")
