"""The shipped composite: two towers that never met learn the built-in tasks from a moment's training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import command

# what the likeliest answer of each question scores, and the best of a hundred captions in the house style for every image
BLIND = {"vqa": 50.0, "captioning": 105.0}
SEEN = {"vqa": 62.0, "captioning": 250.0}


def score(folder: Path, task: str, *words: str) -> float:
    sizes = ("data.train_size=4000", "data.eval_size=200", "trainer.max_steps=250", "trainer.threads=1")
    assert command(f"task={task}", "model=tiny_composite", f"run.dir={folder}", *sizes, *words) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["metrics"][metrics["metric"]]


@pytest.mark.slow
@pytest.mark.parametrize("task", SEEN)
def test_adapters_teach_it_to_see(task: str, tmp_path: Path) -> None:
    assert score(tmp_path / "none", task, "adapter=none") < 10
    assert score(tmp_path / "learned", task, "adapter=cross_modal") > SEEN[task] > BLIND[task]
