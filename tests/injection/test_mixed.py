"""Several methods in one run: trained, saved and loaded as one, and refused where they get into each other's way."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.rows_mixed import mixed
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load as load_backbone
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.config.errors import Incompatible
from vlatrain.config.methods import completed, components, problems
from vlatrain.injection.attach import attach, group_of, restore, save
from vlatrain.injection.mixed import load
from vlatrain.injection.peft_method import SAVED_AS
from vlatrain.tasks import build
from vlatrain.training.loop import Loop, Trained
from vlatrain.training.modes import fingerprint

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]


def train_config(method: Any, task: str = "vqa", model: str = "blip") -> TrainConfig:
    return TrainConfig(
        task=TaskConfig(name=task, points=["vision.*.*", "fusion.*.*"]), model=small_config(model), adapter=method
    )


def pair(first: Any, second: Any) -> Any:
    return mixed(one=first, two=second)


@pytest.mark.parametrize(
    "method",
    [
        adapter_config("mixed"),
        pair(adapter_config("lora", dim=2, points=["vision"]), adapter_config("lora", dim=3, points=["decoder"])),
        pair(
            adapter_config("compacter", dim=4, points=["vision"]),
            adapter_config("bottleneck", dim=4, points=["decoder"]),
        ),
        pair(adapter_config("vera", dim=8, points=["vision"]), adapter_config("ln_tuning", points=["fusion"])),
    ],
    ids=["preset", "two LoRAs", "two of ours", "two of PEFT's"],
)
def test_trained_saved_and_loaded_as_one(method: Any, tmp_path: Path) -> None:
    config = train_config(method)
    config.trainer = TrainerConfig(max_steps=3, batch_size=4)
    config.optim.lr = 0.05
    where = sites(config.model, "vqa", config.points)
    backbone = load_backbone(config.model, "vqa", texts=TEXTS)
    fresh = copy.deepcopy(backbone)
    frozen = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    model = attach(backbone.model, config.adapter, where)
    task = build(config.task, backbone)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = Trained(model, group_of, save_adapter=lambda into: save(model, into))
    loop = Loop(config, task, trained, make_samples(), [], tmp_path / "run")
    loop.run()
    moved = [
        name for name, parameter in model.named_parameters() if name in before and not parameter.equal(before[name])
    ]
    for component in model.components.values():
        inside = [f"base_model.model.{path}." for path in component.base_model.targeted_module_names]
        assert any(name.startswith(tuple(inside)) for name in moved), "every component learns"
    save(model, tmp_path / "adapter")
    batch = task.collate(make_samples())
    backbone.model.eval()
    with torch.no_grad():
        expected = float(task.loss(batch))
    restored = restore(fresh.model, config.adapter, tmp_path / "adapter")
    assert not any(parameter.requires_grad for parameter in restored.parameters())
    fresh.model.eval()
    with torch.no_grad():
        assert float(build(config.task, fresh).loss(batch)) == expected
    assert all(parameter.equal(frozen[name]) for name, parameter in model.unload().named_parameters())


def test_each_component_is_an_adapter_by_itself(tmp_path: Path) -> None:
    config = train_config(adapter_config("mixed"))
    backbone = load_backbone(config.model, "vqa", texts=TEXTS)
    alone = copy.deepcopy(backbone)
    both = copy.deepcopy(backbone)
    model = attach(backbone.model, config.adapter, sites(config.model, "vqa", config.points))
    save(model, tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["manifest.json", "rest", "vision"]
    kinds = {
        name: json.loads((tmp_path / name / "adapter_config.json").read_text())["peft_type"]
        for name in ("rest", "vision")
    }
    assert kinds == {"rest": SAVED_AS, "vision": "LORA"}
    PeftModel.from_pretrained(alone.model, str(tmp_path / "vision"))
    assert any("lora_A" in name for name, _ in alone.model.named_parameters())
    assert [*load(both.model, tmp_path).components] == ["vision", "rest"]
    assert fingerprint(both.model) != fingerprint(alone.model)


def test_a_component_without_points_gets_what_the_others_leave() -> None:
    config = train_config(adapter_config("mixed"))
    where = sites(config.model, "vqa", config.points)
    divided = where.divided({name: component.points for name, component in components(config.adapter).items()})
    assert {point.tower for point in divided["vision"].places} == {"vision"}
    assert {point.tower for point in divided["rest"].places} == {"fusion"}
    config.adapter.points = ["vision.0.attn", "decoder.1.*"]
    where = sites(config.model, "vqa", config.points)
    divided = where.divided({name: component.points for name, component in components(config.adapter).items()})
    assert [str(point) for point in divided["rest"].places] == ["decoder.1.attn", "decoder.1.cross", "decoder.1.ffn"]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            pair(adapter_config("bottleneck", points=["vision"]), adapter_config("compacter", points=["vision.0.ffn"])),
            "one and two both change vision.0.ffn",
        ),
        (
            pair(adapter_config("lora", points=["vision"]), adapter_config("ia3", points=["vision.0.*"])),
            "both change vision_model.encoder.layers.0.",
        ),
        (
            pair(adapter_config("lora", points=["vision"]), adapter_config("fusion", points=["fusion"])),
            "adapter=fusion cannot be a component",
        ),
        (
            pair(adapter_config("lora", points=["*"]), adapter_config("bottleneck")),
            "adapter.components.two: the other components leave it no point",
        ),
        (
            pair(adapter_config("lora", points=["vision"]), adapter_config("cross_modal", points=["vision.0.attn"])),
            None,
        ),
    ],
)
def test_components_that_get_into_each_others_way(method: Any, said: str | None) -> None:
    found = incompatibilities(train_config(method))
    assert all(isinstance(problem, Incompatible) for problem in found)
    assert any(said in problem for problem in found) if said else not found


def test_two_designs_around_the_same_layer_are_refused() -> None:
    """They name other points, and yet go to the same module."""
    method = pair(
        adapter_config("prompt", points=["decoder.*.attn"]), adapter_config("prompt", points=["decoder.*.ffn"])
    )
    config = train_config(method)
    backbone = load_backbone(config.model, "vqa", texts=TEXTS)
    with pytest.raises(UserError, match=r"one and two both change text_decoder\S*: give them points of their own"):
        attach(backbone.model, config.adapter, sites(config.model, "vqa", config.points))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"one": {"name": "lora", "dmi": 3}}, "adapter.components.one: there is no key dmi"),
        ({"one": {"name": "lora", "dim": "three"}}, "dim=three: expected a whole number"),
        ({"one": {"name": "full"}}, "adapter.components.one: adapter=full cannot be a component"),
        ({"one": {"name": "lora", "heads": True}}, "leave out heads=true"),
        ({"one": {"name": "lora", "drop_layers": 1}}, "layers are dropped for all components alike"),
        (
            {"one": {"name": "lora", "activation": "gelu"}},
            "adapter.components.one.activation: adapter=lora has no such option",
        ),
        ({"one": 3}, "adapter.components.one=3: expected a method"),
        ({"a.b": {"name": "lora"}}, "has no dots"),
    ],
)
def test_wrong_components_are_told_by_name(values: dict[str, Any], said: str) -> None:
    config = adapter_config("mixed")
    config.components = values
    assert any(said in problem for problem in problems(completed(config)))


def test_a_component_as_plain_values_is_as_its_yaml() -> None:
    config = adapter_config("mixed")
    config.components = {"one": {"name": "lora", "dim": 3}, "two": {"name": "bottleneck", "points": ["vision"]}}
    made = completed(config)
    assert not [*problems(made)]
    assert made.components["one"].options == {"r": 3, "lora_alpha": 6, "lora_dropout": 0.0}
    assert (made.components["two"].activation, made.components["two"].options["placement"]) == ("gelu", "after")
