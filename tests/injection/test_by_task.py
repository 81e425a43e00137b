"""Every row of the table of behaviour with adapters for each subtask of a joint task: it works, or is refused with its reason."""

from __future__ import annotations

import copy

import pytest

from tests.conftest import copied
from tests.injection import rows_fusion, rows_mixed, rows_peft
from tests.injection.test_methods import ROWS, is_variant, randomise
from tests.tasks.test_joint import CONFIG, SUBTASKS, TEXTS, gradients, loss_of, task_on, two_subtasks
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.injection.attach import attach

BACKBONE = load(CONFIG, "joint", texts=TEXTS)
SAMPLES = two_subtasks(4, 4)


REFUSED = {
    **dict.fromkeys([*rows_peft.ROWS, *rows_fusion.ROWS, *rows_mixed.ROWS], "trains one for all subtasks"),
    **dict.fromkeys(["cross_modal, image reads question", "routing, image reads question"], "no states of another"),
    **dict.fromkeys(["clip_adapter", "clip_adapter, both", "tip_adapter", "tip_adapter_f"], "works on the features"),
    **dict.fromkeys(
        ["ladder", "ladder, layers dropped", "lst, attends to the trunk"], "never goes back through the trunk"
    ),
    "llama_adapter": "goes to self-attention only",
}
OTHERS = [pytest.param(n, marks=pytest.mark.slow if is_variant(n) else ()) for n in ROWS if n not in REFUSED]


def of_both(name: str) -> TrainConfig:
    """A method with adapters for each of two subtasks."""
    row = ROWS[name]
    adapter = copy.deepcopy(row.config)
    adapter.by_task = True
    adapter.points = row.points
    subtasks = {"ask": {"name": "vqa"}, "tell": {"name": "captioning"}}
    return TrainConfig(task=TaskConfig(name="joint", points=["*"], subtasks=subtasks), model=CONFIG, adapter=adapter)


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_cannot_is_refused(name: str) -> None:
    found = incompatibilities(of_both(name))
    assert all(isinstance(problem, Incompatible) for problem in found)
    assert any(REFUSED[name] in problem for problem in found)


@pytest.mark.parametrize("name", OTHERS)
def test_a_design_has_adapters_for_each_subtask(name: str) -> None:
    row, config = ROWS[name], of_both(name)
    assert not incompatibilities(config)
    backbone = copied(BACKBONE)
    model = attach(backbone.model, config.adapter, sites(CONFIG, "joint", config.points), SUBTASKS)
    task = task_on(backbone)
    base = loss_of(task_on(BACKBONE), SAMPLES)
    assert loss_of(task, SAMPLES) == (pytest.approx(base, rel=1e-3) if row.inexact else base)
    randomise(model)
    assert loss_of(task, SAMPLES) != base
    found_gradients = gradients(task, model, [sample for sample in SAMPLES if sample.subtask == "ask"])
    assert any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in found_gradients.values())
    # what the subtasks share is stored with the first
    assert all(gradient is None for key, gradient in found_gradients.items() if ".task_tell." in key)
