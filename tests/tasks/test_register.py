"""A task from outside the package: the example of vlatrain/tasks/README.md, taken from there and run as it stands."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vlatrain import tasks
from vlatrain.cli.main import main
from vlatrain.config import TaskConfig, UserError

README = Path(tasks.__file__).with_name("README.md")
FEW = ("trainer.max_steps=1", "data.train_size=8", "data.eval_size=4")


def blocks() -> tuple[dict[str, str], list[list[str]]]:
    """The example's files by name, each block with the name in front of it, and its command lines, after the script's name."""
    text = README.read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w./]+)`: [^`]*?\n\n```\w+\n(.*?)```", text, re.MULTILINE | re.DOTALL))
    (commands,) = re.findall(r"```bash\n(python .*?)```", text, re.DOTALL)
    return files, [shlex.split(line)[2:] for line in commands.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's files, and an image to ask about; its script has registered the task."""
    for name, content in blocks()[0].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    return tmp_path


@pytest.mark.slow
def test_the_example_trains_evaluates_and_predicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (train, evaluate, predict) = blocks()[1]
    runpy.run_path("my_task.py", run_name="my_task")
    assert main([*train, *FEW]) == 0
    assert 'vlatrain predict run=my_run image=PHOTO.jpg question="how many ...?"' in capsys.readouterr().out
    metrics = json.loads((folder / "my_run" / "metrics.json").read_text())
    assert (metrics["task"], metrics["metric"], set(metrics["metrics"])) == (
        "counting",
        "closeness",
        {"closeness", "accuracy"},
    )
    assert main(evaluate) == 0  # by the run's own description, without --config-dir
    again = json.loads((folder / "my_run" / "evaluations" / "eval" / "metrics.json").read_text())
    assert again["metrics"] == metrics["metrics"]
    capsys.readouterr()
    assert main([*predict, "output=out.jsonl"]) == 0
    (record,) = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert record["question"] == "how many corners does the red shape have?"
    assert 0 <= record["hits"][0]["score"] <= 1


def test_what_a_description_does_not_say_is_as_by_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "my_conf" / "task" / "counting.yaml"
    file.write_text(file.read_text().replace("  - task_schema\n", "").replace("  given: [question]\n", ""))
    assert main([*blocks()[1][0], "--cfg", "job"]) == 0
    spec = yaml.safe_load(capsys.readouterr().out)["task"]["spec"]
    assert (spec["given"], spec["optional"]) == ([], []), "not those of the default task"


def test_without_its_registration_it_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*blocks()[1][0], *FEW]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error task.name=counting is unknown; there are vqa, captioning")
    assert not (folder / "my_run").exists()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param(
            "fields: [question, answers]",
            "fields: [question, anwsers]",
            "spec.fields: anwsers: must be",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "metric: closeness", "metric: close", "task.metric=close: must be one of closeness", marks=pytest.mark.slow
        ),
        ("  served_as: vqa\n", "", "task=counting: model=tiny_blip cannot do it"),
        pytest.param("  builtin: vqa\n", "", "data=shapes: has nothing for task=counting", marks=pytest.mark.slow),
        pytest.param("  query: question\n", "  qery: question\n", "qery", marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_with_a_description_is_said_before_torch(
    before: str, after: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "my_conf" / "task" / "counting.yaml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    assert main([*blocks()[1][0], *FEW]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_a_name_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))

    class Mine(tasks.Task):
        pass

    tasks.register("mine", Mine)
    tasks.register("mine", Mine)  # again does nothing
    with pytest.raises(ValueError, match="there is a task 'captioning' already: Captioning"):
        tasks.register("captioning", Mine)


def test_a_subtask_without_code_is_refused_too() -> None:
    with pytest.raises(UserError, match="dancing is unknown"):
        tasks.check_known(TaskConfig("joint", subtasks={"mine": {"name": "dancing", "spec": {"fields": ["captions"]}}}))
