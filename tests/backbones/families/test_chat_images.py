"""Several images in a prompt or a conversation, against transformers' own processors and forward passes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

from tests.backbones.chatting import CHAT, CONVERSING, REPLIES, make, own_logits, shared
from tests.backbones.families.test_chat import named, row
from tests.conftest import adapter_config, make_samples
from tests.injection.test_rows import two_adapters
from tests.learning import overfit
from tests.numerics import assert_close
from vlatrain.backbones.describe import sites
from vlatrain.backbones.prefix import Boundary, Enough, PrefixReplay
from vlatrain.config import DecodeConfig, TaskConfig, UserError
from vlatrain.data.sample import Sample, Turn
from vlatrain.injection.attach import attach, mixed_rows
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches

ABOUT = ["is it red?", "is <image> red? <image> what colour?", "is it red?", "is <image> red?"]
TURNS = [
    [Turn("is it red?", "yes")],
    [Turn("is <image> red?", "yes"), Turn("what colour? <image>", "it is blue"), Turn("is it?", "red")],
    [Turn("what is it?", "a picture"), Turn("is <image> red? <image>", "no"), Turn("<image>", "yes")],
    [Turn("red?", "yes"), Turn("what is it?", "a red picture")],
]


def rows() -> list[Any]:
    """An image, two, three and one, square and wide by turns."""
    found = [sample.image.load().resize((32 + 16 * (i % 2), 32)) for i, sample in enumerate(make_samples()[:7])]
    return [found[0], found[1:3], found[3:6], found[6]]


def by_template(backbone: Any, turns: list[Turn], images: list[Any]) -> Any:
    """What transformers' own template and processor make of a whole conversation, marks and all."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        parts: list[dict[str, Any]] = [] if messages or "<image>" in str(turns) else [{"type": "image"}] * len(images)
        for number, text in enumerate(turn.user.split("<image>")):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": text}] if text else []
        messages += [{"role": "user", "content": parts}]
        messages += [{"role": "assistant", "content": [{"type": "text", "text": turn.reply}]}] if turn.reply else []
    text = backbone.processor.apply_chat_template(
        messages, chat_template=backbone.script.template, add_generation_prompt=not turns[-1].reply
    )
    options = {"images_kwargs": backbone.image_options} if backbone.image_options else {}
    return backbone.processor(images=[images], text=[text], return_tensors="pt", **options)


@named(*CHAT)
def test_scores_are_transformers_own_whatever_else_is_in_the_batch(name: str) -> None:
    backbone = shared(name)
    inputs = backbone.inputs(rows(), ABOUT, 40)
    assert inputs["images"] == [1, 2, 3, 1]
    target, _ = backbone.target(REPLIES, 20)
    logits = backbone.logits(backbone.context(inputs), target)
    decode = DecodeConfig(num_beams=3, max_new_tokens=4)
    texts = backbone.generate(backbone.context(inputs), decode, alternatives=2)
    for number, images in enumerate(rows()):
        alone = backbone.inputs([images], ABOUT[number : number + 1], 40)
        own, context = row(target, number), backbone.context(alone)
        expected = own_logits(backbone, name, alone, own.ids)
        assert_close(backbone.logits(context, own), expected, backbone.model)
        assert_close(logits[number, : own.ids.shape[1]], expected[0], backbone.model)
        assert backbone.generate(context, decode, alternatives=2) == texts[2 * number : 2 * number + 2]
    again = backbone.inputs([rows()[1][::-1]], ABOUT[1:2], 40)
    other = backbone.logits(backbone.context(again), row(target, 1))
    assert (other - logits[1:2, : other.shape[1]]).abs().max() > 1e-3, "which image is the first is seen"
    if name != "llava_onevision":  # it cuts an image that is alone into tiles
        assert "images" not in backbone.inputs([rows()[0]], ABOUT[:1], 40)


@named(*CONVERSING, quick=["qwen3_vl"])
def test_prompts_are_those_of_template_and_processor(name: str) -> None:
    backbone = shared(name)
    said = ["is <image> red? <image>what?", "is it red?"]
    for question in said:
        turns = [Turn(backbone.asked.replace("{question}", question))]
        expected = by_template(backbone, turns, rows()[1])
        found = backbone.inputs([rows()[1]], [question], 40)
        assert all(torch.equal(value, expected[key]) for key, value in found.items() if key != "images"), question
    asked = [Turn(turn.user, turn.reply) for turn in TURNS[2][:-1]] + [Turn(TURNS[2][-1].user)]
    expected = by_template(backbone, asked, rows()[2])
    found = backbone.prompts([rows()[2]], [asked], 200)
    assert all(torch.equal(value, expected[key]) for key, value in found.items() if key != "images")


@named(*CONVERSING, quick=["qwen3_vl"])
def test_a_conversation_shows_images_where_they_stand(name: str) -> None:
    """Also behind replies: the logits are those of transformers' own forward pass over the whole of it."""
    backbone = shared(name)
    inputs, target = backbone.conversations(rows(), TURNS, 200)
    logits = backbone.conversation_logits(inputs)
    for number, (images, turns) in enumerate(zip(rows(), TURNS, strict=True)):
        own = backbone.conversations([images], [turns], 200)
        length = own[1].ids.shape[1]
        assert_close(logits[number, :length], backbone.conversation_logits(own[0])[0], backbone.model)
        assert torch.equal(target.mask[number, :length], own[1].mask[0])
        whole = by_template(backbone, turns, images if isinstance(images, list) else [images])
        given = {key: value for key, value in whole.items() if key in backbone.takes}
        expected = backbone.model(**given, use_cache=False).logits[0]
        # behind the token that ends the last reply, templates write a line break
        start = int(own[0]["attention_mask"].sum()) - 1
        assert torch.equal(whole["input_ids"][0, start + 1 : start + length], own[1].ids[0, 1:])
        assert_close(logits[number, :length], expected[start : start + length], backbone.model)
        replies = [backbone.written(own[1].ids[0, 1:][own[1].mask[0, 1:] == 1][None])[0]]
        assert replies[0].split() == " ".join(turn.reply for turn in turns).split()


def test_what_is_cut_off_takes_its_images_with_it() -> None:
    backbone = shared("qwen3_vl")
    whole, _ = backbone.conversations(rows()[1:3], TURNS[1:3], 200)
    assert whole["images"] == [2, 3]
    short = next(
        n for n in range(60, 5, -1) if backbone.conversations(rows()[2:3], TURNS[2:3], n)[0].get("images") == [2]
    )
    one, target = backbone.conversations(rows()[2:3], TURNS[2:3], short)
    assert backbone.conversation_logits(one).shape[:2] == target.ids.shape
    hidden, target = backbone.conversations(rows()[1:3], TURNS[1:3], 14)
    assert hidden["shown"].tolist() == [True, False], "of the second row no image is left"
    assert backbone.conversation_logits(hidden).isfinite().all()
    asked = [[*turns[:-1], Turn(turns[-1].user)] for turns in TURNS[1:3]]
    cut = backbone.prompts(rows()[1:3], asked, 20)
    assert "images" not in cut, "one each is left, or none"
    assert cut["shown"].tolist() == [False, True]
    assert len(backbone.generate(backbone.context(cut), DecodeConfig(max_new_tokens=3))) == 2


def test_a_question_is_cut_and_its_images_are_not() -> None:
    backbone = shared("llava")
    long, short = (
        backbone.inputs([rows()[1]], [text], 3) for text in ("is <image> red? <image> it", "is <image> red?<image>")
    )
    assert torch.equal(long["input_ids"], short["input_ids"])
    marked = backbone.inputs(rows()[:1], ["is <image> red?"], 40)
    image = backbone.model.config.image_token_id
    assert (marked["input_ids"] == image).sum() == (
        backbone.inputs(rows()[:1], ["is red?"], 40)["input_ids"] == image
    ).sum()


def test_the_place_of_an_image_is_its_number_where_there_is_no_template() -> None:
    backbone = shared("paligemma")
    inputs = backbone.inputs([rows()[1]], ["is <image> red? is <image>?"], 40)
    numbered = backbone.inputs([rows()[1]], ["is image 1 red? is image 2?"], 40)
    assert torch.equal(inputs["input_ids"], numbered["input_ids"])
    images = (inputs["input_ids"] == backbone.model.config.image_token_id).sum()
    assert images == 2 * backbone.processor.image_seq_length


def test_a_kept_prefix_is_that_of_each_image() -> None:
    backbone = make("paligemma")
    target, _ = backbone.target(REPLIES, 20)
    inputs = backbone.inputs(rows(), ABOUT, 40)
    whole = backbone.logits(backbone.context(inputs), target)
    backbone.prefix_replay = PrefixReplay({"vision": Boundary("vision", 2, (1,))}, {})
    with backbone.prefix_replay.recording(["vision"]) as recorded, suppress(Enough):
        backbone.run_frozen_towers(inputs)
    backbone.prefix_replay.in_tuple["vision"] = recorded["vision"].in_tuple
    assert len(recorded["vision"].states) == 7
    given = {**backbone.given([1, 2, 3, 1], ABOUT, 40), "prefix": {"vision": recorded["vision"].states}}
    assert torch.equal(backbone.logits(backbone.context(given), target), whole)


@named(*CHAT, quick=["llava"])
def test_room_and_memory_are_reckoned_with_the_most_images(name: str) -> None:
    backbone = make(name)
    pictures = [sample.image for sample in make_samples()[:4]]
    config = TaskConfig(name="vqa")
    backbone.measure(pictures)
    one = backbone.rooms(config)["question"].tokens
    backbone.measure(pictures, 3)
    assert backbone.rooms(config)["question"].tokens < one
    blank = backbone.blank(2, "cpu", 5)
    assert blank["images"] == [3, 3]
    context = backbone.context(blank)
    assert len(context["states"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma"])
def test_questions_about_pairs_are_learned(name: str) -> None:
    """Which picture is where is all that tells the samples apart."""
    backbone = make(name)
    torch.manual_seed(0)
    attach(backbone.model, adapter_config("lora", dim=8), sites(backbone.config, "vqa", ["decoder"]))
    one, two = (sample.image for sample in make_samples()[:2])
    pairs = [(one, two, "red"), (two, one, "blue"), (one, one, "yes"), (two, two, "no")]
    samples = [
        Sample(str(place), first, "is <image> red? <image>?", (answer,), more=(second,))
        for place, (first, second, answer) in enumerate(pairs)
    ]
    task = build(TaskConfig(name="vqa"), backbone)
    overfit(task, samples, 80, 1e-2)
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", len(samples)))
    assert found.metrics["accuracy"] == 100, found.predictions


def test_the_images_of_a_row_have_its_adapter() -> None:
    """The image tower's batch has a row for each image."""
    backbone, model = two_adapters("paligemma", "vqa")
    target, _ = backbone.target(REPLIES, 20)
    with torch.no_grad():
        with mixed_rows(model, ["default", "other", "__base__", "other"]):
            mixed = backbone.logits(backbone.context(backbone.inputs(rows(), ABOUT, 40)), target)
        for number, name in ((0, "default"), (1, "other"), (3, "other")):
            model.set_adapter(name)
            own = row(target, number)
            alone = backbone.logits(backbone.context(backbone.inputs([rows()[number]], [ABOUT[number]], 40)), own)
            assert_close(mixed[number, : own.ids.shape[1]], alone[0], backbone.model)


def test_a_template_that_leaves_images_out_is_refused_before_the_first_step() -> None:
    backbone = make("llava")
    first = backbone.script.template.replace("'<image>' if", "('<image>' if loop.first else '') if")
    backbone.script.template = first
    backbone.inputs(rows()[:1], ABOUT[:1], 40)
    backbone.measure([sample.image for sample in make_samples()[:4]], 2)
    with pytest.raises(
        UserError, match=r"the chat template of this tokenizer writes 1 of 2 images: put another chat_template"
    ):
        backbone.rooms(TaskConfig(name="vqa"))
