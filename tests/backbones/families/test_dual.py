"""Dual encoders against transformers' own features and scores."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.numerics import assert_close
from vlatrain.backbones.base import Text
from vlatrain.backbones.describe import sites
from vlatrain.backbones.families.dual import Dual
from vlatrain.backbones.loading import load
from vlatrain.backbones.prefix import Boundary, Enough, PrefixReplay
from vlatrain.config import UserError
from vlatrain.injection.attach import attach

DUALS = ["clip", "metaclip2", "siglip", "siglip2", "siglip2_naflex", "align", "altclip", "chinese_clip", "aimv2"]
CAPTIONS = [sample.captions[0] for sample in make_samples()[:4]]


def loaded(name: str) -> Any:
    return load(small_config(name), "retrieval", texts=CAPTIONS)


def images() -> list[Image.Image]:
    """Four pictures of different aspect ratios."""
    sizes = ((32, 32), (48, 20), (20, 60), (64, 64))
    return [s.image.load().resize(size) for s, size in zip(make_samples()[:4], sizes, strict=True)]


def own_names(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values" if key == "pixels" else key: value for key, value in inputs.items()}


@pytest.mark.parametrize("name", DUALS)
def test_features_and_similarities_are_transformers_own(name: str) -> None:
    backbone = loaded(name)
    assert isinstance(backbone, Dual)
    inputs, text = backbone.inputs(images()), backbone.text(CAPTIONS, 40)
    asked = {**own_names(inputs), "input_ids": text.ids, "attention_mask": text.mask}
    own = backbone.model(**asked)
    image, states = backbone.image_features(inputs)
    texts = backbone.text_features(text)
    expected = backbone.model.get_image_features(**own_names(inputs)).pooler_output
    assert_close(image, normalize(expected, dim=-1), backbone.model)
    expected = backbone.model.get_text_features(input_ids=text.ids, attention_mask=text.mask).pooler_output
    assert_close(texts, normalize(expected, dim=-1), backbone.model)
    assert (image[0] - image[1]).abs().max() > 1e-3  # it looks
    assert (texts[0] - texts[1]).abs().max() > 1e-4
    logits = image @ texts.T * backbone.logit_scale() + backbone.logit_bias()
    assert_close(logits, own.logits_per_image, backbone.model)
    assert not backbone.matches  # nothing reads the image, so the pairs' scores say what the features say
    assert_close(backbone.match(states, text), (image * texts).sum(-1) * backbone.logit_scale(), backbone.model)


@pytest.mark.parametrize("name", DUALS)
def test_rows_do_not_depend_on_their_batch(name: str) -> None:
    backbone = loaded(name)
    together = backbone.image_features(backbone.inputs(images()))[0]
    alone = torch.cat([backbone.image_features(backbone.inputs([image]))[0] for image in images()])
    assert_close(together, alone, backbone.model)
    together = backbone.text_features(backbone.text([*CAPTIONS, "a picture"], 40))
    alone = torch.cat([backbone.text_features(backbone.text([text], 40)) for text in [*CAPTIONS, "a picture"]])
    assert_close(together, alone, backbone.model)


@pytest.mark.parametrize("name", DUALS)
def test_an_adapter_in_the_text_tower_can_read_the_image(name: str) -> None:
    backbone = loaded(name)
    where = sites(backbone.config, "retrieval", ["text.*.*"])
    attach(backbone.model, adapter_config("cross_modal", dim=8), where)
    assert backbone.matches
    inputs, text = backbone.inputs(images()), backbone.text(CAPTIONS[:1] * 4, 40)
    features, states = backbone.image_features(inputs)
    with torch.no_grad():
        before = backbone.match(states, text)
        expected = (features @ backbone.text_features(text).T)[:, 0] * backbone.logit_scale()
        assert_close(before, expected, backbone.model)  # nothing is changed before it has learned
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
        after = backbone.match(states, text)
        assert (after - before).abs().max() > 1e-3
        alone = [
            backbone.match(backbone.image_features(backbone.inputs([image]))[1], Text(text.ids[:1], text.mask[:1]))
            for image in images()
        ]
    assert_close(after, torch.cat(alone), backbone.model)  # padding of patches is not read


@pytest.mark.parametrize("name", [name for name in DUALS if model_config(name).tasks["retrieval"].features])
def test_features_are_adapted_where_they_are_made(name: str) -> None:
    backbone = loaded(name)
    inputs, text = backbone.inputs(images()), backbone.text(CAPTIONS, 40)
    before = backbone.image_features(inputs)[0], backbone.text_features(text)
    method = adapter_config("clip_adapter", dim=8, options={"features": ["image", "text"]})
    attach(backbone.model, method, sites(backbone.config, "retrieval", ["*"]))
    after = backbone.image_features(inputs)[0], backbone.text_features(text)
    assert_close(after, before, backbone.model)
    for parameter in backbone.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    changed = backbone.image_features(inputs)[0], backbone.text_features(text)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(before, changed, strict=True))


@pytest.mark.parametrize(
    "name", [name for name in DUALS if model_config(name).tasks["retrieval"].cacheable_inputs.get("vision")]
)
def test_a_kept_prefix_is_put_back(name: str) -> None:
    backbone = loaded(name)
    inputs = backbone.inputs(images())
    whole = backbone.image_features(inputs)
    backbone.prefix_replay = PrefixReplay({"vision": Boundary("vision", 1, (0,))}, {})
    with backbone.prefix_replay.recording(["vision"]) as recorded, suppress(Enough):
        backbone.run_frozen_towers(inputs)
    backbone.prefix_replay.in_tuple["vision"] = recorded["vision"].in_tuple
    given = {**backbone.given([1] * 4), "prefix": {"vision": recorded["vision"].states}}
    for one, other in zip(whole, backbone.image_features(given), strict=True):
        assert_close(one, other, backbone.model)  # AIMv2's states lie otherwise in memory


def test_texts_of_siglip_are_padded_to_the_end_and_padding_counts() -> None:
    backbone = loaded("siglip")
    text = backbone.text(["a red picture", "red"], 40)
    limit = backbone.model.config.text_config.max_position_embeddings
    assert text.ids.shape == (2, limit)
    assert text.mask.all()
    assert backbone.padded_to(7) == limit
    assert text.ids[1, -1] == backbone.tokenizer.pad_token_id
    assert (backbone.text(["red " * 50], 10).ids != backbone.tokenizer.pad_token_id).sum() == 10
    assert backbone.text(["red " * 50], 99).ids.shape == (1, limit)
    assert loaded("clip").text(["red " * 99], 99).ids.shape == (1, 64)


def test_siglip_starts_from_the_papers_scale_and_bias() -> None:
    backbone = loaded("siglip")
    assert backbone.logit_scale().item() == pytest.approx(10, rel=1e-5)
    assert backbone.logit_bias().item() == -10


def test_a_package_that_its_tokenizer_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needy(*args: Any, **kwargs: Any) -> None:
        raise ImportError(
            "\nSiglipTokenizer requires the SentencePiece library but it was not found in your environment."
        )

    monkeypatch.setattr("vlatrain.backbones.pretrained.AutoTokenizer.from_pretrained", needy)
    with pytest.raises(UserError, match=r"^model=siglip: .*; pip install sentencepiece$"):
        load(model_config("siglip", checkpoint=str(tmp_path)), "retrieval")


def test_an_unknown_option_is_answered_with_what_was_meant() -> None:
    config = small_config("siglip")
    config.options["logit_bais"] = "logit_bias"
    with pytest.raises(UserError, match=r"model.options.logit_bais.*logit_bias"):
        load(config, "retrieval", texts=CAPTIONS)


def test_runs_of_earlier_versions_call_it_clip() -> None:
    config = small_config("clip")
    config.family, config.options = "clip", {}
    assert isinstance(load(config, "retrieval", texts=CAPTIONS), Dual)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [name if name in ("clip", "align") else pytest.param(name, marks=pytest.mark.slow) for name in DUALS]
)
def test_answers_are_chosen_by_the_question_that_reads_the_image(name: str) -> None:
    backbone: Any = load(small_config(name), "vqa", texts=CAPTIONS)
    backbone.take_answers(["red", "no", "3"])
    asked, seen = ["is it red?", "what colour?", "what colour?", "red"], images()
    inputs = backbone.inputs(seen, asked, 40)
    pictures, _ = backbone.image_features(inputs)
    size = pictures.shape[1]

    def chosen(questions: torch.Tensor) -> torch.Tensor:
        return backbone.model.classifier(torch.cat([size**0.5 * questions, size * questions * pictures], dim=1))

    logits = backbone.answer_logits(inputs)
    assert logits.shape == (4, 3)
    assert_close(logits, chosen(backbone.text_features(inputs["question"])), backbone.model)
    assert backbone.answer_logits(backbone.blank(2, "cpu", 5)).shape == (2, 3)
    attach(backbone.model, adapter_config("cross_modal", init_std=0.5), sites(backbone.config, "vqa", ["text.*.ffn"]))
    for key, parameter in backbone.model.named_parameters():
        if "cross_gate" in key or ".up." in key:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    reads = backbone.answer_logits(inputs)
    assert not torch.allclose(reads, logits)
    own = torch.cat([backbone.answer_logits(backbone.inputs(seen[i : i + 1], asked[i : i + 1], 40)) for i in range(4)])
    assert_close(reads, own, backbone.model)  # each its own image


@pytest.mark.slow
def test_a_checkpoint_without_classifier_gets_one_and_keeps_it(tmp_path: Path) -> None:
    plain = loaded("clip")
    for one in (plain.model, plain.processor):
        one.save_pretrained(tmp_path / "plain")
    first: Any = load(model_config("clip", checkpoint=str(tmp_path / "plain")), "vqa", seed=1)
    first.take_answers(["red", "no", "3"])
    inputs = first.inputs(images(), ["what?"] * 4, 9)
    assert_close(first.image_features(inputs)[0], plain.image_features(plain.inputs(images()))[0], first.model)
    for one in (first.model, first.processor):
        one.save_pretrained(tmp_path / "asked")
    again: Any = load(model_config("clip", checkpoint=str(tmp_path / "asked")), "vqa", seed=2)
    assert again.answers == ["red", "no", "3"]
    assert_close(again.answer_logits(inputs), first.answer_logits(inputs), first.model)
