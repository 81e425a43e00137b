"""`predict` in a terminal without an input: lines go in, answers come out, mistakes are a line, and the model is loaded once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.commands import command, tiny_run
from vlatrain.config import PredictConfig, TaskConfig
from vlatrain.config.spec import shipped_spec
from vlatrain.data.sample import Picture, Sample
from vlatrain.training import setup
from vlatrain.verbs import conversation, predict
from vlatrain.verbs.conversation import Conversation
from vlatrain.verbs.hits import Hit


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


@pytest.mark.slow
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


class Echo:
    """A predictor that answers with what it was asked."""

    subtask = ""
    task = SimpleNamespace(backbone=None)

    def ask(self, samples: list[Sample], alternatives: int = 1) -> Iterator[list[Hit]]:
        """The question, and how much was said before."""
        yield from ([Hit(f"{one.question or one.turns[-1].user} {len(one.turns)}", 0.5)] for one in samples)

    def find_texts(self, images: list[Picture], texts: list[str], k: int) -> Iterator[list[Hit]]:
        """The texts as they are."""
        yield [Hit(text, None) for text in texts]

    def find_images(self, text: str, images: list[Picture], names: list[str], k: int) -> list[Hit]:
        """Every image."""
        return [Hit(Path(name).name, None) for name in names]


@pytest.mark.parametrize(
    ("task", "lines", "said"),
    [
        ("vqa", ["what?"], ["what?: no such file; type the path of an image, or of a folder of images, first"]),
        ("vqa", ["{images}/red.png", "", "what?", "why?"], ["  what? 0  0.500", "  why? 0  0.500"]),
        ("vqa", ["{images}/bad.png", "what?"], []),
        ("vqa", ["{images}", "what?"], [f"  {name}.png: what? 0  0.500" for name in ("blue", "green", "red")]),
        ("vqa", ["quit", "what?"], []),
        ("instruct", ["{images}/red.png", "hi", "and?"], ["  hi 1  0.500", "  and? 2  0.500"]),
        (
            "captioning",
            ["{images}/red.png", "nothing.png"],
            ["nothing.png: no such file; task=captioning is asked no questions"],
        ),
        ("retrieval", ["{images}/red.png", "a dog; a cat"], ["  a dog", "  a cat"]),
        ("retrieval", ["{images}", "a dog"], ["  blue.png", "  green.png", "  red.png"]),
    ],
)
def test_each_line_has_its_answer(
    task: str, lines: list[str], said: list[str], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "check_samples", lambda backbone, samples: None)
    monkeypatch.setattr(
        Echo, "ask", lambda self, samples, k=1: iter([[]] * len(samples))
    ) if task == "captioning" else None
    config = PredictConfig(task=TaskConfig(task, spec=shipped_spec(task)), source="RUN")
    console, given = Console(file=io.StringIO(), width=80), iter([line.format(images=images) for line in lines])

    def read(prompt: str) -> str:
        return next(given, "quit")

    if "bad.png" in lines[0]:
        (images / "bad.png").write_text("no image")
    Conversation(config, Echo(), console).run(read)  # type: ignore[arg-type]
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert shown[0] == "RUN is loaded."
    assert all(len(line) <= 80 for line in shown[:3])
    if "bad.png" in lines[0]:
        assert sum("bad.png" in line for line in shown) == 1
    else:
        assert [line for line in shown if line in said] == said
