"""Grounding runs from the command line: continued, with a kept prefix and swept to the same bits, merged, and as a subtask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command, tiny_run

pytestmark = pytest.mark.slow

TASKS = ("grounding", "grounding_words")
BOTH = ("+task@task.subtasks.find=grounding", "+task@task.subtasks.write=grounding_words")


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def losses(run: Path) -> list[float]:
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [step["loss"] for step in steps if "loss" in step]


def trained(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def scores(run: Path, *words: str) -> dict[str, float]:
    assert command("eval", f"run={run}", "trainer.threads=1", f"output={run / 'again'}", *words) == 0
    return read(run / "again" / "metrics.json")["metrics"]


@pytest.mark.parametrize("task", TASKS)
def test_a_continued_run_ends_with_the_same_bits(task: str, tmp_path: Path) -> None:
    settings = (
        "adapter.dropout=0.2", "data.flip=0.5", "data.crop=0.6",
        "trainer.max_steps=6", "trainer.save_every=2", "trainer.keep=9", "trainer.eval_every=9",
    )  # fmt: skip
    whole = tiny_run(tmp_path / "whole", task, *settings)
    broken = shutil.copytree(whole, tmp_path / "broken")
    for folder in ("adapter", "checkpoints/step_4", "checkpoints/step_6"):
        shutil.rmtree(broken / folder)
    (broken / "metrics.json").unlink()
    tiny_run(broken, task, *settings, "resume=auto")
    assert read(broken / "metrics.json")["training"]["resumed_from"] == 2
    assert trained(whole) == trained(broken)


@pytest.mark.parametrize("task", [*TASKS, "joint"])
@pytest.mark.parametrize("views", [(), ("data.flip=0.5", "data.crop=0.6", "data.views=2")])
def test_a_kept_prefix_changes_no_bit(task: str, views: tuple[str, ...], tmp_path: Path) -> None:
    """Boxes and expressions go with the view whose states are kept."""
    points = "adapter.points=[fusion]" if task == "grounding" else "adapter.points=[decoder]"
    settings = (points, "trainer.log_every=1", "trainer.max_steps=4", *(BOTH if task == "joint" else ()), *views)
    computed = tiny_run(tmp_path / "computed", task, *settings, "trainer.cache=off")
    kept = tiny_run(tmp_path / "kept", task, *settings, "trainer.cache=memory")
    towers = "fusion.0-2" if task == "grounding_words" else "vision.0-3"
    assert f"Cache: {towers} of" in (kept / "run.log").read_text()
    assert losses(kept) == losses(computed)
    assert trained(kept) == trained(computed)


@pytest.mark.parametrize("task", TASKS)
def test_the_mean_of_a_run_with_itself_is_the_run(task: str, tmp_path: Path) -> None:
    one = tiny_run(tmp_path / "one", task, "optim.lr=0.01")
    twin = shutil.copytree(one, tmp_path / "twin")
    assert command("merge", f"sources=[{one},{twin}]", f"output={tmp_path / 'mean'}") == 0
    assert scores(tmp_path / "mean") == pytest.approx(scores(one))


def test_a_checkpoint_with_lora_in_its_weights_has_the_head(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "grounding", "adapter=lora", "optim.lr=0.01")
    assert command("export", f"run={run}", "form=merged", f"to={tmp_path / 'whole'}") == 0
    frozen = tiny_run(tmp_path / "frozen", "grounding", "adapter=none", f"model.checkpoint={tmp_path / 'whole'}")
    assert read(frozen / "metrics.json")["metrics"] == pytest.approx(scores(run), abs=0.2)


def test_a_sweep_has_a_run_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = (
        "data.train_size=24",
        "data.eval_size=10",
        "trainer.max_steps=2",
        "trainer.batch_size=8",
        "trainer.threads=1",
    )
    assert command("-m", "task=grounding,grounding_words", "adapter.dim=3,5", "run.name=swept", *sizes) == 0
    assert len([*tmp_path.rglob("metrics.json")]) == 4


def test_both_ways_are_subtasks(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "joint", *BOTH, "trainer.log_every=1")
    metrics = read(run / "metrics.json")
    assert {"mean", "find/accuracy", "write/accuracy", "find/mean_iou"} <= metrics["metrics"].keys()
    assert {"find/centre_box", "write/mean_box"} <= metrics["baselines"].keys()
    rates = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["lr"]
    assert rates["adapter"] == pytest.approx(0.3 * rates["head"])
    assert scores(run) == pytest.approx(metrics["metrics"])
