"""The README's example of sounds as features: the program makes them, and the command learns from them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.commands import command

README = Path(__file__).resolve().parents[2] / "vlatrain" / "backbones" / "README.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Its program has run in the working folder; the words of its command."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8").split("## Sounds")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (run, train) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0].strip().splitlines()
    assert run == "python sounds.py"
    exec(compile(program, "sounds.py", "exec"), {})
    return shlex.split(train)


def test_a_spectrogram_shows_the_tones(example: list[str]) -> None:
    rows = [json.loads(line) for line in Path("sounds.jsonl").read_text().splitlines()]
    for row in rows[:20]:
        found = np.load(row["image"])  # (frames, bands)
        assert found.shape == (14, 64)
        assert found.dtype == np.float32
        loudest = found.argmax(axis=1)
        assert row["answer"] == ("up" if loudest[-1] > loudest[0] else "down")


@pytest.mark.slow
def test_questions_about_sounds_are_learned(example: list[str]) -> None:
    assert command(*example[1:], "run.dir=run", "trainer.threads=1") == 0
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["metrics"]["accuracy"] > 90
    assert max(own["metrics"]["accuracy"] for own in found["baselines"].values()) < 65
