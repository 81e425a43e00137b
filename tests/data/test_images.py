"""Every kind of image becomes upright RGB; what cannot be read says so and names the file."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.data.writing import pixels_of
from vlatrain.config import UserError
from vlatrain.data import BytesPicture, FilePicture, open_rgb, picture_files
from vlatrain.data.augment import View
from vlatrain.data.checks import Problems, check_pictures
from vlatrain.data.features import FeaturePicture
from vlatrain.data.images import identity, load_at, size_of, to_rgb

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
