"""Dual encoders through the command line: trained, scored again, and searched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import command, small_model, tiny_run
from vlatrain.data.shapes import build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("siglip", ("adapter=bottleneck",)),
        ("siglip2_naflex", ("adapter=cross_modal", "task.rerank=3")),
        ("align", ("adapter=lora",)),
        ("aimv2", ("adapter=clip_adapter",)),
        ("altclip", ("adapter=bottleneck", "adapter.trunk=[norms]")),
    ],
)
def test_a_run_is_scored_again_and_searched(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "retrieval", *small_model(tmp_path / "conf", name), *words)
    metrics = json.loads((run / "metrics.json").read_text())
    assert command("eval", f"run={run}") == 0
    again = json.loads((run / "evaluations" / "eval" / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(metrics["metrics"])
    picture, output = tmp_path / "asked.png", tmp_path / "found.jsonl"
    build("retrieval", "test", 1, 0)[0].image.load().save(picture)
    assert command("predict", f"run={run}", f"image={picture}", "texts=[a ring,a house]", f"output={output}") == 0
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert {hit["text"] for hit in record["hits"]} == {"a ring", "a house"}
