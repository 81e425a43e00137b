"""An adapter that does not fit is refused wherever it is loaded: PEFT's two ways, transformers', and ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conftest import adapter_config, copied, small_config
from tests.injection.table import randomise
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, UserError
from vlatrain.config.files import MANIFEST
from vlatrain.injection.attach import FULL, attach, restore, save
from vlatrain.injection.saved import WEIGHTS, differences
from vlatrain.injection.trunk import FILE

BLIP = small_config("blip")
METHOD = adapter_config("bottleneck", dim=4)
FIRST = "vision_model.encoder.layers.0.self_attn.projection"


@cache
def template(task: str) -> Backbone:
    return load(BLIP, task, texts=["a red picture"])


def fresh(task: str = "vqa") -> Any:
    return copied(template(task)).model


def saved(folder: Path, config: AdapterConfig = METHOD, task: str = "vqa") -> Path:
    """The folder of an adapter with random values."""
    model = attach(fresh(task), config, sites(BLIP, task, ["*"]))
    randomise(model)
    save(model, folder)
    return folder


def second(folder: Path, task: str = "vqa") -> None:
    """PEFT's `load_adapter` of a model that has one of its method already."""
    model: Any = attach(fresh(task), METHOD, sites(BLIP, task, ["vision.*.attn"]))
    try:
        model.load_adapter(str(folder), "second")
    finally:
        assert model.active_adapters == ["default"]


WAYS: dict[str, Callable[..., object]] = {
    "from_pretrained": lambda folder, task="vqa": PeftModel.from_pretrained(fresh(task), str(folder)),
    "low_cpu_mem_usage": lambda folder, task="vqa": PeftModel.from_pretrained(
        fresh(task), str(folder), low_cpu_mem_usage=True
    ),
    "load_adapter": second,
    "transformers": lambda folder, task="vqa": fresh(task).load_adapter(str(folder)),
    "transformers, named": lambda folder, task="vqa": fresh(task).load_adapter(str(folder), "named"),
}
ways = pytest.mark.parametrize("way", WAYS)


def edited(file: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A file of tensors with a change, as from somebody who writes no hash."""
    (file.parent / MANIFEST).unlink(missing_ok=True)
    (file.parent.parent / MANIFEST).unlink(missing_ok=True)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file.parent


def lacking(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if FIRST in name]:
        del tensors[name]


def overfull(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.elsewhere.adapter.vlatrain_unit.up.projection.bias"] = torch.zeros(2)


def misshapen(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in tensors if FIRST in name and name.endswith("down.projection.weight"))
    tensors[name] = torch.zeros(7, tensors[name].shape[1])


CHANGES = {
    lacking: rf"4 of 72 tensors missing \({FIRST}.adapter.vlatrain_unit",
    overfull: r"1 tensor without a place \(elsewhere.adapter.vlatrain_unit",
    misshapen: rf"1 of 72 tensors of another shape \({FIRST}\S+ 7x\d+ instead of 4x\d+\)",
}


def test_what_differs_in_words() -> None:
    wanted = {"a": (2, 3), "b": (4,), "c": (), "d": (1,)}
    assert differences(wanted, dict(wanted)) == ""
    assert differences({}, wanted) == "4 of 4 tensors missing (a, b, c, ...)"
    assert (
        differences({"a": (3, 2), "b": (4,), "c": (), "e": ()}, wanted)
        == "1 of 4 tensors missing (d), 1 tensor without a place (e), 1 of 4 tensors of another shape (a 3x2 instead of 2x3)"
    )


@ways
def test_a_backbone_without_its_points_is_refused(way: str, tmp_path: Path) -> None:
    """As PEFT refuses one that has none of a method's modules: a ValueError."""
    saved(tmp_path)
    said = (
        r"BlipForConditionalGeneration lacks 6 of the adapter's 18 points \(fusion.0.attn, fusion.0.cross, fusion.0.ffn, "
        r"\.\.\.\); it was made for BlipForQuestionAnswering"
    )
    with pytest.raises(ValueError, match=said):
        WAYS[way](tmp_path, "captioning")
    with pytest.raises(UserError, match=said):
        restore(fresh("captioning"), METHOD, tmp_path)


@ways
@pytest.mark.parametrize("change", [lacking, overfull], ids=lambda change: change.__name__)
def test_tensors_that_do_not_fit_are_refused(way: str, change: Any, tmp_path: Path) -> None:
    """As torch refuses them: a RuntimeError."""
    saved(tmp_path)
    WAYS[way](tmp_path)
    edited(tmp_path / WEIGHTS, change)
    with pytest.raises(RuntimeError, match=CHANGES[change] + r".*; it was made for BlipForQuestionAnswering"):
        WAYS[way](tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    edited(saved(tmp_path) / WEIGHTS, dict.clear)
    with pytest.raises(RuntimeError, match="72 of 72 tensors missing"):
        PeftModel.from_pretrained(fresh(), str(tmp_path))


def test_shapes_are_passed_over_where_peft_is_told_to(tmp_path: Path) -> None:
    edited(saved(tmp_path) / WEIGHTS, misshapen)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(fresh(), str(tmp_path))
    with pytest.warns(UserWarning, match=r"found shape torch.Size\(\[7,"):
        PeftModel.from_pretrained(fresh(), str(tmp_path), ignore_mismatched_sizes=True)


def test_several_residents_are_each_compared_with_their_own_file(tmp_path: Path) -> None:
    other = saved(tmp_path / "other", adapter_config("bottleneck", dim=2))
    model = fresh()
    model.load_adapter(str(saved(tmp_path / "one")))
    model.load_adapter(str(other), "other")
    model.load_adapter(str(other), adapter_name="third")
    edited(other / WEIGHTS, lacking)
    with pytest.raises(RuntimeError, match=r"'fourth'.* 4 of 72 tensors missing"):
        model.load_adapter(str(other), "fourth")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["bottleneck", "lora", "vera"])
def test_our_own_loading_refuses_them_for_every_method(name: str, change: Any, tmp_path: Path) -> None:
    """PEFT only warns of what its own methods lack, and says nothing of what has no place."""
    config = METHOD if name == "bottleneck" else adapter_config(name)
    restore(fresh(), config, saved(tmp_path, config))
    if name != "bottleneck":
        change = {lacking: one_less, overfull: overfull, misshapen: one_row}[change]
    edited(tmp_path / WEIGHTS, change)
    said = CHANGES.get(change, r"1 of \d+ tensors (missing|of another shape) \(")
    with pytest.raises(UserError, match=rf"{WEIGHTS} does not fit the backbone: {said}.*it was made for Blip"):
        restore(fresh(), config, tmp_path)


def one_less(tensors: dict[str, Tensor]) -> None:
    del tensors[max(tensors)]


def one_row(tensors: dict[str, Tensor]) -> None:
    name = max(tensors)
    tensors[name] = tensors[name][:-1].clone()


def test_of_full_fine_tuning_every_weight_must_be_there(tmp_path: Path) -> None:
    config = AdapterConfig(name="full")
    restore(fresh(), config, saved(tmp_path, config))
    edited(tmp_path / FULL, one_less)
    with pytest.raises(UserError, match=rf"{FULL} does not fit the backbone: 1 of \d+ tensors missing"):
        restore(fresh(), config, tmp_path)


def test_of_a_mixed_method_each_component_is_compared(tmp_path: Path) -> None:
    config = adapter_config("mixed")
    restore(fresh(), config, saved(tmp_path, config))
    for component in config.components:
        whole = load_file(tmp_path / component / WEIGHTS)
        edited(tmp_path / component / WEIGHTS, one_less)
        with pytest.raises(
            UserError, match=rf"{component}/{WEIGHTS} does not fit the backbone: 1 of {len(whole)} tensors"
        ):
            restore(fresh(), config, tmp_path)
        save_file(whole, tmp_path / component / WEIGHTS, metadata={"format": "pt"})


def test_heads_and_the_trunk_that_trained_beside_must_be_there(tmp_path: Path) -> None:
    heads = adapter_config("bottleneck", dim=4, heads=True)
    edited(saved(tmp_path / "heads", heads, "retrieval") / WEIGHTS, lambda tensors: tensors.pop(head_of(tensors)))
    with pytest.raises(UserError, match=r"1 of \d+ tensors missing \((vision_proj|text_proj|itm_head)"):
        restore(fresh("retrieval"), heads, tmp_path / "heads")
    norms, where = adapter_config("bottleneck", dim=4, trunk=["norms"]), sites(BLIP, "vqa", ["*"])
    restore(fresh(), norms, saved(tmp_path / "norms", norms), where)
    edited(tmp_path / "norms" / FILE, one_less)
    with pytest.raises(UserError, match=rf"{FILE} does not fit the backbone: 1 of \d+ tensors missing"):
        restore(fresh(), norms, tmp_path / "norms", where)


def head_of(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if "vlatrain_unit" not in name)


def test_a_folder_without_weights_or_with_damaged_ones_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=rf"{WEIGHTS}: the weights cannot be read"):
        restore(fresh(), METHOD, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS}: the weights cannot be read"):
        restore(fresh(), METHOD, tmp_path)


@pytest.mark.parametrize("file", [WEIGHTS, "adapter_config.json"])
def test_a_bit_that_flipped_or_a_file_that_is_gone_is_refused(file: str, tmp_path: Path) -> None:
    path = saved(tmp_path) / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    with pytest.raises(UserError, match=rf"{file} has changed since it was written: it is not what was trained\. Copy"):
        restore(fresh(), METHOD, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"there is no {file}|{file}: the weights cannot be read"):
        restore(fresh(), METHOD, tmp_path)
    path.write_bytes(whole)
    (tmp_path / "README.md").write_text("a card is completed by hand")
    restore(fresh(), METHOD, tmp_path)


def test_an_adapter_of_before_has_no_hash_which_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (saved(tmp_path) / MANIFEST).unlink()
    with caplog.at_level("INFO", "vlatrain"):
        restore(fresh(), METHOD, tmp_path)
    assert [line for line in caplog.messages if "has no hash" in line]


def test_a_frozen_adapter_stays_frozen_when_it_is_switched_off_and_on(tmp_path: Path) -> None:
    frozen: Any = PeftModel.from_pretrained(fresh(), str(saved(tmp_path)))
    training: Any = attach(fresh(), METHOD, sites(BLIP, "vqa", ["*"]))
    for model, trains in ((frozen, False), (training, True)):
        with model.disable_adapter():
            pass
        assert {p.requires_grad for p in units(model)} == {trains}


def units(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "vlatrain_unit" in name]
