"""PEFT's methods by their YAML: options are checked before anything loads, and pass through as they are."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import peft
import pytest
import yaml
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tests.conftest import CONF, adapter_config, model_config, small_config
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import RunConfig, TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.config.errors import all_incompatible
from vlatrain.config.methods import is_peft
from vlatrain.injection.attach import attach, check, peft_config
from vlatrain.verbs.inspect import count
from vlatrain.verbs.train import train

NAMES = sorted(file.stem for file in (CONF / "adapter").glob("*.yaml"))
PRESETS = [name for name in NAMES if is_peft(adapter_config(name))]
PEFT = [name for name in PRESETS if adapter_config(name).name.upper() in PeftType.__members__]  # the oldest lacks HiRA


def test_there_are_some() -> None:
    assert {"lora", "dora", "ia3", "vera", "loha", "oft"} <= set(PEFT)
    assert "bottleneck" not in PEFT
    assert set(PRESETS) - set(PEFT) <= {"hira"}


def test_a_method_that_this_peft_lacks_is_refused_and_left_out_of_a_sweep() -> None:
    config = adapter_config("lora")
    config.name = "other"
    with pytest.raises(UserError, match=f"adapter.name=other: PEFT {peft.__version__} has no such method") as refusal:
        check(config)
    assert all_incompatible(refusal.value.problems)


@pytest.mark.parametrize("name", PEFT)
def test_options_are_those_of_peft(name: str) -> None:
    config = adapter_config(name)
    check(config)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config.name.upper()]  # type: ignore[index]
    assert set(config.options) <= {field.name for field in dataclasses.fields(kind)}
    made = peft_config(config, sites(model_config("blip"), "vqa", ["vision.0.*"]))
    assert {key: getattr(made, key) for key in config.options} == config.options


@pytest.mark.parametrize("name", PEFT)
def test_an_option_that_peft_has_not_is_refused_before_anything_loads(name: str, tmp_path: Path) -> None:
    config = TrainConfig(
        task=TaskConfig(points=["*"]),
        model=small_config("blip"),
        adapter=adapter_config(name, options={"nonsense": 1}),
        run=RunConfig(dir=str(tmp_path / "run")),
    )
    with pytest.raises(UserError, match="nonsense"):
        train(config)
    assert not any(tmp_path.iterdir())


def test_who_has_an_option_that_peft_has_not_is_said() -> None:
    with pytest.raises(UserError, match=r"adapter=lora \(PEFT's LoraConfig\) has no such option; adapter=prompt"):
        check(adapter_config("lora", options={"deep": True}))


@pytest.mark.parametrize("name", PEFT)
def test_the_preset_is_small_and_quiet(name: str, tmp_path: Path) -> None:
    config = TrainConfig(
        task=TaskConfig(points=["vision.*.*", "fusion.*.*"]),
        model=model_config("tiny_blip"),
        adapter=adapter_config(name),
        trainer=TrainerConfig(batch_size=1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = count(config)
        attach(load(config.model, "vqa").model, config.adapter, sites(config.model, "vqa", config.points))
    assert 0 < found.percent < 5
    assert [*found.trainable] == ["adapter"]


def test_every_method_names_its_paper() -> None:
    for name in PRESETS:
        text = (CONF / "adapter" / f"{name}.yaml").read_text()
        head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
        assert "by PEFT" in head, name
        assert " (" in head, name
        assert yaml.safe_load(text)
