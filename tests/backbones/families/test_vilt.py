"""ViLT's operations against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.vilt.modeling_vilt import ViltSelfAttention

from tests.conftest import adapter_config, make_samples, small_config
from tests.numerics import assert_close
from vlatrain.backbones.base import Answerer, Generator, Matcher
from vlatrain.backbones.describe import sites
from vlatrain.backbones.families.vilt import FastViltAttention
from vlatrain.backbones.loading import load
from vlatrain.injection.attach import attach

SAMPLES = make_samples()[:4]
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
QUESTIONS = ["is it red?", "what colour is it?", "red?", "what is it?"]


def loaded(task: str) -> Any:
    return load(small_config("vilt"), task, texts=TEXTS)


def images() -> list[Image.Image]:
    """Four pictures of different aspect ratios: in a batch all but the largest are padded."""
    sizes = ((32, 32), (60, 32), (32, 48), (64, 64))
    return [s.image.load().resize(size) for s, size in zip(SAMPLES, sizes, strict=True)]


def own(backbone: Any, inputs: dict[str, Any], text: Any) -> torch.Tensor:
    return backbone.model(
        input_ids=text.ids, attention_mask=text.mask, pixel_values=inputs["pixels"], pixel_mask=inputs["pixel_mask"]
    ).logits


def test_answers_are_transformers_own() -> None:
    backbone = loaded("vqa")
    assert isinstance(backbone, Answerer)
    assert not isinstance(backbone, Generator)
    inputs = backbone.inputs(images(), QUESTIONS, 40)
    assert inputs["pixels"].shape == (4, 3, 56, 64)
    assert not inputs["pixel_mask"].bool().all()
    logits = backbone.answer_logits(inputs)
    assert_close(logits, own(backbone, inputs, inputs["question"]), backbone.model)  # its patches are shuffled
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_the_fused_kernel_gives_what_transformers_gives() -> None:
    """Losses and gradients, with padded images and questions; and whoever asks for the weights gets them."""
    found = []
    for plain in (False, True):
        backbone = loaded("vqa")
        swapped = [module for module in backbone.model.modules() if type(module) is FastViltAttention]
        assert len(swapped) == 3
        for module in swapped if plain else ():
            module.__class__ = ViltSelfAttention
        inputs = backbone.inputs(images(), QUESTIONS, 40)
        weight = swapped[0].query.weight.requires_grad_(True)
        logits = backbone.answer_logits(inputs)
        (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), weight)
        states = torch.randn(1, 5, swapped[0].query.in_features, generator=torch.Generator().manual_seed(0))
        found.append((logits, gradient, *swapped[0](states, output_attentions=True)))
    assert len(found[0]) == len(found[1]) == 4
    for one, two in zip(*found, strict=True):
        assert_close(one, two, backbone.model)
    assert found[0][1].abs().max() > 1e-3


def test_scores_of_pairs_are_transformers_own() -> None:
    backbone = loaded("retrieval")
    assert isinstance(backbone, Matcher)
    inputs, text = backbone.inputs(images()), backbone.text([s.captions[0] for s in SAMPLES], 40)
    scores = backbone.pair_scores(backbone.image_context(inputs), text)
    assert_close(scores, own(backbone, inputs, text)[:, 0], backbone.model)
    assert (scores[0] - scores[1]).abs() > 1e-3


def test_no_number_is_drawn_and_rows_do_not_depend_on_their_batch() -> None:
    backbone = loaded("vqa")
    backbone.model.config.max_image_length = 5  # transformers would draw so many
    state = torch.get_rng_state()
    together = backbone.answer_logits(backbone.inputs(images(), QUESTIONS, 40))
    assert torch.equal(state, torch.get_rng_state())
    alone = [
        backbone.answer_logits(backbone.inputs([image], [question], 40))
        for image, question in zip(images(), QUESTIONS, strict=True)
    ]
    assert_close(together, torch.cat(alone), backbone.model)


def test_other_answers_keep_what_is_known() -> None:
    backbone, other = loaded("vqa"), loaded("vqa")
    assert backbone.answers == [f"LABEL_{place}" for place in range(7)]
    before = backbone.answer_logits(backbone.inputs(images(), QUESTIONS, 40))
    new = ["red", "LABEL_5", "blue", "LABEL_0"]
    for one in (backbone, other):
        one.take_answers(new)
    assert backbone.answers == new
    after = backbone.answer_logits(backbone.inputs(images(), QUESTIONS, 40))
    assert_close(after[:, [1, 3]], before[:, [5, 0]], backbone.model)
    assert torch.equal(
        after, other.answer_logits(other.inputs(images(), QUESTIONS, 40))
    )  # new ones are always the same


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_adapters_can_read_the_image_as_it_enters(task: str) -> None:
    backbone = loaded(task)
    attach(backbone.model, adapter_config("cross_modal", dim=8), sites(backbone.config, task, ["*"]))

    def found(images: list[Image.Image], texts: list[str]) -> torch.Tensor:
        inputs = backbone.inputs(images, texts, 40)
        if task == "vqa":
            return backbone.answer_logits(inputs)
        return backbone.pair_scores(backbone.image_context(inputs), inputs["question"])

    with torch.no_grad():
        before = found(images(), QUESTIONS)
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
        after = found(images(), QUESTIONS)
        assert (after - before).abs().max() > 1e-3
        alone = [found([image], [text]) for image, text in zip(images(), QUESTIONS, strict=True)]
    assert_close(after, torch.cat(alone), backbone.model)
