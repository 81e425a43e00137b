"""`predict` in a terminal without an input: lines go in, answers come out, mistakes are a line, and the model is loaded once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import command, tiny_run
from vlatrain.training import setup
from vlatrain.verbs import predict
from vlatrain.verbs.conversation import Conversation


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Lines at a terminal, and then its end."""
    given: Iterator[str] = iter(lines)

    def read(prompt: str = "") -> str:
        print(prompt, end="")
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Conversation.run, "__defaults__", (read,))


def test_a_run_is_loaded_once_and_asked_often(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", "vqa")
    loads: list[object] = []
    load: Callable[..., object] = setup.load_setup
    monkeypatch.setattr(predict, "load_setup", lambda *args, **more: loads.append(1) or load(*args, **more))
    red, green = images / "red.png", images / "green.png"
    capsys.readouterr()
    assert command("predict", f"run={run}") == 2
    assert "set image=FILE" in capsys.readouterr().err, "there is no terminal"
    asked, another = [str(red), "what shape is it?", "", "is it red?"], [f"'{green}'", "is it red?"]
    typed(monkeypatch, "is it red?", *asked, *another, str(images), "is it red?")
    assert command("predict", f"run={run}") == 0
    out = capsys.readouterr().out
    assert "is it red?: no such file; type the path of an image" in out
    assert out.count("red.png> ") == 4
    assert out.count("green.png> ") == 2
    assert "3 images>" in out
    assert all(f"  {name}.png: " in out for name in ("red", "green", "blue"))
    assert loads == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "lines", "shown"),
    [
        (
            "captioning",
            "tiny_blip",
            ["{images}/red.png", "what?", "{images}/nothing.png", "quit"],
            "task=captioning is asked no questions",
        ),
        ("retrieval", "tiny_clip", ["{images}", "a red ring", "{images}/red.png", "red; green"], "red.png"),
        ("instruct", "tiny_composite", ["{images}/red.png", "what is it?", "and now?"], "red.png> "),
    ],
)
def test_other_tasks(
    task: str, model: str, lines: list[str], shown: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tiny_run(tmp_path / "run", task, f"model={model}")
    capsys.readouterr()
    typed(monkeypatch, *(line.format(images=images) for line in lines))
    assert command("predict", f"run={run}") == 0
    assert shown in capsys.readouterr().out
