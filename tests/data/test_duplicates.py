"""Equal files under several names are found, and little is read for it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlatrain.data import duplicates
from vlatrain.data.duplicates import same_content
from vlatrain.data.images import BytesPicture, FilePicture, identity


def test_it_finds_what_comparing_all_bytes_finds(tmp_path: Path) -> None:
    rng, draw = np.random.default_rng(0), random.Random(0)
    images = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(6)]
    pictures: list = []
    for number in range(40):
        file = tmp_path / f"{number}.bmp"  # all of one size in bytes
        draw.choice(images).save(file)
        pictures.append(FilePicture(file))
    pictures.append(BytesPicture((tmp_path / "3.bmp").read_bytes()))
    contents = [hashlib.sha256(one.open().read()).hexdigest() for one in pictures]
    expected = {
        identity(one): identity(pictures[contents.index(of)]) for one, of in zip(pictures, contents, strict=True)
    }
    assert same_content(pictures) == expected
    assert len(set(expected.values())) == 6


def test_files_of_other_sizes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for side in (8, 9, 10):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.bmp")
        pictures.append(FilePicture(tmp_path / f"{side}.bmp"))
    monkeypatch.setattr(duplicates, "_tail", None)
    assert same_content(pictures) == {one.path: one.path for one in pictures}


def test_files_that_differ_at_the_end_are_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for number in (1, 2):
        Image.new("RGB", (100, 100), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
        pictures.append(FilePicture(tmp_path / f"{number}.bmp"))
    monkeypatch.setattr(duplicates, "_whole", None)
    assert len(set(same_content(pictures).values())) == 2
