"""A backbone of one's own: a YAML in one's own folder and a checkpoint in the hub's layout, used through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel

from tests.backbones.small import DUAL
from tests.commands import command, tiny_run
from vlatrain.backbones.architecture import image_processor_class
from vlatrain.backbones.tokenizers import make_wordpiece, token_ids

OWN = """
# A CLIP-like model that somebody has trained: the same modules as CLIP, another size.
defaults:
  - clip
  - _self_

name: mine
tasks:
  retrieval: {{ checkpoint: {checkpoint}, samples_per_step: 8 }}
  classification: {{ checkpoint: {checkpoint} }}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with the YAML; the checkpoint is one in the layout that `save_pretrained` writes."""
    tokenizer = make_wordpiece(["a red circle and a blue square in the corner"], 400)
    text = {**DUAL["text_config"], **token_ids(tokenizer)}
    model = CLIPModel(CLIPConfig(vision_config=DUAL["vision_config"], text_config=text, projection_dim=20))
    side = {"height": 40, "width": 40}
    for part in (model, tokenizer, image_processor_class("clip")(size=side, crop_size=side)):
        part.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(OWN.format(checkpoint=tmp_path / "checkpoint"))
    return tmp_path


@pytest.mark.slow
def test_a_yaml_of_ones_own_is_a_backbone(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = ("--config-dir", str(own / "conf"), "model=mine")
    assert command("inspect", "task=retrieval", *mine) == 0
    assert "0-1" in capsys.readouterr().out  # its two layers
    run = tiny_run(own / "run", "retrieval", *mine)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["model"] == "mine"
    assert metrics["training"]["steps"] == 3
    assert command("eval", f"run={run}") == 0  # needs the folder no more: the run has it all
    again = json.loads((run / "evaluations" / "eval" / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(metrics["metrics"])


@pytest.mark.slow
def test_it_is_among_those_that_could_where_another_cannot(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "conf" / "model" / "asked.yaml").write_text("defaults: [blip, _self_]\nname: asked\n")
    assert command("--config-dir", str(own / "conf"), "task=captioning", "model=mine") == 2
    told = capsys.readouterr().err
    assert (
        "model=mine cannot do it; it can do retrieval, classification, vqa, grounding; captioning: asked, blip" in told
    )
