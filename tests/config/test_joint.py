"""Subtasks of a joint task: what they are when typed, whose data is whose, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import adapter_config, model_config
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.config import DataConfig, PredictConfig, TaskConfig, TrainConfig, UserError, joint
from vlatrain.config.checks import settings as validate
from vlatrain.config.errors import Incompatible

TWO = {"vqa": {}, "house": {"name": "captioning"}}
POINTS = ["vision", "fusion", "decoder"]


def config(subtasks: dict[str, Any] | None = None, schema: Any = TrainConfig, **task: Any) -> Any:
    settings = {"metric": "mean", "points": POINTS, **task}
    made = schema(
        task=TaskConfig(name="joint", subtasks=dict(TWO if subtasks is None else subtasks), **settings),
        model=model_config("tiny_blip"),
        adapter=adapter_config("bottleneck"),
    )
    made.data.train_size = made.data.eval_size = 8
    return made


def test_a_subtask_is_its_task_with_what_it_says() -> None:
    made = config({"vqa": {}, "house": {"name": "captioning", "prompt": "a sheet of", "decode": {"num_beams": 5}}})
    subtasks = joint.subtasks(made)
    assert [subtask.task.name for subtask in subtasks.values()] == ["vqa", "captioning"]
    own = subtasks["house"].task
    assert (own.metric, own.prompt, own.decode.num_beams, own.decode.max_new_tokens) == (
        "cider_d",
        "a sheet of",
        5,
        "auto",
    )
    assert made.task.subtasks["house"] == {"name": "captioning", "prompt": "a sheet of", "decode": {"num_beams": 5}}
    assert joint.completed(made.task).subtasks["house"] == own


def test_any_other_run_is_its_own_only_subtask() -> None:
    made = TrainConfig()
    assert joint.subtasks(made) == {"": made}
    assert joint.subtasks(made)[""] is made


def test_data_is_shared_but_for_what_a_subtask_says() -> None:
    made = config()
    made.data.seed = 3
    made.data.subtasks = {"vqa": {"train": "a.jsonl", "columns": {"answers": "label"}}, "house": DataConfig(name="hub")}
    data = {name: subtask.data for name, subtask in joint.subtasks(made).items()}
    assert (data["vqa"].train, data["vqa"].seed, data["vqa"].columns.answers) == ("a.jsonl", 3, "label")
    assert (data["house"].name, data["house"].seed, data["house"].subtasks) == ("hub", 0, {})
    assert (made.data.train, made.data.columns.answers) == (None, None)


def test_a_sound_one_has_no_problems() -> None:
    assert validate.problems(config()) == []
    assert validate.problems(config(metric="house/cider_d", sampling="temperature", sampling_temperature=5.0)) == []
    assert incompatibilities(config()) == []


@pytest.mark.parametrize(
    ("subtasks", "data", "told"),
    [
        ({}, {}, "needs subtasks"),
        ({"vqa": {}, "easy": {}}, {}, "task.subtasks.easy: of which task is it? set task.subtasks.easy.name"),
        ({"vqa": {"nme": "vqa"}}, {}, "task.subtasks.vqa: there is no key nme; did you mean name?"),
        ({"vqa": {"rerank": "long"}}, {}, "task.subtasks.vqa: rerank=long: expected a whole number"),
        (
            {"easy": {"name": "vaq"}},
            {},
            "task.subtasks.easy.name=vaq: must be one of captioning, classification, grounding",
        ),
        ({"easy": {"name": "joint"}}, {}, "task.subtasks.easy.name=joint"),
        ({"a/b": {"name": "vqa"}}, {}, "task.subtasks.a/b: a subtask's name"),
        ({"vqa": 3}, {}, "task.subtasks.vqa=3"),
        ({"vqa": {"answers": "write"}}, {}, "subtask vqa: task.answers=write"),
        ({"vqa": {"decode": {"num_beams": 0}}}, {}, "subtask vqa: task.decode.num_beams=0"),
        ({"vqa": {"metric": "cider_d"}}, {}, "subtask vqa: task.metric=cider_d"),
        ({"retrieval": {}}, {}, "cannot do retrieval as a subtask: its BlipForQuestionAnswering"),
        (
            TWO,
            {"vqs": {"train": "a"}},
            "data.subtasks.vqs: there is no such subtask; there are vqa, house; did you mean vqa?",
        ),
        (TWO, {"vqa": {"trian": "a"}}, "data.subtasks.vqa: there is no key trian; did you mean train?"),
        (TWO, {"vqa": {"subtasks": {"x": {}}}}, "data.subtasks.vqa.subtasks: a subtask has no subtasks"),
        (TWO, {"vqa": "a.jsonl"}, "data.subtasks.vqa=a.jsonl: expected keys of data"),
        (TWO, {"vqa": {"name": "files", "train": "gone.jsonl"}}, "subtask vqa: data.train=gone.jsonl: no such file"),
        (TWO, {"vqa": {"train_size": 0}}, "subtask vqa: data.train_size=0"),
    ],
)
def test_each_wrong_subtask_is_one_problem(subtasks: dict, data: dict, told: str) -> None:
    made = config(subtasks)
    made.data.subtasks = data
    (problem,) = validate.problems(made)
    assert told in problem


def test_what_all_subtasks_lack_is_told_once() -> None:
    made = config()
    made.data.name = "files"
    assert validate.problems(made) == ["subtask vqa, house: data=files: data.train=FILE is missing"]
    made.data.train_size = 0
    assert len(validate.problems(made)) == 2


def test_so_many_negatives_are_of_a_run_of_its_own() -> None:
    own = {"name": "retrieval", "negatives_per_step": 64}
    (problem,) = [found for found in validate.problems(config({"find": own})) if "negatives" in found]
    assert problem.startswith("task.subtasks.find.negatives_per_step=64: task=joint contrasts those of a pass")


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (
            {"metric": "accuracy"},
            "task.metric=accuracy: must be one of mean, vqa/accuracy, vqa/accuracy_as_written, vqa/anls, vqa/anls_as_written, "
            "vqa/relaxed_accuracy, vqa/relaxed_accuracy_as_written, house/cider_d",
        ),
        ({"metric": "house/meteor"}, "task.metric=house/meteor"),
        ({"sampling": "equal"}, "task.sampling=equal"),
        ({"sampling_temperature": 0.5}, "task.sampling_temperature=0.5: must be 1 or more"),
    ],
)
def test_wrong_settings_of_the_whole(task: dict, told: str) -> None:
    (problem,) = validate.problems(config(**task))
    assert problem.startswith(told)


def test_subtasks_without_a_joint_task_are_refused() -> None:
    made = TrainConfig(model=model_config("tiny_blip"), adapter=adapter_config("bottleneck"))
    made.data.subtasks, made.task.subtasks = {"vqa": {"train": "a"}}, {"vqa": {}}
    assert len(validate.problems(made)) == 2


def test_clip_serves_no_joint_task() -> None:
    made = config()
    made.model = model_config("clip")
    (problem,) = validate.problems(made)
    assert problem.startswith(
        "task=joint: model=clip cannot do it; it can do retrieval, classification, vqa, grounding; joint: blip, "
    )


@pytest.mark.parametrize(
    ("query", "subtask"),
    [
        ({"question": "what?"}, "vqa"),
        ({}, "house"),
        ({"subtask": "house"}, "house"),
        ({"subtask": "vqs"}, "did you mean vqa?"),
        ({"input": "samples.jsonl"}, "one of vqa, house (captioning)"),
        ({"text": "a dog"}, "one of vqa, house (captioning)"),
    ],
)
def test_which_subtask_is_asked(query: dict, subtask: str) -> None:
    made = config(schema=PredictConfig)
    for key, value in query.items():
        setattr(made, key, value)
    if subtask in made.task.subtasks:
        assert joint.asked(made) == subtask
    else:
        with pytest.raises(UserError) as refused:
            joint.asked(made)
        assert subtask in str(refused.value)


@pytest.mark.parametrize(
    ("tasks", "query", "subtask"),
    [
        (("classification", "vqa"), {}, "classification"),
        (("classification", "retrieval"), {"text": "a dog"}, "retrieval"),
        (("classification", "instruct"), {"question": "what?"}, "instruct"),
        (("captioning", "classification"), {}, "say which one is asked"),
        (("vqa", "instruct"), {"question": "what?"}, "say which one is asked"),
    ],
)
def test_which_kind_of_subtask_a_query_fits(tasks: tuple[str, ...], query: dict, subtask: str) -> None:
    made = config({name: {} for name in tasks}, PredictConfig)
    for key, value in query.items():
        setattr(made, key, value)
    if subtask in tasks:
        assert joint.asked(made) == subtask
    else:
        with pytest.raises(UserError, match=subtask):
            joint.asked(made)


def test_two_of_a_kind_must_be_told_apart_and_a_single_subtask_need_not(tmp_path: Path) -> None:
    both = config({"easy": {"name": "vqa"}, "hard": {"name": "vqa"}}, PredictConfig)
    both.source, both.image, both.question = "run", str(tmp_path), "what?"
    assert validate.problems(both) == [
        "this run has several subtasks: say which one is asked with subtask=, one of easy (vqa), hard (vqa)"
    ]
    both.subtask = "hard"
    assert validate.problems(both) == []
    one = config({"easy": {"name": "vqa"}}, PredictConfig)
    one.input = "samples.jsonl"
    assert joint.asked(one) == "easy"
    single = PredictConfig(subtask="vqa")
    assert "subtask=vqa: only a joint run has subtasks" in validate.problems(single)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("lora", {}, "adapter=lora trains one for all subtasks"),
        ("full", {}, "adapter=full trains one for all subtasks"),
        ("none", {}, "adapter=none trains one for all subtasks"),
    ],
)
def test_adapters_for_each_subtask_are_refused_by_name(name: str, options: dict, told: str) -> None:
    made = config()
    made.adapter = adapter_config(name, by_task=True, **options)
    (problem,) = incompatibilities(made)
    assert isinstance(problem, Incompatible)
    assert told in problem


def test_adapters_for_each_subtask_need_subtasks_and_sharing_between_them_needs_those() -> None:
    single = TrainConfig(model=model_config("tiny_blip"), adapter=adapter_config("bottleneck", by_task=True))
    single.task.points = ["vision"]
    assert incompatibilities(single)[0].startswith("adapter.by_task=true: needs task=joint")
    made = config()
    made.adapter = adapter_config("bottleneck", share={"what": "down", "over": ["task"]})
    assert incompatibilities(made)[0].startswith("adapter.share.over: task")
