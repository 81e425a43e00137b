"""The samples of a joint run in one list: shares, order, names, and everything that is wrong at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import make_samples
from vlatrain.config import DataConfig, TaskConfig, TrainConfig, UserError
from vlatrain.data.subtasks import load_run, sampled, shares

SIZES = {"big": 900, "small": 100}


def config(**subtasks: dict) -> TrainConfig:
    made = TrainConfig(task=TaskConfig(name="joint", subtasks={"vqa": {}, "captioning": {}}))
    made.data.train_size, made.data.eval_size, made.trainer.batch_size = 6, 3, 4
    made.data.subtasks = subtasks
    return made


@pytest.mark.parametrize(
    ("sampling", "temperature", "expected"),
    [
        ("proportional", 2.0, {"big": 900, "small": 100}),
        ("balanced", 2.0, {"big": 900, "small": 900}),
        ("temperature", 1.0, {"big": 900, "small": 100}),
        ("temperature", 2.0, {"big": 900, "small": 300}),  # sqrt(900) : sqrt(100)
        ("temperature", 1e9, {"big": 900, "small": 900}),
    ],
)
def test_shares(sampling: str, temperature: float, expected: dict[str, int]) -> None:
    assert shares(SIZES, sampling, temperature) == expected


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=5),
    st.sampled_from(["proportional", "balanced", "temperature"]),
    st.floats(1, 100),
)
def test_no_sample_is_lost_and_no_subtask_outgrows_the_largest(
    sizes: list[int], sampling: str, temperature: float
) -> None:
    named = {str(number): size for number, size in enumerate(sizes)}
    counts = shares(named, sampling, temperature)
    assert all(named[name] <= count <= max(sizes) for name, count in counts.items())


@pytest.mark.parametrize("sampling", ["proportional", "balanced", "temperature"])
def test_the_list_has_the_shares_and_depends_on_the_seed_alone(sampling: str) -> None:
    subtasks = {"all": make_samples(), "few": make_samples()[:3]}
    task = TaskConfig(name="joint", sampling=sampling)
    first = sampled(subtasks, task, seed=1)
    assert first == sampled(subtasks, task, seed=1)
    counts = shares({"all": 8, "few": 3}, sampling, 2.0)
    assert len(first) == sum(counts.values())
    seen = Counter(sample.id for sample in first[counts["all"] :])
    assert sum(seen.values()) == counts["few"]
    assert max(seen.values()) - min(seen.values()) <= 1
    assert set(seen) == {sample.id for sample in subtasks["few"]}
    if sampling == "balanced":  # two of three come once more
        assert any(first != sampled(subtasks, task, seed=other) for other in range(2, 6))


def test_each_subtask_has_samples_of_its_task_under_names_of_its_own() -> None:
    found = load_run(config(), ["train", "eval"])
    assert [len(samples) for samples in found.values()] == [12, 6]
    for samples in found.values():
        assert len({sample.id for sample in samples}) == len(samples)
        for sample in samples:
            assert sample.id.startswith(f"{sample.subtask}/")
            assert bool(sample.question) == (sample.subtask == "vqa")
            assert bool(sample.captions) == (sample.subtask == "captioning")


def test_a_subtask_may_have_its_own_data(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"image": "red.png", "question": "what?", "answer": "red"}) + "\n")
    own = {"name": "files", "train": str(file), "eval": str(file)}
    found = load_run(config(vqa=own), ["train", "eval"])
    assert [sample.id for sample in found["train"] if sample.subtask == "vqa"] == ["vqa/mine.jsonl:1"]
    assert len(found["train"]) == 7
    with pytest.raises(UserError) as refused:
        load_run(config(vqa={**own, "eval": str(tmp_path / "gone.jsonl")}, captioning=own), ["train", "eval"])
    assert any(problem.startswith("subtask vqa: ") and "gone.jsonl" in problem for problem in refused.value.problems)
    assert any(
        problem.startswith("subtask captioning: ") and "caption" in problem for problem in refused.value.problems
    )


def test_a_split_that_only_some_subtasks_have_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    row = {"image": "red.png", "question": "what?", "answer": "red"}
    splits = ["train", "train", "val", "test", "test"]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({**row, "split": split}) + "\n" for split in splits))
    found = load_run(config(vqa={"name": "files", "train": str(file)}), ["train", "eval"])
    assert [*found] == ["train", "eval"]
    (said,) = [message for message in caplog.messages if "left out" in message]
    assert said == (
        "test samples are left out, as they are those of vqa alone (2): a joint score needs all subtasks'; set "
        "data.subtasks.captioning.test"
    )


def test_less_than_a_batch_in_all_is_refused() -> None:
    few = config()
    few.trainer.batch_size = 13
    with pytest.raises(UserError, match="12 training samples in all"):
        load_run(few, ["train"])


def test_any_other_run_loads_as_ever() -> None:
    made = TrainConfig()
    made.data.train_size, made.trainer.batch_size = 4, 4
    assert [sample.subtask for sample in load_run(made, ["train"])["train"]] == [""] * 4


def classified(tmp_path: Path, labels: str, batch_size: int = 2, **data: Any) -> list[str]:
    """The labels of the training samples, of a file with these."""
    rows = []
    for number, label in enumerate(labels):
        Image.new("RGB", (20, 20), (number, 0, 9)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": label})
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = TrainConfig(task=TaskConfig(name="classification"), seed=data.pop("seed", 0))
    made.data = DataConfig(name="files", train=str(file), eval=str(file), **data)
    made.trainer.batch_size = batch_size
    return [sample.label for sample in load_run(made, ["train"])["train"]]


def test_shots_and_balance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = "aaaaaabbbc"
    assert Counter(classified(tmp_path, labels, shots=2)) == {"a": 2, "b": 2, "c": 1}
    (warned,) = caplog.messages
    assert warned == "data.shots=2: 1 of 3 classes have fewer training samples: 'c' 1"
    assert Counter(classified(tmp_path, labels, balance="classes")) == {"a": 6, "b": 6, "c": 6}
    assert Counter(classified(tmp_path, labels, shots=3, balance="classes")) == {"a": 3, "b": 3, "c": 3}
    assert Counter(classified(tmp_path, labels)) == {"a": 6, "b": 3, "c": 1}


def test_fewer_shots_than_a_batch_are_no_mistake(tmp_path: Path) -> None:
    assert classified(tmp_path, "aaabbb", batch_size=4, shots=1) == ["a", "b"]
    with pytest.raises(UserError, match=r"data\.train: 6 samples, fewer than one batch of 8"):
        classified(tmp_path, "aaabbb", batch_size=8)
