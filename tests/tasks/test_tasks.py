"""Tasks: each overfits a handful of samples and gives exactly those answers back; losses against brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.learning import overfit
from tests.numerics import assert_close, near
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, DecodeConfig, TaskConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach
from vlatrain.tasks import Task, build
from vlatrain.tasks.retrieval import contrastive_loss, sigmoid_loss
from vlatrain.tasks.vqa import Vqa
from vlatrain.training.batches import SharedBatches

SERVED = [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval"), ("blip", "classification")]
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]


def backbone_for(name: str, task: str) -> Backbone:
    return load(small_config(name), task, texts=TEXTS)


def exactly(task: Task, samples: Sequence[Sample]) -> None:
    """The model gives exactly the samples' answers, captions or pairs."""
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", 2))
    if task.name == "retrieval":
        assert found.metrics["image_to_text_r1"] == found.metrics["text_to_image_r1"] == 100
    said = {"vqa": lambda sample: sample.answers[0], "classification": lambda sample: sample.label}
    expected = [said.get(task.name, lambda sample: sample.captions[0])(sample) for sample in samples]
    assert [record["prediction"] for record in found.predictions] == expected
    assert all(record["score"] > 99 for record in found.predictions)
    if task.name == "captioning":
        assert all(record["token_probability"] > 0.9 for record in found.predictions)


DUALS = ["metaclip2", "siglip", "siglip2_naflex", "align", "altclip", "chinese_clip", "aimv2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        *SERVED,
        ("clip", "retrieval"),
        ("clip", "classification"),
        *(pytest.param(name, "retrieval", marks=pytest.mark.slow) for name in DUALS),
    ],
)
def test_full_fine_tuning_of_a_random_model_overfits(name: str, task: str) -> None:
    """A loss that is shifted by one, or an image that is not looked at, cannot pass this."""
    samples = [replace(sample, captions=sample.captions[:1]) for sample in make_samples()]
    backbone = backbone_for(name, task)
    own = name == "align" or name.startswith("siglip")  # theirs is not the usual initialisation
    for parameter in () if own else backbone.model.parameters():  # which is too quiet for a model of width 32
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    attach(backbone.model, AdapterConfig(name="full"), sites(backbone.config, task, ["*"]))
    work = build(TaskConfig(name=task, decode=DecodeConfig(max_new_tokens=12)), backbone, samples)
    assert overfit(work, samples, 300, 3e-3 if own else 1e-3, until=0.01) < 0.05
    exactly(work, samples)


@pytest.mark.parametrize(("name", "task"), [*SERVED, ("clip", "retrieval"), ("clip", "classification")])
def test_an_adapter_in_a_shipped_backbone_overfits(name: str, task: str) -> None:
    samples = [replace(sample, captions=sample.captions[:1]) for sample in make_samples()]
    torch.manual_seed(0)
    config = model_config(f"tiny_{name}")
    backbone = load(config, task)
    attach(backbone.model, adapter_config("bottleneck", dim=16, scaling=1.0), sites(backbone.config, task, ["*"]))
    work = build(TaskConfig(name=task, decode=DecodeConfig(max_new_tokens=12)), backbone, samples)
    assert overfit(work, samples, 120, 1e-3, until=0.01) < 0.05
    exactly(work, samples)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_how_many_answers_are_asked_for_changes_none_of_them(length_penalty: float) -> None:
    decode = DecodeConfig(num_beams=4, max_new_tokens=4, length_penalty=length_penalty)
    backbone = backbone_for("blip", "vqa")
    for parameter in backbone.model.parameters():  # loud enough that beams differ
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    work = build(TaskConfig(name="vqa", decode=decode), backbone)
    assert isinstance(work, Vqa)
    batch = work.questions(make_samples())
    with torch.no_grad():
        found = {count: work.answer(batch, count) for count in (1, 2, 4, 9)}
        evaluated = work.evaluate(make_samples(), SharedBatches("cpu", 2)).predictions
    for row, best in enumerate(found[9]):
        scores = [score for _, score in best]
        assert scores == sorted(scores, reverse=True)
        assert len({text for text, _ in best}) == len(best) <= 4
        assert all(found[count][row] == best[:count] for count in (1, 2, 4))
        assert evaluated[row]["prediction"] == best[0][0]
    assert any(len(best) > 1 for best in found[9])


def test_one_beam_gives_one_answer() -> None:
    work = build(TaskConfig(name="vqa"), backbone_for("blip", "vqa"))
    assert isinstance(work, Vqa)
    with torch.no_grad():
        one, three = (work.answer(work.questions(make_samples()), count) for count in (1, 3))
    assert one == three


def test_an_answer_that_the_tokenizer_does_not_give_back_has_a_second_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official score stays what it is; that of what comes back has a name of its own."""
    work = build(TaskConfig(name="vqa"), load(small_config("blip"), "vqa", texts=["café", "3.5"]))
    said = {"café": "cafe", "3.5": "3.5", "猫": "4"}
    samples = [replace(make_samples()[0], id=answer, answers=(answer,)) for answer in said]
    texts = list(said.values())
    monkeypatch.setattr(work, "answer", lambda batch: [[(texts.pop(0), 0.5)] for _ in batch["ids"]])
    found = work.evaluate(samples, SharedBatches("cpu", 2))
    assert [record["score"] for record in found.predictions] == [0, 100, 0]
    assert found.metrics == {"accuracy": near(100 / 3), "accuracy_as_written": near(200 / 3)}
    assert found.settings["ceiling"] == 100
    assert found.settings["ceiling_as_written"] == near(100 / 3)
    texts = ["3.5"]
    assert work.evaluate(samples[1:2], SharedBatches("cpu", 2)).metrics == {"accuracy": 100}


def test_vqa_loss_weighs_answers() -> None:
    work = build(TaskConfig(name="vqa"), backbone_for("blip", "vqa"))
    base = make_samples()[0]

    def loss(answers: tuple[str, ...], weights: tuple[float, ...] = ()) -> float:
        with torch.no_grad():
            return work.loss(work.collate([replace(base, answers=answers, weights=weights)])).item()

    yes, no = loss(("yes",)), loss(("no",))
    model = work.backbone.model
    assert loss(("yes", "no")) == near((yes + no) / 2, model)
    assert loss(("yes", "yes", "no")) == near((2 * yes + no) / 3, model)
    assert loss(("yes", "no"), (0.9, 0.1)) == near(0.9 * yes + 0.1 * no, model)


def test_losses_are_means_over_samples() -> None:
    """A batch's loss is the mean of its samples' own, whatever their lengths and numbers of answers or captions."""
    for task in ("vqa", "captioning"):
        work = build(TaskConfig(name=task), backbone_for("blip", task))
        samples = [replace(s, captions=s.captions[: 1 + i % 2]) for i, s in enumerate(make_samples())]
        with torch.no_grad():
            alone = [work.loss(work.collate([sample])).item() for sample in samples]
            together = work.loss(work.collate(samples)).item()
        assert together == near(sum(alone) / len(alone), work.backbone.model)


def test_ranking_picks_from_the_list_and_scores_add_up() -> None:
    samples = make_samples()
    given = TaskConfig(name="vqa", answers="rank")
    work = build(given, backbone_for("blip", "vqa"), samples)
    config = work.config
    assert not given.answer_list, "what is found out is a new configuration"
    assert set(config.answer_list) == {answer for sample in samples for answer in sample.answers}
    with torch.no_grad():
        ranked = work.answer(work.questions(samples), alternatives=len(config.answer_list))  # type: ignore[attr-defined]
    for answers in ranked:
        scores = [score for _, score in answers]
        assert sorted(scores, reverse=True) == scores
        assert sum(scores) == pytest.approx(1, rel=1e-4)


def test_generated_answers_carry_their_probability_whatever_the_beams() -> None:
    samples = make_samples()[:2]
    probabilities = []
    for beams in (1, 3):
        config = TaskConfig(name="vqa", decode=DecodeConfig(num_beams=beams, max_new_tokens=3))
        work = build(config, backbone_for("blip", "vqa"))
        with torch.no_grad():
            answers = work.answer(work.questions(samples), alternatives=beams)  # type: ignore[attr-defined]
        assert all(1 <= len(row) <= beams for row in answers)
        probabilities += [score for row in answers for _, score in row]
    assert all(0 < probability < 1 for probability in probabilities)


def brute_contrastive(logits: torch.Tensor, ids: list[tuple], group_index: list[int]) -> float:
    """The definition, pair by pair."""
    images = logits.shape[1]
    total = 0.0
    for image in range(images):
        pairs = [t for t, o in enumerate(group_index) if o == image]
        own = {ids[t] for t in pairs}
        for t in pairs:
            has_it = {o for i, o in zip(ids, group_index, strict=True) if i == ids[t]}
            to_image = [logits[t, i].exp() for i in range(images) if i == image or i not in has_it]
            negatives = [u for u in range(len(group_index)) if group_index[u] != image and ids[u] not in own]
            to_text = [logits[u, image].exp() for u in [t, *negatives]]
            loss = -math.log(logits[t, image].exp() / sum(to_image)) - math.log(logits[t, image].exp() / sum(to_text))
            total += loss / len(pairs) / images / 2
    return total


@pytest.mark.parametrize("seed", range(5))
def test_contrastive_loss_is_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    group_index = [0, 0, 1, 2, 2, 2, 3]
    ids = torch.randint(
        0, 2, (len(group_index), 3), generator=generator
    )  # so few tokens that some captions are identical
    logits = torch.randn(len(group_index), 4, generator=generator)
    expected = brute_contrastive(logits, [tuple(row.tolist()) for row in ids], group_index)
    assert contrastive_loss(logits, ids, torch.tensor(group_index)).item() == near(expected)


def brute_sigmoid(logits: torch.Tensor, ids: list[tuple], group_index: list[int]) -> float:
    """The definition, pair by pair."""
    images = logits.shape[1]
    total = 0.0
    for t, image in enumerate(group_index):
        has_it = {o for i, o in zip(ids, group_index, strict=True) if i == ids[t]}
        loss = math.log(1 + (-logits[t, image]).exp())
        loss += sum(math.log(1 + logits[t, i].exp()) for i in range(images) if i != image and i not in has_it)
        total += loss / group_index.count(image) / images
    return total


@pytest.mark.parametrize("seed", range(5))
def test_sigmoid_loss_is_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    group_index = [0, 0, 1, 2, 2, 2, 3]
    ids = torch.randint(0, 2, (len(group_index), 3), generator=generator)
    logits = 3 * torch.randn(len(group_index), 4, generator=generator)
    expected = brute_sigmoid(logits, [tuple(row.tolist()) for row in ids], group_index)
    assert sigmoid_loss(logits, ids, torch.tensor(group_index)).item() == near(expected)


def test_siglip_learns_by_the_loss_that_it_was_trained_with() -> None:
    """With a caption an image it is transformers' own."""
    samples = [replace(sample, captions=sample.captions[:1]) for sample in make_samples()]
    backbone = backbone_for("siglip", "retrieval")
    backbone.model.logit_scale.data.fill_(1.5)  # type: ignore[operator, union-attr]
    work = build(TaskConfig(name="retrieval"), backbone)
    batch = work.collate(samples)
    own = backbone.model(
        pixel_values=batch["inputs"]["pixels"],
        input_ids=batch["text"].ids,
        attention_mask=batch["text"].mask,
        return_loss=True,
    )
    assert_close(work.loss(batch), own.loss, backbone.model)


def test_reranking_by_the_matching_head_changes_only_the_best_k() -> None:
    samples = make_samples()
    for k in (0, 3, 99):
        work = build(TaskConfig(name="retrieval", rerank=k), backbone_for("blip", "retrieval"))
        with torch.no_grad():
            found = work.evaluate(samples, SharedBatches("cpu", 2))
        assert found.settings["rerank"] == min(k, len(samples))
        assert all(0 <= value <= 100 or "rank" in key for key, value in found.metrics.items())


def test_unknown_task() -> None:
    with pytest.raises(UserError, match="there are vqa, captioning, retrieval"):
        build(TaskConfig(name="vaq"), backbone_for("blip", "vqa"))
