"""Scores bear the units of their description, and examples are its own."""

from __future__ import annotations

from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.reporting.scores import shown_score
from vlatrain.reporting.summary import asking


def test_units_are_the_descriptions() -> None:
    config = TrainConfig(task=TaskConfig("instruct", metric="rouge_l"))
    found = {"perplexity": 3.0, "rouge_l": 50.0, "unheard_of": 1.0}
    assert [shown_score(config, name, value) for name, value in found.items()] == ["3.00", "50.00 %", "1.00"]


def test_each_subtask_is_asked_in_its_own_way() -> None:
    config = TrainConfig(task=TaskConfig("joint", subtasks={"vqa": {}, "find": {"name": "retrieval"}}))
    assert asking(config, "R") == [
        'vlatrain predict run=R subtask=vqa image=PHOTO.jpg question="..."',
        'vlatrain predict run=R subtask=find image=FOLDER text="..."',
    ]
