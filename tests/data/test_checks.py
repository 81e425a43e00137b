"""Pictures are checked once each, cheaply and correctly; reports stay short."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlatrain.data import BytesPicture, FilePicture, checks
from vlatrain.data.checks import LIMIT, Problems, check_pictures, fault_of
from vlatrain.data.images import formats


def encoded(ending, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, ending, **options)
    return buffer.getvalue()


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")


@pytest.mark.parametrize("ending", FORMATS)
def test_whole_and_cut_files(ending):
    data = encoded(ending)
    assert fault_of(BytesPicture(data)) == ""
    assert fault_of(BytesPicture(data[: len(data) // 2])) != ""


@pytest.mark.parametrize("ending", ["PNG", "JPEG", "GIF", "WEBP"])
def test_bytes_after_the_end_are_no_fault(ending):
    assert fault_of(BytesPicture(encoded(ending) + b"a video that the phone stored here")) == ""


def test_a_flipped_bit_in_a_png_is_found():
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 1
    assert "cannot be decoded" in fault_of(BytesPicture(bytes(data)))


def test_whole_jpegs_are_not_decoded(monkeypatch):
    monkeypatch.setattr(checks, "to_rgb", lambda image: pytest.fail("decoded"))
    for ending in ("JPEG", "PNG", "GIF", "WEBP"):
        assert fault_of(BytesPicture(encoded(ending))) == ""


def test_each_picture_is_looked_at_once_and_named_where_it_first_occurs(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(checks, "fault_of", lambda picture: looked.append(picture.path) or "not an image")
    problems = Problems()
    check_pictures([(FilePicture(f"{index % 3}.png"), f"a:{index}") for index in range(9)], problems)
    assert sorted(looked) == ["0.png", "1.png", "2.png"]
    assert problems.messages()[:3] == [f"a:{index}: not an image: {index}.png" for index in range(3)]


def test_every_format_is_registered_before_the_threads_start(monkeypatch):
    seen = []
    formats.cache_clear()
    monkeypatch.setattr(Image, "_initialized", 1)
    monkeypatch.setattr(checks, "fault_of", lambda picture: seen.append(Image._initialized) or "")
    check_pictures([(FilePicture("a.webp"), "a:1")], Problems())
    assert seen == [2]


def test_generated_pictures_have_nothing_to_check():
    class Generated:
        key = "k"

    assert fault_of(Generated()) == ""


@pytest.mark.parametrize(("terminal", "expected"), [(True, "checking images"), (False, "checking 200 images")])
def test_progress_is_shown_when_it_takes_long(terminal, expected, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    pictures = [(BytesPicture(encoded("JPEG") + bytes([index])), "a:1") for index in range(200)]
    check_pictures(pictures, Problems())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(checks, "PATIENCE", -1.0)
    check_pictures(pictures, Problems())
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def test_few_problems_are_listed_in_the_order_found():
    problems = Problems()
    for index in range(LIMIT):
        problems.add("as" if index % 2 else "bs", str(index))
    assert problems.messages() == [str(index) for index in range(LIMIT)]


def test_of_many_problems_rare_kinds_are_whole_and_the_rest_is_counted():
    problems = Problems()
    for index in range(2000):
        problems.add("common things", f"common {index}")
        if index % 1000 == 0:
            problems.add("rare things", f"rare {index}")
    found = problems.messages()
    assert found == [f"common {index}" for index in range(LIMIT - 2)] + [
        "... and 1,982 more: common things",
        "rare 0",
        "rare 1000",
    ]
    assert len(problems) == 2002


def test_many_kinds_show_one_each():
    problems = Problems()
    for index in range(100):
        problems.add(f"kind {index % 50}", str(index))
    assert len(problems.messages()) == 100  # 50 kinds, one shown and one line of count each
