"""Our method in PEFT and transformers: the contract with the pinned release. What every method does is in test_methods.py."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from tests.conftest import adapter_config, make_samples, small_config
from tests.numerics import assert_close
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, TaskConfig, UserError
from vlatrain.injection.attach import attach, group_of, restore, save
from vlatrain.injection.older_peft import CURRENT
from vlatrain.injection.peft_method import SAVED_AS, VlatrainConfig, register
from vlatrain.tasks import Task, build

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
METHODS = {"bottleneck": adapter_config("bottleneck", dim=4), "lora": adapter_config("lora", dim=2)}
PLACES = [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval"), ("clip", "retrieval")]
rows = pytest.mark.parametrize(("name", "task"), PLACES, ids=lambda value: value)


def adapted(name: str, task: str, method: str, trained: bool = False) -> tuple[Backbone, nn.Module]:
    """A small backbone with a method at every point; `trained` gives every trainable tensor random values."""
    config = small_config(name)
    backbone = load(config, task, texts=TEXTS)
    model = attach(backbone.model, METHODS[method], sites(config, task, ["*"]))
    if trained:
        randomise(model)
    return backbone, model


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5


def make_task(backbone: Backbone) -> Task:
    return build(TaskConfig(name=backbone.task), backbone)


def loss_of(backbone: Backbone) -> float:
    torch.manual_seed(0)  # hard negatives are drawn
    task = make_task(backbone)
    with torch.no_grad():
        return float(task.loss(task.collate(make_samples())))


@rows
def test_exact_saved_keys(name: str, task: str, tmp_path: Path) -> None:
    _, model = adapted(name, task, "bottleneck")
    save(model, tmp_path)
    places = sites(small_config(name), task, ["*"]).places
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.{place.output}.adapter.vlatrain_unit.{half}.projection.{kind}"
        for place in places.values()
        for half in ("down", "up")
        for kind in ("weight", "bias")
    }
    saved = VlatrainConfig.from_pretrained(str(tmp_path))
    assert {point: place["output"] for point, place in saved.points.items()} == {
        str(point): place.output
        for point, place in places.items()  # logical points are kept
    }


def test_hidden_states_are_the_adapted_ones() -> None:
    backbone, _model = adapted("clip", "retrieval", "bottleneck", trained=True)
    pixels = backbone.pixels([sample.image.load() for sample in make_samples()])
    output = backbone.model.vision_model(pixel_values=pixels, output_hidden_states=True)
    norm = backbone.model.vision_model.post_layernorm
    assert_close(norm(output.hidden_states[-1][:, 0]), output.pooler_output)


def test_heads_train_and_are_saved_when_asked(tmp_path: Path) -> None:
    config = small_config("blip")
    backbone = load(config, "retrieval", texts=TEXTS)
    method = adapter_config("bottleneck", dim=4, heads=True)
    model = attach(backbone.model, method, sites(config, "retrieval", ["*"]))
    randomise(model)
    groups = {group_of(key) for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert groups == {"adapter", "head"}
    save(model, tmp_path)
    other = load(config, "retrieval", texts=TEXTS)
    restore(other.model, method, tmp_path)
    assert loss_of(other) == loss_of(backbone)


def test_full_trains_everything_and_none_nothing(tmp_path: Path) -> None:
    config = small_config("blip")
    for method, share in (("full", 1.0), ("none", 0.0)):
        backbone = load(config, "vqa", texts=TEXTS)
        model = attach(backbone.model, AdapterConfig(name=method), sites(config, "vqa", ["*"]))
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainable == share * sum(parameter.numel() for parameter in model.parameters())
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01
        save(model, tmp_path / method)
        other = load(config, "vqa", texts=TEXTS)
        restore(other.model, AdapterConfig(name=method), tmp_path / method)
        assert loss_of(other) == loss_of(backbone)


def test_a_copy_is_independent() -> None:
    backbone, model = adapted("clip", "retrieval", "bottleneck", trained=True)
    before = loss_of(backbone)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert loss_of(backbone) == before


def test_the_enum_member_is_a_real_one() -> None:
    loading = PreTrainedModel.load_adapter
    register()  # again does nothing
    assert PreTrainedModel.load_adapter is loading
    member = PeftType("VLATRAIN")
    assert member is PeftType.VLATRAIN
    assert member in PeftType
    assert member in list(PeftType)
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member


@pytest.mark.parametrize("name", ["a.b", "vlatrain", "adapter", "vlatrain_unit"])
def test_names_that_peft_would_confuse_are_refused(name: str) -> None:
    _, model = adapted("clip", "retrieval", "bottleneck")
    with pytest.raises(ValueError, match="adapter name"):
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    assert [*model.peft_config] == ["default"], "nothing of it is registered"


@pytest.mark.skipif(not CURRENT, reason="PEFT before 0.21 looks for names as text")
@pytest.mark.parametrize("name", ["a", "it", "unit", "train", "keys"])
def test_names_are_compared_as_whole_segments(name: str, tmp_path: Path) -> None:
    """Parts of the names of our modules, and methods of torch's: saved, loaded, switched to and deleted."""
    backbone, model = adapted("clip", "retrieval", "bottleneck", trained=True)
    expected = loss_of(backbone)
    save(model, tmp_path)
    other, again = adapted("clip", "retrieval", "bottleneck")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*should not be contained in the prefix 'vlatrain_'"
        )  # as we have it
        again.load_adapter(str(tmp_path), name)
    again.set_adapter(name)
    assert loss_of(other) == expected
    again.save_pretrained(str(tmp_path / "again"), selected_adapters=[name])
    tensors = load_file(tmp_path / "again" / name / "adapter_model.safetensors")
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in tensors.items())
    again.delete_adapter(name)
    assert [*again.peft_config] == ["default"]


@pytest.mark.slow
def test_peft_alone_is_told_what_to_import(tmp_path: Path) -> None:
    """An adapter of before, whose file has the plain name, is read as well."""
    _, model = adapted("clip", "retrieval", "bottleneck")
    save(model, tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1].startswith("KeyError: 'VLATRAIN: first `import vlatrain`")
    file = tmp_path / "adapter_config.json"
    for text in (file.read_text(), file.read_text().replace(SAVED_AS, "VLATRAIN")):
        file.write_text(text)
        assert PeftConfig.from_pretrained(str(tmp_path)).peft_type is PeftType.VLATRAIN


def test_a_compiled_model_is_refused_by_what_to_do(tmp_path: Path) -> None:
    _, model = adapted("clip", "retrieval", "bottleneck")
    save(model, tmp_path)
    bare = load(small_config("clip"), "retrieval", texts=TEXTS).model
    with pytest.raises(ValueError, match=r"attach or load the adapter first, then torch\.compile"):
        PeftModel.from_pretrained(torch.compile(bare, backend="eager"), str(tmp_path))  # type: ignore[arg-type]


def test_merging_is_refused_by_name() -> None:
    _, model = adapted("clip", "retrieval", "bottleneck")
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()


def test_nothing_to_train_is_refused() -> None:
    config = small_config("blip")
    backbone = load(config, "vqa", texts=TEXTS)
    with pytest.raises(UserError, match="selects no point"):
        attach(backbone.model, adapter_config("bottleneck"), sites(config, "vqa", []))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import vlatrain, peft", "import peft, vlatrain"])
def test_importing_vlatrain_registers_the_method(order: str) -> None:
    """In either order; that it imports no torch is tested with the command line."""
    code = f"{order}\nassert 'VLATRAIN' in peft.PeftType.__members__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
