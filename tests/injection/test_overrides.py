"""Options by point: a pattern gives its points their own, and what it cannot give is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from vlatrain.adapters import Bottleneck
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.cli import main as cli
from vlatrain.injection.attach import attach, save
from vlatrain.injection.peft_method import CHILD
from vlatrain.injection.points import Point
from vlatrain.runs import read_config

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
MOMENT = (
    "data.train_size=8", "data.eval_size=4", "trainer.max_steps=1", "trainer.batch_size=4", "trainer.threads=1", "run.dir=run",
)  # fmt: skip


def adapted(overrides: dict[str, Any]) -> tuple[Backbone, nn.Module]:
    config = small_config("blip")
    backbone = load(config, "vqa", texts=TEXTS)
    method = adapter_config("bottleneck", dim=4, overrides=overrides)
    return backbone, attach(backbone.model, method, sites(config, "vqa", ["vision", "fusion"]))


def unit_at(backbone: Backbone, text: str) -> Any:
    place = sites(small_config("blip"), "vqa", ["*"]).places[Point.parse(text)]
    return getattr(backbone.model.get_submodule(place.output), CHILD).units["default"]


def test_each_point_has_its_own_and_the_later_pattern_the_last_word(tmp_path: Path) -> None:
    overrides = {
        "vision.*.*": {"dim": 2, "scaling": 0.5},
        "*.1.ffn": {"dim": 6, "placement": "parallel"},
        "fusion.0.cross": {"projection": "low_rank", "rank": 1},
    }
    backbone, model = adapted(overrides)
    found = {
        text: unit_at(backbone, text) for text in ("vision.0.attn", "vision.1.ffn", "fusion.1.ffn", "fusion.1.attn")
    }
    assert {text: unit.down.projection.out_features for text, unit in found.items()} == {
        "vision.0.attn": 2, "vision.1.ffn": 6, "fusion.1.ffn": 6, "fusion.1.attn": 4,
    }  # fmt: skip
    assert [unit.scaling for unit in found.values()] == [0.5, 0.5, 4.0, 4.0]
    assert [unit.reads for unit in found.values()] == ["output", "input", "input", "output"]
    low = (48 + 4) + (4 + 48) + 4 + 48  # dim 4, rank 1, with biases
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    by_dim = {2: 5, 6: 2, 4: 4}  # vision has six points, fusion six, of which one is of low rank
    assert counted == low + sum(number * Bottleneck.count(48, dim) for dim, number in by_dim.items())

    save(model, tmp_path)
    again = load(small_config("blip"), "vqa", texts=TEXTS)
    PeftModel.from_pretrained(again.model, str(tmp_path))
    for text, unit in found.items():
        assert [p.shape for p in unit_at(again, text).parameters()] == [p.shape for p in unit.parameters()]


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*MOMENT, "adapter.overrides={vision.*.*: {dim: 4}, fusion.1-2.ffn: {dim: 2}}"]) == 0
    assert read_config("run")["adapter"]["overrides"] == {"vision.*.*": {"dim": 4}, "fusion.1-2.ffn": {"dim": 2}}
    backbone_width, dims = 128, {4: 8, 2: 2, 16: 7}  # tiny_blip: vision 4 layers of 2 sites, fusion 3 of 3
    expected = sum(number * Bottleneck.count(backbone_width, dim) for dim, number in dims.items())
    assert f'"trainable": {expected},' in Path("run/metrics.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("{visoin.*.*: {dim: 4}}", "'visoin.*.*' matches nothing"),
        ("{vision.9.*: {dim: 4}}", "'vision.9.*' matches nothing"),
        ("{decoder.*.*: {dim: 4}}", "adapter.overrides.decoder.*.*: none of the method's points is there"),
        (
            "{vision.*.*: {dmi: 4}}",
            "adapter.overrides.vision.*.*.dmi: adapter=bottleneck has no such option; did you mean dim?",
        ),
        ("{vision.*.*: {dim: four}}", "adapter.overrides.vision.*.*.dim=four: expected a whole number"),
        ("{vision.*.*: 4}", "adapter.overrides.vision.*.*=4: expected options"),
    ],
)
def test_refused_by_name(overrides: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"adapter.overrides={overrides}"]) == 2
    assert said in capsys.readouterr().err


def test_methods_of_peft_have_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapter=lora", "adapter.overrides={vision.*.*: {dim: 4}}"]) == 2
    assert "takes adapter.options.rank_pattern and the like" in capsys.readouterr().err
