"""A run folder holds what it says, can be continued, and refuses to be mixed up with another run."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from tests.commands import SMALL_BLIP, command, tiny_run
from tests.conftest import model_config
from tests.numerics import assert_close
from tests.training.conftest import make_config, make_loop
from vlatrain.backbones.describe import ASSETS
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.runs import RunFolder, save_config, saved_config
from vlatrain.training import fitting
from vlatrain.training.signals import Stopped
from vlatrain.verbs.train import _refuse_other_run

TASKS = {
    "vqa": ("accuracy", BlipForQuestionAnswering),
    "captioning": ("cider_d", BlipForConditionalGeneration),
    "retrieval": ("mean_recall", BlipForImageTextRetrieval),
}


@pytest.fixture(scope="module", params=TASKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, tiny_run(tmp_path_factory.mktemp("runs") / "run", request.param)


@pytest.mark.slow  # as in the backbones' tests of lengths
def test_any_length_works_and_what_cannot_be_written_is_refused_before_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """300 is no multiple of 8, to which questions are padded, and more than the model has positions for."""
    words = [f"run.dir={tmp_path / 'long'}", "task.max_length=300", "trainer.max_steps=1", "trainer.threads=1"]
    assert command(*words, "data.train_size=16", "data.eval_size=2") == 0
    said = (tmp_path / "long" / "run.log").read_text()
    assert "task.max_length=300: less room in model=tiny_blip: for questions 64 of 64 positions, answers 63 of" in said
    assert command(f"run.dir={tmp_path / 'no'}", "task=captioning", "task.decode.max_new_tokens=100") == 2
    assert "task.decode.max_new_tokens=100: model=tiny_blip has 64 positions" in capsys.readouterr().err
    assert not (tmp_path / "no" / "metrics.jsonl").exists()


def test_the_folder_holds_everything(run: tuple[str, Path]) -> None:
    task, folder = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metric"] == TASKS[task][0]
    assert metrics["metrics"][metrics["metric"]] >= 0
    assert 0 < metrics["parameters"]["percent"] < 5
    assert metrics["settings"]
    assert metrics["memory"]["peak_mb"] > 0
    assert metrics["speed"]["wall_s"] > 0
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len({record["id"] for record in predictions}) == 10
    assert all({"prediction", "references", "score"} <= record.keys() for record in predictions)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3
    assert any("loss" in line for line in lines)
    assert all(line["eval/loss"] > 0 for line in lines if f"eval/{metrics['metric']}" in line)
    assert metrics["loss"] in [line.get("eval/loss") for line in lines]
    assert any(metrics["metric"] in baseline["metrics"] for baseline in metrics["baselines"].values())
    low, high = metrics["intervals"][metrics["metric"]]
    assert low <= metrics["metrics"][metrics["metric"]] <= high
    assert metrics["units"][metrics["metric"]] == ("" if task == "captioning" else "%")
    assert {record["image"] for record in predictions} == {None}, "scenes are no files"
    if task == "retrieval":
        directions = [record["direction"] for record in predictions]
        assert (directions.count("image_to_text"), directions.count("text_to_image")) == (10, 20)
    assert "adapter=bottleneck" in (folder / "run.log").read_text()
    assert "## Load it" in (folder / "adapter" / "README.md").read_text()
    assert (folder / "config.yaml").is_file()
    report = json.loads((folder / "data.json").read_text())
    assert report["subtasks"][""]["splits"]["train"]["samples"] == 24
    assert report["warnings"] == report["problems"] == []
    assert list((folder / "checkpoints").glob("step_*"))


def test_the_adapter_loads_with_peft_alone_and_gives_the_same(run: tuple[str, Path]) -> None:
    task, folder = run
    plain = TASKS[task][1].from_pretrained(ASSETS / "tiny_blip", dtype=torch.float32).eval()
    PeftModel.from_pretrained(plain, str(folder / "adapter"))
    ours = load(model_config("tiny_blip"), task)
    PeftModel.from_pretrained(ours.model, str(folder / "adapter"))
    pixels = torch.randn(2, 3, 64, 64)
    text = ours.text(["a red circle", "is it red"], 20)
    inputs = {"pixel_values": pixels, "input_ids": text.ids, "attention_mask": text.mask}
    if task == "vqa":
        inputs["decoder_input_ids"] = text.ids
    # without padding both compute the same; with it, transformers drops the cross-attention's mask
    assert bool(text.mask.all())
    with torch.no_grad():
        one, two = plain(**inputs), ours.model(**inputs)
    name = "itm_score" if task == "retrieval" else "last_hidden_state" if task == "vqa" else "logits"
    assert_close(getattr(one, name), getattr(two, name), ours.model)
    keys = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert keys
    assert all(".adapter.vlatrain_unit." in key for key in keys)


def test_evaluating_again_gives_the_same(run: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = run
    assert command("eval", f"run={folder}", f"output={tmp_path}") == 0
    first, second = (json.loads((at / "metrics.json").read_text()) for at in (folder, tmp_path))
    assert first["metrics"] == second["metrics"]
    for key in ("settings", "units", "baselines", "ceilings", "intervals", "bootstrap", "groups"):
        assert first.get(key) == second.get(key), key
    assert (folder / "predictions.jsonl").read_text() == (tmp_path / "predictions.jsonl").read_text()


def test_a_finished_folder_is_not_overwritten(run: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    task, folder = run
    before = (folder / "metrics.json").read_bytes()
    assert command(f"task={task}", f"run.dir={folder}") == 2
    assert "resume=auto" in capsys.readouterr().err
    assert command(f"task={task}", f"run.dir={folder}", "resume=auto", "adapter.dim=4") == 2
    said = capsys.readouterr().err
    assert "adapter.dim: 16 there, 4 now" in said
    assert (folder / "metrics.json").read_bytes() == before


def test_each_checkpoint_holds_the_configuration(tmp_path: Path) -> None:
    config = make_config(max_steps=1)
    make_loop(tmp_path, config).run()
    assert saved_config(tmp_path) == dataclasses.asdict(config)


@pytest.mark.slow
def test_a_run_whose_configuration_is_cut_goes_on_and_is_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_run(tmp_path / "run", "vqa", "resume=auto")
    whole, metrics = ((folder / name).read_bytes() for name in ("config.yaml", "metrics.json"))
    for again in (lambda: command("eval", f"run={folder}") == 0, lambda: tiny_run(folder, "vqa", "resume=auto")):
        (folder / "config.yaml").write_bytes(whole[:3000])
        caplog.clear()
        assert again()
        assert f"it is restored from {folder / 'checkpoints' / 'step_3'}" in caplog.messages[0]
        assert (folder / "config.yaml").read_bytes() == whole
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == json.loads(metrics)["metrics"]


def test_a_configuration_that_is_nowhere_to_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig(resume="auto")
    save_config(config, tmp_path)
    (tmp_path / "config.yaml").write_text("task:")
    _refuse_other_run(
        TrainConfig(), RunFolder(tmp_path)
    )  # killed before its first checkpoint: there is nothing to lose
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match="resume=auto"):
        _refuse_other_run(TrainConfig(), RunFolder(tmp_path))
    with pytest.raises(UserError, match="adapter is not to be overwritten: choose another"):
        _refuse_other_run(config, RunFolder(tmp_path))
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)  # of an earlier version; it tells itself what it is of
    _refuse_other_run(config, RunFolder(tmp_path))
    assert caplog.messages[-1].endswith("no checkpoint holds the configuration: it is written anew, from this command")


def test_a_text_that_looks_like_an_interpolation_is_no_other_configuration(tmp_path: Path) -> None:
    config = TrainConfig(task=TaskConfig(prompt="${oc.env:HOME} costs"), resume="auto")
    save_config(config, tmp_path)
    (tmp_path / "adapter").mkdir()
    _refuse_other_run(config, RunFolder(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "none"])
def test_the_other_methods_take_the_same_path(method: str, tmp_path: Path) -> None:
    folder = tiny_run(tmp_path / "run", "vqa", f"adapter={method}")
    metrics = json.loads((folder / "metrics.json").read_text())
    percent = metrics["parameters"]["percent"]
    assert {"lora": 0 < percent < 5, "full": percent == 100, "none": percent == 0}[method]
    assert command("eval", f"run={folder}", f"output={tmp_path / 'again'}") == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["metrics"] == metrics["metrics"]


@pytest.mark.slow
def test_a_random_backbone_keeps_its_tokenizer(tmp_path: Path) -> None:
    """Random weights come back from their seed; the tokenizer made from the data only from the run folder."""
    folder = tiny_run(tmp_path / "run", "captioning", "model=blip", "model.random_init=true", *SMALL_BLIP)
    assert command("eval", f"run={folder}", f"output={tmp_path / 'again'}") == 0
    first, second = (json.loads((at / "metrics.json").read_text()) for at in (folder, tmp_path / "again"))
    assert first["metrics"] == second["metrics"]
    assert (folder / "processor").is_dir()


def test_test_data_is_scored_with_the_best_weights(tmp_path: Path) -> None:
    from PIL import Image

    rows = []
    for number, colour in enumerate(["red", "green", "blue", "red", "green", "blue"]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "what colour is it?", "answer": colour})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "data.jsonl"
    files = [f"data.{split}={file}" for split in ("train", "eval", "test")]
    arguments = ["data=files", *files, "trainer.max_steps=1", "trainer.batch_size=2", f"run.dir={tmp_path / 'run'}"]
    assert command(*arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["metrics"] == metrics["metrics"]  # the same file
    assert (tmp_path / "run" / "predictions-test.jsonl").is_file()


@pytest.mark.slow
def test_a_run_goes_on_with_the_passes_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is room for by then; and an evaluation has no passes to choose."""
    words = [
        "data.train_size=16",
        "data.eval_size=4",
        "trainer.threads=1",
        "trainer.max_steps=1",
        f"run.dir={tmp_path}",
    ]
    monkeypatch.setattr(fitting, "largest", lambda step, peak, room: (4, 0))
    monkeypatch.setattr(fitting, "predicted", lambda *_, **__: SimpleNamespace(peak=3_000_000))
    assert command(*words) == 0
    monkeypatch.setattr(fitting, "largest", lambda step, peak, room: (8, 0))
    assert command(*words, "resume=auto") == 0
    assert command(*words, "resume=auto", "trainer.batch_size=8") == 2
    kept = saved_config(tmp_path)["trainer"]
    assert (kept["batch_size"], kept["accumulate"], kept["workers"]) == (4, 4, "auto")
    first, again = json.loads((tmp_path / "run.json").read_text())["starts"]
    for start in (first, again):
        assert (start["resolved"]["trainer.batch_size"], start["resolved"]["trainer.accumulate"]) == (4, 4)
    assert first["resolved"]["predicted_peak_mb"] == 3.0
    assert command("eval", f"run={tmp_path}", "trainer.batch_size=auto") == 2


TERMS = 12_000  # of the sums in tiny_blip: nine layers, each of a few hundred inputs three to six times


@pytest.mark.slow
def test_two_processes_agree_with_one_of_twice_the_batch(tmp_path: Path) -> None:
    sizes = ["task=vqa", "data.train_size=16", "data.eval_size=8", "trainer.max_steps=2", "trainer.threads=1"]
    # a large epsilon makes AdamW's step proportional to the gradient; else rounding decides the sign of steps of full size
    sizes += ["optim.eps=1", "optim.lr=1", "optim.warmup=0", "adapter.init=normal"]
    assert command(*sizes, "trainer.batch_size=8", f"run.dir={tmp_path / 'one'}") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vlatrain"]
    two = [*sizes, "trainer.batch_size=4", f"run.dir={tmp_path / 'two'}"]
    subprocess.run([*launcher, *two], check=True, timeout=120, capture_output=True)
    one, both = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert_close(both, one, TERMS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bottleneck", "lora", "prompt", "full", "bitfit"])
def test_the_frozen_model_beside_a_method_is_that_of_none(method: str, tmp_path: Path) -> None:
    words = [
        "data.train_size=32",
        "data.eval_size=16",
        "trainer.max_steps=3",
        "trainer.threads=1",
        "task=classification",
    ]
    words += ["model=tiny_clip", "trainer.batch_size=8"]
    assert command(*words, f"adapter={method}", f"run.dir={tmp_path / 'run'}", "trainer.eval_frozen=true") == 0
    assert command(*words, "adapter=none", f"run.dir={tmp_path / 'none'}") == 0
    run, none = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "none"))
    assert run["frozen"]["metrics"] == pytest.approx(none["metrics"])


@pytest.mark.slow
def test_scores_by_kind_of_sample_and_images_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a joint run, of each subtask as its own data says."""
    words = ["task=joint", "data.train_size=16", "data.eval_size=12", "trainer.max_steps=2", "trainer.threads=1"]
    words += ["data.subtasks.vqa.groups=[topic]", "data.subtasks.captioning.save_images=true", "trainer.batch_size=8"]
    assert command(*words, f"run.dir={tmp_path}") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    topics = metrics["groups"]["vqa/topic"]
    assert set(topics) == {"corners", "tone", "size"}
    assert sum(group["samples"] for group in topics.values()) == 12
    mean = sum(group["samples"] * group["vqa/accuracy"] for group in topics.values()) / 12
    assert mean == pytest.approx(metrics["metrics"]["vqa/accuracy"])
    assert "vqa/accuracy by topic" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [bool(record["image"]) for record in records] == [False] * 12 + [True] * 12
    assert all((tmp_path / record["image"]).is_file() for record in records[12:])
    assert {record["columns"].get("topic") for record in records[:12]} == set(topics)
    assert set(metrics["baselines"]) >= {"vqa/most_frequent_answer", "captioning/constant_caption", "mean_of_baselines"}


def test_a_run_with_more_steps_that_is_stopped_before_the_first_of_them_says_where_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_run(tmp_path / "run", "vqa", "trainer.cache=off")

    def stop(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("vlatrain.verbs.train.keep_resized", stop)
    words = (
        "data.train_size=24",
        "data.eval_size=10",
        "trainer.batch_size=8",
        "trainer.threads=1",
        "trainer.cache=off",
    )
    assert command("task=vqa", f"run.dir={folder}", *words, "trainer.max_steps=5", "resume=auto") == 143
    assert "Stopped by SIGTERM: the last one saved is step 3. To continue:" in " ".join(capsys.readouterr().err.split())
