"""Masks from folders, columns and generated scenes; what is wrong with one is told with its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlatrain.config import UserError
from vlatrain.config.data import DataConfig
from vlatrain.config.task import TaskConfig
from vlatrain.data import load
from vlatrain.data.checks import Problems
from vlatrain.data.masks import as_text, check_masks, content_of, ids_of, names_of
from vlatrain.data.sample import Sample, fingerprint
from vlatrain.data.scenes import KINDS
from vlatrain.data.shapes import build

TASK = TaskConfig(name="segmentation")
IDS = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)


def put(path: Path, ids: np.ndarray = IDS, mode: str = "L") -> None:
    """An image of some colour, or a mask in a mode of PIL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if mode == "P":
        image = Image.frombytes("P", image.size, ids.tobytes())
        image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    image.convert(mode).save(path) if mode == "RGB" else image.save(path)


def folder(root: Path, names: dict[str, str]) -> Path:
    """Images with their masks, by names; for each image a mask of its own."""
    for number, (image, mask) in enumerate(names.items()):
        put(root / image, np.full((2, 3, 3), 40 * number, dtype=np.uint8))
        if mask:
            put(root / mask, np.roll(IDS, number))
    return root


def read(path: Path, **settings: object) -> list[Sample]:
    return load(DataConfig(name="files", train=str(path), eval_fraction=0.5, **settings), TASK, ["train"])["train"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names",
    [
        {"a.jpg": "a_mask.png", "b.jpg": "b-seg.png", "c.png": "c_mask.png", "d.jpg": "d_gt.png"},
        {f"images/{x}.jpg": f"masks/{x}.png" for x in "abcd"},
        {f"north/{x}.jpg": f"north/annotations/{x}.png" for x in "abcd"},
    ],
)
def test_masks_lie_beside_their_images(names: dict[str, str], tmp_path: Path) -> None:
    found = load(
        DataConfig(name="files", train=str(folder(tmp_path, names)), eval_fraction=0.5), TASK, ["train", "eval"]
    )
    by_image = {Path(s.image.path).stem: s for s in (*found["train"], *found["eval"])}  # type: ignore[attr-defined]
    assert sorted(by_image) == [*"abcd"]
    for number, image in enumerate(names):
        mask = by_image[Path(image).stem].mask
        assert mask is not None
        assert ids_of(mask).tolist() == np.roll(IDS, number).tolist()


def test_a_folder_of_splits_and_a_column(tmp_path: Path) -> None:
    folder(tmp_path, {f"{split}/images/{x}.jpg": f"{split}/masks/{x}.png" for split in ("train", "val") for x in "ab"})
    found = load(DataConfig(name="files", train=str(tmp_path)), TASK, ["train", "eval"])
    assert [len(found[split]) for split in ("train", "eval")] == [2, 2]
    rows = [{"image": f"train/images/{x}.jpg", "gt": f"train/masks/{x}.png"} for x in "ab"]
    rows.append({"image": "val/images/a.jpg", "gt": as_text(IDS)})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"did you mean data\.columns\.mask=gt"):
        read(tmp_path / "t.jsonl")
    config = DataConfig(name="files", train=str(tmp_path / "t.jsonl"), eval=str(tmp_path / "t.jsonl"))
    config.columns.mask = "gt"
    samples = load(config, TASK, ["train"])["train"]
    assert [ids_of(s.mask).tolist() for s in samples if s.mask][2] == IDS.tolist()
    other = [*samples[:2], Sample("", samples[2].image, mask=samples[0].mask)]
    assert fingerprint(samples) != fingerprint(other)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    folder(tmp_path, {"a.jpg": "a_mask.png", "b.jpg": "", "images/c.jpg": "masks/d.png"})
    with pytest.raises(UserError) as raised:
        read(tmp_path)
    told = "\n".join(raised.value.problems)
    assert "b.jpg: there is no mask of its name" in told
    assert "masks/d.png: a mask, and there is no image of its name" in told


@pytest.mark.parametrize(("mode", "kind"), [("L", np.uint8), ("P", np.uint8), ("I;16", np.uint16), ("1", np.uint8)])
def test_numbers_are_read_as_they_are_stored(mode: str, kind: type, tmp_path: Path) -> None:
    ids = (IDS % 2 if mode == "1" else IDS).astype(kind)
    if mode == "1":
        Image.fromarray(ids * 255).convert("1").save(tmp_path / "m.png")
    else:
        put(tmp_path / "m.png", ids, mode)
    put(tmp_path / "i.png", np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "t.jsonl").write_text('{"image": "i.png", "mask": "m.png"}\n' * 2)
    mask = load(
        DataConfig(name="files", train=str(tmp_path / "t.jsonl"), eval=str(tmp_path / "t.jsonl")), TASK, ["train"]
    )
    assert ids_of(mask["train"][0].mask).tolist() == ids.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mask", "classes", "told"),
    [
        (np.full((2, 3), 7), [], ""),
        (np.full((2, 3), 7), ["a", "b"], "has pixels of class 7, and there are 2 (task.classes"),
        (np.full((4, 3), 1), ["a", "b"], "the mask has 3 x 4 pixels, and its image 3 x 2"),
        (np.full((2, 3), 255), ["a", "b"], "nothing in it counts"),
        (np.zeros((2, 3, 3)), ["a", "b"], "the mask has colours (RGB)"),
        (np.zeros((2, 3)), [], "its masks have a single class"),
    ],
)
def test_wrong_masks_are_told_by_place(mask: np.ndarray, classes: list[str], told: str, tmp_path: Path) -> None:
    put(tmp_path / "i.png", np.zeros((2, 3, 3), np.uint8))
    put(tmp_path / "m.png", mask.astype(np.uint8))
    (tmp_path / "t.jsonl").write_text('{"image": "i.png", "mask": "m.png"}\n')
    config, problems = (
        DataConfig(name="files", train=str(tmp_path / "t.jsonl"), eval=str(tmp_path / "t.jsonl")),
        Problems(),
    )
    check_masks(load(config, TASK, ["train"]), classes, 255, problems)
    assert (told in problems.messages()[0] and len(problems) == 1) if told else not len(problems)


def test_generated_masks_show_each_figure() -> None:
    samples = build("segmentation", "train", 30, 0)
    assert names_of(samples, 255)[:3] == ["background", "disk", "box"]
    for sample in samples:
        scene, mask = sample.image, sample.mask
        assert mask is not None
        figures = {1 + KINDS.index(figure.kind): figure for figure in scene.figures}  # type: ignore[attr-defined]
        assert figures.keys() == content_of(mask).pixels.keys() - {0, 255}
        pixels = np.asarray(scene.load()).astype(int)
        for number, figure in figures.items():
            assert abs(pixels[ids_of(mask) == number].mean(axis=0) - figure.rgb).max() <= 10
