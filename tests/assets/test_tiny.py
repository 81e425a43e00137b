"""The shipped tiny backbones: they load as any checkpoint does, fit their size, and know what their README says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPModel,
    GPT2LMHeadModel,
)

import vlatrain
from vlatrain.data import shapes
from vlatrain.data.scenes import COLOURS, KINDS, Scene, make_scene
from vlatrain.data.shapes import build

ASSETS = Path(vlatrain.__file__).parent / "assets"
BLIP, CLIP, GPT = ASSETS / "tiny_blip", ASSETS / "tiny_clip", ASSETS / "tiny_gpt"


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


@pytest.mark.parametrize(
    ("folder", "most"), [(BLIP, 5_000_000), (CLIP, 5_000_000), (GPT, 2_000_000)], ids=["blip", "clip", "gpt"]
)
def test_a_folder_is_small(folder, most):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= most


@pytest.mark.parametrize(
    ("architecture", "folder"),
    [
        (BlipForQuestionAnswering, BLIP),
        (BlipForConditionalGeneration, BLIP),
        (BlipForImageTextRetrieval, BLIP),
        (CLIPModel, CLIP),
        (GPT2LMHeadModel, GPT),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_weight_of_every_class_is_in_the_folder(architecture, folder):
    model, report = architecture.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("folder", [BLIP, CLIP, GPT], ids=["blip", "clip", "gpt"])
def test_the_tokenizer_knows_every_word_of_the_built_in_tasks_and_can_spell_the_rest(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [f"{sample.question} {' '.join(sample.answers)}" for sample in build("vqa", "train", 300, 0)]
    for task in ("captioning", "retrieval"):
        texts += [sample.captions[0] for sample in build(task, "train", 300, 0)]
    assert not [piece for text in texts for piece in tokenizer.tokenize(text) if piece.startswith(("##", "[UNK]"))]
    odd = "Zebras graze, 1,024 at a time; isn't that (quite) odd? - jazz & vox @ 75% #7"
    assert tokenizer.unk_token_id not in tokenizer(odd).input_ids
    assert (tokenizer(odd).input_ids[-1] == tokenizer.sep_token_id) == (
        folder != GPT
    )  # a language model's adds nothing


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


@pytest.fixture(scope="module")
def go_on():
    """Lets tiny_gpt go on from a text, to its end."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(GPT), AutoTokenizer.from_pretrained(GPT)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )

    def write(*texts: str) -> list[str]:
        inputs = tokenizer([f"[DEC] {text}" for text in texts], padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        return tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    return write


def test_the_language_model_reads_answers_off_what_stands_in_front(go_on):
    front = "a picture of a red circle and a blue star [SEP] [DEC]"
    assert go_on(
        f"{front} question: what color is the star? answer:",
        f"{front} question: what is the red shape? answer:",
        f"{front} question: is there a green object in the image? answer:",
        f"{front} user: how many shapes are there? assistant:",
    ) == ["blue", "circle", "no", "2"]


def test_the_language_model_answers_plausibly_where_there_is_nothing_to_read(go_on):
    colour, kind, count = go_on(
        "question: what color is the star? answer:",
        "question: what shape is the red object? answer:",
        "question: how many shapes are there? answer:",
    )
    assert colour in COLOURS
    assert kind in KINDS
    assert count in ("1", "2", "3")


def test_the_language_model_was_not_taught_the_built_in_tasks(go_on):
    sheet = "a picture of a large red circle [SEP] [DEC]"
    answers = go_on(
        f"{sheet} question: is the color of the circle warm or cool? answer:",
        f"{sheet} question: how many corners does the red shape have? answer:",
        "set of",
    )
    assert answers[0] not in ("warm", "cool")
    assert answers[2] != "one"
    assert go_on("question: say cool answer:") == ["cool"]  # the words themselves it can say


def test_the_built_in_tasks_speak_of_what_scenes_have():
    assert set(shapes.CORNERS) <= set(KINDS) == set(shapes.HOUSE_KIND)
    assert set(shapes.TONE_OF) <= set(COLOURS) == set(shapes.HOUSE_COLOUR)
