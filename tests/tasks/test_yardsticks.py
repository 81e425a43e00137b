"""What each task's scores are compared with. No backbone is needed: a task is asked about samples alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import make_samples
from vlatrain.config import TaskConfig
from vlatrain.data.sample import Sample, Turn
from vlatrain.metrics.bootstrap import mean
from vlatrain.tasks.captioning import Captioning
from vlatrain.tasks.classification import ByFeatures
from vlatrain.tasks.instruct import Instruct
from vlatrain.tasks.joint import Joint
from vlatrain.tasks.retrieval_scores import yardsticks
from vlatrain.tasks.vqa import Vqa
from vlatrain.tasks.yardsticks import Grouping, Yardsticks, by_group, question_lengths

IMAGE = make_samples()[0].image


def bare(kind: type, metric: str = "", **more: Any) -> Any:
    """A task without a backbone, but for what a text comes back as."""
    task = object.__new__(kind)
    backbone = SimpleNamespace(as_written=lambda texts: [text.replace("é", "e") for text in texts])
    vars(task).update({"metric": metric, "config": TaskConfig("vqa"), "backbone": backbone, **more})
    return task


def of(task: Any, train: Sequence[Sample], scored: Sequence[Sample]) -> Yardsticks:
    """By what a run keeps in a file."""
    return task.yardsticks(scored, json.loads(json.dumps(task.constants(train))))


def asked(*pairs: tuple[str, str]) -> list[Sample]:
    return [Sample(str(place), IMAGE, question=q, answers=(a,)) for place, (q, a) in enumerate(pairs)]


def test_vqa_has_the_most_frequent_answer_over_all_and_by_question() -> None:
    train = asked(("is it red?", "yes"), ("is it red?", "no"), ("is it red?", "yes"), ("how many?", "2"))
    scored = asked(("Is it red ?", "yes"), ("how many?", "Two"), ("how many?", "3"), ("where?", "yes"))
    found = of(bare(Vqa), train, scored)
    assert {name: baseline.metrics for name, baseline in found.baselines.items()} == {
        "most_frequent_answer": {"accuracy": 50.0},
        "most_frequent_answer_by_question": {"accuracy": 75.0},
    }
    assert found.baselines["most_frequent_answer"].says == "always 'yes'"
    assert found.ceilings == {"accuracy": 100.0}
    assert not of(bare(Vqa), [], scored).baselines


def test_what_cannot_be_written_has_baselines_by_its_second_score() -> None:
    scored = asked(("what?", "café"), ("what?", "tea"))
    always = of(bare(Vqa), scored[:1], scored).baselines["most_frequent_answer"]
    assert always.metrics == {"accuracy": 50.0, "accuracy_as_written": 50.0}
    scored = asked(("what?", "café"), ("what?", "cafe"))
    always = of(bare(Vqa), scored[:1], scored).baselines["most_frequent_answer"]
    assert always.metrics == {"accuracy": 50.0, "accuracy_as_written": 100.0}
    talks = [Sample(str(place), IMAGE, turns=(Turn("a?", said),)) for place, said in enumerate(("café", "cafe"))]
    most = of(bare(Instruct), talks[:1], talks).baselines["most_frequent_reply"].metrics
    assert (most["exact_match"], most["exact_match_as_written"]) == (50.0, 100.0)
    shown = [
        Sample(str(place), IMAGE, captions=(f"the {one} of a town",)) for place, one in enumerate(("café", "cafe"))
    ]
    (constant,) = of(bare(Captioning), shown[:1], shown).baselines.values()
    assert constant.metrics["cider_d_as_written"] != constant.metrics["cider_d"]


def test_vqa_ceiling_is_that_of_its_annotators() -> None:
    scored = [Sample("0", IMAGE, question="q", answers=("a", "b"))]
    assert of(bare(Vqa), scored, scored).ceilings == {"accuracy": pytest.approx(100 / 6)}


def test_classification_has_the_majority_class_of_the_training_data() -> None:
    train = [Sample(str(place), IMAGE, label=label) for place, label in enumerate("aaab")]
    scored = [Sample(str(place), IMAGE, label=label) for place, label in enumerate("abbb")]
    classifier = bare(ByFeatures, place={"a": 0, "b": 1}, config=TaskConfig("classification", classes=["a", "b"]))
    (baseline,) = of(classifier, train, scored).baselines.values()
    assert baseline.metrics == {"accuracy": 25.0, "macro_f1": pytest.approx(20.0), "auroc": 50.0}
    assert baseline.says == "always 'a'"
    assert not classifier.yardsticks(scored, {"label": "gone"}).baselines, "its classes are others"


def test_captioning_has_the_best_constant_caption() -> None:
    train = [Sample(str(place), IMAGE, captions=(f"a picture of {place}", "a picture")) for place in range(6)]
    (name, baseline), *more = of(bare(Captioning), train, train).baselines.items()
    assert not more
    assert name == "constant_caption"
    assert baseline.says.startswith("always 'a picture")
    assert set(baseline.metrics) == {"cider_d", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}


def test_instruct_has_the_most_frequent_reply() -> None:
    def said(*pairs: tuple[str, str]) -> list[Sample]:
        return [Sample(str(i), IMAGE, turns=(Turn("look.", "yes."), Turn(*pair))) for i, pair in enumerate(pairs)]

    train = said(("what?", "a dog."), ("what?", "a dog."), ("where?", "here."))
    found = of(bare(Instruct), train, said(("What?", "a dog."), ("where?", "here."), ("who?", "me.")))
    assert {name: baseline.metrics["exact_match"] for name, baseline in found.baselines.items()} == pytest.approx(
        {"most_frequent_reply": 100 / 3, "most_frequent_reply_by_question": 200 / 3}
    )


def test_retrieval_has_chance_and_what_shared_captions_leave() -> None:
    """Twelve images with two captions between them: a search by one finds one image first, of six."""
    texts = ["a red picture" if place % 2 else "a blue picture" for place in range(12)]
    samples = [Sample(str(place), IMAGE, captions=(text,)) for place, text in enumerate(texts)]
    found = yardsticks(samples, texts)
    chance = found.baselines["chance"].metrics
    # of two texts in random order the right one comes first or last: its rank is 6 or 12
    assert [chance[f"image_to_text_r{k}"] for k in (1, 5, 10)] == pytest.approx([0, 0, 50])
    assert [chance[f"text_to_image_r{k}"] for k in (1, 5, 10)] == pytest.approx([100 * k / 12 for k in (1, 5, 10)])
    assert (chance["image_to_text_mean_rank"], chance["text_to_image_mean_rank"]) == pytest.approx((9, 6.5))
    assert "image_to_text_median_rank" not in chance
    assert found.ceilings == pytest.approx(
        {
            "image_to_text_r1": 0,
            "image_to_text_r5": 0,
            "image_to_text_r10": 100,
            "text_to_image_r1": 100 / 6,
            "text_to_image_r5": 500 / 6,
            "text_to_image_r10": 100,
            "mean_recall": (100 + 100 / 6 + 500 / 6 + 100) / 6,
        }
    )
    assert found.facts == {"shared_captions": {"captions": 12, "images": 12}}
    (said,) = found.described
    assert "12 of 12 captions are those of other images too (12 of 12 images have such)" in said
    assert "mean_recall 50.0 %, image_to_text_r1 0.0 %" in said
    different = yardsticks(samples, [f"{text} {place}" for place, text in enumerate(texts)])
    assert different.baselines["chance"].metrics["image_to_text_median_rank"] == 6
    assert (different.ceilings, different.described, different.facts) == ({}, [], {})


def test_joint_has_those_of_its_subtasks_and_their_mean() -> None:
    ask = [replace(sample, subtask="ask") for sample in asked(("q", "yes"), ("q", "no"), ("r", "no"))]
    tell = [Sample(str(i), IMAGE, captions=("a dog",) if i else ("a cat", "a dog"), subtask="tell") for i in range(3)]
    subtasks = {"ask": bare(Vqa, "accuracy"), "tell": bare(Captioning, "cider_d")}
    found = of(bare(Joint, "mean", subtasks=subtasks), [*ask, *tell], [*ask, *tell])
    assert set(found.baselines) == {
        "ask/most_frequent_answer",
        "ask/most_frequent_answer_by_question",
        "tell/constant_caption",
        "mean_of_baselines",
    }
    best = found.baselines["ask/most_frequent_answer"].metrics["ask/accuracy"]
    caption = found.baselines["tell/constant_caption"].metrics["tell/cider_d"]
    assert best == pytest.approx(200 / 3)
    assert found.baselines["mean_of_baselines"].metrics == {"mean": pytest.approx((best + caption) / 2)}
    assert found.ceilings == {"ask/accuracy": 100.0}
    unknown = bare(Joint, subtasks=subtasks).yardsticks([*ask, *tell], {})
    assert not unknown.baselines, "nothing is known of the training data"


def test_questions_come_in_lengths() -> None:
    assert question_lengths(["one", "a b c d e", "a b c d e f", " ".join("x" * 15), " ".join("x" * 16)]) == [
        "1-5",
        "1-5",
        "6-10",
        "11-15",
        "16+",
    ]


def test_groups_have_the_scores_of_their_samples() -> None:
    values = ["a", None, "b", "b", "a", "b"]
    statistics = {"accuracy": mean([100.0, 0.0, 0.0, 100.0, 100.0, 0.0])}
    groupings = {"kind": Grouping(values, ["accuracy", "auroc"]), "one": Grouping(["x"] * 6, ["accuracy"])}
    assert by_group(groupings, statistics) == {
        "kind": {
            "b": {"samples": 3, "accuracy": pytest.approx(100 / 3)},
            "a": {"samples": 2, "accuracy": 100.0},
        }
    }


def test_samples_are_grouped_by_the_columns_that_are_named() -> None:
    samples = [
        replace(sample, extra=(("type", kind), ("split", 3)), groups=("type",))
        for sample, kind in zip(make_samples()[:3], ("yes/no", "number", "yes/no"), strict=True)
    ]
    found = bare(Vqa).groupings(samples, ["accuracy"], question_words=["1-5"] * 3)
    assert {name: list(grouping.values) for name, grouping in found.items()} == {
        "question_words": ["1-5"] * 3,
        "type": ["yes/no", "number", "yes/no"],
    }
