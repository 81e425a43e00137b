"""Grounding on the command line: its rates, as a subtask, and what is refused before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.checks.test_composites import composed, problems

QUICK = 2  # of each table, in the quick suite: a composition takes a third of a second
FIND, WRITE = "+task@task.subtasks.find=grounding", "+task@task.subtasks.write=grounding_words"


RATES = [
    (("task=joint", FIND), 0.3 * 3e-3),
    (("task=grounding",), 0.3 * 3e-3),
    (("task=grounding", "model=clip"), 0.3 * 5e-4),
    (("task=grounding", "task.rate=0.5", "adapter.rate=3"), 0.5 * 3e-3 * 3),
    (("task=grounding", "adapter=full"), 3e-4),
    (("task=grounding", "optim.lr=2e-3"), 2e-3),
    (("task=grounding_words",), 3e-3),
    (("task=joint",), 3e-3),
    (("task=joint", "+task.subtasks.find={name: grounding}"), 0.3 * 3e-3),
    (("task=joint", FIND, "task.subtasks.find.rate=0.1"), 0.1 * 3e-3),
]
REFUSED = [
    (("model=siglip2_naflex", "task=grounding"), "its images come in any aspect ratio; a head for boxes needs one"),
    (("model=composite", "model/vision=features", "task=grounding"), "images come as features; a head for boxes"),
    (("model=composite", "model/vision=features", "task=joint", FIND), "images come as features; a head for boxes"),
    (("model=llava", "task=joint", FIND), "task.subtasks.find: model=llava cannot do grounding as a subtask: its Llava"),
    (("model=qwen2_5_vl", "task=joint", WRITE), "task.subtasks.write: model=qwen2_5_vl is asked for grounding_words in words"),
    (("task=vqa", "task.rate=0.5"), "task=vqa takes no task.rate"),
    (("task=grounding", "task.rate=0"), "task.rate=0.0: must be more than 0"),
    (("task=grounding", "data.boxes=xyxy_square"), "data.boxes=xyxy_square: must be one of xyxy, xywh"),
]  # fmt: skip


def some(table: list[Any]) -> list[Any]:
    return [*table[:QUICK], *(pytest.param(*row, marks=pytest.mark.slow) for row in table[QUICK:])]


@pytest.mark.parametrize(("words", "rate"), some(RATES))
def test_what_learns_in_the_backbone_learns_slower_than_the_head(words: tuple[str, ...], rate: float) -> None:
    assert composed(*words).optim.lr == pytest.approx(rate)


@pytest.mark.slow
def test_a_head_for_boxes_comes_with_its_subtask() -> None:
    plain, more = composed("task=joint").model.tasks["joint"], composed("task=joint", FIND).model.tasks["joint"]
    assert (plain.trained, more.trained) == ([], ["box_head"])
    assert plain.cacheable_inputs.keys() == {"vision", "fusion"}
    assert more.cacheable_inputs == {"vision": ["image"]}, "of the question's encoder the head reads its patches, too"
    whole = composed("task=joint", FIND, "model=tiny_composite").model.tasks["joint"]
    assert whole.trained == ["projection", "box_head"]
    assert composed("task=joint", WRITE).model.tasks["joint"].trained == ["location_words"]
    assert composed("task=joint", WRITE, "model.box_words=digits").model.tasks["joint"].trained == []
    assert composed("task=grounding_words").served.trained == ["location_words"]
    assert composed("task=grounding_words", "model=florence2").served.trained == []


@pytest.mark.parametrize(("words", "said"), some(REFUSED))
def test_what_cannot_be_is_said_before_anything_loads(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    features = "model/vision=features" in words and "task=grounding" in words
    more = ["data=files", f"data.train={tmp_path / 'rows.jsonl'}"] if features else []
    assert any(said in problem for problem in problems(*words, *more))
