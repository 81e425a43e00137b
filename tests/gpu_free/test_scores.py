"""What orders images and texts is fp32, whatever the towers compute in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conftest import make_samples, small_config
from vlatrain.backbones.base import Text
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig
from vlatrain.tasks import Task, build
from vlatrain.tasks.retrieval import Retrieval
from vlatrain.tasks.retrieval_matching import Matching
from vlatrain.training.batches import SharedBatches
from vlatrain.training.precision import autocast

SAMPLES = make_samples()
CPU = torch.device("cpu")


def made(name: str, task: str) -> Task:
    texts = [text for sample in SAMPLES for text in (sample.question, *sample.answers, *sample.captions)]
    config = TaskConfig(name=task, templates=["a {} picture"], rerank=3)
    return build(config, load(small_config(name), task, texts=texts), SAMPLES)


def is_exact(values: Tensor) -> bool:
    """Whether values have been computed in fp32: bf16 has few enough bits for all of them to be of its own by no chance."""
    return values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("name", ["clip", "siglip", "blip", "blip2_itm", "vilt"])
def test_retrieval(name: str) -> None:
    task = made(name, "retrieval")
    assert isinstance(task, Retrieval)
    batch = task.collate(SAMPLES[:4])
    torch.manual_seed(0)
    expected = task.loss(batch)
    with torch.no_grad(), autocast(CPU, "bf16"):
        torch.manual_seed(0)
        loss = task.loss(batch)
        found = task.evaluate(SAMPLES, SharedBatches("cpu", 3))
        if isinstance(task, Matching):
            scores = task.scores(batch["inputs"], task.in_parts(["a red picture", "picture 1"]))
        else:
            features, states = task.embedder.image_features(batch["inputs"])
            text: Text = batch["text"]
            assert is_exact(features)
            assert is_exact(task.embedder.text_features(text))
            scores = task.match_scores(states, Text(text.ids[:4], text.mask[:4])) if task.embedder.matches else loss
    assert is_exact(loss)
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert is_exact(scores)
    assert found.metrics["mean_recall"] >= 0


def test_a_state_that_is_no_number_reaches_the_loss() -> None:
    """The loop names its sample; a draw of hard negatives would end in an assertion on a GPU."""
    task = made("blip", "retrieval")
    batch = task.collate(SAMPLES[:4])
    batch["inputs"]["pixels"][1] = torch.nan
    assert task.loss(batch).isnan()


def test_classes() -> None:
    task = made("clip", "classification")
    with torch.no_grad(), autocast(CPU, "bf16"):
        assert is_exact(task.scores(task.collate(SAMPLES[:4]), task.known()))  # type: ignore[attr-defined]


def test_answers_of_a_classifier() -> None:
    task = made("vilt", "vqa")
    with torch.no_grad(), autocast(CPU, "bf16"):
        assert is_exact(task.answerer.answer_logits(task.collate(SAMPLES[:4])["inputs"]))  # type: ignore[attr-defined]
