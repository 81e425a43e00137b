"""BLIP's operations against transformers' own."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_samples, small_config
from tests.numerics import assert_close
from vlatrain.backbones.loading import load
from vlatrain.backbones.search import generate_settings
from vlatrain.config import DecodeConfig

TEXTS = [sample.question for sample in make_samples()] + [c for s in make_samples() for c in s.captions]


def loaded(task: str):
    backbone = load(small_config("blip"), task, texts=TEXTS)
    for parameter in backbone.model.parameters():  # random weights answer the same to everything unless they are large
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    return backbone


def images():
    return [sample.image.load() for sample in make_samples()[:4]]


def test_captioning_logits_and_generation_are_transformers_own() -> None:
    backbone = loaded("captioning")
    pixels = backbone.pixels(images())
    target, given = backbone.target([sample.captions[0] for sample in make_samples()[:4]], 20)
    context = backbone.context({"pixels": pixels})
    expected = backbone.model(pixel_values=pixels, input_ids=target.ids, attention_mask=target.mask).logits
    assert_close(backbone.logits(context, target), expected, backbone.model)
    assert given == 1
    for beams in (1, 3):
        settings = generate_settings(DecodeConfig(num_beams=beams, max_new_tokens=6), 1, backbone.word_start)
        ids = backbone.model.generate(pixel_values=pixels, **settings)
        expected_texts = [text.strip() for text in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        assert backbone.generate(context, DecodeConfig(num_beams=beams, max_new_tokens=6)) == expected_texts


def test_answers_do_not_depend_on_the_padding_of_their_question() -> None:
    backbone = loaded("vqa")
    pixels = backbone.pixels(images()[:2])
    both = backbone.text(["is it red?", "what colour is it is it is it?"], 40)
    alone = backbone.text(["is it red?"], 40)
    decode = DecodeConfig(max_new_tokens=6)
    padded = backbone.generate(backbone.context({"pixels": pixels, "question": both}), decode)
    assert padded[:1] == backbone.generate(backbone.context({"pixels": pixels[:1], "question": alone}), decode)


def test_vqa_loss_is_transformers_own_but_for_the_start_token() -> None:
    backbone = loaded("vqa")
    pixels = backbone.pixels(images())
    question = backbone.text([sample.question for sample in make_samples()[:4]], 40)
    target, _ = backbone.target([sample.answers[0] for sample in make_samples()[:4]], 10)
    labels = target.ids.masked_fill(target.mask == 0, -100)
    expected = backbone.model(
        pixel_values=pixels,
        input_ids=question.ids,
        attention_mask=question.mask,
        decoder_input_ids=target.ids,
        decoder_attention_mask=target.mask,
        labels=labels,
    ).loss
    logits = backbone.logits(backbone.context({"pixels": pixels, "question": question}), target)
    ours = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close(ours, expected, backbone.model)


def test_prompt_is_given_and_not_part_of_the_text() -> None:
    backbone = loaded("captioning")
    plain, _ = backbone.target(["red picture"], 20)
    target, given = backbone.target(["red picture"], 20, prompt="a")
    assert target.ids.shape[1] == plain.ids.shape[1] + given - 1
    assert target.ids[0, 0] == backbone.model.config.text_config.bos_token_id
    assert target.ids[0, -1] == backbone.model.config.text_config.sep_token_id


@pytest.mark.parametrize("head", [True, False])
def test_retrieval_scores_are_transformers_own(head: bool) -> None:
    backbone = loaded("retrieval")
    pixels = backbone.pixels(images())
    text = backbone.text([sample.captions[0] for sample in make_samples()[:4]], 40)
    expected = backbone.model(
        pixel_values=pixels, input_ids=text.ids, attention_mask=text.mask, use_itm_head=head
    ).itm_score
    features, states = backbone.image_features({"pixels": pixels})
    ours = backbone.match(states, text) if head else features @ backbone.text_features(text).T
    assert_close(ours, expected, backbone.model)
