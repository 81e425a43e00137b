"""Conversations: only replies are learned, a reply is written with the turns before it in view, and scores are the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from tests.conftest import make_samples, small_config
from tests.learning import overfit
from tests.numerics import near
from tests.tasks.talker import Talker, described, talker
from vlatrain.backbones.base import Converser
from vlatrain.backbones.loading import FAMILIES, load
from vlatrain.backbones.writing import Written
from vlatrain.config import DecodeConfig, TaskConfig, UserError
from vlatrain.data.sample import Sample, Turn
from vlatrain.tasks import build, instruct
from vlatrain.tasks.instruct import Instruct
from vlatrain.tasks.lengths import longest_texts
from vlatrain.training.batches import SharedBatches


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "talker", Talker)


def task_on(backbone: Talker | None = None, **settings: object) -> Instruct:
    values = {"max_length": 60, "decode": DecodeConfig(max_new_tokens=8), **settings}
    made = build(TaskConfig(name="instruct", metric="rouge_l", **values), backbone or talker())  # type: ignore[arg-type]
    assert isinstance(made, Instruct)
    return made


def reply_losses(work: Instruct, sample: Sample) -> list[float]:
    """Of every token that is to be written, its negative log-likelihood, token by token as the model would write them."""
    backbone = work.backbone
    assert isinstance(backbone, Talker)
    found = []
    for place, turn in enumerate(sample.turns):
        inputs = backbone.prompts([sample.image.load()], [sample.turns[: place + 1]], 60)
        for token in [
            *backbone.tokenizer(turn.reply, add_special_tokens=False)["input_ids"],
            backbone.tokenizer.sep_token_id,
        ]:
            logits = backbone.conversation_logits(inputs)[0, -1]
            found.append(-log_softmax(logits, -1)[token].item())
            new = torch.tensor([[token]])
            inputs |= {"ids": torch.cat([inputs["ids"], new], 1), "mask": torch.ones(1, inputs["ids"].shape[1] + 1)}
    return found


@torch.no_grad()
def test_the_loss_is_that_of_replies_and_their_ends_alone() -> None:
    work, samples = task_on(), make_samples()[:3]
    expected = [reply_losses(work, sample) for sample in samples]
    alone = [work.loss(work.collate([sample])).item() for sample in samples]
    means = [sum(losses) / len(losses) for losses in expected]
    model = work.backbone.model
    assert alone == near(means, model)
    assert work.loss(work.collate(samples)).item() == near(sum(means) / 3, model)  # whatever their lengths
    found = work.evaluate(samples, SharedBatches("cpu", 3))
    tokens = [loss for losses in expected for loss in losses]
    assert math.log(found.metrics["perplexity"]) == near(sum(tokens) / len(tokens), model)


@torch.no_grad()
def test_a_vocabulary_is_gone_through_for_what_is_learned_alone() -> None:
    work, samples = task_on(), make_samples()[:3]
    learned = [len(reply_losses(work, sample)) for sample in samples]
    seen: list[torch.Size] = []
    work.backbone.model.lm_head.register_forward_hook(lambda *call: seen.append(call[-1].shape[:2]))
    batch = work.collate(samples)
    work.loss(batch)
    assert seen == [(3, max(learned))]
    assert batch["target"].mask.sum(dim=1).tolist() == learned
    assert work.backbone.conversation_logits(batch["inputs"]).shape[1] > max(learned)  # and only for the time of that
    work.lengths = longest_texts(work, samples, 3)
    assert work.lengths["replies"] == max(learned)
    work.loss_on_meta(2, "cpu")
    assert seen[-1] == (2, max(learned))


def trained(samples: Sequence[Sample], steps: int) -> Instruct:
    """A task on a model that has been fully trained on samples."""
    said = [text for sample in samples for turn in sample.turns for text in (turn.user, turn.reply)]
    backbone = load(described(), "instruct", texts=said)
    assert isinstance(backbone, Talker)
    backbone.model.requires_grad_(True)
    work = task_on(backbone)
    assert overfit(work, samples, steps, lr=3e-3) < 0.05
    return work


def told(record: dict) -> str:
    """A prediction, as it is written and not as this tokenizer spaces it."""
    return record["prediction"].replace(" .", ".")


@pytest.mark.slow
def test_the_earlier_turns_matter() -> None:
    """The second question is the same for every image, and only the first turn tells what is meant."""
    base = make_samples()[0]
    samples = [
        replace(base, id=topic, turns=(Turn(f"think of {topic}.", "yes."), Turn("what is it?", answer)))
        for topic, answer in (("red", "a colour."), ("two", "a number."), ("disk", "a shape."))
    ]
    work = trained(samples, 200)
    with torch.no_grad():
        found = work.evaluate(samples, SharedBatches("cpu", 3))
    assert [told(record) for record in found.predictions] == ["a colour.", "a number.", "a shape."]
    assert found.metrics["exact_match"] == 100
    assert found.metrics["rouge_l"] == pytest.approx(100)
    assert 1 < found.metrics["perplexity"] < 1.1
    record = found.predictions[0]
    assert (record["question"], record["turn"], record["references"]) == ("what is it?", 2, ["a colour."])


def test_the_image_matters_and_alternatives_come_best_first() -> None:
    samples = [replace(sample, turns=sample.turns[:1]) for sample in make_samples()[::2]]  # four colours
    work = trained(samples, 150)
    with torch.no_grad():
        found = work.evaluate(samples, SharedBatches("cpu", 3))
        replies = work.reply(work.asked(samples), alternatives=3)
    assert [told(record) for record in found.predictions] == [sample.turns[0].reply for sample in samples]
    for row, record in zip(replies, found.predictions, strict=True):
        assert row[0].text == record["prediction"]
        assert len(set(row)) == 3


@torch.no_grad()
def test_how_sure_a_reply_was_is_kept_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [replace(sample, turns=sample.turns[:1]) for sample in make_samples()[:2]]
    said = [text for sample in samples for turn in sample.turns for text in (turn.user, turn.reply)]
    work = task_on(load(described(), "instruct", texts=said))
    assert not any("token_probability" in one for one in work.evaluate(samples, SharedBatches("cpu", 2)).predictions)
    monkeypatch.setattr(instruct, "write", lambda *args, **more: [Written("red", 0.25), Written("blue", 0.5)])
    found = work.evaluate(samples, SharedBatches("cpu", 2)).predictions
    assert [(one["prediction"], one["token_probability"]) for one in found] == [("red", 0.25), ("blue", 0.5)]


@torch.no_grad()
def test_what_is_cut_off_is_not_learned() -> None:
    """Where no reply is left, there is nothing to learn, and no perplexity."""
    work, samples = task_on(max_length=3), make_samples()[:3]
    assert work.loss(work.collate(samples)) == 0
    found = work.evaluate(samples, SharedBatches("cpu", 3))
    assert "perplexity" not in found.metrics
    assert found.settings["skipped"] == {"perplexity": "no reply begins within 3 tokens (task.max_length)"}


def test_a_backbone_that_does_not_converse_is_refused() -> None:
    assert isinstance(talker(), Converser)
    blip = load(small_config("blip"), "vqa", texts=["a"])
    with pytest.raises(UserError, match=r"model\.family=blip: holds no conversations"):
        build(TaskConfig(name="instruct"), blip)
