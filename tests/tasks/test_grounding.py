"""Grounding by a head and in words: which cells a box is of, losses, suppression, what is counted, and runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.commands import asked, tiny_run
from tests.conftest import make_samples, small_config
from vlatrain.backbones.box_head import BoxHead, cells, corners, see_whole
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, UserError
from vlatrain.data import load as load_data
from vlatrain.tasks import build
from vlatrain.tasks.base import Found
from vlatrain.tasks.grounding import averaged, box_losses, focal, owners, suppressed


def test_a_cell_is_of_the_smallest_box_around_it_and_every_box_has_one() -> None:
    centres = cells(17, "cpu")  # a class token, and 4 x 4 cells
    assert centres.shape == (16, 2)
    assert centres[1].tolist() == [0.375, 0.125]
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0], [0.7, 0.72, 0.74, 0.74], [0.0, 0.0, 0.1, 0.1]]])
    there = torch.tensor([[True, True, True, False]])
    found = owners(boxes, there, centres)[0].view(4, 4)
    assert found.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 1], [1, 1, 1, 1]]
    assert (owners(boxes, there & False, centres) == -1).all()


def test_losses_by_hand() -> None:
    right = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    assert float(box_losses(torch.tensor([[0.25, 0.25, 0.5, 0.5]]), right)) == pytest.approx(0.0, abs=1e-6)
    # moved by a half: L1 of the centre is a half; nothing is shared, half of the box around both is covered by neither: GIoU 0
    assert float(box_losses(torch.tensor([[0.75, 0.25, 0.5, 0.5]]), right)) == pytest.approx(5 * 0.5 + 2 * 1.0)
    sure, unsure = focal(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 1.0])).tolist()
    assert unsure == pytest.approx(0.25 * 0.25 * 0.6931, abs=1e-4)
    assert sure < unsure / 1000
    logits, boxes = torch.tensor([[0.0, 0.0]]), torch.tensor([[[0.0, 0.0, 0.2, 0.2], [1.0, 1.0, 0.4, 0.4]]])
    assert averaged(logits, boxes)[0].tolist() == pytest.approx([0.5, 0.5, 0.3, 0.3])


def test_of_boxes_that_overlap_the_surest_is_left() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [2, 0, 6, 4], [8, 8, 9, 9]])
    assert suppressed(boxes, torch.tensor([0.5, 0.9, 0.8, 0.1])) == [1, 2, 3]


@pytest.mark.parametrize(("patches", "words"), [(48, 32), (192, 128)])
def test_a_head_has_the_parameters_of_its_formula_and_starts_in_the_cells(patches: int, words: int) -> None:
    torch.manual_seed(0)
    head = BoxHead(patches, words)
    d = head.norm.weight.numel()
    layers = 2 * (12 * d * d + 13 * d)
    around = (patches + words + 5) * d + 2 * (patches + words) + 5 * d + d * d + 5
    assert sum(parameter.numel() for parameter in head.parameters()) == layers + around
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    states, text = torch.randn(2, 17, patches), torch.randn(2, 5, words)
    logits, boxes = head(states, text, mask)
    assert logits.tolist() == [[0.0] * 16] * 2
    assert torch.equal(boxes[0, :, :2], cells(17, "cpu"))
    torch.nn.init.normal_(head.out.weight)
    first = head(states, text, mask)[0]
    text[1, 3:] = 9.0
    assert torch.allclose(head(states, text, mask)[0], first), "padding of words is not seen"


@pytest.mark.slow
def test_nothing_is_cropped_off_where_boxes_are_asked_for() -> None:
    config = small_config("clip")
    backbone = load(config, "retrieval", texts=["a b"])
    backbone.image_processor.do_center_crop = True
    backbone.image_processor.crop_size = {"height": 40, "width": 40}
    backbone.image_processor.size = {"shortest_edge": 40}
    image = Image.new("RGB", (120, 40))
    image.paste((255, 255, 255), (0, 0, 12, 40))
    see_whole(backbone.processor, config, "retrieval")
    assert backbone.pixels([image])[0, 0, :, 0].max() < 0, "as it is, the edge is cut off"
    see_whole(backbone.processor, config, "grounding")
    pixels = backbone.pixels([image])
    assert pixels.shape == (1, 3, 40, 40)
    assert pixels[0, 0, :, 0].min() > 1


def test_other_numbers_of_boxes_are_refused_where_one_is_found() -> None:
    config = small_config("clip")
    backbone = load(config, "grounding", texts=["a b"])
    box = (0.0, 0.0, 0.5, 0.5)
    samples = [replace(sample, boxes=(box,) * (1 + number)) for number, sample in enumerate(make_samples()[:3])]
    with pytest.raises(
        UserError, match=r"red-1: 2 boxes of one expression \(so have 1 more samples .*task.several=true"
    ):
        build(TaskConfig("grounding"), backbone, samples)
    several = build(TaskConfig("grounding", several=True), backbone, samples)
    batch = several.collate([*samples, replace(samples[0], boxes=())])
    assert batch["there"].tolist() == [[True, False, False], [True, True, False], [True] * 3, [False] * 3]
    assert several.loss(batch).isfinite()
    known = several.yardsticks(samples, several.constants(samples)).baselines
    assert known["mean_box"].metrics["accuracy"] == 100.0
    assert known["mean_box"].metrics["ap_50"] == pytest.approx(50.0), "three of six boxes, nothing wrong"


@pytest.mark.slow
def test_what_is_written_and_is_no_box_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("blip")
    config.box_words = "digits"
    config.tasks["grounding_words"] = config.tasks["vqa"]
    backbone = load(config, "grounding_words", texts=["0 1 2 3 4 5 6 7 8 9"])
    samples = [replace(sample, boxes=((0.0, 0.0, 0.5, 0.5),)) for sample in make_samples()[:3]]
    task = build(TaskConfig("grounding_words"), backbone, samples)
    assert [task.text(sample) for sample in samples] == ["0 0 50 50"] * 3  # type: ignore[attr-defined]
    said = iter([("0 0 49 49", 0.9), ("a cat", 0.5), ("9 9 9", 0.4)])
    monkeypatch.setattr(task.vqa, "answer", lambda batch: [[next(said)] for _ in batch["ids"]])  # type: ignore[attr-defined]
    from vlatrain.training.batches import SharedBatches

    found = task.evaluate(samples, SharedBatches("cpu", 2))
    assert found.settings["unparsed"] == 2
    assert found.metrics["accuracy"] == pytest.approx(100 / 3)
    assert [record["text"] for record in found.predictions] == ["0 0 49 49", "a cat", "9 9 9"]
    assert found.predictions[0]["prediction"] == [[0.16, 0.16, 15.84, 15.84]], "in pixels of the image"
    assert found.predictions[1]["prediction"] == []


def test_a_box_is_told_as_text() -> None:
    assert Found.of((1.04, 2.0, 3.0, 4.0), 0.5).text == "1.0, 2.0, 3.0, 4.0"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["grounding", "grounding_words"])
def test_a_run_is_scored_asked_and_drawn(task: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", task)
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"accuracy", "accuracy_75", "mean_iou"} <= metrics["metrics"].keys()
    assert {"centre_box", "mean_box"} <= metrics["baselines"].keys()
    from vlatrain.config import DataConfig

    sample = load_data(DataConfig(eval_size=1), TaskConfig("grounding"), ["eval"])["eval"][0]
    sample.image.load().resize((300, 200)).save(tmp_path / "photo.png")
    words = [
        f"run={run}",
        f"image={tmp_path / 'photo.png'}",
        f"question='{sample.question}'",
        f"draw={tmp_path / 'boxes'}",
    ]
    (record,) = asked(tmp_path / "out.jsonl", *words)
    assert record["question"] == sample.question
    drawn = Image.open(record["drawn"])
    assert drawn.size == (300, 200)
    if task == "grounding":
        left, top, right, bottom = record["hits"][0]["box"]
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        assert drawn.convert("RGB").getpixel((int(left), int(top))) != Image.open(tmp_path / "photo.png").getpixel(
            (int(left), int(top))
        )


def test_corners_of_a_box() -> None:
    assert corners(torch.tensor([0.5, 0.5, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])
