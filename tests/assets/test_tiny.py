"""The shipped tiny backbones: they load as any checkpoint does, fit their size, and know what their README says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPModel,
)

import vlatrain
from vlatrain.data import shapes
from vlatrain.data.scenes import COLOURS, KINDS, Scene, make_scene
from vlatrain.data.shapes import build

ASSETS = Path(vlatrain.__file__).parent / "assets"
BLIP, CLIP = ASSETS / "tiny_blip", ASSETS / "tiny_clip"


def scene(*looks: tuple[str, str], seed: int = 3) -> Scene:
    """A scene with these figures."""
    import random

    return make_scene(random.Random(seed), looks, ((16, 24),))


@pytest.fixture(scope="module")
def answer():
    """Asks tiny_blip about a scene."""
    model, processor = BlipForQuestionAnswering.from_pretrained(BLIP), AutoProcessor.from_pretrained(BLIP)

    def ask(picture: Scene, *questions: str) -> list[str]:
        images = [picture.load()] * len(questions)
        inputs = processor(images=images, text=list(questions), padding=True, return_tensors="pt")
        return processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)

    return ask


@pytest.mark.parametrize("folder", [BLIP, CLIP], ids=["blip", "clip"])
def test_a_folder_is_at_most_5_mb(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5_000_000


@pytest.mark.parametrize(
    ("architecture", "folder"),
    [
        (BlipForQuestionAnswering, BLIP),
        (BlipForConditionalGeneration, BLIP),
        (BlipForImageTextRetrieval, BLIP),
        (CLIPModel, CLIP),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_weight_of_every_class_is_in_the_folder(architecture, folder):
    model, report = architecture.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("folder", [BLIP, CLIP], ids=["blip", "clip"])
def test_the_tokenizer_knows_every_word_of_the_built_in_tasks_and_can_spell_the_rest(folder):
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    texts = [f"{sample.question} {' '.join(sample.answers)}" for sample in build("vqa", "train", 300, 0)]
    for task in ("captioning", "retrieval"):
        texts += [sample.captions[0] for sample in build(task, "train", 300, 0)]
    assert not [piece for text in texts for piece in tokenizer.tokenize(text) if piece.startswith(("##", "[UNK]"))]
    odd = "Zebras graze, 1,024 at a time; isn't that (quite) odd? - jazz & vox @ 75% #7"
    assert tokenizer.unk_token_id not in tokenizer(odd).input_ids
    assert tokenizer(odd).input_ids[-1] == tokenizer.sep_token_id


def test_questions_about_one_figure(answer):
    assert answer(
        scene(("teal", "triangle")),
        "is there a teal shape in the image?",
        "is there not a teal shape in the image?",
        "does the image not contain a circle?",
        "is no red shape present?",
        "is there a rectangle?",
        "what color is the triangle?",
        "what shape is in the image?",
        "how many shapes are there?",
    ) == ["yes", "no", "yes", "yes", "no", "teal", "triangle", "1"]


def test_questions_about_several_figures(answer):
    picture = scene(("red", "circle"), ("blue", "star"))
    assert answer(
        picture,
        "is there a red circle?",
        "is there a red star?",
        "what is the blue object?",
        "which colour does the circle have?",
        "how many objects are in the picture?",
    ) == ["yes", "no", "star", "red", "2"]


def test_a_caption_names_the_figures():
    model, processor = BlipForConditionalGeneration.from_pretrained(BLIP), AutoProcessor.from_pretrained(BLIP)
    inputs = processor(images=scene(("green", "cross"), ("yellow", "diamond")).load(), return_tensors="pt")
    said = processor.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True)
    assert "green cross" in said
    assert "yellow diamond" in said


def test_each_picture_finds_its_text():
    looks = [
        (("red", "ring"),),
        (("blue", "ring"),),
        (("red", "star"), ("blue", "cross")),
        (("blue", "star"), ("red", "cross")),
    ]
    pictures = [scene(*look).load() for look in looks]
    texts = ["a red ring", "a blue ring", "a red star and a blue cross", "a blue star and a red cross"]
    blip, processor = BlipForImageTextRetrieval.from_pretrained(BLIP), AutoProcessor.from_pretrained(BLIP)
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    assert blip(**inputs, use_itm_head=False).itm_score.argmax(1).tolist() == [0, 1, 2, 3]
    assert (blip(**inputs).itm_score.argmax(1) == 1).all()
    inputs = AutoProcessor.from_pretrained(CLIP)(images=pictures, text=texts, padding=True, return_tensors="pt")
    assert CLIPModel.from_pretrained(CLIP)(**inputs).logits_per_image.argmax(1).tolist() == [0, 1, 2, 3]


def test_the_built_in_tasks_speak_of_what_scenes_have():
    assert set(shapes.CORNERS) <= set(KINDS) == set(shapes.HOUSE_KIND)
    assert set(shapes.TONE_OF) <= set(COLOURS) == set(shapes.HOUSE_COLOUR)
