"""BLIP-2's retrieval against transformers' own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.learning import overfit
from tests.numerics import assert_close
from vlatrain.backbones.base import Backbone, Embedder
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load, meta_model
from vlatrain.config import TaskConfig
from vlatrain.injection.attach import attach
from vlatrain.metrics.retrieval import similarity
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches

TEXTS = [caption for sample in make_samples() for caption in sample.captions]
CAPTIONS = [sample.captions[0] + " is" * i for i, sample in enumerate(make_samples()[:4])]


def make() -> Backbone:
    backbone = load(small_config("blip2_itm"), "retrieval", texts=TEXTS)
    for parameter in backbone.model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    backbone.model.query_tokens.data.normal_()
    return backbone


def images() -> list:
    return [sample.image.load() for sample in make_samples()[:4]]


@pytest.mark.parametrize("head", [True, False])
def test_scores_are_transformers_own(head: bool) -> None:
    backbone = make()
    assert isinstance(backbone, Embedder)
    text = backbone.text(CAPTIONS, 40)
    inputs = backbone.inputs(images())
    expected = backbone.model(
        pixel_values=inputs["pixels"],
        input_ids=text.ids,
        attention_mask=text.mask,
        use_image_text_matching_head=head,
    ).logits_per_image
    features, states = backbone.image_features(inputs)
    assert features.shape == (4, 5, 20)
    ours = backbone.match(states, text) if head else similarity(features, backbone.text_features(text))
    assert_close(ours, expected, backbone.model)
    assert expected.std() > 1e-3


def test_texts_do_not_depend_on_padding() -> None:
    backbone = make()
    all_of_them, alone = backbone.text(CAPTIONS, 40), backbone.text(CAPTIONS[:1], 40)
    assert_close(backbone.text_features(all_of_them)[:1], backbone.text_features(alone), backbone.model)
    states = backbone.image_features(backbone.inputs(images()))[1]
    assert_close(backbone.match(states, all_of_them)[:1], backbone.match(states[:1], alone), backbone.model)


@pytest.mark.slow
def test_four_pairs_are_learned_and_ranked() -> None:
    backbone = make()
    torch.manual_seed(0)
    attach(backbone.model, adapter_config("lora", dim=8), sites(backbone.config, "retrieval", ["*"]))
    task = build(TaskConfig(name="retrieval", rerank=4), backbone)
    samples = make_samples()[:4]
    overfit(task, samples, 120, lr=1e-2)
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", len(samples)))
    assert found.metrics["image_to_text_r1"] == found.metrics["text_to_image_r1"] == 100


def test_a_folder_loads_as_it_was_saved(tmp_path: Path) -> None:
    first = make()
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    second = load(model_config("blip2_itm", checkpoint=str(tmp_path)), "retrieval")
    inputs, text = first.inputs(images()), first.text(CAPTIONS, 40)
    assert torch.equal(second.text(CAPTIONS, 40).ids, text.ids)
    assert torch.equal(second.inputs(images())["pixels"], inputs["pixels"])
    assert_close(second.image_features(inputs)[0], first.image_features(inputs)[0], first.model)
    assert_close(second.text_features(text), first.text_features(text), first.model)


def test_full_size_on_the_meta_device() -> None:
    model = meta_model(model_config("blip2_itm"), "retrieval")
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_172_032_258  # 1.17 B as published on the hub
