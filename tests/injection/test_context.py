"""States of the other modality on their way to the adapters: whose they are, how long, and for whom."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.table import randomise
from tests.numerics import assert_close
from vlatrain.backbones.base import Text
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.cli import main as cli
from vlatrain.config import TaskConfig
from vlatrain.injection.attach import attach, peft_config
from vlatrain.injection.context import context_of, provide, reads_other, recomputed
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]


def adapted(family: str, task: str, points: list[str], name: str = "cross_modal") -> tuple[Any, Any]:
    """A small backbone and its model, adapters that read the other modality in it."""
    config = small_config(family)
    backbone = load(config, task, texts=TEXTS)
    model = attach(backbone.model, adapter_config(name, dim=4), sites(config, task, points))
    randomise(model)
    return backbone, model


def images_and_captions(backbone: Any) -> tuple[torch.Tensor, Text]:
    samples = make_samples()[:4]
    return backbone.pixels([s.image.load() for s in samples]), backbone.text([s.captions[0] for s in samples], 40)


def test_what_is_handed_is_over_with_its_block_whatever_happens() -> None:
    model = nn.Linear(2, 2)
    first, second = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    with provide(model, "text", first):
        with provide(model, "text", second):
            assert context_of(model).call.handed["text"] == (second, None)
        assert context_of(model).call.handed["text"] == (first, None)
        with pytest.raises(RuntimeError), provide(model, "text", second):
            model(torch.ones(1, 3))
        assert context_of(model).call.handed["text"] == (first, None)
    assert not context_of(model).call.handed
    with (
        pytest.raises(ValueError, match=r"text: states \(1, 3, 2\).* mask \(1, 2\)"),
        provide(model, "text", first, torch.ones(1, 2)),
    ):
        pass


def test_a_recomputed_call_is_in_the_context_it_was_made_in() -> None:
    model = nn.Linear(2, 2)
    states = torch.zeros(1, 3, 2)
    with provide(model, "text", states):
        _, again = recomputed(model)()
    for _ in range(2):  # a graph that is kept is recomputed as often as it is walked
        with again:
            assert context_of(model).call.handed["text"][0] is states
        assert not context_of(model).call.handed


def test_states_of_another_number_of_rows_are_refused() -> None:
    backbone, _ = adapted("clip", "retrieval", ["text.*.*"])
    _, text = images_and_captions(backbone)
    with (
        provide(backbone.model, "text", torch.randn(3, 5, 48)),
        pytest.raises(ValueError, match="text: 4 rows of states, but 3"),
    ):
        backbone.text_features(text)
    assert backbone.text_features(text).shape == (4, 20)  # and nothing of it is left


@pytest.mark.parametrize("name", ["cross_modal", "routing"])
def test_no_row_sees_another_rows_image_or_question(name: str) -> None:
    """Two different images, swapped, give swapped outputs; and a batch leaves nothing behind for the next."""
    swapped = torch.tensor([1, 0, 2, 3])
    clip, _ = adapted("clip", "retrieval", ["text.*.*"], name)
    pixels, text = images_and_captions(clip)
    with torch.no_grad():
        states = clip.image_features({"pixels": pixels})[1]
        scores = clip.match(states, text)
        other = clip.match(states[swapped], Text(text.ids[swapped], text.mask[swapped]))
        assert_close(other, scores[swapped], clip.model)
        alone = torch.cat(
            [clip.match(states[i : i + 1], Text(text.ids[i : i + 1], text.mask[i : i + 1])) for i in range(4)]
        )
        assert_close(alone, scores, clip.model)
        features = clip.text_features(text)
        with provide(clip.model, "text", states):
            given = clip.text_features(text)
        assert not torch.allclose(given, features)
        assert not torch.allclose(given[swapped], _given(clip, states[swapped], text))  # it is this image that counts
    blip, _ = adapted("blip", "vqa", ["*"], name)
    pixels, question = images_and_captions(blip)
    with torch.no_grad():
        fused = blip.context({"pixels": pixels, "question": question})["states"]
        other = blip.context(
            {"pixels": pixels[swapped], "question": Text(question.ids[swapped], question.mask[swapped])}
        )["states"]
        assert_close(other, fused[swapped], blip.model)


def _given(backbone: Any, states: torch.Tensor, text: Text) -> torch.Tensor:
    with provide(backbone.model, "text", states):
        return backbone.text_features(text)


def test_the_image_reads_the_question_without_its_padding() -> None:
    backbone, _ = adapted("blip", "vqa", ["vision.*.*"])
    pixels, _ = images_and_captions(backbone)
    both = backbone.text(["is it red?", "what colour is it is it is it?"], 40)
    alone = backbone.text(["is it red?"], 40)
    with torch.no_grad():
        padded = backbone.context({"pixels": pixels[:2], "question": both})["states"][:1, : alone.ids.shape[1]]
        expected = backbone.context({"pixels": pixels[:1], "question": alone})["states"]
        assert_close(padded, expected, backbone.model)


def test_the_question_is_encoded_twice_only_if_something_reads_it() -> None:
    for name, points, calls in (
        ("cross_modal", ["vision.*.*"], 2),
        ("cross_modal", ["*"], 2),
        ("cross_modal", ["fusion.*.*"], 1),
        ("bottleneck", ["*"], 1),
    ):
        backbone, model = adapted("blip", "vqa", points, name)
        pixels, question = images_and_captions(backbone)
        counted: list[int] = []
        backbone.model.text_encoder.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        backbone.context({"pixels": pixels, "question": question})
        assert len(counted) == calls, (name, points)
        with model.disable_adapter():
            backbone.context({"pixels": pixels, "question": question})
        assert len(counted) == calls + 1


def test_clip_has_a_second_look_only_with_adapters_that_read_the_image() -> None:
    backbone, model = adapted("clip", "retrieval", ["text.*.ffn"])
    assert backbone.matches
    assert not reads_other(backbone.model, "vision")
    with model.disable_adapter():
        assert not backbone.matches
    assert copy.deepcopy(backbone).matches
    where = sites(backbone.config, "retrieval", ["text.*.ffn"])
    model.add_adapter("plain", peft_config(adapter_config("bottleneck", dim=4), where))
    model.set_adapter("plain")
    assert not backbone.matches
    model.set_adapter("default")
    assert backbone.matches
    model.unload()
    assert not backbone.matches
    assert not adapted("clip", "retrieval", ["text.*.*"], "bottleneck")[0].matches


def test_a_pair_is_put_above_its_hard_negatives() -> None:
    """Clip's matching loss, written out."""
    backbone, _ = adapted("clip", "retrieval", ["text.*.*"])
    samples = make_samples()[:2]  # of two images each has but one hard negative
    work = build(TaskConfig(name="retrieval", rerank=2), backbone)
    batch = work.collate(samples)
    text, group_index = batch["text"], batch["group_index"].tolist()
    with torch.no_grad():
        _, states = backbone.image_features(batch["inputs"])
        score = torch.stack(
            [backbone.match(states[i : i + 1].expand(4, -1, -1), text) for i in range(2)], dim=1
        )  # (T, I)
        similarity = torch.full((4, 2), 0.0)
        similarity[2, 0], similarity[1, 1] = 1e4, 1e4  # the wrong captions that are drawn: 2 of image 0, 1 of image 1
        found = work._matching_loss(similarity, states, text, batch["group_index"], batch["wrong"])
    pairs = [
        score[t, group_index[t]] - score[t, 1 - group_index[t]] for t in range(4)
    ]  # a caption: its image, and the wrong one
    pairs += [score[0, 0] - score[2, 0], score[2, 1] - score[1, 1]]  # an image: its first caption, and the wrong one
    expected = -torch.nn.functional.logsigmoid(torch.stack(pairs)).mean()
    assert_close(found, expected, backbone.model, scale=float(score.abs().max()))


def test_scores_rank_again() -> None:
    """With every caption among the best k, an image's best is the one with the best score."""
    backbone, _ = adapted("clip", "retrieval", ["text.*.*"])
    samples = [replace(sample, captions=sample.captions[:1]) for sample in make_samples()]
    captions = [sample.captions[0] for sample in samples]
    work = build(TaskConfig(name="retrieval", rerank=len(captions)), backbone)
    with torch.no_grad():
        found = work.evaluate(samples, SharedBatches("cpu", len(samples)))
        text = backbone.text(captions, 40)
        for index, (sample, record) in enumerate(zip(samples, found.predictions[: len(samples)], strict=True)):
            states = backbone.image_features(backbone.inputs([sample.image.load()]))[1]
            scores = backbone.match(states.expand(len(captions), -1, -1), text)
            assert record["prediction"] == captions[int(scores.argmax())]
            assert record["rank"] == 1 + int((scores > scores[index]).sum())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["adapter=cross_modal", "task=captioning", "adapter.points=[vision.*.ffn]"],
            "adapter=cross_modal: the vision tower of model=tiny_blip gets no states of another modality in task=captioning; "
            "towers that do: decoder",
        ),
        (
            ["adapter=routing", "task=retrieval", "adapter.points=['*']"],
            "the vision tower of model=tiny_blip gets no states",
        ),
        (["adapter=cross_modal", "task=retrieval", "model=clip"], "task.rerank=0 never does: set task.rerank=16"),
        (
            ["adapter=routing", "task=retrieval", "model=tiny_clip", "task.rerank=16", "task.matching=false"],
            "set task.matching=true",
        ),
        (["adapter=cross_modal", "adapter.options.latent_head=2"], "did you mean latent_heads?"),
    ],
)
def test_refused_by_name(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
