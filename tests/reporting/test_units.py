"""Scores bear the units of their description, and examples are its own."""

from __future__ import annotations

from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.reporting.summary import asking, scores


def test_units_are_the_descriptions() -> None:
    config = TrainConfig(task=TaskConfig("instruct", metric="rouge_l"))
    found = {"metric": "rouge_l", "metrics": {"perplexity": 3.0, "rouge_l": 50.0, "unheard_of": 1.0}}
    assert scores(config, found) == [
        ("[bold]rouge_l[/]", "50.00 %"),
        ("perplexity", "3.00"),
        ("unheard_of", "1.00"),
    ]


def test_each_subtask_is_asked_in_its_own_way() -> None:
    config = TrainConfig(task=TaskConfig("joint", subtasks={"vqa": {}, "find": {"name": "retrieval"}}))
    assert asking(config, "R") == [
        'vlatrain predict run=R subtask=vqa image=PHOTO.jpg question="..."',
        'vlatrain predict run=R subtask=find image=FOLDER text="..."',
    ]
