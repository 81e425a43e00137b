"""Run folders as trainings leave them, written in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vlatrain.cli.compose import composed
from vlatrain.runs import config_text

CURVE = [
    {"step": 10, "epoch": 0.5, "loss": 3.0, "lr": {"adapter": 1e-3}, "grad_norm": 2.0, "samples_per_s": 80.0, "peak_mb": 600.0},
    {"step": 10, "epoch": 0.5, "eval/accuracy": 40.0, "eval/loss": 2.5},
    {"step": 20, "epoch": 1.0, "loss": 1.0, "lr": {"adapter": 1e-4}, "grad_norm": 1.0, "samples_per_s": 90.0, "peak_mb": 610.0},
    {"step": 20, "epoch": 1.0, "eval/accuracy": 50.0, "eval/loss": 1.5},
]  # fmt: skip
HOSTILE = '<script>alert("x")</script> & $5 </script>'


@cache
def _default() -> str:
    return config_text(composed("train", []))


def config_of(*overrides: str) -> dict[str, Any]:
    """The configuration of a command line, as `config.yaml` has it; of a group only the name is another one."""
    values: dict[str, Any] = yaml.load(_default(), yaml.CSafeLoader)
    for override in overrides:
        key, _, value = override.partition("=")
        *above, last = f"{key}.name".split(".") if key in ("task", "model", "adapter", "data") else key.split(".")
        node = values
        for name in above:
            node = node[name]
        node[last] = yaml.safe_load(value)
    return values


def answers(count: int = 6, wrong: Sequence[int] = (1, 4)) -> list[dict[str, Any]]:
    """Predictions of VQA, surer the later they come, some of them wrong."""
    return [
        {
            "id": f"eval-{number}",
            "image": f"images/{number}.png",
            "question": f"what is number {number}?",
            "prediction": "cat" if number in wrong else ("dog", "fish")[number % 2],
            "probability": round((number + 1) / (count + 1), 3),
            "references": [("dog", "fish")[number % 2]],
            "score": 0.0 if number in wrong else 100.0,
            "columns": {"topic": ("easy", "hard")[number % 2]},
        }
        for number in range(count)
    ]


def made_run(
    folder: Path,
    predictions: Sequence[Mapping[str, Any]] | None = None,
    overrides: Sequence[str] = (),
    history: Sequence[Mapping[str, Any]] = tuple(CURVE),
    images: int = 0,
    time: str = "2026-01-01T00:00:00+00:00",
    **metrics: Any,
) -> Path:
    """Write a run's folder.

    Args:
        folder: where.
        predictions: what was predicted; None: nothing was.
        overrides: of its command line.
        history: what was recorded.
        images: how many images there are.
        time: when it was begun.
        metrics: what differs in `metrics.json`; `metrics=None`: the run is not finished.
    """
    folder.mkdir(parents=True)
    config = config_of(*overrides)
    (folder / "config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
    about = {
        "time": time,
        "command": ["vlatrain", *overrides],
        "overrides": [*overrides],
        "resolved": {"trainer.max_steps": 20},
    }
    (folder / "run.json").write_text(json.dumps({"starts": [about]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    found = {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "adapter": config["adapter"]["name"],
        "metric": config["task"]["metric"],
        "metrics": {config["task"]["metric"]: 50.0},
        "units": {config["task"]["metric"]: "%"},
        "intervals": {config["task"]["metric"]: [40.0, 60.0]},
        "baselines": {"most_frequent_answer": {"metrics": {"accuracy": 30.0}, "says": "always 'dog'", "source": "training"}},
        "parameters": {"trainable": 100, "total": 10_000, "percent": 1.0},
        "speed": {"samples_per_s": 90.0, "wall_s": 12.0},
        "memory": {"peak_mb": 610.0},
        "training": {"steps": 20, "epochs": 1.0, "best_step": 20, "evaluations": 2, "seed": config["seed"]},
        "towers": {"vision": {"layers": 2, "sites": ["attn", "ffn"], "trainable": {"0.attn": 60, "1.ffn": 40}}},
        "data": {"eval": "6 samples, abc"},
        **metrics,
    }  # fmt: skip
    if found["metrics"] is not None:
        (folder / "metrics.json").write_text(json.dumps(found))
    if predictions is not None:
        (folder / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in predictions))
    for number in range(images):
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40 + number, 30), (number * 40 % 256, 90, 160)).save(folder / "images" / f"{number}.png")
    return folder
