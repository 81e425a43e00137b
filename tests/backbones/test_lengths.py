"""Every family at its limits: whatever lengths are asked for, the model gets no more tokens than it has positions for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests.backbones import composites
from tests.conftest import make_samples, model_config, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.lengths import UNLIMITED, Room, rooms
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, TaskConfig
from vlatrain.data.sample import Turn

READING = {
    **dict.fromkeys(["clip", "siglip", "siglip2_naflex", "align", "altclip", "chinese_clip", "aimv2"], "retrieval"),
    "metaclip2": "retrieval",
    "blip": "retrieval",
    "blip2_itm": "retrieval",
    "vilt": "vqa",
}
WRITING = {"blip": "decoder", "blip2_opt": "decoder", "blip2_t5": "", "florence2": "decoder", "instructblip": "decoder"}
CHAT = ("llava", "qwen2_5_vl", "smolvlm")  # rotary positions: nothing fails beyond the last
LONG = "is it red? what colour is it? " * 200
TEXTS = [LONG, *(text for s in make_samples() for text in (s.question, *s.answers, *s.captions))]


def made(name: str, task: str = "vqa", **settings: Any) -> Any:
    config = small_config(name)
    for key, values in settings.items():
        config.config[key] = config.config[key] | values
    return load(config, task, texts=TEXTS)


def asked(name: str = "vqa", new: int = 5, **settings: Any) -> TaskConfig:
    """A task that cuts nothing."""
    return TaskConfig(
        name=name, max_length=UNLIMITED, decode=DecodeConfig(max_new_tokens=new, min_new_tokens=new), **settings
    )


def test_room_is_what_the_rest_leaves() -> None:
    assert Room().tokens == UNLIMITED
    task = TaskConfig(max_length=40, decode=DecodeConfig(max_new_tokens=10))
    apart = rooms(task, 64, 32, prompt=4, lead=2)
    assert [apart[kind].tokens for kind in ("text", "question", "target", "new")] == [64, 60, 30, 29]
    one = rooms(task, 100, image=20, prompt=4, lead=2, one=True)
    # 74 are left beside image, prompt and lead, of which the reply and its end keep 11; 40 of the question leave 34 to a target
    assert [one[kind].tokens for kind in ("question", "target", "new")] == [63, 34, 72]
    assert [one[kind].tokens for kind in ("conversation", "prompt")] == [80, 69]
    assert str(one["prompt"]) == "100 positions (the image takes 20, task.decode.max_new_tokens keeps 11)"
    assert rooms(task, None, one=True)["target"].tokens == UNLIMITED


@pytest.mark.parametrize("name", READING)
def test_a_text_is_cut_to_the_positions(name: str) -> None:
    backbone = made(name, READING[name])
    limit = backbone.positions(backbone.reader)
    assert limit == backbone.longest(asked("retrieval"), "text")
    for length in (1, 2, 13, limit, UNLIMITED):
        text = backbone.text([LONG, "red"], length, multiple=8)
        assert text.mask[0].sum() == (limit if backbone.padded_to(1) > 1 else min(max(length, 2), limit))
        assert text.ids.shape[1] <= limit
    if name == "vilt":
        backbone.answer_logits({**backbone.inputs([Image.new("RGB", (32, 32))] * 2), "question": text})
    else:
        backbone.text_features(text)  # fails beyond the last position


def test_published_positions() -> None:
    """What published settings come to, from the descriptions alone."""
    from vlatrain.backbones.describe import positions_in, settings_of

    towers = {
        "clip": "text",
        "altclip": "text",
        "vilt": "fusion",
        "blip": "fusion",
        "blip2_t5": "decoder",
        "florence2": "text",
    }
    found = {}
    for name, tower in towers.items():
        config = model_config(name)
        found[name] = positions_in(settings_of(config, next(iter(config.tasks))), config.towers[tower])
    assert found == {"clip": 77, "altclip": 512, "vilt": 40, "blip": 512, "blip2_t5": None, "florence2": 1024}


def at_the_limit(backbone: Any, task: TaskConfig, image: Any) -> tuple[int, int]:
    """Score and write with everything as long as it may be; how many tokens a question and a text then have."""
    question, target = backbone.longest(task, "question"), backbone.longest(task, "target")
    with torch.no_grad():
        context = backbone.context(backbone.inputs([image], [LONG], min(question, 300)))
        text, given = backbone.target([LONG], min(target, 300), task.prompt)
        assert backbone.logits(context, text).isfinite().all()
        assert len(backbone.generate(context, task.decode, task.prompt)) == 1
    return question, int(text.mask.sum()) - given


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("new", [3, 30])
def test_questions_answers_and_what_is_written_fit(name: str, new: int) -> None:
    backbone = made(name)
    question, target = at_the_limit(backbone, asked(new=new), Image.new("RGB", (32, 32)))
    limit = backbone.positions("decoder") or UNLIMITED
    assert target > new
    assert (question == UNLIMITED) == (name == "blip2_t5")
    if name in ("blip2_opt", "instructblip"):  # one sequence
        given = backbone.inputs([Image.new("RGB", (32, 32))], [LONG], question)["input_ids"].shape[1]
        assert given + target <= limit
        assert given + target >= limit - 10 or name == "instructblip"  # whose Q-Former has fewer positions
    elif limit < UNLIMITED:
        assert target == limit - len(backbone.target([""], 9)[0].ids[0]) + 1


@pytest.mark.parametrize("language", ["gpt2", "bart", "t5"])
@pytest.mark.parametrize("visual", ["tokens", "adapters"])
def test_composites_fit(language: str, visual: str) -> None:
    backbone = load(composites.small("clip", language, visual=visual), "vqa", texts=TEXTS)
    image = make_samples()[0].image.load()
    for new in (3, 30):
        question, target = at_the_limit(backbone, asked(new=new), image)
        assert target > new
    assert (question == UNLIMITED) == (language == "t5")
    caption = asked("captioning", prompt="a picture of")
    context = backbone.context(backbone.inputs([image]))  # type: ignore[attr-defined]
    most = (
        caption
        if language == "t5"
        else asked("captioning", backbone.rooms(caption)["new"].tokens, prompt="a picture of")
    )
    backbone.generate(context, most.decode, most.prompt)  # type: ignore[attr-defined]


def test_the_q_former_of_instructblip_has_positions_of_its_own() -> None:
    backbone = made("instructblip", qformer_config={"max_position_embeddings": 24})
    inputs = backbone.inputs([Image.new("RGB", (32, 32))], [LONG], 100)
    assert 16 <= inputs["qformer_input_ids"].shape[1] <= 24
    backbone.context(inputs)


@pytest.mark.parametrize("name", CHAT)
def test_a_conversation_has_no_more_tokens_than_positions(name: str) -> None:
    backbone = made(name, "instruct")
    images = [Image.new("RGB", (64, 32))]
    backbone.measure([sample.image for sample in make_samples()])
    limit, task = backbone.positions("decoder"), asked("instruct")
    talk = [[Turn("is it red?", LONG)], [Turn(LONG, "yes")], [Turn("is it red?", "no"), Turn(LONG, "yes")]]
    for turns in talk:
        inputs, _ = backbone.conversations(images, [turns], backbone.longest(task, "conversation"))
        assert inputs["input_ids"].shape[1] + inputs["rest"].ids.shape[1] - 1 <= limit
        prompts = backbone.prompts(images, [turns], backbone.longest(task, "prompt"))
        assert prompts["input_ids"].shape[1] + task.decode.max_new_tokens <= limit


def test_a_conversation_fits_beside_the_image() -> None:
    backbone: Any = load(composites.small("clip", "gpt2", visual="tokens"), "instruct", texts=TEXTS)
    image = [make_samples()[0].image.load()]
    for turns in ([Turn("is it red?", LONG)], [Turn(LONG, "yes")]):
        inputs, text = backbone.conversations(image, [turns], backbone.longest(asked("instruct"), "conversation"))
        assert text.ids.shape[1] + backbone.visual_tokens == backbone.positions("decoder")
        backbone.conversation_logits(inputs)
        prompts = backbone.prompts(image, [turns], backbone.longest(asked("instruct", 40), "prompt"))
        backbone.generate(backbone.context(prompts), asked(new=40).decode)


def test_visual_tokens_are_counted_without_running_the_tower() -> None:
    for vision in ("clip", "siglip", "dinov2", "dinov3"):
        backbone: Any = load(composites.small(vision, "gpt2"), "vqa", texts=TEXTS)
        states = backbone.model.see(backbone.pixels([make_samples()[0].image.load()]))
        assert backbone.visual_tokens == states.shape[1]


def test_a_transcript_is_what_is_learned() -> None:
    turns = [Turn("is it red?", "no"), Turn("what colour is it?", "red picture")]
    composite: Any = load(composites.small("clip", "gpt2"), "instruct", texts=TEXTS)
    chat: Any = made("llava", "instruct")
    for backbone in (composite, chat):
        ids, learned = backbone.transcript(turns)
        _, text = backbone.conversations([make_samples()[0].image.load()], [turns], 200)
        rest = text.ids[0][text.mask[0] == 1].tolist()
        assert [token for token, own in zip(ids, learned, strict=True) if own] == rest
    assert isinstance(chat, Backbone)
