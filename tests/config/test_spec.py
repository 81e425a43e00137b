"""The description of a task: of the shipped ones, of one's own, and in runs that were written before."""

from __future__ import annotations

from typing import Any

import pytest

from vlatrain.config import TaskConfig
from vlatrain.config.joint import JOINT, scores, tasks
from vlatrain.config.spec import (
    TaskSpec,
    described,
    problems,
    shipped_spec,
    shipped_tasks,
    typed_spec,
    with_shipped_specs,
)
from vlatrain.data.shapes import SETS
from vlatrain.tasks import TASKS


@pytest.mark.parametrize("name", shipped_tasks())
def test_the_shipped_descriptions_are_sound(name: str) -> None:
    config = TaskConfig(name, metric=described(name)["metric"])
    assert not [*problems(name, config.spec)]
    assert config.metric == next(metric.name for metric in config.spec.metrics if metric.higher_is_better)
    if name != JOINT:
        assert config.spec.fields
        assert config.spec.builtin in SETS


def test_each_shipped_description_has_its_code() -> None:
    assert set(TASKS) == set(shipped_tasks())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "spec is missing"),
        ({"fields": ["anwsers"]}, "spec.fields: anwsers: must be one of question, answers"),
        ({"fields": ["answers"], "given": ["question"]}, "spec.given: question: must be among its fields"),
        ({"fields": ["answers"], "metrics": []}, "spec.metrics=[]: a task has at least one score"),
        ({"fields": ["answers"], "query": "speech"}, "spec.query=speech: must be one of image, question, text"),
        ({"fields": ["answers"], "prompt": "vaq"}, "spec.prompt=vaq: must be one of captioning, vqa, instruct"),
    ],
)
def test_what_is_wrong_with_a_description(values: dict[str, Any], said: str) -> None:
    spec = typed_spec({"metrics": [{"name": "accuracy"}], **values} if values else {})
    (found,) = problems("mine", spec)
    assert found.startswith("task=mine: its YAML file: ")
    assert said in found


def test_a_name_alone_does_not_choose_a_task() -> None:
    (found,) = problems("captioning", shipped_spec("vqa"))
    assert found.startswith("task.name=captioning: its spec is another one: task=captioning chooses all of it")


def test_a_joint_task_is_scored_by_its_subtasks_too() -> None:
    found = scores(TaskConfig(JOINT, subtasks={"one": {"name": "instruct"}, "vqa": {}}))
    told = {name for name in found if not name.endswith("_as_written")}
    assert told == {"mean", "one/rouge_l", "one/exact_match", "one/perplexity"} | {
        f"vqa/{name}" for name in ("accuracy", "anls", "relaxed_accuracy")
    }
    assert (found["one/perplexity"].unit, found["one/perplexity"].higher_is_better) == ("", False)


def test_a_run_that_was_written_before_gets_the_shipped_description() -> None:
    before = {"name": JOINT, "subtasks": {"easy": {"name": "vqa"}, "captioning": {"max_length": 8}}}
    found = with_shipped_specs(before)
    assert typed_spec(found["spec"]) == shipped_spec(JOINT)
    assert typed_spec(found["subtasks"]["easy"]["spec"]) == shipped_spec("vqa")
    assert typed_spec(found["subtasks"]["captioning"]["spec"]) == shipped_spec("captioning")
    older = with_shipped_specs({"name": "retrieval", "spec": {"fields": ["label"]}})
    assert typed_spec(older["spec"]) == shipped_spec("retrieval")


def test_a_task_that_is_not_shipped_keeps_its_own() -> None:
    mine = {"fields": ["label"], "metrics": [{"name": "accuracy"}]}
    assert with_shipped_specs({"name": "mine", "spec": mine})["spec"] == mine
    subtask = tasks(TaskConfig(JOINT, subtasks={"one": {"name": "mine", "spec": mine}}))["one"]
    assert subtask.spec == typed_spec(mine)
    assert shipped_spec("mine") == TaskSpec()
