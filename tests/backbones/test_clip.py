"""CLIP's operations against transformers' own."""

from __future__ import annotations

import torch

from tests.conftest import make_samples, small_config
from vlatrain.backbones.loading import load


def test_similarities_are_transformers_own() -> None:
    samples = make_samples()[:4]
    captions = [sample.captions[0] for sample in samples]
    backbone = load(small_config("clip"), "retrieval", texts=captions)
    pixels = backbone.pixels([sample.image.load() for sample in samples])
    text = backbone.text(captions, 40)
    expected = backbone.model(pixel_values=pixels, input_ids=text.ids, attention_mask=text.mask).logits_per_image
    features, states = backbone.image_features({"pixels": pixels})
    torch.testing.assert_close(features @ backbone.text_features(text).T * backbone.logit_scale(), expected)
    assert not backbone.matches  # nothing reads the image, so the pairs' scores say what the features say
    torch.testing.assert_close(backbone.match(states, text), expected.diagonal())
