"""Labels against the classes there are: everything wrong is found when the data is read, also in a subtask of a joint run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.writing import write_images, write_records
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.data.subtasks import load_run


def config(folder: Path, train: str, test: str = "", **task: object) -> TrainConfig:
    """A run on images whose labels are letters of two texts."""
    names = write_images(folder, max(len(train), len(test), 1))
    made = TrainConfig(task=TaskConfig(name="classification", **task))  # type: ignore[arg-type]
    made.trainer.batch_size, made.data.name, made.data.eval_fraction = 1, "files", 0.5
    for split, labels in (("train", train), ("eval", test)):
        if labels:
            records = [{"image": name, "label": label} for name, label in zip(names, labels, strict=False)]
            setattr(made.data, split, str(write_records(folder / f"{split}.jsonl", records)))
    return made


def problems(made: TrainConfig, *splits: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_run(made, splits or ("train", "eval"))
    return caught.value.problems


def test_sound_labels(tmp_path: Path) -> None:
    found = load_run(config(tmp_path, "aabb", "ab"), ["train", "eval"])
    assert [sample.label for sample in found["train"] + found["eval"]] == [*"aabb", *"ab"]
    assert load_run(config(tmp_path, "aabb", "aac", classes=["a", "b", "c"]), ["train", "eval"])
    assert load_run(config(tmp_path, "ab", "aa", metric="auroc", classes=["a", "b"]), ["train"])


def test_a_single_class_is_no_choice(tmp_path: Path) -> None:
    assert problems(config(tmp_path, "aaa", "a")) == ["data.train: a single class (a); a choice needs two or more"]


def test_a_class_that_training_has_not(tmp_path: Path) -> None:
    assert problems(config(tmp_path, "aabb", "accd")) == [
        f"{tmp_path}/eval.jsonl:2: of class 'c', and 1 more of it: no training sample is; task.classes=[...] can name what is "
        "not trained on",
        f"{tmp_path}/eval.jsonl:4: of class 'd': no training sample is; task.classes=[...] can name what is not trained on",
    ]


def test_a_class_that_is_not_configured(tmp_path: Path) -> None:
    made = config(tmp_path, "aabb", "abc", classes=["a", "bb", "c"])
    why = "none of the 3 in task.classes; did you mean bb?"
    assert problems(made) == [
        f"{tmp_path}/train.jsonl:3: of class 'b', and 1 more of it: {why}",
        f"{tmp_path}/eval.jsonl:2: of class 'b': {why}",
    ]
    assert len(problems(made, "eval")) == 1, "a finished run that is scored again has its classes"


def test_auroc_chooses_only_where_every_class_is(tmp_path: Path) -> None:
    assert problems(config(tmp_path, "aabbcc", "ab", metric="auroc")) == [
        "task.metric=auroc: takes samples of every class, and data.eval has none of c"
    ]


def test_a_subtask_of_a_joint_run(tmp_path: Path) -> None:
    made = TrainConfig(task=TaskConfig(name="joint", subtasks={"classification": {}, "captioning": {}}))
    made.data.train_size, made.data.eval_size, made.trainer.batch_size = 14, 7, 4
    own = config(tmp_path, "aabb", "cc").data
    made.data.subtasks = {"classification": {"name": "files", "train": own.train, "eval": own.eval}}
    (problem,) = problems(made)
    assert problem.startswith(f"subtask classification: {tmp_path}/eval.jsonl:1: of class 'c', and 1 more of it")
    made.data.subtasks = {}
    assert {sample.label for sample in load_run(made, ["train"])["train"] if sample.subtask == "classification"}
