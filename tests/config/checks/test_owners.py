"""Who reads a key: what the user writes and nothing reads is refused with who does, before torch is imported."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CONF, adapter_config, model_config
from vlatrain.backbones.families.dual import Dual
from vlatrain.backbones.loading import FAMILIES
from vlatrain.cli import help as texts
from vlatrain.cli import main as cli
from vlatrain.cli.compose import prepare
from vlatrain.cli.overrides import Request, keys_in
from vlatrain.config import EvalConfig, MergeConfig, PredictConfig, TaskConfig, TrainConfig, UserError, families
from vlatrain.config.checks import owners
from vlatrain.config.errors import Incompatible
from vlatrain.config.folder import options_of
from vlatrain.config.keys import type_of
from vlatrain.config.schema import READ_BY
from vlatrain.runs import save_config

SCHEMAS: dict[str, type[TrainConfig]] = {"eval": EvalConfig, "predict": PredictConfig, "merge": MergeConfig}


model_of = cache(model_config)  # nothing here changes one


def config(verb: str = "train", model: str = "tiny_blip", adapter: str = "bottleneck", **values: Any) -> Any:
    """A configuration with values by key, `__` in place of dots."""
    made = SCHEMAS.get(verb, TrainConfig)(model=model_of(model), adapter=adapter_config(adapter))
    for key, value in values.items():
        *path, last = key.split("__")
        target: Any = made
        for name in path:
            target = getattr(target, name)
        setattr(target, last, value)
        if key == "task__name":
            made.task = TaskConfig(value)  # with its description
    return made


def told(key: str, verb: str = "train", **values: Any) -> str:
    """What is said of a key; empty: it is read."""
    return "".join(owners.unread(config(verb, **values), verb, [(key, "")]))


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("data.train", {}, "data=shapes takes no data.train; data=files and data=hub do"),
        ("data.columns.answers", {}, "data=shapes takes no data.columns.answers; data=files and data=hub do"),
        ("data.path", {"data__name": "files"}, "data=files takes no data.path; data=hub does"),
        ("trainer.tf32", {"trainer__device": "cpu"}, "trainer.device=cpu takes no trainer.tf32; a GPU does"),
        ("task.rerank", {}, "task=vqa takes no task.rerank; task=retrieval does"),
        ("task.spec.query", {}, "task.spec.query: says what task=vqa is, and is no option"),
        (
            "task.subtasks.vqa.spec",
            {"task__name": "joint", "task__subtasks": {"vqa": {}}},
            "subtask vqa: task.spec: says what task=vqa is",
        ),
        (
            "task.decode.num_beams",
            {"task__name": "retrieval"},
            "task=retrieval takes no task.decode.num_beams; task=captioning, task=grounding_words, task=instruct and task=vqa do",
        ),
        ("task.answer_list", {}, "task.answers=generate takes no task.answer_list; task.answers=rank does"),
        ("task.decode.num_beams", {"task__answers": "rank"}, "task.answers=rank takes no task.decode.num_beams"),
        ("task.answers", {"model": "vilt"}, "model=vilt takes no task.answers, it chooses from task.answer_list"),
        ("task.rerank", {"model": "vilt", "task__name": "retrieval"}, "model=vilt takes no task.rerank"),
        ("task.negatives", {"task__name": "retrieval"}, "model=tiny_blip takes no task.negatives"),
        ("task.negatives_per_step", {"model": "vilt", "task__name": "retrieval"}, "model=vilt takes no task.negatives_per_step"),
        ("task.negatives_per_step", {}, "task=vqa takes no task.negatives_per_step; task=retrieval does"),
        ("task.rerank", {"model": "clip", "task__name": "retrieval"}, "model=clip with adapter=bottleneck takes no task.rerank"),
        ("task.question", {"model": "clip", "task__name": "classification"}, "model=clip takes no task.question"),
        ("task.templates", {"model": "llava", "task__name": "classification"}, "model=llava takes no task.templates"),
        ("task.max_length", {"task__name": "joint", "task__subtasks": {"vqa": {}}}, "task=joint takes no task.max_length"),
        ("logger.entity", {"logger__name": "tensorboard"}, "logger=tensorboard takes no logger.entity; logger=wandb does"),
        ("model.options.visual", {}, "model=tiny_blip (family=blip) takes no model.options.visual; family=causal_composite and"),
        ("model.options.visul", {"model": "tiny_composite"},
         "only visual, norm, boxes, order, added_tokens, visual_tokens, chat; did you mean visual?"),
        ("model.options.tempalte", {"model": "llava"}, "frame, template; did you mean template?"),
        ("model.prompts.vqa", {}, "model=tiny_blip takes no model.prompts.vqa"),
        ("model.submodels.vision.checkpoint", {}, "takes no model.submodels.vision.checkpoint; model=composite does"),
        ("data.views", {}, "images as they are take no data.views; data.crop=0.5 and data.flip=0.5 do"),
        ("data.eval_fraction", {"data__name": "files", "data__eval": "a"}, "data.eval=a takes no data.eval_fraction"),
        ("adapter.dim", {"adapter": "full"}, "adapter=full takes no adapter.dim"),
        ("adapter.options.rank", {"adapter": "none"}, "adapter=none takes no adapter.options.rank"),
    ],
)  # fmt: skip
def test_a_key_that_the_choice_does_not_read(key: str, values: dict[str, Any], said: str) -> None:
    assert said in told(key, **values)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("data.train", {"data__name": "files"}),
        ("data.columns.answers", {"data__name": "hub"}),
        ("task.rerank", {"task__name": "retrieval"}),
        ("task.rerank", {"model": "clip", "adapter": "cross_modal", "task__name": "retrieval"}),
        ("task.answer_list", {"task__answers": "rank"}),
        ("task.answer_list", {"model": "vilt"}),
        ("task.answers", {"model": "vilt", "task__answers": "options"}),
        ("task.negatives", {"model": "vilt", "task__name": "retrieval"}),
        ("task.question", {"model": "llava", "task__name": "classification"}),
        ("task.templates", {"model": "clip", "task__name": "classification"}),
        ("model.options.visual", {"model": "tiny_composite"}),
        ("model.options.pool", {"model": "clip"}),
        ("data.views", {"data__flip": 0.5}),
        ("data.annotations", {"data__name": "files"}),
        ("data.eval_annotations", {"data__name": "files", "data__eval": "a.json"}),
        ("data.text_only", {"data__name": "hub", "model": "tiny_composite", "task__name": "instruct"}),
        ("adapter.points", {"adapter": "full"}),
        ("adapter.dim", {}),
        ("optim", {}),
        ("seed", {}),
    ],
)
def test_a_key_that_it_reads(key: str, values: dict[str, Any]) -> None:
    assert told(key, **values) == ""


@pytest.mark.parametrize(
    ("verb", "key", "values", "said"),
    [
        ("predict", "adapter.dim", {}, "vlatrain predict takes no adapter.dim; vlatrain train does"),
        ("predict", "adapter", {}, "vlatrain predict takes no adapter; vlatrain train does"),
        ("predict", "data.train", {}, "vlatrain predict takes no data.train; vlatrain train and vlatrain eval do"),
        ("predict", "data.skip_broken", {}, "vlatrain predict takes no data.skip_broken; vlatrain train and vlatrain eval do"),
        ("train", "data.eval_annotations", {"data__name": "files"}, "data.eval=null takes no data.eval_annotations"),
        ("train", "data.test_annotations", {"data__name": "files"}, "data.test=null takes no data.test_annotations"),
        ("train", "data.annotations", {"data__name": "hub"}, "data=hub takes no data.annotations; data=files does"),
        ("train", "data.columns.split", {"data__name": "hub"}, ""),
        (
            "train",
            "data.split.eval",
            {"data__name": "hub", "data__streaming": True},
            "data.streaming=true takes no data.split.eval, a stream is taken as it comes",
        ),
        (
            "train",
            "data.columns.options",
            {"data__name": "files"},
            "task.answers=generate takes no data.columns.options; task.answers=options and letter do",
        ),
        ("train", "data.columns.options", {"data__name": "files", "task__answers": "options"}, ""),
        ("train", "data.columns.options", {"data__name": "files", "task__prompt": "{question} {options}"}, ""),
        ("train", "task.decode.num_beams", {"task__answers": "letter"}, "task.answers=letter takes no task.decode.num_beams"),
        ("train", "data.pairs", {}, ""),
        ("train", "data.text_only", {"data__name": "files"}, "task=vqa takes no data.text_only; tasks with conversations do"),
        ("predict", "data.columns.question", {}, ""),  # of its input file, whatever the run was trained on
        ("predict", "trainer.workers", {}, "vlatrain predict takes no trainer.workers"),
        ("predict", "trainer.device", {}, ""),
        ("eval", "trainer.epochs", {}, "vlatrain eval takes no trainer.epochs; vlatrain train does"),
        ("eval", "optim.lr", {}, "vlatrain eval takes no optim.lr"),
        ("eval", "logger.mode", {"logger__name": "wandb"}, ""),
        ("eval", "logger.artifact", {"logger__name": "wandb"}, "vlatrain eval takes no logger.artifact"),
        ("merge", "logger", {}, "vlatrain merge takes no logger"),
        ("eval", "adapter.drop_layers", {}, ""),
        ("eval", "data.test", {"split": "test"}, "data=shapes takes no data.test; data=files and data=hub do"),
        ("eval", "data.test", {"data__name": "files"}, "split=eval takes no data.test, it scores data.eval; split=test does"),
        ("eval", "data.test", {"data__name": "files", "split": "test"}, ""),
        ("eval", "data.eval", {"data__name": "files", "split": "test"}, "split=test takes no data.eval"),
        ("eval", "data.train", {"data__name": "files"}, ""),  # the evaluation samples are split off it
        ("eval", "data.train", {"data__name": "files", "data__eval": "a"}, "vlatrain eval takes no data.train but to split"),
        ("eval", "data.train_size", {}, "vlatrain eval takes no data.train_size"),
        ("merge", "trainer.epochs", {}, "vlatrain merge takes no trainer.epochs"),
        ("merge", "data.eval", {}, "vlatrain merge takes no data.eval"),
        ("merge", "model.checkpoint", {}, ""),
        ("inspect", "trainer.epochs", {}, ""),  # takes what train takes
        ("inspect", "data.train", {}, "data=shapes takes no data.train"),
        ("check", "trainer.epochs", {}, ""),
        ("check", "data.train", {}, "data=shapes takes no data.train"),
    ],
)  # fmt: skip
def test_a_key_that_the_verb_does_not_read(verb: str, key: str, values: dict[str, Any], said: str) -> None:
    found = told(key, verb, **values)
    assert found.startswith(said) if said else found == ""


def test_subtasks_of_a_joint_run_are_asked_one_by_one() -> None:
    subtasks = {"vqa": {}, "house": {"name": "captioning"}}
    joint = {"task__name": "joint", "task__metric": "mean", "task__subtasks": subtasks}
    assert (
        told("task.subtasks.vqa.rerank", **joint) == "subtask vqa: task=vqa takes no task.rerank; task=retrieval does"
    )
    assert told("task.subtasks.house.decode.num_beams", **joint) == ""
    assert told("data.subtasks.house.train", **joint).startswith("subtask house: data=shapes takes no data.train")
    assert told("data.root", **joint).startswith("data=shapes takes no data.root")
    assert told("data.root", **joint, data__subtasks={"vqa": {"name": "files"}}) == ""  # one of them reads it


# The tables agree with what they are about


def test_the_tables_name_keys_that_there_are() -> None:
    for key in (*READ_BY, *(key for condition in owners.CONDITIONS for key in condition.keys)):
        type_of(TrainConfig, key)


def test_files_are_named_as_their_options() -> None:
    for group in owners.BY_FILE:
        for option in options_of(CONF)[group]:
            assert yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))["name"] == option


def test_every_family_says_its_options() -> None:
    assert set(families.OPTIONS) == set(FAMILIES)
    assert {name for name, kind in FAMILIES.items() if issubclass(kind, Dual)} == set(families.DUALS)


@pytest.mark.parametrize("name", ["blip", "siglip", "llava", "blip2_t5", "tiny_composite"])
def test_who_compares_features_is_as_the_task_has_it(name: str) -> None:
    made = config(model=name, task__name="classification")
    kind = FAMILIES[made.model.family]
    writes, embeds = hasattr(kind, "generate"), hasattr(kind, "image_features")  # a `Generator`, an `Embedder`
    assert owners.compares_features(made) == (
        embeds and (bool(made.model.tasks["classification"].features) or not writes)
    )


# From the command line


def problems(verb: str, *overrides: str, multirun: bool = False, folder: Path | None = None) -> list[str]:
    try:
        prepare(Request(verb, list(overrides), multirun, str(folder) if folder else None), cli._check_compatibility)
    except UserError as error:
        return error.problems
    return []


def test_own_data_beside_the_built_in_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").touch()
    assert problems("train", "data.train=mine.jsonl", "data={root: images, seed: 3}") == [
        "data=shapes takes no data.train; data=files and data=hub do",
        "data=shapes takes no data.root; data=files and data=hub do",
    ]
    save_config(config(task__points=["vision"], task__rerank=3), tmp_path / "run")  # what a run has is not asked about
    assert problems("eval", "run=run", "split=test", "data.test=mine.jsonl", "trainer.max_steps=null") == [
        "data=shapes takes no data.test; data=files and data=hub do"
    ]
    assert problems("eval", "run=run", "split=test", "data=files", "data.test=mine.jsonl") == []


def test_a_sweep_leaves_out_the_jobs_that_do_not_read_it() -> None:
    assert problems("train", "adapter=bottleneck,bitfit", "adapter.dim=4", multirun=True) == []
    (problem,) = problems("train", "task.rerank=interval(1,4)", multirun=True)
    assert isinstance(problem, Incompatible)


def test_files_of_the_users_own_are_asked_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "mine.yaml"
    file.write_text("defaults: [shapes, _self_]\ntrain: mine.jsonl\neval_size: 8\nroot: null\n")
    assert problems("train", "data=mine", folder=tmp_path) == [
        f"{file}: data=shapes takes no data.train; data=files and data=hub do"
    ]


def test_a_runs_own_configuration_can_be_used_again(tmp_path: Path) -> None:
    made: list[TrainConfig] = []
    prepare(Request("train", ["trainer.epochs=3"]), lambda found: made.append(found) or [])  # type: ignore[func-returns-value]
    save_config(made[0], tmp_path)
    prepare(
        Request("train", ["trainer.epochs=1"], config_dir=str(tmp_path), config_name="config"), cli._check_compatibility
    )


EXAMPLES = [
    (verb, line.strip())
    for verb in SCHEMAS | {"train": TrainConfig, "inspect": TrainConfig}
    for line in texts.of_verb(verb, {}).split("examples\n")[1].replace("\\\n", "").splitlines()
    if line.startswith("  vlatrain")
]


@pytest.mark.parametrize(("verb", "line"), EXAMPLES)
def test_the_examples_of_the_help_are_read(verb: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if "=" in word]
    chosen = dict(word.split("=", 1) for word in words)
    run = chosen.get("run", chosen.get("sources", "outputs/vqa/tiny_blip")).strip("[").split("/")
    made = config(verb, chosen.get("model", run[2]), task__name=chosen.get("task", run[1]).split(",")[0])
    made.data.name = chosen.get("data", "shapes")
    if verb == "eval":
        made.split = chosen.get("split", "eval")
    written = [(key, "") for key in keys_in(words) if not (key == "run" and verb in SCHEMAS)]
    assert list(owners.unread(made, verb, written)) == []
