"""Classification: class features are the mean over templates, recomputed only where they can change; words are ranked answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.learning import overfit
from tests.numerics import assert_close, near
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, ModelTaskConfig, TaskConfig, UserError
from vlatrain.injection.attach import attach
from vlatrain.injection.drop import dropping
from vlatrain.tasks import build
from vlatrain.tasks.classification import BaseToNew, ByFeatures, ByWords, Classification
from vlatrain.training.batches import SharedBatches

CLASSES = ["black", "blue", "green", "red"]
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions, s.label, "a photo of sketch")]
TEMPLATES = ["a photo of {}.", "a sketch of a {}"]


def by_features(name: str = "clip", adapter: AdapterConfig | None = None, points: str = "*", **settings) -> ByFeatures:
    backbone = load(small_config(name), "classification", texts=TEXTS)
    if adapter is not None:
        attach(backbone.model, adapter, sites(backbone.config, "classification", [points]))
    config = TaskConfig(name="classification", **{"templates": TEMPLATES, **settings})
    made = build(config, backbone, make_samples())
    assert isinstance(made, ByFeatures)
    return made


def by_words(**settings) -> ByWords:
    config = small_config("blip")
    config.tasks["classification"] = replace(config.tasks["vqa"])
    made = build(
        TaskConfig(name="classification", question="what colour is it?", **settings),
        load(config, "classification", texts=TEXTS),
        make_samples(),
    )
    assert isinstance(made, ByWords)
    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts were encoded, call by call."""
    calls: list[int] = []
    for name in ("clip", "blip"):
        kind = type(load(small_config(name), "retrieval", texts=TEXTS))
        before = kind.text_features  # type: ignore[attr-defined]

        def counted(self, text, before=before):
            calls.append(len(text.ids))
            return before(self, text)

        monkeypatch.setattr(kind, "text_features", counted)
    return calls


def step(work: Classification) -> torch.Tensor:
    loss = work.loss(work.collate(make_samples()))
    loss.backward()
    return loss.detach()


def test_classes_are_those_of_the_training_data_sorted_unless_configured() -> None:
    assert by_features().config.classes == CLASSES
    assert by_features(classes=["red", "other", "black"]).config.classes == ["red", "other", "black"]


@pytest.mark.parametrize("name", ["clip", "blip"])
@pytest.mark.parametrize("temperature", [None, 0.02])
@torch.no_grad()
def test_zero_shot_is_the_definition(name: str, temperature: float | None) -> None:
    """Class by class and template by template; an underscore is a blank."""
    names = ["red", "green picture", "black"]
    work = by_features(name, classes=["red", "green_picture", "black"], temperature=temperature)
    backbone, samples = work.embedder, make_samples()
    scale = backbone.logit_scale().item() if temperature is None else 50
    rows = []
    for sample in samples:
        image = backbone.image_features(work.backbone.inputs([sample.image.load()]))[0][0]
        row = []
        for name in names:
            texts = [template.replace("{}", name) for template in TEMPLATES]
            features = [backbone.text_features(work.backbone.text([text], 40))[0] for text in texts]
            row.append(scale * torch.dot(image, normalize(sum(features) / len(features), dim=0)))  # type: ignore[call-overload]
        rows.append(torch.stack(row))
    expected = torch.stack(rows)
    assert_close(work.scores(work.images(samples), work.known()), expected, backbone.model)
    red = [sample for sample in samples if sample.label == "red"]
    loss = cross_entropy(expected[[samples.index(sample) for sample in red]], torch.tensor([0, 0]))
    assert_close(work.loss(work.collate(red)), loss, backbone.model, scale=float(expected.abs().max()))
    found = work.classify(work.images(samples), alternatives=9)
    for row, best in zip(expected, found, strict=True):
        assert [name.replace("_", " ") for name, _ in best] == [names[i] for i in row.argsort(descending=True)]
        shares = row.softmax(0).sort(descending=True)[0].tolist()
        assert [value for _, value in best] == near(shares, backbone.model, scale=float(expected.abs().max()))


def test_more_texts_than_go_through_at_once(monkeypatch: pytest.MonkeyPatch, encoded: list[int]) -> None:
    whole = by_features().known()
    monkeypatch.setattr("vlatrain.tasks.classification.TEXTS", 3)
    assert_close(by_features().known(), whole, by_features().backbone.model)
    assert encoded == [8, 3, 3, 2]


@pytest.mark.parametrize(
    ("points", "counts"),
    [("vision", [8]), ("text", [8, 8, 8]), ("*", [8, 8, 8])],
)
def test_class_features_are_made_again_only_if_something_that_trains_can_change_them(
    points: str, counts: list[int], encoded: list[int]
) -> None:
    work = by_features("clip", adapter_config("bottleneck"), points)
    losses = [step(work) for _ in range(3)]
    assert encoded == counts
    assert losses[0] == losses[1] == losses[2]
    trained = {name.split(".")[0] for name, p in work.backbone.model.named_parameters() if p.grad is not None}
    assert trained == ({"vision_model", "text_model"} if points == "*" else {f"{points}_model"})


def test_a_step_without_the_text_towers_adapters_settles_nothing(encoded: list[int]) -> None:
    work = by_features("clip", adapter_config("bottleneck", points=["*"]))
    with dropping(work.backbone.model, 2):
        work.loss(work.collate(make_samples()))
    with torch.no_grad():
        work.known()
    step(work)
    step(work)
    assert encoded == [8] * 4


def test_a_trained_model_encodes_its_classes_once(encoded: list[int]) -> None:
    work = by_features("clip", adapter_config("bottleneck"))
    work.backbone.model.requires_grad_(False)
    with torch.no_grad():
        for _ in range(3):
            work.classify(work.images(make_samples()))
    assert encoded == [8]


@pytest.mark.parametrize("name", ["clip", "blip"])
@torch.no_grad()
def test_an_adapter_starts_as_the_frozen_model(name: str) -> None:
    batch = (frozen := by_features(name)).collate(make_samples())
    for method in ("bottleneck", "lora", "clip_adapter"):
        assert_close(by_features(name, adapter_config(method)).loss(batch), frozen.loss(batch), frozen.backbone.model)


@torch.no_grad()
def test_an_evaluation_says_all_that_it_found() -> None:
    work, samples = by_features(), make_samples()
    found = work.evaluate(samples, SharedBatches("cpu", 3))
    assert set(found.metrics) == {"accuracy", "macro_f1", "auroc"}
    assert found.settings == {"classes": 4, "templates": TEMPLATES}
    right = [record["prediction"] == sample.label for record, sample in zip(found.predictions, samples, strict=True)]
    assert found.metrics["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    for record, sample, hit in zip(found.predictions, samples, right, strict=True):
        assert (record["id"], record["references"], record["score"]) == (sample.id, [sample.label], 100.0 * hit)
        assert set(record["probabilities"]) == set(CLASSES)
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert (
            record["probabilities"][record["prediction"]]
            == record["probability"]
            == max(record["probabilities"].values())
        )
    found = work.evaluate(samples[:4], SharedBatches("cpu", 3))
    assert found.settings["skipped"] == {"auroc": "no sample of class black, blue"}


@torch.no_grad()
def test_a_model_that_writes_ranks_the_classes_as_answers() -> None:
    work, samples = by_words(), make_samples()
    asked = [replace(sample, question="what colour is it?", answers=(sample.label,)) for sample in samples]
    vqa = build(TaskConfig(name="vqa", answers="rank", answer_list=CLASSES), work.backbone)
    assert_close(work.loss(work.collate(samples)), vqa.loss(vqa.collate(asked)), work.backbone.model)
    ranked = vqa.answer(vqa.questions(asked), alternatives=4)  # type: ignore[attr-defined]
    for best, expected in zip(work.classify(work.images(samples), 4), ranked, strict=True):
        assert [name for name, _ in best] == [name for name, _ in expected]
        assert [value for _, value in best] == near([value for _, value in expected], work.backbone.model, scale=1.0)
    found = work.evaluate(samples, SharedBatches("cpu", 3))
    assert set(found.metrics) == {"accuracy", "macro_f1", "auroc"}
    assert found.settings == {"classes": 4, "question": "what colour is it?"}


def test_what_a_cache_adds_is_a_label() -> None:
    """As Tip-Adapter adds one-hot labels to the scores: added to features, a value changes the score of its class alone."""
    work, samples = by_features(), make_samples()
    with torch.no_grad():
        images, values = work.pairs(work.collate(samples))
        expected = torch.eye(4)[[CLASSES.index(sample.label) for sample in samples]]
        torch.testing.assert_close(values @ work.known().T, expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(images, work.embedder.image_features(work.images(samples)["inputs"])[0])


def test_a_model_that_writes_learns_it() -> None:
    config = model_config("tiny_blip")
    config.tasks["classification"] = replace(config.tasks["vqa"])
    backbone: Backbone = load(config, "classification")
    attach(backbone.model, adapter_config("bottleneck"), sites(config, "classification", ["*"]))
    samples = make_samples()
    work = build(TaskConfig(name="classification", question="which one?"), backbone, samples)
    overfit(work, samples, 12, lr=3e-3)
    with torch.no_grad():
        assert work.evaluate(samples, SharedBatches("cpu", 3)).metrics["accuracy"] == 100


def test_only_the_description_tells_which_way_a_backbone_with_both_goes() -> None:
    """BLIP's code embeds and writes; what its classes for a task can do is in the YAML."""
    assert isinstance(by_words(), ByWords)
    assert isinstance(by_features("blip"), ByFeatures)
    assert ModelTaskConfig().features == {}


def base_to_new(**settings) -> BaseToNew:
    backbone = load(small_config("clip"), "classification", texts=TEXTS)
    made = build(TaskConfig(name="classification", base_to_new=True, **settings), backbone, make_samples())
    assert isinstance(made, BaseToNew)
    return made


def test_base_to_new_scores_each_half_among_its_own_classes() -> None:
    task, samples = base_to_new(), make_samples()
    assert ([*task.base.place], [*task.new.place]) == (CLASSES[:2], CLASSES[2:])
    assert {sample.label for sample in task.learned(samples)} == {"black", "blue"}
    batches = SharedBatches("cpu", 3)
    found = task.evaluate(samples, batches)
    halves = {}
    for name, classes in (("base", CLASSES[:2]), ("new", CLASSES[2:])):
        own = [sample for sample in samples if sample.label in classes]
        separate = by_features(classes=classes, templates=["a photo of a {}."])
        halves[name] = separate.evaluate(own, batches)
        assert [one["prediction"] for one in halves[name].predictions] == [
            one["prediction"] for one in found.predictions if one["half"] == name
        ]
    one, two = (halves[name].metrics["accuracy"] for name in ("base", "new"))
    assert (found.metrics["accuracy"], found.metrics["new_accuracy"]) == (one, two)
    assert found.metrics["harmonic_mean"] == pytest.approx(2 / (1 / one + 1 / two) if one and two else 0.0)
    assert found.metrics["macro_f1"] == halves["base"].metrics["macro_f1"]


def test_base_to_new_learns_the_base_half_alone() -> None:
    task = base_to_new()
    some = task.learned(make_samples())
    separate = by_features(classes=CLASSES[:2], templates=["a photo of a {}."])
    assert float(task.loss(task.collate(some))) == pytest.approx(float(separate.loss(separate.collate(some))))
    assert task.asking()[1].__self__.config.classes == CLASSES  # type: ignore[attr-defined]


def test_base_to_new_needs_a_choice_in_each_half() -> None:
    with pytest.raises(UserError, match="3 classes; each half needs two"):
        base_to_new(classes=["a", "b", "c"])
    samples = [sample for sample in make_samples() if sample.label in CLASSES[:2]]
    task = base_to_new()
    with pytest.raises(UserError, match="no sample to evaluate is of the new classes"):
        task.evaluate(samples, SharedBatches("cpu", 3))
    odd = base_to_new(classes=["a", "b", "c", "d", "e"])
    assert (len(odd.base.place), len(odd.new.place)) == (3, 2)
