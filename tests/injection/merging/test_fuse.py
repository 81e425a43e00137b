"""What a fusion takes from finished runs: each source's own tensors, shared ones too; and which runs it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import small_config
from tests.injection.rows_fusion import written
from tests.injection.table import method
from tests.numerics import assert_close
from vlatrain.adapters import Call
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, UserError
from vlatrain.config.errors import Incompatible
from vlatrain.config.files import MANIFEST
from vlatrain.injection.attach import attach, restore
from vlatrain.injection.merging.fuse import usage
from vlatrain.injection.peft_method import CHILD
from vlatrain.injection.sources import unfusable
from vlatrain.runs import RunFolder
from vlatrain.training.modes import cast_trunk

BLIP = small_config("blip")


@pytest.mark.parametrize(
    "config",
    [
        method("bottleneck", dim=4, overrides={"vision.*.*": {"dim": 2}}),
        method("bottleneck", dim=4, share={"what": "all", "over": ["layer", "tower"]}),
        method("bottleneck", dim=4, options={"projection": "lora", "rank": 2}, share={"what": "up", "over": ["site"]}),
        method("compacter", dim=8),
        method("uniadapter", dim=4),
        method("hyperformer"),
    ],
    ids=["overrides", "all shared", "drawn and half shared", "compacter", "uniadapter", "hyperformer"],
)
def test_each_source_does_as_it_did_in_its_own_run(config: AdapterConfig, tmp_path: Path) -> None:
    folder = written(tmp_path / "one", "blip", "vqa", config)
    other = written(tmp_path / "two", "blip", "vqa", method("bottleneck", dim=2))
    where = sites(BLIP, "vqa", ["*"])
    fused = load(BLIP, "vqa", texts=["a"])
    attach(fused.model, method("fusion", sources=[str(folder), str(other)]), where)
    own = load(BLIP, "vqa", texts=["a"])
    points = restore(own.model, config, RunFolder(folder).adapter).peft_config["default"].points
    assert points
    for point, place in points.items():
        units = [getattr(each.model.get_submodule(place["output"]), CHILD).units["default"] for each in (fused, own)]
        states = torch.randn(2, 5, place["width"])
        call = Call(states, torch.randn(2, 4, place["other_width"]) if place.get("other") else None)
        source = units[0].sources["0"].eval()
        assert_close(source(states, call), units[1].eval()(states, call), msg=str(point))


def test_only_the_points_of_the_sources_are_used(tmp_path: Path) -> None:
    one = written(
        tmp_path / "one", "blip", "captioning", method("bottleneck", dim=4), ["vision.*.ffn", "decoder.0.attn"]
    )
    two = written(tmp_path / "two", "blip", "retrieval", method("bottleneck", dim=2), ["vision.*.*", "fusion.0.attn"])
    backbone = load(BLIP, "captioning", texts=["a"])
    model = attach(backbone.model, method("fusion", sources=[str(one), str(two)]), sites(BLIP, "captioning", ["*"]))
    points = model.peft_config["default"].points
    assert {*points} == {f"vision.{n}.{site}" for n in range(3) for site in ("attn", "ffn")} | {"decoder.0.attn"}
    assert usage(model) == {"one": pytest.approx((1 + 3 * 0.5) / 7), "two": pytest.approx((3 + 3 * 0.5) / 7)}
    assert json.dumps(model.peft_config["default"].options["sources"])


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [written(tmp_path / way / "run", "blip", "vqa", method("bottleneck", dim=4)) for way in ("x", "y")]
    backbone = load(BLIP, "vqa", texts=["a"])
    model = attach(backbone.model, method("fusion", sources=[*map(str, folders)]), sites(BLIP, "vqa", ["*"]))
    assert [*usage(model)] == [str(folder.resolve()) for folder in folders]


def test_what_cannot_be_fused_is_refused_by_name(tmp_path: Path) -> None:
    places = sites(BLIP, "captioning", ["*"]).places
    good = written(tmp_path / "good", "blip", "captioning", method("bottleneck", dim=4))
    wrong = {
        "lora": (
            written(tmp_path / "lora", "blip", "captioning", method("lora", dim=2)),
            "adapter=lora; only vlatrain's own",
        ),
        "clip": (
            written(tmp_path / "clip", "clip", "retrieval", method("bottleneck", dim=2)),
            "model=clip, not in model=blip",
        ),
        "far": (
            written(tmp_path / "far", "blip", "vqa", method("bottleneck", dim=2), ["fusion.*.*"]),
            "among the points here",
        ),
        "prompt": (written(tmp_path / "prompt", "blip", "vqa", method("prompt")), "output of sub-layers"),
        "wide": (
            written(tmp_path / "wide", "blip", "vqa", method("bottleneck", dim=2), ["vision", "decoder"]),
            "at decoder.0.attn it was trained with states of width 48; here it is 32",
        ),
    }
    for folder, said in wrong.values():
        (problem,) = unfusable([str(good), str(folder)], "blip", places)
        assert isinstance(problem, Incompatible)
        assert str(folder) in problem
        assert said in problem
    assert "nothing to weigh" in "".join(unfusable([str(good)], "blip", places))
    assert "named 2 times" in "".join(unfusable([str(good), str(good)], "blip", places))
    assert "no finished run there" in "".join(unfusable([str(good), str(tmp_path / "none")], "blip", places))
    (RunFolder(good).adapter / "adapter_config.json").unlink()
    assert "has not finished" in "".join(unfusable([str(good)], "blip", places))


def test_states_of_another_width_are_refused(tmp_path: Path) -> None:
    folders = [str(written(tmp_path / name, "blip", "vqa", method("cross_modal"), ["fusion.*.cross"])) for name in "ab"]
    assert not [*unfusable(folders, "blip", sites(BLIP, "vqa", ["*"]).places)]
    file = RunFolder(tmp_path / "a").adapter / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["points"]["fusion.0.cross"]["other_width"] = 56
    file.write_text(json.dumps(saved))
    (file.parent / MANIFEST).unlink(missing_ok=True)
    (problem,) = unfusable(folders, "blip", sites(BLIP, "vqa", ["*"]).places)
    assert "at fusion.0.cross it was trained with states of the other modality of width 56; here it is 48" in problem


def test_a_source_whose_file_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, "blip", "vqa", method("bottleneck", dim=4)) for name in "ab"]
    file = RunFolder(folders[0]).adapter / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["options"]["dim"] = 8
    file.write_text(json.dumps(saved))
    (file.parent / MANIFEST).unlink(missing_ok=True)
    backbone = load(BLIP, "vqa", texts=["a"])
    with pytest.raises(
        UserError, match=r"does not fit: \d+ of \d+ tensors of another shape \(down.projection.weight of "
    ):
        attach(backbone.model, method("fusion", sources=[*map(str, folders)]), sites(BLIP, "vqa", ["*"]))
    saved["options"]["dim"] = 4
    file.write_text(json.dumps(saved))
    (file.parent / MANIFEST).unlink(missing_ok=True)
    weights = RunFolder(folders[1]).adapter / "adapter_model.safetensors"
    (weights.parent / MANIFEST).unlink()
    save_file({key: value for key, value in load_file(weights).items() if "up" not in key}, weights)
    with pytest.raises(UserError, match=r"b/\S+ does not fit: 36 of 72 tensors missing \(up.projection"):
        attach(
            load(BLIP, "vqa", texts=["a"]).model,
            method("fusion", sources=[*map(str, folders)]),
            sites(BLIP, "vqa", ["*"]),
        )


def test_sources_keep_their_precision_in_a_trunk_that_is_cast(tmp_path: Path) -> None:
    folders = [str(written(tmp_path / name, "blip", "vqa", method("bottleneck", dim=2))) for name in "ab"]
    backbone = load(BLIP, "vqa", texts=["a"])
    model = attach(backbone.model, method("fusion", sources=folders), sites(BLIP, "vqa", ["*"]))
    cast_trunk(model, torch.bfloat16)
    types = {key: parameter.dtype for key, parameter in model.named_parameters()}
    assert {dtype for key, dtype in types.items() if ".sources." in key} == {torch.float32}
    assert types["base_model.model.vision_model.encoder.layers.0.mlp.fc2.weight"] == torch.bfloat16
