"""`predict`: one image, a folder, a file of samples, and search in both directions; wrong queries are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlatrain
from tests.commands import asked, command, tiny_run
from tests.gpu_free.ranks import ranks
from vlatrain.config import DataConfig, TaskConfig
from vlatrain.data import load


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {task: tiny_run(folder / task, task) for task in ("vqa", "captioning", "retrieval")}


@pytest.mark.slow
def test_one_image_with_scored_answers(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    question = "what colour is the shape, please?"
    words = [f"run={runs['vqa']}", f"image={images / 'red.png'}", f"question='{question}'", "task.decode.num_beams=3"]
    (record,) = asked(tmp_path / "out.jsonl", *words, "top_k=3")
    assert record["question"] == question
    scores = [hit["score"] for hit in record["hits"]]
    assert len(scores) == 3
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert record["prediction"] == record["hits"][0]["text"]
    (alone,) = asked(tmp_path / "out.jsonl", *words, "top_k=1")
    assert alone["hits"] == record["hits"][:1], "how many are shown changes nothing"


def test_a_run_that_decodes_with_one_beam_gives_the_answer_of_its_evaluation(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    scenes = load(DataConfig(eval_size=10), TaskConfig("vqa"), ["eval"])["eval"]
    rows = []
    for number, sample in enumerate(scenes):
        sample.image.load().save(tmp_path / "a" / f"{number}.png")
        rows.append({"image": f"a/{number}.png", "question": sample.question})
    file = tmp_path / "ask.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = asked(tmp_path / "out.jsonl", f"run={runs['vqa']}", f"input={file}", "top_k=5")
    evaluated = [json.loads(line) for line in (runs["vqa"] / "predictions.jsonl").read_text().splitlines()]
    assert [record["prediction"] for record in records] == [record["prediction"] for record in evaluated]
    assert all(len(record["hits"]) == 1 for record in records)
    said = " ".join(capsys.readouterr().out.split())
    assert "One answer each, as task.decode.num_beams=1" in said
    assert "task.decode.num_beams=5 searches for more" in said


@pytest.mark.parametrize("verb", ["train", "eval", "predict"])
def test_what_the_model_cannot_read_is_refused_by_file_and_line(
    verb: str,
    runs: dict[str, Path],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image that the processor refuses for its shape; that of this model takes any, so it is made to."""
    monkeypatch.setattr("vlatrain.tasks.sample_checks.refusal", lambda backbone, image: "too narrow")
    before = "an image is processed, to see how many tokens it comes to, before the refused ones are told"
    monkeypatch.setattr(
        "vlatrain.backbones.base.Backbone.measure", lambda _, images, most=1: images and pytest.fail(before)
    )
    file = tmp_path / "ask.jsonl"
    rows = [{"image": f"images/{n}.png", "question": f"is it {n}?", "answer": "a"} for n in ("red", "narrow", "blue")]
    Image.new("RGB", (90, 9)).save(images / "narrow.png")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {
        "train": [
            "train",
            "task=vqa",
            "data=files",
            f"data.train={file}",
            f"run.dir={tmp_path / 'r'}",
            "trainer.batch_size=1",
        ],
        "eval": ["eval", f"run={runs['vqa']}", "data=files", f"data.eval={file}", "trainer.batch_size=1"],
        "predict": ["predict", f"run={runs['vqa']}", f"input={file}"],
    }
    assert command(*words[verb]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "narrow.png" in line]
    assert f"{file}:2: {images / 'narrow.png'}: 90 x 9 pixels, and the image processor of model=tiny_blip" in line


@pytest.mark.slow  # the check itself is in the tasks' and the backbones' tests
def test_lengths_are_checked_before_anything_is_written(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, image = "'is it red, " + "or is it blue " * 20 + "?'", f"image={images / 'red.png'}"
    assert asked(tmp_path / "out.jsonl", f"run={runs['vqa']}", image, f"question={long}", "task.max_length=200")
    assert "warning: input: questions of 1 of 1 samples are cut to 64 tokens" in capsys.readouterr().err
    assert asked(tmp_path / "out.jsonl", f"run={runs['retrieval']}", image, f"texts=[{long},red]")
    assert "warning: input: captions of 1 of 2 samples are cut to 7 tokens" in capsys.readouterr().err
    assert command("predict", f"run={runs['captioning']}", image, "task.decode.max_new_tokens=100") == 2
    assert "task.decode.max_new_tokens=100: model=tiny_blip has 64 positions" in capsys.readouterr().err
    assert command("eval", f"run={runs['vqa']}", "task.max_length=4", f"output={tmp_path / 'eval'}") == 0
    assert "data.eval: questions of 10 of 10 samples are cut to 4 tokens" in (runs["vqa"] / "run.log").read_text()


def test_a_folder_and_a_ranked_list(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    words = [f"run={runs['vqa']}", f"image={images}", "question=what?", "task.answers=rank"]
    records = asked(tmp_path / "out.jsonl", *words, "task.answer_list=[red,green]", "top_k=2")
    assert [Path(record["id"]).name for record in records] == ["blue.png", "green.png", "red.png"]
    for record in records:
        assert {hit["text"] for hit in record["hits"]} == {"red", "green"}
        assert sum(hit["score"] for hit in record["hits"]) == pytest.approx(1, abs=1e-3)


def test_a_file_of_samples(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    file = tmp_path / "ask.jsonl"
    rows = [{"image": f"images/{name}.png", "question": f"is it {name}?"} for name in ("red", "blue")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = asked(tmp_path / "out.jsonl", f"run={runs['vqa']}", f"input={file}")
    assert [record["question"] for record in records] == ["is it red?", "is it blue?"]


def test_a_question_that_no_model_reads_is_cut_and_told(
    runs: dict[str, Path], images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = vlatrain.load(runs["vqa"])
    assert predictor.predict(images / "red.png", question="is it red? " * 1_000_000)
    assert "question: 11,000,000 characters, cut to 200,000 before it is read" in caplog.text


def test_captions(runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    records = asked(tmp_path / "out.jsonl", f"run={runs['captioning']}", f"image={images}")
    assert len(records) == 3
    assert all(isinstance(record["prediction"], str) for record in records)
    assert all(0 < record["hits"][0]["score"] <= 1 for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("rerank", [0, 2])
def test_search_in_both_directions(rerank: int, runs: dict[str, Path], images: Path, tmp_path: Path) -> None:
    run = [f"run={runs['retrieval']}", f"task.rerank={rerank}"]
    (record,) = asked(tmp_path / "a.jsonl", *run, f"image={images}", "text='a red square'", "top_k=2")
    assert len(record["hits"]) == 2
    assert record["prediction"].endswith(".png")
    texts = tmp_path / "texts.txt"
    texts.write_text("a red square\na blue square\n\n")
    one = asked(tmp_path / "b.jsonl", *run, f"image={images}", "texts=['a red square','a blue square']")
    two = asked(tmp_path / "c.jsonl", *run, f"image={images}", f"texts=['{texts}']")
    assert one == two
    assert len(one) == 3
    for found in one:
        scores = [hit["score"] for hit in found["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 2


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("vqa", ["image={images}"], "question"),
        ("vqa", ["question=what?"], "image"),
        ("vqa", ["image=nowhere.png", "question=what?"], "nowhere.png"),
        ("vqa", ["image={images}", "question=what?", "text=red"], "text"),
        ("captioning", ["image={images}", "question=what?"], "question"),
        ("vqa", ["image={images}", "input={images}"], "not both"),
        ("captioning", ["image={images}", "texts=[b]"], "texts= are for task=retrieval; this run's task is captioning"),
        ("retrieval", ["image={images}"], "text"),
        ("retrieval", ["image={images}", "text=a", "texts=[b]"], "text"),
        ("captioning", ["image={images}/bad.png"], "bad.png"),
    ],
)
def test_wrong_queries_are_refused(
    task: str, words: list[str], said: str, runs: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.png").write_bytes(b"no image")
    assert command("predict", f"run={runs[task]}", *(word.format(images=images) for word in words)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_texts_are_encoded_once_for_all_images(
    runs: dict[str, Path], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = vlatrain.load(runs["retrieval"])
    encoded: list[int] = []
    original = type(predictor.task.backbone).text_features
    monkeypatch.setattr(
        type(predictor.task.backbone),
        "text_features",
        lambda self, text: encoded.append(len(text.ids)) or original(self, text),
    )
    paths = sorted(images.glob("*.png"))
    texts = ["a red square", "a blue circle", "nothing", "a green star", "two red stars"]
    together = predictor.predict(paths, texts=texts, top_k=5)
    assert sum(encoded) == len(texts)
    assert torch.is_grad_enabled()
    alone = [predictor.predict(path, texts=texts, top_k=5) for path in paths]
    assert [[hit.text for hit in hits] for hits in together] == [[hit.text for hit in hits] for hits in alone]


def test_no_run_is_refused_with_those_there_are(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("predict", f"run={runs['vqa'].parent / 'vpa'}", "image=x.png", "question=what?") == 2
    assert str(runs["vqa"]) in capsys.readouterr().err


@pytest.mark.slow
def test_processes_predict_together_and_the_first_one_writes(
    runs: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    """Questions in batches of two, a search of the images, and texts ranked for each image."""
    file, texts = tmp_path / "ask.jsonl", tmp_path / "texts.txt"
    rows = [{"image": f"images/{n}.png", "question": f"is it {n}?"} for n in ("red", "green", "blue", "red", "green")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts.write_text("a red square\na blue circle\nnothing\n")
    few = ("trainer.eval_batch_size=2", "trainer.threads=1", "trainer.cache=off")
    for name, words in {
        "asked": ("predict", f"run={runs['vqa']}", f"input={file}", *few),
        "images": ("predict", f"run={runs['retrieval']}", f"image={images}", "text='a red square'", *few),
        "texts": ("predict", f"run={runs['retrieval']}", f"image={images}", f"texts=[{texts}]", *few),
    }.items():
        assert command(*words, f"output={tmp_path / name}.jsonl") == 0
        together = tmp_path / f"{name}-together.jsonl"
        assert ranks(lambda _, words=words, to=together: command(*words, f"output={to}"), tmp_path, count=2) == [0, 0]
        assert together.read_text() == (tmp_path / f"{name}.jsonl").read_text()
    assert ranks(lambda _: command("predict", f"run={runs['vqa']}", f"image={file}"), tmp_path) == [2, 2]
