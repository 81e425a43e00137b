"""Runs that a router may choose among: what they make together, and what is refused, a line each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import adapter_config, model_config
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig, UserError, joint
from vlatrain.config.joint import subtasks
from vlatrain.injection.routes import names_of, one_pass, options_wrong, read_routes, routed
from vlatrain.runs import RunFolder, save_config

POINT = {"decoder.0.ffn": {"output": "x", "width": 4}}


def run(folder: Path, task: str = "vqa", adapter: str = "bottleneck", weights: str = "", **values: Any) -> Path:
    """What there is of a finished run, but for real weights."""
    model = values.pop("model", None) or model_config("tiny_blip")
    method = adapter_config(adapter)
    config = TrainConfig(task=TaskConfig(name=task), model=model, adapter=method, **values)
    config.trainer.batch_size, config.trainer.accumulate = 8, 1
    save_config(config, folder)
    about = {"peft_type": "VLATRAIN", "design": adapter, "points": POINT, "options": {}, "overrides": {}, "share": {}}
    files = RunFolder(folder).adapter
    files.mkdir()
    (files / "adapter_config.json").write_text(json.dumps(about))
    (files / "adapter_model.safetensors").write_text(weights or folder.name)
    return folder


def router(sources: list[Path], **options: Any) -> TrainConfig:
    method = adapter_config("router", sources=[str(one) for one in sources], **options)
    return TrainConfig(adapter=method, trainer=TrainerConfig(batch_size="auto"), seed=3)


def refused(sources: list[Path], **options: Any) -> list[str]:
    with pytest.raises(UserError) as error:
        routed(router(sources, **options))
    return error.value.problems


@pytest.mark.slow
def test_task_data_and_backbone_are_those_of_the_runs(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b", "captioning")
    config = routed(router([one, two]))
    assert {name: own.task.name for name, own in subtasks(config).items()} == {"vqa": "vqa", "captioning": "captioning"}
    assert config.model.name == "tiny_blip"
    assert (config.task.name, config.task.metric, config.seed) == ("joint", "mean", 3)
    assert (config.trainer.batch_size, config.trainer.accumulate) == (8, 1)
    assert config.adapter.sources == [str(one), str(two)]


@pytest.mark.slow
def test_runs_of_one_task_are_called_as_their_folders(tmp_path: Path) -> None:
    named = ["a", "2026.1", "b c"]
    routes = read_routes([str(run(tmp_path / name)) for name in named] + [str(run(tmp_path / "cap", "captioning"))])
    assert [route.name for route in routes] == ["a", "run-2026-1", "b-c", "captioning"]
    assert names_of([route.config for route in routes[:1]] * 2, [routes[0].source] * 2) == ["a", "a--2"]


@pytest.mark.slow
def test_what_answers_in_one_pass(tmp_path: Path) -> None:
    lengths = TrainConfig(task=TaskConfig(name="vqa", max_length=9)).task
    a, b, c = read_routes([str(run(tmp_path / name)) for name in ("a", "b", "c")])
    longer = replace(b, config=replace(b.config, task=lengths))
    ranked = replace(c, config=replace(c.config, task=replace(c.config.task, answers="rank")))
    assert one_pass(a) == one_pass(longer) != one_pass(ranked)
    with_head = replace(a, source=replace(a.source, adapter={**a.source.adapter, "modules_to_save": ["head"]}))
    around = replace(a, source=replace(a.source, adapter={**a.source.adapter, "points": {"decoder.0.layer": {}}}))
    peft = replace(a, source=replace(a.source, adapter={"peft_type": "LORA"}))
    assert [one_pass(route) for route in (with_head, around, peft)] == ["", "", ""]


@pytest.mark.slow
def test_what_keeps_runs_from_being_routed(tmp_path: Path) -> None:
    good = run(tmp_path / "good")
    others = {
        "full": (run(tmp_path / "full", adapter="full"), "is adapter=full, which has weights of its own"),
        "text": (run(tmp_path / "text", "retrieval"), "compares all images with all texts"),
    }
    for folder, said in others.values():
        assert said in refused([good, folder])[0]
    other = run(tmp_path / "clip", model=replace(model_config("tiny_clip")))
    assert f"{other}: is of model=tiny_clip, and {good} of model=tiny_blip" in refused([good, other])[0]
    moved = run(tmp_path / "moved", model=replace(model_config("tiny_blip"), checkpoint=str(tmp_path)))
    assert "model.checkpoint" in refused([good, moved])[0]
    twin = run(tmp_path / "twin", weights="good")
    assert "has the same adapter as" in refused([good, twin])[0]
    assert "is named 2 times" in refused([good, good])[0]
    assert "no finished run there" in refused([good, tmp_path / "nowhere"])[0]
    assert "two finished runs or more, and there are 1" in refused([good])[0]


@pytest.mark.slow
def test_runs_of_a_trained_router_must_be_the_same(tmp_path: Path) -> None:
    folders = [str(run(tmp_path / name)) for name in ("a", "b")]
    routes = read_routes(folders)
    kept = {"sources": [{"name": f"my-{route.name}", "hash": route.hash} for route in routes]}
    assert [route.name for route in read_routes(folders, kept)] == ["my-a", "my-b"]
    (tmp_path / "b" / "adapter" / "README.md").write_text("a card")
    read_routes(folders, kept)
    (tmp_path / "b" / "adapter" / "adapter_model.safetensors").write_text("others")
    with pytest.raises(UserError, match=r"b: its adapter is not the one that the router was trained for \(my-b"):
        read_routes(folders, kept)
    with pytest.raises(UserError, match="nowhere: the run is gone"):
        read_routes([folders[0], str(tmp_path / "nowhere")], kept)
    with pytest.raises(UserError, match="3 runs, and the router was trained for 2"):
        read_routes([*folders, str(run(tmp_path / "c"))], kept)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"options": {"k": 0}}, "adapter.options.k=0: must be 1 or more"),
        ({"options": {"held_out": 1.0}}, "adapter.options.held_out=1.0: must be between 0 and 1"),
        ({"options": {"abstain": 1.0}}, "adapter.options.abstain=1.0: must be at least 0 and less than 1"),
        ({"options": {"reads": "all"}}, "adapter.options.reads=all: must be one of auto, prefix, tower"),
        ({"options": {"requests": {"captioning": ""}}}, "adapter.options.requests.captioning: a text is missing"),
        ({"points": ["vision"]}, "adapter.points: adapter=router puts nothing into the backbone"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    (problem,) = options_wrong(adapter_config("router", **options))
    assert problem.startswith(said)


@pytest.mark.slow
def test_questions_are_read_unworded_and_those_of_other_columns_alone_are_refused(tmp_path: Path) -> None:
    one, two, three = (run(tmp_path / name) for name in "abc")
    words = {two: {"prompt": "{question} {options}", "answers": "letter"}, three: {"prompt": "{topic}: {question}"}}
    for folder, own in words.items():
        asks(folder, **own)
    read = {
        name: (own.prompt, own.answers) for name, own in joint.tasks(routed(router([one, two, three])).task).items()
    }
    assert read == {"a": ("", "generate"), "b": ("", "options"), "c": ("", "generate")}
    asks(three, prompt="what is the {topic}?")
    (told,) = refused([one, three])
    assert "task.prompt='what is the {topic}?' has no {question}" in told


def asks(folder: Path, **task: str) -> None:
    """Let a run have asked otherwise."""
    config = yaml.safe_load(RunFolder(folder).config.read_text())
    config["task"] |= task
    RunFolder(folder).config.write_text(json.dumps(config))
