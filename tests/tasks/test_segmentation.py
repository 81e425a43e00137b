"""Segmentation: losses and scores against their definitions, and runs on own data and on generated scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from tests.commands import command, tiny_run
from tests.conftest import make_samples, small_config
from vlatrain.backbones.families.vision_tower import VisionTower
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig
from vlatrain.data.masks import ids_of
from vlatrain.data.shapes import build as generated
from vlatrain.metrics import segmentation as metric
from vlatrain.tasks import build, prepare
from vlatrain.tasks.segmentation import Segmentation
from vlatrain.training.batches import SharedBatches


def made(name: str) -> tuple[Segmentation, VisionTower]:
    """A task on a small tower, its head drawn at random."""
    backbone = load(small_config(name), "segmentation")
    samples = make_samples()
    task = build(prepare(TaskConfig(name="segmentation"), backbone, samples), backbone, samples)
    assert isinstance(backbone, VisionTower)
    assert isinstance(task, Segmentation)
    torch.nn.init.normal_(backbone.model.head.linear.weight)
    return task, backbone


@pytest.mark.parametrize("name", ["dinov2", "convnext", pytest.param("siglip_vision", marks=pytest.mark.slow)])
def test_losses_and_scores_are_those_of_each_pixel(name: str) -> None:
    task, backbone = made(name)
    samples = make_samples()[:3]
    assert backbone.classes == task.config.classes == ["0", "1"]
    height, width = backbone.image_shape
    with torch.no_grad():
        loss = task.loss(task.collate(samples))
        evaluation = task.evaluate(samples, SharedBatches("cpu", 2))
        losses, confusions = [], []
        for sample in samples:
            assert sample.mask is not None
            image = sample.image.load().resize((width, height), backbone.image_processor.resample)
            pixels = backbone.image_processor(images=[image], return_tensors="pt")["pixel_values"]
            assert pixels.shape[2:] == (height, width)
            logits = backbone.patch_logits({"pixels": pixels})
            truth = ids_of(sample.mask)
            ids = np.asarray(Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST))
            large = -interpolate(logits, size=(height, width), mode="bilinear")[0].log_softmax(dim=0).numpy()
            losses.append(np.mean([large[ids[y, x], y, x] for y, x in zip(*np.nonzero(ids != 255), strict=True)]))
            chosen = interpolate(logits, size=truth.shape, mode="bilinear")[0].argmax(dim=0).numpy()
            confusions.append(metric.confusion(truth, chosen, 2, 255))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert evaluation.metrics == pytest.approx(metric.score(np.stack(confusions)))


def test_the_whole_image_is_seen_and_none_of_it_cropped() -> None:
    task, backbone = made("convnext")
    picture = Image.new("RGB", (90, 30))
    picture.paste((255, 0, 0), (0, 0, 10, 30))  # what a crop of the middle would cut off
    pixels = task.backbone.inputs([picture])["pixels"]
    assert pixels.shape[2:] == backbone.image_shape
    assert pixels[0, 0, :, 0].min() > pixels[0, 0, :, 20].max()


def test_patches_are_in_their_places() -> None:
    _, backbone = made("vit")
    states = torch.zeros(1, 1 + 25, 48)
    states[0, 1 + 5 * 1 + 3] = 1  # row 1, column 3 of 5 x 5
    backbone._states = lambda inputs: (states, None)  # type: ignore[method-assign]
    logits = backbone.patch_logits({})
    expected = backbone.model.head.linear.weight.sum(dim=1)
    assert torch.allclose(logits[0, :, 1, 3], expected, atol=1e-5)
    assert logits.abs().sum() == pytest.approx(expected.abs().sum().item(), rel=1e-4)


def test_what_it_is_compared_with_is_the_commonest_class_everywhere() -> None:
    task, _ = made("vit")
    samples = make_samples()
    known = task.yardsticks(samples, task.constants(samples)).baselines["commonest_class"]
    truth = np.concatenate([ids_of(s.mask).ravel() for s in samples if s.mask])
    share = (truth == 0).sum() / (truth != 255).sum()
    assert known.metrics["pixel_accuracy"] == pytest.approx(100 * share)
    assert known.metrics["miou"] == pytest.approx(100 * share / 2)
    assert task.yardsticks(samples, {}).baselines == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adapter=knn", "model=tiny_vit"], "adapter=knn: task=segmentation on model=tiny_vit has no head on features of a whole"),
        (["model=tiny_clip"], "model=tiny_clip cannot do it; it can do retrieval, classification; segmentation: "),
        (["model=tiny_vit", "data.crop=0.5"], "task=segmentation takes no data.crop, the masks"),
        (["model=tiny_vit", "data.flip=0.5"], "task=segmentation takes no data.flip, the masks"),
        (["model=tiny_vit", "task.templates=[a]"], "task=segmentation takes no task.templates"),
        (["model=tiny_vit", "task.ignore=-1"], "task.ignore=-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("task=segmentation", *words) == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["linear_probe", "bottleneck"])
def test_a_run_is_scored_again_and_asked(adapter: str, tmp_path: Path) -> None:
    words = ["model=tiny_vit", f"adapter={adapter}", "trainer.threads=1"]
    run = tiny_run(tmp_path / "run", "segmentation", *words, "trainer.cache=memory")
    off = tiny_run(tmp_path / "off", "segmentation", *words, "trainer.cache=off")
    assert (run / "predictions.jsonl").read_text() == (off / "predictions.jsonl").read_text()
    assert command("eval", f"run={run}", f"output={tmp_path / 'again'}") == 0
    assert (run / "predictions.jsonl").read_text() == (tmp_path / "again" / "predictions.jsonl").read_text()
    picture, output = tmp_path / "asked.png", tmp_path / "answers.jsonl"
    generated("segmentation", "test", 1, 0)[0].image.load().save(picture)
    assert command("predict", f"run={run}", f"image={picture}", f"output={output}") == 0
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert record["mask"].startswith("data:image/png;base64,")
    assert 0 < sum(hit["score"] for hit in record["hits"]) <= 1.0001
    assert record["prediction"] == record["hits"][0]["text"]


@pytest.mark.slow
def test_own_data_in_a_folder_and_with_the_predicted_masks_of_a_run(tmp_path: Path) -> None:
    for number, sample in enumerate(generated("segmentation", "train", 34, 0)):
        split = "train" if number < 24 else "val"
        for kind, picture in (("images", sample.image), ("masks", sample.mask)):
            (tmp_path / "own" / split / kind).mkdir(parents=True, exist_ok=True)
            assert picture is not None
            picture.load().save(tmp_path / "own" / split / kind / f"{number}.png")
    words = [
        "task=segmentation",
        "model=tiny_vit",
        "trainer.device=cpu",
        "trainer.max_steps=20",
        "trainer.batch_size=4",
    ]
    own = [f"data.train={tmp_path / 'own'}", f"run.dir={tmp_path / 'run'}"]
    names = "task.classes=[background,disk,box,arrow,sun,plus,hoop,gem]"
    assert command(*words, "data=files", *own, names) == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "images with masks" in log
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == 10
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    again = [f"data.train={tmp_path / 'labelled.jsonl'}", f"run.dir={tmp_path / 'again'}", "data.eval_fraction=0.3"]
    assert command(*words, "data=files", *again, names) == 0, "predicted masks are masks"


def test_an_image_whose_pixels_are_all_ignored_has_no_loss() -> None:
    task, _ = made("vit")
    samples = make_samples()[:2]
    with torch.no_grad():
        one = task.loss(task.collate(samples[:1]))
        batch = task.collate(samples)
        batch["masks"][1] = -100
        both = task.loss(batch)
    assert both.item() == pytest.approx(one.item() / 2, rel=1e-5)
