"""Weights of the trunk that train where they are: which ones, what is saved, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import adapter_config, small_config
from tests.injection.language import Language, full_size, small, trainable, where
from tests.injection.table import randomise
from tests.numerics import assert_close
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.config.errors import Incompatible
from vlatrain.config.methods import problems
from vlatrain.injection.attach import attach, group_of, restore, save
from vlatrain.injection.points import Sites
from vlatrain.injection.trunk import FILE, bare, biases, load_trunk, norms
from vlatrain.training.modes import fingerprint, train_mode

ADAPTER = 30 * (2 * 768 * 96 + 768 + 96)


def trunk_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the trunk that train, by their names in the backbone."""
    return {bare(n): p for n, p in model.named_parameters() if p.requires_grad and group_of(n) == "trunk"}


@pytest.mark.parametrize(
    ("kinds", "count"), [(["norms"], 49_152), (["biases"], 125_952), (["norms", "biases"], 150_528)]
)
def test_of_bart_base_as_vl_adapter_trains_it(kinds: list[str], count: int) -> None:
    model = full_size("bart")
    before = sum(parameter.numel() for parameter in model.parameters())
    adapted = attach(model, adapter_config("bottleneck", dim=96, trunk=kinds), where("bart"))
    assert sum(parameter.numel() for parameter in trunk_of(adapted).values()) == count
    assert trainable(adapted) == ADAPTER + count
    assert sum(parameter.numel() for parameter in adapted.parameters()) == before + ADAPTER, "no copies"


def test_the_norms_of_bart_are_32_and_those_of_t5_have_no_bias() -> None:
    names = list(norms(full_size("bart")))
    assert len([name for name in names if name.endswith(".weight")]) == 32
    assert {name.rsplit(".", 2)[-2] for name in names if ".layers." not in name} == {"layernorm_embedding"}
    found = list(norms(full_size("t5")))
    assert len(found) == 12 * 2 + 12 * 3 + 2
    assert not any("bias" in name for name in found)
    table = "relative_attention_bias.weight"
    assert all(name.endswith(table) for name in biases(full_size("t5"))), "all that has bias in its name"


def test_what_keeps_statistics_is_no_layer_norm() -> None:
    batch = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Embedding(3, 4), nn.LayerNorm(4))
    assert list(norms(batch)) == ["3.weight", "3.bias"]


def test_only_towers_with_a_point_train() -> None:
    model = attach(small("t5"), adapter_config("bottleneck", trunk=["norms"]), where("t5", "decoder.0.ffn", small=True))
    assert all(name.startswith("language.decoder.") for name in trunk_of(model))
    assert len(trunk_of(model)) == 2 * 3 + 1, "and all layers of these do"


def outputs(model: Language) -> Tensor:
    ids = torch.arange(12).reshape(2, 6) + 4
    with torch.no_grad():
        return model.language(input_ids=ids, decoder_input_ids=ids[:, :4]).logits


def with_projection(name: str) -> tuple[Language, Sites]:
    """A language model with a module that is new, and where adapters go."""
    model, sites = small(name), where(name, small=True)
    model.projection = nn.Linear(3, 2).requires_grad_(False)
    return model, Sites(**{**vars(sites), "trained": ["projection"]})


METHODS: dict[str, Any] = {
    "bottleneck": {"dim": 4},
    "lora": {"dim": 2, "targets": ["query", "value", "out"]},
    "mixed": {},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("language", ["bart", "t5"])
def test_is_saved_beside_the_adapter_and_restored(name: str, language: str, tmp_path: Path) -> None:
    if name == "mixed":
        config = adapter_config("bottleneck", trunk=["norms", "biases"])
        config.name, config.components = "mixed", {
            "one": adapter_config("lora", dim=2, targets=["query"], points=["text"]),
            "two": adapter_config("bottleneck", dim=2),
        }  # fmt: skip
    else:
        config = adapter_config(name, trunk=["norms", "biases"], **METHODS[name])
    frozen, sites = with_projection(language)
    before = outputs(frozen)
    model = copy.deepcopy(frozen)
    adapted = attach(model, config, sites)
    assert torch.equal(outputs(model), before)
    fingerprints = fingerprint(adapted)
    trained = trunk_of(adapted)
    assert {"projection.weight", "projection.bias"} < set(trained)
    assert set(trained) <= {key for key, _ in frozen.named_parameters()}
    assert {group_of(key) for key, p in adapted.named_parameters() if p.requires_grad} == {"adapter", "trunk"}
    randomise(adapted)
    train_mode(adapted)
    assert fingerprint(adapted) == fingerprints, "what is frozen is known as such"
    assert not torch.allclose(outputs(model), before)
    save(adapted, tmp_path)
    assert set(load_file(tmp_path / FILE)) == set(trained)
    fresh = copy.deepcopy(frozen)
    restore(fresh, config, tmp_path, sites)
    assert_close(outputs(fresh), outputs(model), model)
    assert torch.equal(fresh.get_parameter("projection.weight"), model.get_parameter("projection.weight"))
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match="there is no trunk"):
        restore(copy.deepcopy(frozen), config, tmp_path, sites)


def test_a_trunk_in_low_precision_gets_them_as_they_were_trained(tmp_path: Path) -> None:
    config, sites = adapter_config("bottleneck", dim=2, trunk=["norms"]), where("bart", small=True)
    model = attach(small("bart"), config, sites)
    randomise(model)
    save(model, tmp_path)
    fresh = small("bart").to(torch.bfloat16)
    load_trunk(fresh, tmp_path)
    kept = {name for name, parameter in fresh.named_parameters() if parameter.dtype == torch.float32}
    assert kept == set(trunk_of(model))
    for name in kept:
        assert torch.equal(fresh.get_parameter(name), trunk_of(model)[name])


@pytest.mark.parametrize("name", ["none", "full"])
def test_what_is_new_trains_with_all_but_none(name: str, tmp_path: Path) -> None:
    model, sites = with_projection("bart")
    adapted = attach(model, adapter_config(name), sites)
    assert model.projection.weight.requires_grad is (name == "full")
    save(adapted, tmp_path)
    assert not (tmp_path / FILE).exists(), "all of it is in the model's own file, or nothing is"


@pytest.mark.parametrize(
    ("trained", "kinds", "message"),
    [(["visual"], [], "visual new"), ([], ["biases"], "biases: there are none in")],
)
def test_what_is_not_there(trained: list[str], kinds: list[str], message: str) -> None:
    sites = Sites(**{**vars(where("t5", "decoder.1.ffn", small=True)), "trained": trained, "inside": {}})
    with pytest.raises(UserError, match=message):
        attach(small("t5"), adapter_config("bottleneck", trunk=kinds), sites)


def test_a_file_of_another_backbone_is_refused(tmp_path: Path) -> None:
    model = attach(small("bart"), adapter_config("bottleneck", dim=2, trunk=["norms"]), where("bart", small=True))
    save(model, tmp_path)
    with pytest.raises(
        UserError, match=r"trunk.safetensors does not fit the backbone: 30 tensors without a place \(language"
    ):
        load_trunk(small("t5"), tmp_path)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("ladder", "captioning", "never goes back through the trunk"),
        ("ln_tuning", "captioning", "trains copies of them"),
        ("tip_adapter", "retrieval", "what the frozen trunk says of samples"),
        ("fusion", "captioning", "trained in the trunk as it is"),
    ],
)
def test_methods_that_it_does_not_go_with(name: str, task: str, message: str) -> None:
    model = small_config("clip") if task == "retrieval" else small_config("blip")
    config = TrainConfig(task=TaskConfig(name=task, points=["*"]), model=model, adapter=adapter_config(name))
    config.adapter.trunk = ["norms"]
    assert any(isinstance(problem, Incompatible) and message in problem for problem in incompatibilities(config))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("full", {"trunk": ["norms"]}, "adapter=full trains everything anyway"),
        ("none", {"trunk": ["norms"]}, "adapter=none trains nothing"),
        ("mixed", {"components": {"rest": {"trunk": ["norms"]}}}, "train for all components alike: adapter.trunk"),
    ],
)
def test_methods_without_a_trunk_of_their_own(name: str, values: Any, message: str) -> None:
    assert any(message in problem for problem in problems(adapter_config(name, **values)))


@pytest.mark.parametrize(
    ("name", "task", "points", "starts"),
    [
        ("blip", "vqa", ["fusion.*"], ["text_encoder.encoder.layer."]),
        ("blip", "vqa", ["fusion.0.ffn"], [f"text_encoder.encoder.layer.0.{own}" for own in ("intermediate", "output")]),
        ("clip", "retrieval", ["text.last1", "*.projection"],
         ["text_model.encoder.layers.1.", "visual_projection", "text_projection"]),
        ("vilt", "vqa", ["fusion.0.attn"],
         ["vilt.encoder.layer.0.attention", "vilt.encoder.layer.0.layernorm_before", "classifier"]),
    ],
)  # fmt: skip
def test_full_fine_tuning_of_points_trains_them_and_what_is_new(
    name: str, task: str, points: list[str], starts: list[str], tmp_path: Path
) -> None:
    config, method = small_config(name), adapter_config("full", points=points)
    model, other = (load(config, task, texts=["a"], seed=seed).model for seed in (0, 1))
    found = attach(model, method, sites(config, task, points))
    names = {name for name, own in found.named_parameters() if own.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if name.startswith(tuple(starts))}
    save(found, tmp_path)
    assert set(load_file(str(tmp_path / "model.safetensors"))) == names
    before = {name: own.clone() for name, own in other.named_parameters()}
    restored = restore(other, method, tmp_path, sites(config, task, points))
    theirs = dict(found.named_parameters())
    for name, own in restored.named_parameters():
        assert torch.equal(own, theirs[name] if name in names else before[name])
    with pytest.raises(UserError, match="does not fit the backbone"):
        restore(other, adapter_config("full"), tmp_path)


def test_full_fine_tuning_without_points_trains_everything() -> None:
    config = small_config("clip")
    model = load(config, "retrieval", texts=["a"]).model
    assert all(
        own.requires_grad
        for own in attach(model, adapter_config("full"), sites(config, "retrieval", ["*"])).parameters()
    )


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_a_projection_is_adapted(method: str) -> None:
    config = small_config("clip")
    model = load(config, "retrieval", texts=["a"]).model
    adapted = attach(model, adapter_config(method), sites(config, "retrieval", ["{vision,text}.projection"]))
    trained = {
        name.partition("_projection")[0].rpartition(".")[2]
        for name, own in adapted.named_parameters()
        if own.requires_grad
    }
    assert trained == {"visual", "text"}
