"""No verb is mute: where libraries are to be loaded first, which takes seconds, it says so."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from vlatrain import verbs


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_a_word_comes_before_the_libraries(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = verbs.VERBS[verb].function.rpartition(".")[2]
    said = []

    def load(module: str) -> SimpleNamespace:
        said.append(capsys.readouterr().err)
        return SimpleNamespace(**{name: print})

    monkeypatch.setattr(verbs.importlib, "import_module", load)
    assert verbs.VERBS[verb].call is print
    monkeypatch.delitem(sys.modules, "torch")
    verbs._announced.clear()
    assert verbs.VERBS[verb].call is print
    assert verbs.VERBS[verb].call is print
    assert said == ["", "Loading PyTorch and transformers ...\n", ""]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["inspect"], ["check"], ["cache"], ["data.train_size=8", "trainer.max_steps=1"]])
def test_within_two_seconds(words: list[str]) -> None:
    command = [sys.executable, "-m", "vlatrain", *words]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first, seconds = process.stderr.readline(), time.monotonic() - started
    process.kill()
    process.communicate()
    assert first.startswith("Loading")
    assert seconds < 2


@pytest.mark.slow
@pytest.mark.parametrize("verb", verbs.VERBS)
def test_each_is_imported_by_itself(verb: str) -> None:
    """In a process of its own: what another one has imported before hides which of them comes first."""
    code = f"from vlatrain.verbs import VERBS; VERBS[{verb!r}].call"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
