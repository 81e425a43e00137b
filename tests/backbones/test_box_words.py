"""Each family's words for boxes: a round trip through its tokenizer within a bin, in the published format."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

from tests.backbones.composites import LANGUAGE, small
from tests.conftest import model_config, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.box_words import FORMATS, size_taken
from vlatrain.backbones.loading import load_without_weights
from vlatrain.config.model import LOCATION_WORDS, LOCATIONS

SIZE = (123, 77)
TEXTS = ["a red car", "0 1 2 3 4 5 6 7 8 9 json bbox_2d label ` [ ] { } : , _"]


def boxes(number: int) -> list[tuple[float, float, float, float]]:
    rng = random.Random(number)
    edges = [(sorted(rng.sample(range(100), 2)), sorted(rng.sample(range(100), 2))) for _ in range(2)]
    return [(x[0] / 100, y[0] / 100, x[1] / 100, y[1] / 100) for x, y in edges]


FAMILIES = [
    *(name for name in FORMATS if name not in ("digits", "locations")),
    *("blip2_opt", "blip2_t5", "instructblip", "llava", "llava_onevision", "smolvlm", "tiny_blip"),
    *(f"clip+{language}" for language in LANGUAGE),
]


def loaded(name: str) -> Backbone:
    vision, _, language = name.partition("+")
    shipped = name.startswith("tiny_")  # with the tokenizer that it comes with
    config = small(vision, language) if language else model_config(name) if shipped else small_config(name)
    served = config.tasks["vqa"]
    new = [LOCATION_WORDS] if config.box_words == LOCATIONS else []
    config.tasks["grounding_words"] = replace(served, trained=[*served.trained, *new])
    backbone = load_without_weights(config, "grounding_words", texts=TEXTS)
    if name == "florence2":  # the published tokenizer has them as special tokens
        backbone.tokenizer.add_special_tokens({"additional_special_tokens": [f"<loc_{n}>" for n in range(1000)]})
        backbone.__dict__.pop("_special_tokens", None)
    backbone.writes_places = True
    return backbone


def near(found: list[tuple[float, ...]], wanted: list[tuple[float, ...]], bins: tuple[int, int]) -> bool:
    edges = [(one[n], other[n], bins[n % 2]) for one, other in zip(found, wanted, strict=True) for n in range(4)]
    return all(abs(edge - other) <= 1 / number for edge, other, number in edges)


@pytest.mark.parametrize("name", ["blip", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_a_round_trip_through_the_tokenizer_is_within_a_bin(name: str) -> None:
    backbone = loaded(name)
    words = FORMATS[backbone.config.box_words]
    size = size_taken(backbone.image_processor, SIZE)
    for number in range(10):
        for own in (boxes(number)[:1], boxes(number)):
            target, given = backbone.target([words.write(own, size, "a red car")], 400)  # type: ignore[attr-defined]
            (text,) = backbone.written(target.ids[:, given:])
            assert near(words.read(text, size), own, words.bins(size)), text


@pytest.mark.slow
def test_pixels_are_those_of_the_image_as_the_processor_makes_it() -> None:
    backbone = loaded("qwen2_5_vl")
    width, height = size_taken(backbone.image_processor, SIZE)
    assert (width, height) != SIZE
    grid = backbone.image_processor(images=[Image.new("RGB", SIZE)], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert [height // backbone.image_processor.patch_size, width // backbone.image_processor.patch_size] == grid[1:]
    assert size_taken(loaded("blip").image_processor, SIZE) == SIZE


BOX = (0.1, 0.2, 0.5, 0.8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("florence2", "a cat<loc_100><loc_200><loc_500><loc_800>"),
        ("paligemma", "<loc0204><loc0102><loc0819><loc0512> a cat"),
        ("qwen2_5_vl", '```json\n[{"bbox_2d": [20, 20, 100, 80], "label": "a cat"}]\n```'),
        ("qwen3_vl", '```json\n[{"bbox_2d": [100, 200, 500, 800], "label": "a cat"}]\n```'),
        ("digits", "10 20 50 80"),
        ("locations", "<loc_6><loc_12><loc_32><loc_51>"),
    ],
)
def test_what_is_written(name: str, text: str) -> None:
    assert FORMATS[name].write([BOX], (200, 100), "a cat") == text
    (found,) = FORMATS[name].read(text, (200, 100))
    assert near([found], [BOX], FORMATS[name].bins((200, 100)))


def test_florences_bins_are_transformers_own() -> None:
    own = Florence2PostProcessor.__new__(Florence2PostProcessor)
    own.quantize_bins = (1000, 1000)
    for number in range(20):
        for box in boxes(number):
            pixels = torch.tensor([[share * SIZE[axis % 2] for axis, share in enumerate(box)]])
            bins = own.quantize(pixels, SIZE)[0].tolist()
            text = FORMATS["florence2"].write([box], SIZE, "")
            written = [int(part.strip("<loc_>")) for part in text.split("><")]
            assert max(abs(a - b) for a, b in zip(bins, written, strict=True)) <= 1, "at an edge they may round apart"
            read = [edge * SIZE[axis % 2] for axis, edge in enumerate(FORMATS["florence2"].read(text, SIZE)[0])]
            assert own.dequantize(torch.tensor([written]).float(), SIZE)[0].tolist() == [int(edge) for edge in read]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["", "a cat", "12 30", "<loc_1><loc_2>", '{"bbox_2d": [1, 2]}', "90 90 10 10"])
def test_what_is_no_box_is_none(name: str, text: str) -> None:
    assert FORMATS[name].read(text, (200, 100)) == []
