"""What is asked of a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlatrain.config import PredictConfig, TaskConfig
from vlatrain.config.checks.queries import problems


@pytest.mark.parametrize(
    ("task", "question", "told"),
    [
        ("vqa", "do both show it?", []),
        ("vqa", "is <image> like <image>?", []),
        (
            "vqa",
            "is <image> like it?",
            ["question: marks 1 places of images by <image>, and images= has 2: mark each, or none"],
        ),
        (
            "grounding",
            "the red one",
            ["images=[...]: a sample of task=grounding has one image; image=FILE, or a folder, asks about each"],
        ),
    ],
)
def test_a_question_about_several_images(task: str, question: str, told: list[str], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.touch()
    config = PredictConfig(source="run", images=[*map(str, files)], question=question)
    assert [*problems(config, TaskConfig(task))] == told
