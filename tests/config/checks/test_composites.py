"""The submodels of a composite on the command line: chosen, refused, and of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlatrain.backbones.describe import widths
from vlatrain.cli import main as cli
from vlatrain.cli.compose import prepare
from vlatrain.cli.overrides import Request
from vlatrain.config import TrainConfig, UserError
from vlatrain.config.folder import conf_dir, subgroups_of

SUBMODELS = subgroups_of(conf_dir())
OWN = """
# @package model
defaults: [gpt2, _self_]
submodels:
  language: {checkpoint: distilbert/distilgpt2}
config:
  text_config: {n_layer: 6%s}
"""


def composed(*overrides: str, folder: Path | None = None) -> TrainConfig:
    """The configuration of a command line."""
    made: list[TrainConfig] = []
    request = Request("train", list(overrides), config_dir=str(folder) if folder else None)
    prepare(request, lambda config: made.append(config) or cli._check_compatibility(config))  # type: ignore[func-returns-value]
    return made[0]


def problems(*overrides: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(UserError) as error:
        composed(*overrides, folder=folder)
    return error.value.problems


PAIRS = [("clip", language) for language in SUBMODELS["model/language"]]
PAIRS += [(vision, "bart") for vision in SUBMODELS["model/vision"]]


@pytest.mark.parametrize(("vision", "language"), PAIRS)
def test_any_vision_goes_with_any_language(vision: str, language: str) -> None:
    config = composed("model=composite", f"model/vision={vision}", f"model/language={language}", "adapter=cross_modal")
    text = ["text", "decoder"] if language in ("bart", "t5") else ["decoder"]
    served = config.model.tasks["vqa"]
    assert served.towers == [*(["vision"] if vision != "features" else []), *text]
    assert config.task.points == served.points == text
    assert widths(config.model, "vqa")["projector"] == widths(config.model, "vqa")["decoder"]


def test_the_tiny_one_is_made_of_the_shipped_submodels() -> None:
    config = composed("model=tiny_composite", "task=captioning")
    assert {submodel.checkpoint for submodel in config.model.submodels.values()} == {
        "assets:tiny_clip",
        "assets:tiny_gpt",
    }
    assert config.served.samples_per_step == 16


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model/vision=clip"], "model/vision: the chosen model has no submodels; model=composite has"),
        (["model=composite", "model/vision=clp"], "there is no such model/vision; there are clip, .*; did you mean clip?"),
        (["model=composite", "model/visio=clip"], "there is no group model/visio; did you mean model/vision?"),
        (
            ["model=composite", "model.options.visul=both"],
            "only visual, norm, boxes, order, added_tokens, visual_tokens, chat; did you mean visual?",
        ),
        (["model=composite", "model.options.visual=word"], "must be one of tokens, adapters, both"),
        (["model=composite", "model.options.boxes=3"], "model.options.boxes=3: expected true or false"),
        (["model=composite", "model.options.visual_tokens=20"], "visual_tokens=20: must be a square number, as 16 or 25"),
        (["model=composite", "model/vision=features", "model.options.visual_tokens=16"], "takes as many as there are in the files"),
        (["model=composite", "model.options.added_tokens=-1"], "model.options.added_tokens=-1: must be 0 or more"),
        (["model=composite", "model.prompts.vqa=hm"], "model.prompts.vqa=hm: lacks {question}"),
        (["model=composite", "model.options.visual=adapters"], "only adapters that read the image see it"),
        (["model=composite", "adapter=full", "model.options.visual=adapters"], "only adapters that read the image see it"),
        (
            ["model=composite", "adapter=cross_modal", "model.options.visual=tokens"],
            "shows as tokens only; set model.options.visual=both",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(overrides: list[str], told: str) -> None:
    (problem,) = problems(*overrides)
    assert re.search(told.replace("?", r"\?").replace("{", r"\{"), problem), problem


def test_a_sweep_leaves_out_what_would_be_blind() -> None:
    request = Request(
        "train", ["model=composite", "adapter=bottleneck,cross_modal", "model.options.visual=adapters"], multirun=True
    )
    assert prepare(request, cli._check_compatibility).swept == ("adapter",)


def test_a_submodel_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "model" / "language").mkdir(parents=True)
    file = tmp_path / "model" / "language" / "distil.yaml"
    file.write_text(OWN % "")
    config = composed("model=composite", "model/language=distil", folder=tmp_path)
    assert config.model.submodels["language"].checkpoint == "distilbert/distilgpt2"
    assert config.model.config["text_config"]["n_layer"] == 6
    file.write_text((OWN % "").replace("checkpoint", "checkpint"))
    (problem,) = problems("model=composite", "model/language=distil", folder=tmp_path)
    assert problem.startswith(f"{file}: there is no key model.submodels.language.checkpint; did you mean")
