"""Every row of the table of behaviour with adapters for each part of a joint task: it works, or is refused with its reason."""

from __future__ import annotations

import copy

import pytest

from tests.injection.test_methods import ROWS, randomise
from tests.tasks.test_joint import CONFIG, PARTS, TEXTS, gradients, loss_of, task_on, two_parts
from vlatrain.backbones.describe import sites
from vlatrain.backbones.fit import misfits
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.errors import Unfit
from vlatrain.injection.attach import attach

BACKBONE = load(CONFIG, "joint", texts=TEXTS)
SAMPLES = two_parts(4, 4)


@pytest.mark.parametrize("name", ROWS)
def test_a_design_has_adapters_for_each_part(name: str) -> None:
    row = ROWS[name]
    adapter = copy.deepcopy(row.config)
    adapter.by_task = True
    adapter.points = row.points
    parts = {"ask": {"name": "vqa"}, "tell": {"name": "captioning"}}
    config = TrainConfig(task=TaskConfig(name="joint", points=["*"], parts=parts), model=CONFIG, adapter=adapter)
    if found := misfits(config):
        assert all(isinstance(problem, Unfit) for problem in found)
        return
    backbone = copy.deepcopy(BACKBONE)
    model = attach(backbone.model, adapter, sites(CONFIG, "joint", config.points), PARTS)
    task = task_on(backbone)
    base = loss_of(task_on(BACKBONE), SAMPLES)
    assert loss_of(task, SAMPLES) == (pytest.approx(base, rel=1e-3) if row.inexact else base)
    randomise(model)
    assert loss_of(task, SAMPLES) != base
    found_gradients = gradients(task, model, [sample for sample in SAMPLES if sample.part == "ask"])
    assert any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in found_gradients.values())
    # what the parts share is stored with the first
    assert all(gradient is None for key, gradient in found_gradients.items() if ".task_tell." in key)
