"""What is cut and what cannot be learned is said before training: all of it refuses the run, some of it is counted and named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backbones import composites
from tests.conftest import make_samples, model_config, small_config
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, TaskConfig, UserError
from vlatrain.data.features import FeaturePicture
from vlatrain.data.sample import Sample, Turn
from vlatrain.tasks import build, looks, prepare, subtasks_of
from vlatrain.tasks.lengths import LEAST_NEW, OUTLIER, check_lengths, settled

LONG = "please look at the red shape " * 30
UNKNOWN = "猫"


@cache
def shipped(name: str, task: str) -> Any:
    return load(model_config(name), task)


@cache
def composite() -> Any:
    """tiny_composite: 65 visual tokens in 192 positions."""
    return load(composites.described("tiny_clip", "tiny_gpt", "tiny_composite"), "instruct")


def samples(**fields: Sequence[Any]) -> list[Sample]:
    """Samples of these fields, one for each value."""
    images = make_samples()
    rows = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    return [Sample(f"{n}", images[n % 8].image, source=f"t.jsonl:{n + 1}", **row) for n, row in enumerate(rows)]


def checked(backbone: Any, config: TaskConfig, splits: dict[str, list[Sample]]) -> list[str]:
    """The warnings; the problems are raised."""
    prepare(config, backbone, splits.get("train", []))
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vlatrain")
    logger.addHandler(handler)
    try:
        check_lengths(subtasks_of(build(config, backbone, splits.get("train", []))), splits)
    finally:
        logger.removeHandler(handler)
    return records


def refused(backbone: Any, config: TaskConfig, splits: dict[str, list[Sample]]) -> str:
    with pytest.raises(UserError) as error:
        checked(backbone, config, splits)
    return str(error.value)


def talk(*replies: str, before: str = "") -> list[Sample]:
    return samples(turns=[(Turn(f"{before}what colour?", reply),) for reply in replies])


def test_what_fits_is_not_talked_of() -> None:
    everything = {"train": make_samples(), "eval": make_samples()}
    for task in ("vqa", "captioning", "retrieval"):
        assert checked(shipped("tiny_blip", task), TaskConfig(name=task), everything) == []
    assert checked(shipped("tiny_clip", "classification"), TaskConfig(name="classification"), everything) == []
    assert checked(composite(), TaskConfig(name="instruct"), everything) == []


def test_replies_behind_the_limit_are_refused_where_all_are() -> None:
    told = refused(
        composite(), TaskConfig(name="instruct", max_length=100), {"train": talk("red", "blue", before=LONG)}
    )
    assert (
        "data.train: nothing would be learned from any of the 2 samples (the first: t.jsonl:1): 100 tokens are kept"
        in told
    )
    assert "the longest prompt before a reply has" in told
    assert "task.max_length=127 is the most: model=tiny_composite has 192 positions (the image takes 65)" in told


def test_and_counted_where_some_are() -> None:
    train = [*talk("red", "blue"), replace(talk("red", before=LONG)[0], id="x", source="t.jsonl:9")]
    lost, cut = checked(composite(), TaskConfig(name="instruct", max_length=100), {"train": train})
    assert lost.startswith("data.train: nothing would be learned from 1 of 3 samples (the first: t.jsonl:9)")
    assert cut.startswith("data.train: conversations of 1 of 3 samples are cut to 100 tokens (the first: t.jsonl:9)")


def test_one_long_conversation_is_cut_and_named() -> None:
    train = [*talk(*["a green card."] * 4), replace(talk("a green card. " * 100)[0], id="x", source="t.jsonl:31")]
    (told,) = checked(composite(), TaskConfig(name="instruct", max_length=512), {"train": train})
    assert "conversations of 1 of 5 samples are cut to 127 tokens (the first: t.jsonl:31)" in told
    assert "model.options.visual=adapters" in told


def test_prompts_are_cut_to_leave_room_for_what_is_written() -> None:
    config = TaskConfig(name="instruct", max_length=127, decode=DecodeConfig(max_new_tokens=64))
    (told,) = checked(composite(), config, {"eval": talk("red", before=LONG[:200])})
    assert told.startswith("data.eval: prompts of 1 of 1 samples are cut to 62 tokens")
    assert "task.decode.max_new_tokens keeps 65); more is kept with a smaller task.decode.max_new_tokens" in told
    config.decode.max_new_tokens = 2
    assert checked(composite(), config, {"eval": talk("red", before=LONG[:200])}) == []


@pytest.mark.parametrize(
    ("name", "task", "most"),
    [("tiny_blip", "vqa", 62), ("tiny_blip", "captioning", 62), ("tiny_composite", "instruct", None)],
)
def test_what_is_to_be_written_must_fit(name: str, task: str, most: int | None) -> None:
    backbone = composite() if name == "tiny_composite" else shipped(name, task)
    config = TaskConfig(name=task, decode=DecodeConfig(max_new_tokens=500))
    told = refused(backbone, config, {})
    assert told.startswith(f"task.decode.max_new_tokens=500: model={name} has ")
    fits = int(told.split("set it to ")[1].split()[0])
    assert most in (None, fits)
    config.decode.max_new_tokens = fits
    checked(backbone, config, {})


def test_a_ranked_answer_is_not_written() -> None:
    config = TaskConfig(name="vqa", answers="rank", decode=DecodeConfig(max_new_tokens=500))
    assert checked(shipped("tiny_blip", "vqa"), config, {"train": make_samples()}) == []


@pytest.mark.parametrize(("task", "field"), [("captioning", "captions"), ("vqa", "answers")])
def test_texts_of_unknown_tokens_teach_nothing(task: str, field: str) -> None:
    backbone, config = shipped("tiny_blip", task), TaskConfig(name=task)
    question = {"question": ["is it red?"] * 2} if task == "vqa" else {}
    told = refused(backbone, config, {"train": samples(**{field: [(UNKNOWN,), (UNKNOWN * 2,)]}, **question)})
    assert told.startswith(
        "data.train: nothing would be learned from any of the 2 samples (the first: t.jsonl:1): the tokenizer"
    )
    told = refused(backbone, config, {"eval": samples(**{field: [(UNKNOWN,), (UNKNOWN * 2,)]}, **question)})
    assert told.startswith(f"data.eval: no {field} of any of the 2 samples can be written (the first: t.jsonl:1)")
    some = samples(**{field: [("red",), (UNKNOWN,)]}, **question)
    (told,) = checked(backbone, config, {"train": some})
    assert told.startswith("data.train: nothing would be learned from 1 of 2 samples (the first: t.jsonl:2)")


def test_unknown_characters_among_others_are_counted() -> None:
    train = samples(captions=[("a red shape",), (f"a red {UNKNOWN}",)])
    (told,) = checked(shipped("tiny_blip", "captioning"), TaskConfig(name="captioning"), {"train": train})
    assert (
        told
        == "data.train: captions of 1 of 2 samples have characters that the tokenizer does not know (the first: t.jsonl:2)"
    )


def test_an_answer_counts_whole() -> None:
    """One that is longer than what is generated, or has an unknown character, can never be right."""
    backbone, config = shipped("tiny_blip", "vqa"), TaskConfig(name="vqa", decode=DecodeConfig(max_new_tokens=3))
    long, short = "a red and a blue square", "red"
    three = samples(question=["what?"] * 3, answers=[(long, short), (long,), (f"red {UNKNOWN}",)])
    told = checked(backbone, config, {"eval": three})
    assert told[0].startswith("data.eval: no answers of 2 of 3 samples can be written (the first: t.jsonl:2)")
    assert told[1].startswith(
        "data.eval: answers of 2 of 3 samples cannot be written whole, with 3 tokens (the first: t.jsonl:1)"
    )
    assert told[1].endswith("the longest has 6: set task.decode.max_new_tokens=6")
    told = [refused(backbone, config, {"eval": three[1:2]})]
    assert "the longest has 6 tokens, and 3 can be written: set task.decode.max_new_tokens=6" in told[0]


def test_no_word_left_of_questions_or_answers() -> None:
    backbone, train = shipped("tiny_blip", "vqa"), samples(question=["is it red?"] * 2, answers=[("yes",), ("no",)])
    told = refused(backbone, TaskConfig(name="vqa", max_length=1), {"train": train})
    assert "no word is left of the questions of any of the 2 samples" in told
    assert "1 tokens are kept, which leaves no word: set task.max_length=3" in told
    assert "nothing would be learned from any of the 2 samples" in told
    (told,) = checked(backbone, TaskConfig(name="vqa", max_length=5), {"train": train})
    assert told.startswith("data.train: questions of 2 of 2 samples are cut to 5 tokens (the first: t.jsonl:1)")
    assert told.endswith("; the longest has 6: set task.max_length=6")
    assert checked(backbone, TaskConfig(name="vqa", max_length=6), {"train": train}) == []


@pytest.mark.parametrize(("name", "task"), [("tiny_clip", "classification"), ("tiny_blip", "classification")])
def test_classes_that_are_the_same_tokens(name: str, task: str) -> None:
    backbone = shipped(name, task)
    for pair in (["猫", "狗"], ["Cat", "cat"], ["a_b", "a b"]):
        told = refused(backbone, TaskConfig(name=task, classes=pair), {})
        assert told.startswith(f"task.classes: '{pair[0]}' and '{pair[1]}' are the same tokens ([CLS] a photo of a ")
    (told,) = checked(backbone, TaskConfig(name=task, classes=["red", "猫", "狗", "blue"]), {})
    assert told.startswith("task.classes: '猫' and '狗' are the same tokens")
    assert "cut" not in refused(backbone, TaskConfig(name=task, classes=["red", "blue"], max_length=4), {})


def test_classes_as_answers_and_ranked_answers() -> None:
    told = refused(composite(), TaskConfig(name="classification", classes=["猫", "狗"]), {})
    assert told.startswith("task.classes: '猫' and '狗' are the same tokens ([UNK]")
    config = TaskConfig(name="vqa", answers="rank", answer_list=["yes", "猫", "狗"])
    (told,) = checked(shipped("tiny_blip", "vqa"), config, {})
    assert told.startswith("task.answer_list: '猫' and '狗' are the same tokens")


def test_captions_must_tell_images_apart() -> None:
    for name in ("tiny_clip", "tiny_blip"):
        backbone, config = shipped(name, "retrieval"), TaskConfig(name="retrieval", max_length=40)
        told = refused(backbone, config, {"train": samples(captions=[("A red Shape",), ("a red shape",)])})
        assert told == "data.train: the captions are all the same tokens, so no image can be told by them"
        told = refused(backbone, config, {"eval": samples(captions=[("猫",), ("狗",)])})
        assert told.startswith("data.eval: no word is left of the captions of any of the 2 samples")
        (told,) = checked(backbone, config, {"train": samples(captions=[("red",), ("blue",), (LONG,)])})
        assert told.startswith("data.train: captions of 1 of 3 samples are cut to 40 tokens (the first: t.jsonl:3)")


def test_answers_that_cannot_be_chosen() -> None:
    texts = [sample.question for sample in make_samples()]
    backbone = load(small_config("vilt"), "vqa", texts=texts)
    config = TaskConfig(name="vqa", answer_list=["red", "blue"])
    pair = samples(question=["is it red?"] * 2, answers=[("red",), ("green",)])
    (told,) = checked(backbone, config, {"train": pair})
    assert told.startswith(
        "data.train: no answer of 1 of 2 samples can be chosen (the first: t.jsonl:2): none of their answers"
    )
    assert "task.answer_list" in refused(backbone, config, {"eval": pair[1:]})


def test_subtasks_are_named() -> None:
    subtasks = {"easy": TaskConfig(name="vqa", max_length=5), "told": TaskConfig(name="captioning")}
    config = TaskConfig(name="joint", subtasks=dict(subtasks))
    questions = [replace(one, subtask="easy") for one in samples(question=["is it red?"], answers=[("red",)])]
    captions = [replace(one, subtask="told") for one in samples(captions=[(UNKNOWN,)])]
    backbone = shipped("tiny_blip", "joint")
    (told,) = checked(backbone, config, {"train": questions})
    assert told.startswith("subtask easy: data.train: questions of 1 of 1 samples are cut to 5 tokens")
    assert told.endswith("set task.subtasks.easy.max_length=6")
    assert refused(backbone, config, {"train": questions + captions}).startswith(
        "subtask told: data.train: nothing would be"
    )


def test_features_are_counted(tmp_path: Path) -> None:
    backbone = load(composites.small("features", "gpt2", visual="tokens"), "vqa", texts=["is it red?", "yes"])
    width = backbone.model.config.vision_config.hidden_size
    np.save(tmp_path / "a.npy", np.zeros((30, width), np.float32))
    task, before = TaskConfig(name="vqa", max_length=1000), backbone.rooms(TaskConfig(name="vqa"))["new"].tokens
    ask = samples(question=["is it red?"], answers=[("yes",)])
    checked(backbone, task, {"train": [replace(ask[0], image=FeaturePicture(str(tmp_path / "a.npy")))]})
    usual = backbone.model.config.vision_config.tokens
    assert backbone.rooms(task)["new"].tokens == before - (30 - usual)


def test_a_large_data_set_is_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlatrain.tasks.looks.AT_MOST", 10)
    many = samples(captions=[(UNKNOWN,) for _ in range(100)])
    told = refused(shipped("tiny_blip", "captioning"), TaskConfig(name="captioning"), {"train": many})
    assert "any of the 10 looked at (of 100) samples" in told


def lengths(backbone: Any, config: TaskConfig, splits: dict[str, list[Sample]]) -> tuple[Any, Any]:
    """What `auto` comes to."""
    found = settled(build(config, backbone, splits.get("train", [])), splits)
    return found.max_length, found.decode.max_new_tokens


def test_auto_cuts_nothing_and_lets_the_longest_target_be_written() -> None:
    backbone, config = shipped("tiny_blip", "vqa"), TaskConfig(name="vqa")
    train = samples(question=["is it red?", "is it a very large red shape?"], answers=[("yes",), ("no",)])
    longest = len(backbone.tokenizer(train[1].question)["input_ids"])
    assert lengths(backbone, config, {"train": train}) == (longest, LEAST_NEW)
    answer = "a red and a blue shape and a green one and one more"
    eval_ = samples(question=["what?"], answers=[(answer,)])
    tokens = len(backbone.tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert lengths(backbone, config, {"train": train, "eval": eval_}) == (longest, tokens + 1)
    assert lengths(backbone, replace(config, max_length=5), {"train": train})[0] == 5
    ranked = replace(config, answers="rank", answer_list=["yes", "no"])
    assert lengths(backbone, ranked, {"train": train}) == (longest, "auto"), "nothing is written"


def test_auto_leaves_outliers_and_what_has_no_room_out() -> None:
    backbone, config = shipped("tiny_blip", "captioning"), TaskConfig(name="captioning")
    many = samples(captions=[("a red shape",)] * 300 + [("a red shape " * 10,)])
    usual = len(backbone.tokenizer("a red shape", add_special_tokens=False)["input_ids"]) + 1
    assert lengths(backbone, config, {"train": many}) == (OUTLIER * usual, OUTLIER * (usual - 1) + 1)
    few = samples(captions=[("a red shape",), ("a red shape " * 100,)])
    most = backbone.rooms(config)
    assert lengths(backbone, config, {"train": few}) == (most["target"].tokens, most["new"].tokens)


@pytest.mark.parametrize("task", ["classification", "retrieval", "instruct"])
def test_auto_is_a_number_for_every_task(task: str) -> None:
    backbone = composite() if task == "instruct" else shipped("tiny_clip", task)
    found = lengths(backbone, TaskConfig(name=task), {"train": make_samples(), "eval": make_samples()})
    assert isinstance(found[0], int)
    assert (found[1] == "auto") == (task != "instruct")


def test_what_does_not_come_back_is_said() -> None:
    backbone, config = shipped("tiny_blip", "vqa"), TaskConfig(name="vqa", max_length=40)
    three = samples(question=["what?"] * 3, answers=[("café",), ("3.5",), ("café", "red")])
    (told,) = checked(backbone, config, {"eval": three})
    assert told.startswith(
        "data.eval: answers of 1 of 3 samples do not come back from the tokenizer as they are (the first: t.jsonl:1), "
        "'café' as 'cafe'"
    )
    assert "*_as_written" in told


def test_what_was_seen_of_many_texts_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr("vlatrain.tasks.looks.WORTH_KEEPING", 10)
    backbone = shipped("tiny_blip", "captioning")
    texts = [f"a red shape {n} {UNKNOWN * (n % 2)}" for n in range(20)]
    found = looks.reading(backbone)(texts)
    (file,) = tmp_path.glob("texts-*.npy")
    monkeypatch.setattr(backbone, "looked_at", {})
    monkeypatch.setattr(type(backbone), "tokens", lambda *_: pytest.fail("it was kept"))
    assert looks.reading(backbone)(texts) == found
    file.write_bytes(b"broken")
    monkeypatch.undo()
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(backbone, "looked_at", {})
    assert looks.reading(backbone)(texts) == found
