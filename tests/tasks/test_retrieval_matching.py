"""Retrieval by matching alone: which pairs are scored, what is learned of them, and the ranks they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import adapter_config, make_samples, small_config
from tests.learning import overfit
from tests.numerics import assert_close
from vlatrain.backbones.base import Text
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, TaskConfig
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach
from vlatrain.metrics import retrieval as metric
from vlatrain.tasks import build
from vlatrain.tasks.retrieval import contrastive_loss, same_caption
from vlatrain.tasks.retrieval_matching import Matching
from vlatrain.training.batches import SharedBatches

SAMPLES = make_samples()
TEXTS = [caption for sample in SAMPLES for caption in sample.captions]


def made(method: AdapterConfig | None = None, **settings: Any) -> Matching:
    backbone = load(small_config("vilt"), "retrieval", texts=TEXTS)
    if method:
        attach(backbone.model, method, sites(backbone.config, "retrieval", ["*"]))
    task = build(TaskConfig(name="retrieval", **settings), backbone)
    assert isinstance(task, Matching)
    return task


def every_score(task: Matching, samples: Sequence[Sample]) -> torch.Tensor:
    """Scores (T, I) pair by pair."""
    context = task.matcher.image_context(task.images(samples)["inputs"])
    captions = [caption for sample in samples for caption in sample.captions]
    text = task.backbone.text(captions, 40)
    rows = []
    for t in range(len(captions)):
        one = Text(text.ids[[t]], text.mask[[t]])
        rows.append(
            torch.cat(
                [
                    task.matcher.pair_scores(task.backbone.select_rows(context, torch.tensor([i])), one)
                    for i in range(len(samples))
                ]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("negatives", [1, 2, 15])
def test_pairs_are_the_right_ones_and_so_many_wrong_ones(negatives: int) -> None:
    task = made(negatives=negatives)
    generator = torch.Generator().manual_seed(0)
    group_index = torch.tensor([0, 0, 1, 2, 2, 3])
    for _ in range(20):
        ids = torch.randint(0, 2, (6, 3), generator=generator)  # some captions are identical
        pairs = task.pairs_of(ids, group_index, 4)
        own = group_index[:, None] == torch.arange(4)
        wrong = ~same_caption(ids, group_index, 4)
        assert pairs[own].all()
        assert not pairs[~own & ~wrong].any()
        drawn = pairs & wrong
        assert (drawn.sum(dim=1) >= wrong.sum(dim=1).clamp(max=negatives)).all()
        assert (drawn.sum(dim=0) >= wrong.sum(dim=0).clamp(max=negatives)).all()
        assert drawn.sum() <= negatives * (6 + 4)
        if negatives == 15:
            assert torch.equal(drawn, wrong)


def test_with_all_pairs_the_loss_is_that_of_the_whole_matrix() -> None:
    task = made()
    batch = task.collate(SAMPLES[:4])
    expected = contrastive_loss(every_score(task, SAMPLES[:4]), batch["text"].ids, batch["group_index"])
    assert_close(task.loss(batch), expected, task.backbone.model)
    assert torch.isfinite(made(negatives=1).loss(batch))
    assert made().loss(task.collate(SAMPLES[:1])) == 0  # nothing to compare with


def test_ranks_are_those_of_every_pair(caplog: pytest.LogCaptureFixture) -> None:
    task = made()
    caplog.set_level("INFO", "vlatrain")
    with torch.no_grad():
        found = task.evaluate(SAMPLES, SharedBatches("cpu", 3))
        scores = every_score(task, SAMPLES)
    assert "8 images x 16 texts are 128 pairs" in caplog.text
    group_index = [i for i in range(8) for _ in range(2)]
    for image, record in enumerate(found.predictions[:8]):
        best = max(scores[t, image] for t in range(16) if group_index[t] == image)
        ahead = sum(bool(scores[t, image] >= best) for t in range(16) if group_index[t] != image)
        assert record["rank"] == ahead + 1
        assert record["prediction"] == TEXTS[int(scores[:, image].argmax())]
        assert record["direction"] == "image_to_text"
    assert len(found.predictions) == 8 + 16
    for text, record in enumerate(found.predictions[8:]):
        ahead = sum(bool(scores[text, image] >= scores[text, group_index[text]]) for image in range(8))
        assert (record["direction"], record["query"], record["rank"]) == ("text_to_image", TEXTS[text], ahead)
        assert record["prediction"] == SAMPLES[int(scores[text].argmax())].id
        assert record["references"] == [record["id"]] == [SAMPLES[group_index[text]].id]
    assert found.settings["scored"] == "pairs"


def test_ranks_of_scores_are_those_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 5, generator=generator).round(decimals=0) for n in (7, 12))  # with ties
    group_index = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5])  # the last image has no text
    for one, other in zip(
        metric.ranks(images, texts, group_index), metric.ranks_of_scores(images @ texts.T, group_index), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"\(7, 12\) and \(3,\)"):
        metric.ranks_of_scores(images @ texts.T, group_index[:3])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "bottleneck", "cross_modal"])
def test_it_overfits(method: str) -> None:
    samples = [replace(sample, captions=sample.captions[:1]) for sample in SAMPLES]
    task = made(AdapterConfig(name="full") if method == "full" else adapter_config(method, dim=32, heads=True))
    assert overfit(task, samples, 300, lr=2e-3 if method == "full" else 3e-3) < 0.05
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", 3))
    assert found.metrics["image_to_text_r1"] == found.metrics["text_to_image_r1"] == 100
