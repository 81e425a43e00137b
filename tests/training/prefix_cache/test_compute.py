"""The kept prefix changes nothing but time: the same losses and the same adapter to the last bit, and no image is read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL_BLIP, command
from tests.conftest import make_samples, model_config
from tests.data.writing import write_records
from tests.training.conftest import captioning_with_adapters
from vlatrain.backbones.loading import load
from vlatrain.config import TrainConfig, TrainerConfig
from vlatrain.data.scenes import Scene
from vlatrain.training.display import SILENT
from vlatrain.training.prefix_cache.compute import PrefixCache, _Work, cache_prefix, content
from vlatrain.training.prefix_cache.frontier import frontiers
from vlatrain.training.prefix_cache.store import Disk, kept_folder

SIZE = [
    "data.train_size=24",
    "data.eval_size=8",
    "trainer.epochs=2",
    "trainer.batch_size=8",
    "trainer.log_every=1",
    "trainer.threads=1",
]
CELLS = {
    "a decoder": ["task=captioning"],
    "a decoder behind a frozen question encoder": ["task=vqa", "adapter.points=[decoder]"],
    "half a question encoder": ["task=vqa", "adapter.points=[fusion.last1.*,decoder]"],
    "the last image layers": ["task=vqa", "adapter.points=[vision.last1.*,fusion]"],
    "BLIP's retrieval": ["task=retrieval", "adapter.points=[vision.last2.*,fusion]"],
    "CLIP": ["task=retrieval", "model=tiny_clip", "adapter.points=[*.last2.*]"],
    "a ladder": ["task=retrieval", "model=tiny_clip", "adapter=ladder"],
    "two tasks": ["task=joint", "adapter.points=[decoder]"],
    "classes": ["task=classification", "model=tiny_clip", "adapter.points=[vision.last1.*,text]"],
    "classes of BLIP": ["task=classification", "adapter.points=[text]"],
    "classes as answers": ["task=classification", "model=tiny_composite"],
    "conversations": ["task=instruct", "model=tiny_composite"],
    "a composite": ["model=tiny_composite", "adapter=cross_modal"],
    "DINOv3 and T5": [
        "task=captioning", "model=composite", "model/vision=dinov3", "model/language=t5", "model.random_init=true",
        "model.config.vision_config={hidden_size: 24, num_hidden_layers: 3, num_attention_heads: 3, image_size: 32}",
        "model.config.text_config={d_model: 32, d_kv: 10, d_ff: 72, num_layers: 4, num_decoder_layers: 2, num_heads: 4}",
    ],
    "BLIP-2": [
        "model=blip2_opt", "model.random_init=true", "model.config.num_query_tokens=5", "model.config.vision_config.image_size=28",
        "model.config.vision_config={hidden_size: 24, intermediate_size: 56, num_hidden_layers: 3, num_attention_heads: 3}",
        "model.config.qformer_config={hidden_size: 36, intermediate_size: 44, num_hidden_layers: 4, num_attention_heads: 2}",
        "model.config.text_config={hidden_size: 32, word_embed_proj_dim: 32, ffn_dim: 72, num_hidden_layers: 2}",
        "model.config.text_config.num_attention_heads=4",
    ],
    "LoRA": ["task=captioning", "adapter=lora"],
    "several passes": ["task=captioning", "trainer.accumulate=2", "trainer.workers=1"],
}  # fmt: skip
QUICK = ("half a question encoder", "CLIP")


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))


def trained(folder: Path, *words: str) -> tuple[list[float], bytes, dict]:
    """Losses by step, the adapter's bytes, and what was kept."""
    assert command(*SIZE, *words, f"run.dir={folder}") == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = json.loads((folder / "metrics.json").read_text())["cache"]
    return (
        [line["loss"] for line in lines if "loss" in line],
        (folder / "adapter/adapter_model.safetensors").read_bytes(),
        kept,
    )


@pytest.mark.parametrize("cell", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CELLS])
def test_the_course_of_a_training_is_the_same_to_the_last_bit(cell: str, tmp_path: Path) -> None:
    words = CELLS[cell]
    without = trained(tmp_path / "off", *words, "trainer.cache=off")
    assert without[2] == {"where": "off"}
    for way, computed in (("disk", True), ("disk", False), ("memory", True)):
        found = trained(tmp_path / f"{way}{computed}", *words, f"trainer.cache={way}")
        assert found[0] == without[0]
        assert found[1] == without[1]
        assert (found[2]["where"], found[2]["computed"] > 0) == (way, computed)
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("off", "diskTrue")]
    assert predictions[0] == predictions[1]


@pytest.mark.slow
def test_conversations_of_text_alone_are_learned_among_those_about_images(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    for number, sample in enumerate(make_samples()):
        sample.image.load().save(tmp_path / f"{number}.png")
        said = [{"from": "human", "value": f"what is {number}?"}, {"from": "gpt", "value": sample.answers[0]}]
        records.append({"conversations": said} | ({} if number % 3 else {"image": f"{number}.png"}))
    file = write_records(tmp_path / "mix.jsonl", records)
    words = [
        "task=instruct",
        "model=tiny_composite",
        "adapter=cross_modal",
        "data=files",
        f"data.train={file}",
        f"data.eval={file}",
    ]
    without = trained(tmp_path / "off", *words, "trainer.cache=off")
    kept = trained(tmp_path / "kept", *words, "trainer.cache=disk")
    assert kept[:2] == without[:2]
    assert kept[2]["computed"] == len(records[::3]) + 1  # one that stands for all that are not there
    lines = [json.loads(line) for line in (tmp_path / "kept/predictions.jsonl").read_text().splitlines()]
    assert [line["image"] is None for line in lines] == [bool(number % 3) for number in range(len(records))]


@pytest.mark.slow
def test_a_question_that_is_cut_is_another_one(tmp_path: Path) -> None:
    words = ["task=vqa", "adapter.points=[decoder]", "trainer.epochs=1"]
    short = trained(tmp_path / "short", *words, "task.max_length=5", "trainer.cache=disk")
    whole = trained(tmp_path / "whole", *words, "trainer.cache=disk")
    assert whole[0] == trained(tmp_path / "off", *words, "trainer.cache=off")[0] != short[0]
    overrides = ["task=joint", "adapter.points=[decoder]", "trainer.epochs=1", "task.subtasks.vqa.max_length=5"]
    one, two = (trained(tmp_path / f"joint-{way}", *overrides, f"trainer.cache={way}") for way in ("off", "memory"))
    assert one[0] == two[0]


def test_keys_depend_on_what_questions_are_cut_to_and_not_on_the_last_call() -> None:
    backbone = load(model_config("tiny_blip"), "vqa")
    found = frontiers(backbone.model, backbone.config, "vqa")
    sample = make_samples()[0]
    cut, whole = (PrefixCache(found, {}, {"": length}) for length in (5, 40))
    assert cut.keys("fusion", sample) != whole.keys("fusion", sample)
    assert cut.keys("vision", sample) == whole.keys("vision", sample)
    before = content(backbone, found, "fusion", "fp32")
    backbone.text([sample.question], 7)
    assert content(backbone, found, "fusion", "fp32") == before


@pytest.mark.slow
def test_no_image_is_read_once_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    load = Scene.load
    monkeypatch.setattr(Scene, "load", lambda self: reads.append(self) or load(self))
    words = ["task=captioning", "trainer.cache=disk"]
    trained(tmp_path / "one", *words)
    assert len(reads) == 32 + 1  # each sample once, and one for its size
    reads.clear()
    trained(tmp_path / "two", *words, "adapter.dim=8", "seed=1")  # another job of a sweep
    assert command("eval", f"run={tmp_path / 'two'}") == 0
    assert not reads


@pytest.mark.slow
def test_auto_keeps_what_pays_and_says_so(tmp_path: Path) -> None:
    *_, kept = trained(tmp_path / "once", "task=captioning", "trainer.epochs=1")
    assert kept == {"where": "off"}  # each sample is seen once
    *_, kept = trained(
        tmp_path / "often", "task=captioning", "trainer.epochs=40", "trainer.max_steps=120", "trainer.eval_every=60"
    )
    assert kept["where"] == "disk"
    assert kept["towers"] == ["vision.0-3"]
    assert "ms a sample, keeping and reading it" in (tmp_path / "often" / "run.log").read_text()


def test_what_serves_the_jobs_to_come_is_kept_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seen once in each of four runs: kept on disk, where it pays, and never in memory."""
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    asked: list[tuple[str, float]] = []

    def pays(work: Any, tried: Any, samples: Any, uses: Any) -> bool:
        asked.append((type(next(iter(work.result.stores.values()))).__name__, uses["train"]))
        return len(asked) == 2

    monkeypatch.setattr(_Work, "_pays", pays)
    task, samples = captioning_with_adapters(), make_samples()
    config = TrainConfig(task=task.config, model=task.backbone.config, trainer=TrainerConfig(batch_size=2))

    def kept(runs: int) -> PrefixCache | None:
        return cache_prefix(task.backbone, config, {"train": samples}, {"train": 1.0}, "fp32", SILENT, runs)

    assert kept(runs=1) is None
    assert not asked, "it is not even tried"
    assert kept(runs=4) is None
    found = kept(runs=4)
    assert found is not None
    assert found.facts["where"] == "disk"
    assert asked == [("Disk", 4.0), ("Disk", 4.0)]


@pytest.mark.slow
def test_without_room_it_is_off_and_says_so(tmp_path: Path) -> None:
    *_, kept = trained(tmp_path / "run", "task=captioning", "trainer.cache=disk", "trainer.cache_gb=0.0001")
    assert kept == {"where": "off"}
    assert "have no room (trainer.cache_gb=0.0001" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_what_it_held_is_made_anew(tmp_path: Path) -> None:
    words = ["task=captioning", "trainer.cache=disk"]
    one = trained(tmp_path / "one", *words)
    (shard,) = kept_folder().glob("*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    two = trained(tmp_path / "two", *words)
    assert str(shard) in (tmp_path / "two" / "run.log").read_text()
    assert two[:2] == one[:2]
    assert two[2]["computed"] == 32


@pytest.mark.slow
def test_images_cropped_anew_are_not_kept_and_fixed_views_are(tmp_path: Path) -> None:
    words = ["task=captioning", "data.crop=0.5", "trainer.cache=disk"]
    *_, kept = trained(tmp_path / "anew", *words)
    assert kept == {"where": "off"}
    assert "images are cropped or flipped anew each time" in (tmp_path / "anew" / "run.log").read_text()
    views = trained(tmp_path / "views", *words, "data.views=2")
    assert views[2]["computed"] == 2 * 24 + 8
    assert views[:2] == trained(tmp_path / "off", *words, "data.views=2", "trainer.cache=off")[:2]


@pytest.mark.slow
def test_other_weights_and_other_settings_are_other_prefixes(tmp_path: Path) -> None:
    for number, words in enumerate((["seed=0"], ["seed=1"], ["adapter.dim=8"], ["adapter.points=[vision.last1.*]"])):
        random = ["task=captioning", "model.random_init=true"]
        trained(tmp_path / str(number), *random, *SMALL_BLIP, *words, "trainer.cache=disk")
    assert (
        len(list(kept_folder().iterdir())) == 3
    )  # another seed draws other weights; another width of adapters does not


@pytest.mark.slow
def test_a_kill_while_it_is_computed_costs_only_what_was_not_written(tmp_path: Path) -> None:
    words = [*SIZE, "task=captioning", "trainer.cache=disk", "data.train_size=600"]
    code = (
        "import sys, vlatrain.training.prefix_cache.store as s; s.SHARD_BYTES = 200_000; "
        "from vlatrain.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, f"run.dir={tmp_path / 'killed'}"], stdout=subprocess.DEVNULL
    )
    while not list(kept_folder().glob("*/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    *_, kept = trained(tmp_path / "again", *words[len(SIZE) :])
    assert 0 < kept["computed"] < 608


@pytest.mark.slow
def test_two_runs_at_once_share_what_they_keep(tmp_path: Path) -> None:
    words = [*SIZE, "task=captioning", "trainer.cache=disk"]
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=command, args=(*words, f"run.dir={tmp_path / str(n)}")) for n in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    one, two = ((tmp_path / str(n) / "adapter/adapter_model.safetensors").read_bytes() for n in range(2))
    assert one == two
    folder = next(kept_folder().iterdir())
    assert len(Disk(folder, folder.name, {}).places) == 32
