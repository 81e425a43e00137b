"""Runs in bf16 on the CPU, through the command line: the types of mixed precision without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import asked, command, tiny_run
from vlatrain.data.shapes import build

BF16 = "trainer.precision=bf16"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("model=tiny_clip",), pytest.param(("model=tiny_blip", "task.rerank=3"), marks=pytest.mark.slow)],
    ids=["clip", "blip"],
)
def test_retrieval_is_trained_scored_again_and_searched(words: tuple[str, ...], tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "retrieval", BF16, "trainer.cache=off", *words)
    metrics = json.loads((run / "metrics.json").read_text())
    assert (run / "adapter").is_dir()
    assert command("eval", f"run={run}") == 0
    again = json.loads((run / "evaluations" / "eval" / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(metrics["metrics"])
    picture = tmp_path / "asked.png"
    build("retrieval", "test", 1, 0)[0].image.load().save(picture)
    (record,) = asked(tmp_path / "found.jsonl", f"run={run}", f"image={picture}", "texts=[a ring,a house]")
    assert {hit["text"] for hit in record["hits"]} == {"a ring", "a house"}
