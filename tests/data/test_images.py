"""Every kind of image becomes upright RGB; what cannot be read says so and names the file."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.data.writing import pixels_of
from vlatrain.config import UserError
from vlatrain.data import BytesPicture, FilePicture, images, open_rgb, picture_files
from vlatrain.data.augment import View
from vlatrain.data.checks import Problems, check_pictures
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import allow, decoding, identity, load_at, size_of, to_rgb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corner() -> Image.Image:
    """3 wide, 2 high, white with red top left and blue top right: no turn or mirroring leaves it as it is."""
    image = Image.new("RGB", (3, 2), WHITE)
    image.putpixel((0, 0), RED)
    image.putpixel((2, 0), BLUE)
    return image


def palette(transparency: int | None = None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def of(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def grey(dtype: str, *values: float) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def grey_rgb(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


MODES = {
    "palette": (palette(), "PNG", [RED, GREEN]),
    "palette with a transparent colour": (palette(1), "PNG", [RED, WHITE]),
    "gif with a transparent colour": (palette(0), "GIF", [WHITE, GREEN]),
    "alpha on white": (of("RGBA", (0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)), "PNG", [WHITE, RED, (127,) * 3]),
    "grey with alpha": (of("LA", (0, 0), (10, 255)), "PNG", [WHITE, (10, 10, 10)]),
    "premultiplied grey": (of("LA", (0, 0), (10, 255)).convert("La"), None, [WHITE, (10, 10, 10)]),
    "grey": (of("L", 0, 77, 255), "PNG", grey_rgb(0, 77, 255)),
    "one bit": (of("1", 0, 255), "PNG", grey_rgb(0, 255)),
    "cmyk": (of("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF", [RED, WHITE]),
    "16 bit": (grey("uint16", 0, 257, 32896, 65535), "PNG", grey_rgb(0, 1, 128, 255)),
    "16 bit big-endian": (grey("uint16", 0, 257, 65535), "PPM", grey_rgb(0, 1, 255)),
    "32 bit of 16": (grey("int32", 0, 257, 65535), "TIFF", grey_rgb(0, 1, 255)),
    "32 bit beyond": (grey("int32", -100_000, 0, 100_000), "TIFF", grey_rgb(0, 128, 255)),
    "float in 0..1": (grey("float32", 0.0, 0.5, 1.0), "TIFF", grey_rgb(0, 128, 255)),
    "float in 0..255": (grey("float32", 0.0, 7.0, 255.0), "TIFF", grey_rgb(0, 7, 255)),
    "float beyond": (grey("float32", -1.0, 0.0, np.nan, 1.0), "TIFF", grey_rgb(0, 128, 128, 255)),
    "constant negative float": (grey("float32", -1.0, -1.0), "TIFF", grey_rgb(0, 0)),
    "ycbcr": (of("RGB", RED, WHITE).convert("YCbCr"), None, [(254, 0, 0), WHITE]),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name, tmp_path):
    image, ending, expected = MODES[name]
    if ending is None:
        result = to_rgb(image)
    else:
        image.save(tmp_path / "image", ending)
        result = open_rgb(tmp_path / "image")
    assert result.mode == "RGB"
    assert pixels_of(result) == expected


def test_16_bit_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype("uint16").reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.asarray(open_rgb(tmp_path / "a.png"))[..., 0].ravel().tolist() == list(range(256))


STORED = {  # EXIF orientation -> how an upright image lies in the file
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(orientation, ending, tmp_path):
    upright = corner().resize((48, 32), Image.Resampling.NEAREST)  # 16 pixel blocks survive JPEG
    stored = upright
    for turn in STORED[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0, "quality": 95}}.get(ending, {})
    stored.save(tmp_path / "image", ending, exif=exif, **options)
    result = np.asarray(open_rgb(tmp_path / "image")).astype(int)
    assert result.shape == (32, 48, 3)
    assert np.abs(result - np.asarray(upright).astype(int)).max() <= (4 if ending == "JPEG" else 0)


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    corner().save(tmp_path / "a.jpg", exif=b"Exif\0\0not a tiff header")
    assert open_rgb(tmp_path / "a.jpg").size == (3, 2)


@pytest.mark.parametrize("ending", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(ending, tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if ending == "WEBP" else {}
    frames[0].save(tmp_path / "image", ending, save_all=True, append_images=frames[1:], **options)
    assert open_rgb(tmp_path / "image").getpixel((1, 1)) == RED


def test_path_bytes_and_file_are_the_same(tmp_path):
    path = tmp_path / "a.png"
    of("RGBA", (1, 2, 3, 200), (0, 0, 0, 0)).save(path)
    with path.open("rb") as file:
        images = [open_rgb(path), open_rgb(str(path)), open_rgb(path.read_bytes()), open_rgb(file)]
    assert len({image.tobytes() for image in images}) == 1


def noise(ending: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, ending)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such image"),
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (noise("PNG")[:2000], "cut off"),
        (noise("JPEG")[:1000], "cut off"),
        (noise("BMP")[:1000], "cut off"),
    ],
)
def test_unreadable_images_name_the_file(content, message, tmp_path):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"photo\.jpg: .*{message}"):
        FilePicture(path).load()
    if content is not None:
        with pytest.raises(UserError, match=rf"row 7: .*{message}"):
            BytesPicture(content, "row 7").load()


def test_a_folder_and_a_huge_image_are_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is a folder, not an image"):
        open_rgb(tmp_path)
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"a\.png: image too large"):
        open_rgb(tmp_path / "a.png")


@pytest.fixture
def allowed() -> Iterator[None]:
    """The limit of pixels is as it was afterwards, ours and PIL's."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    allow(images.MOST_MEGAPIXELS)
    Image.MAX_IMAGE_PIXELS = before


def test_a_bomb_is_refused_from_its_header_and_what_is_allowed_is_not(tmp_path, allowed):
    claims = io.BytesIO()
    Image.new("L", (1, 1)).save(claims, "PNG")
    head = claims.getvalue()
    size = struct.pack(">II", 13_000, 13_001)  # 169 megapixels, which nothing stands for
    body = b"IHDR" + size + head[24:29]
    bomb = head[:12] + body + struct.pack(">I", zlib.crc32(body)) + head[33:]
    (tmp_path / "big.png").write_bytes(bomb)
    said = r"image of 13,000 x 13,001 pixels: 169 megapixels, and 64 are allowed; .* set data\.max_megapixels=170"
    problems = Problems()
    check_pictures([(FilePicture(tmp_path / "big.png"), "t.jsonl:3")], problems)
    (line,) = problems.messages()
    assert re.fullmatch(rf"t\.jsonl:3: {said}: \S+big\.png", line)
    with pytest.raises(UserError, match=said):
        BytesPicture(bomb, "row 7").load()
    allow(400)  # twice PIL's own limit
    with pytest.raises(UserError, match="row 7: image is cut off"):
        BytesPicture(bomb, "row 7").load()
    allow(0.00001)
    with pytest.raises(UserError, match="3 x 5 pixels"):
        BytesPicture.from_image(Image.new("RGB", (3, 5))).load()


def test_threads_decode_no_more_pixels_at_once_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(images, "AT_ONCE", 100)
    now, most, lock = 0, 0, threading.Lock()

    def decode(size: tuple[int, int]) -> None:
        nonlocal now, most
        image = Image.new("L", size)
        with decoding(image):
            with lock:
                now += size[0] * size[1]
                most = max(most, now)
            time.sleep(0.002)
            with lock:
                now -= size[0] * size[1]

    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(decode, [(10, 4), (3, 7), (12, 11), (9, 9)] * 6)
        )  # one is larger than all the room: it goes alone
    assert 81 <= most <= 132
    assert now == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    picture = FilePicture(tmp_path / "a.png")
    for ask in (picture.load, lambda: picture.key, lambda: open_rgb(tmp_path / "a.png")):
        with pytest.raises(UserError, match=r"a\.png: image cannot be read \(it is a pipe or a device, not a file\)"):
            ask()
    problems = Problems()
    check_pictures([(picture, "t.jsonl:1")], problems)
    assert "a pipe or a device" in problems.messages()[0]


def test_formats_that_start_other_programs_are_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(UserError, match=r"a\.png: not an image \(no format that can be read\)"):
        FilePicture(tmp_path / "a.png").load()
    assert ".eps" not in images.endings()
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".jp2"} <= images.endings()
    assert set(images.formats()) <= set(Image.OPEN)


def test_key_is_the_content(tmp_path):
    corner().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    palette().save(tmp_path / "c.png")
    a, b, c = (FilePicture(tmp_path / f"{name}.png") for name in "abc")
    assert a.key == b.key == BytesPicture((tmp_path / "a.png").read_bytes()).key != c.key
    assert a != b
    assert a == FilePicture(tmp_path / "a.png")
    assert identity(a) != identity(b)
    with pytest.raises(UserError, match=r"nowhere\.png: no such image"):
        _ = FilePicture(tmp_path / "nowhere.png").key


def test_pictures_pickle(tmp_path):
    corner().save(tmp_path / "a.png")
    for picture in (FilePicture(tmp_path / "a.png"), BytesPicture((tmp_path / "a.png").read_bytes(), "x")):
        copy = pickle.loads(pickle.dumps(picture))
        assert copy == picture
        assert copy.key == picture.key
        assert hash(copy) == hash(picture)
        assert copy.load().tobytes() == corner().tobytes()


def test_picture_of_a_pil_image():
    assert BytesPicture.from_image(palette(1)).load().tobytes() == bytes([*RED, *WHITE])


def test_picture_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.png", "sub/c.png"):
        corner().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.relative_to(tmp_path).as_posix() for path in picture_files(tmp_path)] == [
        "a.png",
        "b.PNG",
        "sub/c.png",
    ]
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "no image in this folder"), ("nowhere", "no such folder")):
        with pytest.raises(UserError, match=message):
            picture_files(tmp_path / folder)


def test_the_size_is_known_from_the_header_which_is_read_once(tmp_path):
    file = tmp_path / "a.png"
    corner().save(file)
    data = file.read_bytes()
    checked = FilePicture(file)
    check_pictures([(checked, "")], Problems())
    assert size_of(FilePicture(file)) == size_of(BytesPicture(data)) == (3, 2)
    file.unlink()
    assert size_of(checked) == (3, 2)
    assert size_of(FilePicture(file)) is None
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    assert size_of(FeaturePicture(tmp_path / "a.npy")) is None


def photo(tmp_path, size=(1200, 900), **options):
    """A smooth image, as photographs are, with some structure."""
    across, down = np.meshgrid(np.linspace(0, 9, size[0]), np.linspace(0, 5, size[1]))
    pixels = 127 + 120 * np.stack([np.sin(across), np.cos(down), np.sin(across + down)], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    image.save(tmp_path / "photo.jpg", quality=95, **options)
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.jpg"


@pytest.mark.parametrize(
    ("side", "size"), [(0, 1200), (900, 1200), (451, 1200), (450, 600), (225, 300), (64, 150), (10, 150)]
)
def test_a_large_jpeg_is_decoded_small(side, size, tmp_path):
    path = photo(tmp_path)
    for picture in (FilePicture(path), BytesPicture(path.read_bytes()), View(FilePicture(path), 0, 1.0, 0.0)):
        assert load_at(picture, side).size[0] == size
    small = load_at(FilePicture(path), side).resize((48, 36), Image.Resampling.BICUBIC)
    whole = open_rgb(path).resize((48, 36), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small, np.int16) - np.asarray(whole, np.int16)).mean() < 2
    assert load_at(FilePicture(tmp_path / "photo.png"), side).size[0] == 1200


def test_a_large_jpeg_is_turned_upright_and_a_crop_keeps_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_at(FilePicture(photo(tmp_path, exif=exif)), 225).size == (225, 300)
    crop = View(FilePicture(photo(tmp_path)), 3, 0.25, 0.0)
    assert min(load_at(crop, 225).size) > 225 / 2
    assert load_at(crop, 225).size[0] * 2 == pytest.approx(crop.load().size[0], abs=2)
