"""Classification and conversations from the command line: train, score again, ask; wrong queries and wrong data are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import asked, command, tiny_run
from tests.tasks.talker import Talker, write_yaml
from vlatrain.backbones.loading import FAMILIES
from vlatrain.runs import read_config

HOUSE = {"disk", "box", "arrow", "sun", "plus", "hoop", "gem"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    own = write_yaml(folder / "own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "talker", Talker)
        yield {
            "classification": tiny_run(folder / "classification", "classification", "model=tiny_clip"),
            "instruct": tiny_run(folder / "instruct", "instruct", "--config-dir", str(own), "model=talker"),
            "own": own,
        }


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said about a command line that is refused."""
    capsys.readouterr()
    assert command(*words) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("task", ["classification", "instruct"])
def test_a_run_keeps_what_it_needs_and_scores_the_same_again(task: str, runs: dict[str, Path], tmp_path: Path) -> None:
    metrics = json.loads((runs[task] / "metrics.json").read_text())
    assert (
        metrics["metrics"].keys()
        == {
            "classification": {"accuracy", "macro_f1", "auroc"},
            "instruct": {"rouge_l", "exact_match", "perplexity"},
        }[task]
    )
    assert command("eval", f"run={runs[task]}", f"output={tmp_path / 'eval'}") == 0
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"] == pytest.approx(metrics["metrics"])
    if task == "classification":
        assert read_config(runs[task])["task"]["classes"] == sorted(HOUSE)


@pytest.mark.slow
def test_images_are_put_into_classes(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    run = f"run={runs['classification']}"
    records = asked(tmp_path / "a.jsonl", run, f"image={images}", "top_k=3")
    assert len(records) == 3
    for record in records:
        assert {hit["text"] for hit in record["hits"]} < HOUSE
        scores = [hit["score"] for hit in record["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert record["prediction"] == record["hits"][0]["text"]
    (whole,) = asked(tmp_path / "b.jsonl", run, f"image={images / 'red.png'}", "top_k=99")
    assert sum(hit["score"] for hit in whole["hits"]) == pytest.approx(1)
    others = asked(tmp_path / "c.jsonl", run, f"image={images}", "task.classes=[red,green,blue]")
    assert {hit["text"] for hit in others[0]["hits"]} == {"red", "green", "blue"}


def test_a_file_of_images_without_labels(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    (tmp_path / "ask.csv").write_text("image\nimages/red.png\nimages/blue.png\n")
    records = asked(tmp_path / "out.jsonl", f"run={runs['classification']}", f"input={tmp_path / 'ask.csv'}", "top_k=1")
    assert [record["id"] for record in records] == ["ask.csv:2", "ask.csv:3"]


def test_replies(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    run = f"run={runs['instruct']}"
    records = asked(tmp_path / "a.jsonl", run, f"image={images}", "question='what do you see, please?'")
    assert len(records) == 3
    assert all(record["question"] == "what do you see, please?" for record in records)
    assert all(isinstance(record["prediction"], str) for record in records)
    messages = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a ring."}]
    messages += [{"role": "user", "content": "is it large or small?"}]
    (tmp_path / "ask.jsonl").write_text(json.dumps({"image": "images/red.png", "messages": messages}))
    (record,) = asked(tmp_path / "b.jsonl", run, f"input={tmp_path / 'ask.jsonl'}")
    assert record["question"] == "is it large or small?"


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("classification", ["image={images}", "question=what?"], "question= is for task=instruct and task=vqa"),
        ("classification", ["image={images}", "texts=[a,b]"], "text= and texts= are for task=retrieval"),
        ("classification", ["image={images}", "task.classes=[a]"], "a choice needs two classes or more"),
        ("instruct", ["image={images}"], "this run answers questions: set question="),
        ("instruct", ["question=what?"], "image=FILE"),
        ("instruct", ["image={images}", "question=what?", "text=red"], "text"),
        ("instruct", ["input={bad}"], "bad.jsonl:1: column 'conversations': message 1 is the assistant's"),
    ],
)
def test_wrong_queries_are_refused(
    task: str, words: list[str], said: str, runs: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = images / "bad.jsonl"
    bad.write_text(json.dumps({"image": "red.png", "conversations": [{"from": "gpt", "value": "hm"}]}))
    filled = [word.format(images=images, bad=bad) for word in words]
    assert said in told(capsys, "predict", f"run={runs[task]}", *filled)


def test_data_that_cannot_be_classified_is_told(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.csv"
    file.write_text("image,label\nimages/red.png,cat\nimages/blue.png,cat\n")
    words = ["task=classification", "model=tiny_clip", "data=files", f"data.train={file}", "trainer.batch_size=1"]
    assert "a single class (cat)" in told(capsys, *words)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.classes=[cat,dog,cat]", "task.classes: cat: named more than once"),
        ("task.templates=[]", "at least one text"),
        ("task.templates=['a photo']", "'a photo': the class's name goes where {} stands, once"),
        ("task.metric=mean_recall", "must be one of accuracy, macro_f1, auroc"),
        ("adapter=cross_modal", "compares features of image and class"),
    ],
)
def test_wrong_settings_are_told(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "task=classification", "model=tiny_clip", override, "adapter.points=[text]")
    assert said in " ".join(found.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["task=classification", "model=clip"],
        pytest.param(
            ["task=classification", "model=blip", "task.classes=[a,b,c]", "task.templates=['a {}','the {}']"],
            marks=pytest.mark.slow,
        ),
        ["task=instruct", "model=talker", "--config-dir", "{own}"],
    ],
)
def test_inspect_rehearses(words: list[str], runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", *(str(runs["own"]) if word == "{own}" else word for word in words)) == 0
    assert "training memory: activations" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param("clip_adapter", marks=pytest.mark.slow),
        pytest.param("tip_adapter", marks=pytest.mark.slow),
        "tip_adapter_f",
    ],
)
def test_adapters_on_features_classify(method: str, tmp_path: Path) -> None:
    options = ["adapter.options.size=14"] if method.startswith("tip") else ["adapter.options.features=[image,text]"]
    run = tiny_run(tmp_path / "run", "classification", "model=tiny_clip", f"adapter={method}", *options)
    metrics = json.loads((run / "metrics.json").read_text())
    assert command("eval", f"run={run}", f"output={tmp_path / 'eval'}") == 0
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(metrics["metrics"])
