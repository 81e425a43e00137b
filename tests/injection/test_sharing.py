"""The sharing rule: what is shared is stored once, counted once, and one tensor again after loading; what cannot be is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.cli import main as cli
from vlatrain.config import AdapterConfig, UserError
from vlatrain.injection.attach import attach, check, peft_config, save
from vlatrain.injection.peft_method import CHILD
from vlatrain.injection.points import Point, Sites
from vlatrain.injection.site import ByTask

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
OWN = {"down": ["up"], "up": ["down"], "columns": ["down", "up.projection.own"], "all": []}
SHARED = {"down": ["down"], "up": ["up"], "columns": ["up.projection.common"], "all": ["down", "up"]}


def loaded() -> Backbone:
    return load(small_config("blip"), "vqa", texts=TEXTS)


def everywhere() -> Sites:
    return sites(small_config("blip"), "vqa", ["*"])


def adapted(method: AdapterConfig) -> tuple[Backbone, nn.Module]:
    backbone = loaded()
    return backbone, attach(backbone.model, method, everywhere())


def unit_at(backbone: Backbone, point: Point) -> Any:
    target = backbone.model.get_submodule(everywhere().places[point].output)
    return getattr(target, CHILD).units["default"]


def first_of(point: Point, over: list[str]) -> Point:
    """The place that keeps what a point shares: the first of those that differ from it in `over` only."""
    kept = [part for part in ("tower", "layer", "site") if part not in over]
    return next(p for p in everywhere().places if all(getattr(p, part) == getattr(point, part) for part in kept))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["down", pytest.param("up", marks=pytest.mark.slow), "columns", "all"])
@pytest.mark.parametrize(
    "over",
    [
        ["tower"],
        pytest.param(["layer"], marks=pytest.mark.slow),
        pytest.param(["layer", "tower"], marks=pytest.mark.slow),
        pytest.param(["layer", "tower", "site"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_stored_once_and_one_tensor_after_loading(what: str, over: list[str], tmp_path: Path) -> None:
    method = adapter_config("bottleneck", dim=4, share={"what": what, "over": over, "columns": 8})
    _, model = adapted(method)
    save(model, tmp_path)
    expected = set()
    for point in everywhere().places:
        holders = [(point, part) for part in OWN[what]] + [(first_of(point, over), part) for part in SHARED[what]]
        for place, part in holders:
            path = part if part.startswith("up.") else f"{part}.projection"
            if what == "columns" and part == "down":
                path = "down.projection"
            prefix = f"base_model.model.{everywhere().places[place].output}.{CHILD}.vlatrain_unit.{path}"
            expected |= {f"{prefix}.weight", f"{prefix}.bias"}
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert set(stored) == expected
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted == sum(tensor.numel() for tensor in stored.values())

    again = loaded()
    PeftModel.from_pretrained(again.model, str(tmp_path))
    for point in everywhere().places:
        unit, owner = (self_or_whole(unit_at(again, p)) for p in (point, first_of(point, over)))
        for part in SHARED[what]:
            assert unit.get_submodule(part) is owner.get_submodule(part)
        for part in OWN[what] if point != first_of(point, over) else ():
            assert unit.get_submodule(part) is not owner.get_submodule(part)


def self_or_whole(unit: Any) -> Any:
    """A unit, or the one that it stands for."""
    return unit.__dict__.get("unit", unit)


@pytest.mark.parametrize(
    ("name", "part", "over"),
    [
        ("compacter", "rule", ["layer", "tower", "site"]),
        ("hyperformer", "generator", ["layer", "site"]),
        ("hyperformer", "task", ["layer", "site", "tower"]),
        ("uniadapter", "down", ["tower"]),
    ],
)
def test_what_a_design_ties_is_one_after_loading(name: str, part: str, over: list[str], tmp_path: Path) -> None:
    _, model = adapted(adapter_config(name, dim=4))
    save(model, tmp_path)
    again = loaded()
    PeftModel.from_pretrained(again.model, str(tmp_path))
    found: dict[Point, set[int]] = {}
    for point in everywhere().places:
        found.setdefault(first_of(point, over), set()).add(id(unit_at(again, point).get_submodule(part)))
    assert all(len(ids) == 1 for ids in found.values())
    assert len(set.union(*found.values())) == len(found)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    holders = {key.split(f"vlatrain_unit.{part}.")[0] for key in stored if f"vlatrain_unit.{part}." in key}
    assert len(holders) == len(found)


def test_training_moves_every_user_of_a_shared_tensor() -> None:
    backbone, _ = adapted(adapter_config("bottleneck", dim=4, init="normal", share={"what": "down", "over": ["layer"]}))
    states = torch.randn(2, 3, 48)
    first, second = (unit_at(backbone, Point("vision", layer, "ffn")) for layer in (0, 1))
    before = second(states)
    with torch.no_grad():
        first.down.projection.weight.add_(1.0)
    assert not torch.allclose(second(states), before)


def test_tasks_of_a_hyper_network_add_an_embedding_each() -> None:
    method = adapter_config("hyperformer", dim=4, options={"task_embedding": 6, "hidden": 8, "projected": 4})
    counts = []
    for tasks in ([], ["a", "b", "c"]):
        backbone = loaded()
        config = peft_config(method, everywhere())
        config.tasks = tasks
        model = get_peft_model(backbone.model, config)
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts[1] == counts[0] + 2 * 6
    unit = unit_at(backbone, Point("vision", 0, "ffn"))
    assert isinstance(unit, ByTask)
    one, two = (unit.units[key] for key in list(unit.units)[:2])
    assert one.generator is two.generator
    assert one.task is not two.task


def test_one_width_only_is_refused_where_shapes_differ() -> None:
    config = small_config("blip")
    points = everywhere()
    method = adapter_config(
        "bottleneck", dim=4, share={"what": "down", "over": ["layer"]}, overrides={"vision.1.*": {"dim": 8}}
    )
    with pytest.raises(UserError, match=r"vision\.1\.attn cannot share down: it is projection\.weight 8x48"):
        attach(load(config, "vqa", texts=TEXTS).model, method, points)
    method.share.what = "all"
    with pytest.raises(UserError, match=r"vision\.1\.attn cannot share all"):
        attach(load(config, "vqa", texts=TEXTS).model, method, points)


def test_parts_that_a_design_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"share\.what=columns: adapter=uniadapter has none that could be shared"):
        check(adapter_config("uniadapter", share={"what": "columns"}))
    for name in ("bottleneck", "compacter", "uniadapter"):
        for what in ("down", "up", "all"):
            check(adapter_config(name, share={"what": what}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapter=uniadapter"], "adapter.share.what=down: cannot be shared over towers of different widths"),
        (["adapter.share.what=up", "adapter.share.over=[tower]"], "(vision 768, text 512)"),
        (["adapter.share.what=all", "adapter.share.over=[layer,tower]"], "or leave tower out of adapter.share.over"),
        (["adapter.share.what=downs"], "did you mean down?"),
        (["adapter.share.over=[layers]", "adapter.share.what=up"], "did you mean layer?"),
        (["adapter=hyperformer", "adapter.share.what=up"], "adapter=hyperformer has no halves that could be shared"),
    ],
)
def test_refused_by_name(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model=clip", "task=retrieval", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from vlatrain.cli import main as cli;"
        "status = cli.main(['model=clip', 'task=retrieval', 'adapter=uniadapter']);"
        "assert status == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
