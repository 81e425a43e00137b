"""`inspect` counts what training would train, with neither weights nor network."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.conftest import adapter_config, make_samples, model_config, small_config
from vlatrain.adapters import Bottleneck
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.cli.main import main
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.injection.attach import attach
from vlatrain.tasks import build
from vlatrain.training.shapes import Alive
from vlatrain.verbs.inspect import count, inspect

RETRIEVAL = ["vision.last4.*", "{text,fusion}.last4.*"]


def config(model: str, task: str, points: list[str], **adapter) -> TrainConfig:
    return TrainConfig(
        task=TaskConfig(name=task, points=points),
        model=model_config(model),
        adapter=adapter_config(adapter.pop("name", "bottleneck"), **adapter),
        trainer=TrainerConfig(batch_size=2),
    )


@pytest.mark.parametrize(
    ("model", "task", "points", "sites_count", "widths"),
    [
        pytest.param("blip", "vqa", ["vision", "fusion"], 60, {768: 60}, marks=pytest.mark.slow),
        pytest.param("blip", "retrieval", RETRIEVAL, 20, {768: 20}, marks=pytest.mark.slow),
        ("clip", "retrieval", RETRIEVAL, 16, {768: 8, 512: 8}),
    ],
)
def test_counts_at_full_size(model: str, task: str, points: list[str], sites_count: int, widths: dict) -> None:
    found = count(config(model, task, points, dim=64))
    expected = sum(number * Bottleneck.count(width, 64) for width, number in widths.items())
    assert found.trainable == {"adapter": expected}
    assert found.adapter_bytes == 4 * expected
    assert found.percent == pytest.approx(100 * expected / found.total)
    assert found.percent < 5
    assert sites_count == sum(widths.values())


@pytest.mark.slow  # tests/test_audit.py has quick ones
def test_captioning_count_is_the_published_one() -> None:
    found = count(config("blip", "captioning", ["decoder"], dim=64))
    assert found.trainable["adapter"] == 3_568_896
    assert round(found.total / 1e6, 1) == 227.5
    assert round(found.percent, 2) == 1.57


PER_LAYER = {
    "a tower of its own": 2 * 768 + 768 * 128 + 128 + 128 * 768 + 768,  # uniadapter, dim 128: norm, down and one up
    "another tower": 2 * (128 * 768 + 768) + 2 * 768,  # shares norm and down: two up and their norm
}


@pytest.mark.slow  # tests/test_audit.py has quick ones
@pytest.mark.parametrize(
    ("words", "trainable"),
    [
        # published: 4.78 M and 18.95 M (Lu et al., ICLR 2024)
        (["model=blip", "task=retrieval", "adapter=uniadapter", "adapter.dim=128"], "4,784,640"),
        (["model=blip", "task=retrieval", "adapter=uniadapter", "adapter.dim=512"], "18,945,024"),
        (["model=blip", "task=captioning", "adapter=uniadapter", "adapter.dim=128"], "4,784,640"),
        # question encoder and decoder, each beside the image tower
        (
            ["model=blip", "task=vqa", "adapter=uniadapter", "adapter.dim=128"],
            f"{12 * (PER_LAYER['a tower of its own'] + 2 * PER_LAYER['another tower']):,}",
        ),
        # published: 519,168 (Jiang et al., 2022)
        (["model=clip", "task=retrieval", "adapter=cma"], "519,168"),
        # 3 (width + dim) in each of 60 places, and one rule
        (["model=blip", "task=vqa", "adapter=compacter", "adapter.dim=24"], f"{60 * 3 * (768 + 24) + 64:,}"),
    ],
)
def test_published_counts(words: list[str], trainable: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *words, "trainer.batch_size=1"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "trainable: adapter" in line)
    assert row.split()[-2] == trainable


@pytest.mark.parametrize("method", ["full", "none", "lora"])
def test_other_methods(method: str) -> None:
    small = replace(config("blip", "captioning", ["decoder"], name=method, dim=4), model=small_config("blip"))
    found = count(small)
    trainable = sum(found.trainable.values())
    assert {"full": trainable == found.total, "none": trainable == 0, "lora": 0 < trainable < found.total}[method]


def test_a_steps_memory_on_shapes_is_that_of_a_real_step() -> None:
    """Forward and backward of the same shapes, their tensors counted for real."""
    small = TrainConfig(
        task=TaskConfig(name="captioning", points=["vision", "decoder"]),
        model=small_config("blip"),
        adapter=adapter_config("bottleneck", dim=4),
        trainer=TrainerConfig(batch_size=3),
    )
    backbone = load(small.model, "captioning", texts=[c for s in make_samples() for c in s.captions])
    attach(backbone.model, small.adapter, sites(small.model, "captioning", small.points))
    task = build(small.task, backbone)
    with Alive() as alive:
        task.loss_on_meta(3, "cpu").backward()
    # the fused attention keeps another little for real than on shapes
    assert count(small).memory.passes.training == pytest.approx(alive.peak, rel=0.06)


def test_what_is_alive() -> None:
    weight = torch.ones(10, 10)
    with Alive() as alive:
        first = weight.t() + 1
        view = first[:5]
        assert alive.now == 400
        second = view * 2
        assert (alive.now, alive.peak) == (600, 600)
        del first, second
        assert alive.now == 400  # the view keeps it
        del view
        assert (alive.now, alive.peak) == (0, 600)


FULL_SIZE = ["task=captioning", "model=blip", "model.random_init=true", "trainer.accumulate=1", "trainer.threads=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("points", "batch"), [("[vision,decoder]", 2), ("[vision,decoder]", 6), ("[decoder]", 8)], ids=str
)
def test_peak_memory_is_predicted(points: str, batch: int, tmp_path: Path) -> None:
    """Of full-size BLIP, to 15 %, in processes of their own."""
    words = [*FULL_SIZE, f"adapter.points={points}", f"trainer.batch_size={batch}"]
    told = subprocess.run(
        [sys.executable, "-m", "vlatrain", "inspect", *words], check=True, capture_output=True, text=True
    ).stdout
    row = next(line for line in told.splitlines() if "training memory, estimated" in line)
    predicted = 1000 * float(row.split()[-3])
    assert "GB" in row
    text = "a man in a red shirt is holding a tennis racket on a green court"  # about a typical caption's length
    for number in range(2 * batch):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", "caption": f"{text} {number}"}) for number in range(2 * batch)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "eval.jsonl").write_text("\n".join(lines[:2]), encoding="utf-8")
    data = ["data=files", f"data.train={tmp_path / 'train.jsonl'}", f"data.eval={tmp_path / 'eval.jsonl'}"]
    short = ["trainer.max_steps=4", "task.decode.num_beams=1", "task.decode.max_new_tokens=2"]
    run = ["-m", "vlatrain", *words, *data, *short, f"run.dir={tmp_path / 'run'}"]
    subprocess.run([sys.executable, *run], check=True, capture_output=True)
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["memory"]["peak_mb"]
    print(f"predicted {predicted:.0f} MB, measured {measured:.0f} MB")
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_shows_towers_points_and_counts() -> None:
    out = io.StringIO()
    inspect(config("blip", "captioning", ["decoder.*.{cross,ffn}"], dim=64), Console(file=out, width=160))
    text = out.getvalue()
    for part in ("vision", "decoder", "cross: 0-11", "ffn: 0-11", "768", "2,379,264", "adapter file", "9.52 MB"):
        assert part in text, part
    assert "attn: 0-11" not in text


def test_points_that_select_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="matches nothing"):
        count(config("clip", "retrieval", ["vision.*.cross"]))
