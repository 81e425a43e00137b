"""Sizes that do not fit each other are one line before anything is read; those that do are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL_BLIP, command
from tests.conftest import _over
from tests.tasks.test_table import COMPOSITES, NAMES, config_of
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.config.joint import JOINT
from vlatrain.training.sizes import refuse_unfit
from vlatrain.verbs import train

slow = pytest.mark.slow
HEADS = r"not a multiple of the number of attention heads \(?5"
READS = "what it reads of images has a width of {}, its texts one of 72"
#: Backbone, task, what differs from its small settings, and what is said.
UNFIT: list[tuple[str, str, dict[str, Any], str]] = [
    ("blip", "vqa", {"text_config": {"hidden_size": 32}}, "crossattention.self.key: takes 48 values, and is given 32"),
    ("blip", "vqa", {"text_config": {"num_attention_heads": 5}}, HEADS),
    ("clip", "retrieval", {"text_config": {"num_attention_heads": 5}}, HEADS),
    ("clip", "retrieval", {"vision_config": {"patch_size": 100}}, "patch_embedding: .*Kernel size"),
    ("siglip", "retrieval", {"vision_config": {"hidden_size": 24}}, r"48\] X \[24"),
    ("vilt", "vqa", {"hidden_size": 50}, HEADS.replace("5", "3")),
    ("blip2_opt", "vqa", {"qformer_config": {"num_attention_heads": 5}}, HEADS),
    ("blip2_opt", "vqa", {"text_config": {"word_embed_proj_dim": 70}}, r"a width of 72, its texts one of 70"),
    ("blip2_itm", "retrieval", {"qformer_config": {"hidden_size": 50}}, HEADS.replace("5", "4")),
    ("paligemma", "vqa", {"projection_dim": 7}, READS.format(7)),
    ("florence2", "captioning", {"vision_config": {"projection_dim": 7}}, READS.format(7)),
    ("qwen2_5_vl", "vqa", {"vision_config": {"out_hidden_size": 20}}, READS.format(20)),
    ("smolvlm", "vqa", {"scale_factor": 5}, "connector: shape .* is invalid"),
    ("composite clip+gpt2", "vqa", {"vision_config": {"num_attention_heads": 5}}, HEADS),
]
QUICK = ("blip", "clip", "vilt")


def config(name: str, task: str, **settings: Any) -> TrainConfig:
    model = config_of(name)
    return TrainConfig(task=TaskConfig(name=task), model=replace(model, config=_over(model.config, settings)))


@pytest.mark.parametrize(
    ("name", "task", "settings", "said"),
    [pytest.param(*case, marks=[] if case[0] in QUICK else slow) for case in UNFIT],
)
def test_what_does_not_fit_is_said(name: str, task: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"model=[\w]+: its sizes do not fit each other: .*{said}") as raised:
        refuse_unfit(config(name, task, **settings))
    assert len(raised.value.problems) == 1
    assert "\n" not in raised.value.problems[0]


def cells() -> Iterator[object]:
    for name in [*NAMES, *(f"composite {vision}+{words}" for vision, words in COMPOSITES)]:
        for task in config_of(name).tasks:
            if task != JOINT and (name, task) != ("siglip2_naflex", "grounding"):
                quick = (name, task) in (("blip", "vqa"), ("clip", "classification"))
                yield pytest.param(name, task, marks=[] if quick else slow)


@pytest.mark.parametrize(("name", "task"), [*cells()])
def test_what_fits_is_left_alone(name: str, task: str) -> None:
    refuse_unfit(config(name, task))


def test_few_positions_fit() -> None:
    refuse_unfit(config("vilt", "vqa", max_position_embeddings=4))


@pytest.mark.parametrize("verb", ["train", "inspect"])
def test_it_is_said_before_anything_is_read(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "load_run", lambda *_: pytest.fail("data was read"))
    words = ("task=vqa", "model=blip", "model.random_init=true", *SMALL_BLIP)
    assert command(*([verb] if verb != "train" else [f"run.dir={tmp_path / 'run'}"]), *words) == 2
    said = capsys.readouterr().err
    assert said.count("error") == 1
    assert "takes 48 values, and is given 32" in " ".join(said.split())
    assert not (tmp_path / "run").exists()
