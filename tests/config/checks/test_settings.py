from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CONF, adapter_config, model_config
from vlatrain.adapters import bottleneck
from vlatrain.config import EvalConfig, PredictConfig, TaskConfig, TrainConfig
from vlatrain.config.checks import settings as validate
from vlatrain.config.limits import choices
from vlatrain.config.spec import described, shipped_spec
from vlatrain.metrics import caption, classification, instruct, retrieval
from vlatrain.tasks.lengths import AS_WRITTEN


def sound(schema: type[TrainConfig] = TrainConfig) -> Any:
    config = schema(model=model_config("tiny_blip"), adapter=adapter_config("bottleneck"))
    config.data.train_size = config.data.eval_size = 8
    return config


def put(config: Any, key: str, value: Any) -> Any:
    *path, last = key.split(".")
    target = config
    for part in path:
        target = getattr(target, part)
    setattr(target, last, value)
    return config


def test_a_sound_configuration_has_no_problems() -> None:
    assert validate.problems(sound()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter.dim", 0),
        ("adapter.dim", None),
        ("adapter.dropout", 1.0),
        ("adapter.dropout", -0.1),
        ("adapter.activation", "gelo"),
        ("adapter.init", "ones"),
        ("adapter.points", []),
        ("optim.lr", 0.0),
        ("optim.lr", float("nan")),
        ("optim.lr", float("inf")),
        ("optim.schedule", "cosin"),
        ("optim.warmup", -1.0),
        ("optim.beta2", 1.0),
        ("optim.groups", {"heads": 1e-3}),
        ("optim.groups", {"norm": 1e-3}),  # norms that train are of the trunk
        ("optim.groups", {"head": 0.0}),
        ("trainer.batch_size", 0),
        ("trainer.eval_batch_size", 0),
        ("trainer.accumulate", 0),
        ("trainer.epochs", 0),
        ("trainer.max_steps", 0),
        ("trainer.precision", "fp8"),
        ("trainer.workers", -1),
        ("trainer.eval_share", 0.0),
        ("trainer.eval_share", 1.0),
        ("trainer.batch_size", "many"),
        ("trainer.accumulate", True),
        ("task.decode.num_beams", 0),
        ("task.decode.min_new_tokens", -1),
        ("task.answers", "choose"),
        ("task.metric", "cider"),
        ("task.temperature", 0.0),
        ("task.classes", ["cat"]),
        ("task.classes", ["cat", "dog", "cat"]),
        ("task.classes", ["cat", ""]),
        ("task.templates", []),
        ("task.templates", ["a photo"]),
        ("task.templates", ["a {} of a {}"]),
        ("data.eval_fraction", 0.0),
        ("data.eval_fraction", 1.0),
        ("data.train_size", 0),
        ("data.crop", 0.0),
        ("data.crop", 1.5),
        ("data.flip", 1.5),
        ("data.views", -1),
        ("logger.name", "nowhere"),
        ("resume", "yes"),
        ("resume", "auto"),
        ("run.name", "a/b"),
        ("seed", -1),
        ("model.checkpoint", "./no/such/folder"),
        ("model.tasks", {}),
    ],
)
def test_each_bad_value_is_one_problem_that_names_its_key(key: str, value: Any) -> None:
    found = validate.problems(put(sound(), key, value))
    assert len(found) == 1
    assert found[0].startswith(key.split(".")[0])


def test_all_problems_are_told_together() -> None:
    config = put(put(put(sound(), "adapter.dim", 0), "optim.lr", -1.0), "trainer.precision", "half")
    assert len(validate.problems(config)) == 3


def test_what_does_not_go_with_shards_is_told_at_once() -> None:
    config = sound()
    for key, value in {
        "trainer.shard": True,
        "trainer.compile": True,
        "trainer.device": "mps",
        "adapter.name": "full",
    }.items():
        put(config, key, value)
    config.model.quantize = 4
    found = [problem.partition(":")[0] for problem in validate.problems(config) if problem.startswith("trainer.shard")]
    wrong = ["model.quantize=4", "trainer.device=mps", "adapter=full", "trainer.compile=true"]
    assert found == [f"trainer.shard=true and {what}" for what in wrong]
    asked = put(put(sound(EvalConfig), "trainer.shard", True), "trainer.compile", True)
    assert not any("trainer.shard" in problem for problem in validate.problems(asked)), "an evaluation compiles nothing"


def test_when_to_evaluate_is_said_once() -> None:
    config = put(put(sound(), "trainer.eval_every", 50), "trainer.eval_share", 0.2)
    assert validate.problems(config) == [
        "trainer.eval_share=0.2 and trainer.eval_every=50: set one of the two, the other to null or 0"
    ]
    assert validate.problems(put(config, "trainer.eval_every", 0)) == []


def test_a_backbone_that_cannot_do_the_task_says_what_it_can_and_who_could() -> None:
    config = TrainConfig(
        model=model_config("clip"),
        adapter=adapter_config("bottleneck"),
        task=TaskConfig("captioning", metric="cider_d"),
    )
    (problem,) = validate.problems(config)
    told, _, able = problem.rpartition("; captioning: ")
    assert told == "task=captioning: model=clip cannot do it; it can do retrieval, classification, vqa, grounding"
    assert {"blip", "tiny_blip"} <= set(able.split(", "))  # tiny_blip has it from the file that it extends
    assert not {"clip", "siglip"} & set(able.split(", "))


def test_resume_needs_to_know_which_run() -> None:
    config = put(sound(), "resume", "auto")
    assert validate.problems(put(config, "run.name", "mine")) == []


def test_files_must_exist(tmp_path: Path) -> None:
    config = put(sound(), "data.name", "files")
    assert validate.problems(config) == ["data=files: data.train=FILE is missing"]
    config.data.train = str(tmp_path / "train.jsonl")
    config.data.root = str(tmp_path / "images")
    assert len(validate.problems(config)) == 2
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "images").mkdir()
    assert validate.problems(config) == []


def test_eval_wants_the_split_it_scores(tmp_path: Path) -> None:
    config = sound(EvalConfig)
    config.source, config.split, config.data.name = str(tmp_path), "test", "files"
    assert validate.problems(config) == ["split=test: the run has no test data; say which with data.test="]
    config.split, config.data.train = "eval", "gone.jsonl"
    assert validate.problems(config) == []  # the training file is not read


@pytest.mark.parametrize(
    ("task", "asked", "missing"),
    [
        ("vqa", {"image": "."}, "set question="),
        ("vqa", {"question": "why?"}, "image=FILE"),
        ("vqa", {"image": "gone.jpg", "question": "why?"}, "no such file"),
        ("captioning", {}, "image=FILE"),
        ("classification", {}, "image=FILE"),
        ("classification", {"image": "."}, ""),
        ("instruct", {"image": "."}, "set question="),
        ("instruct", {"image": ".", "question": "why?"}, ""),
        ("retrieval", {"image": "."}, "set text="),
        ("retrieval", {"image": ".", "text": "a", "texts": ["b"]}, "set text="),
        ("captioning", {"image": "."}, ""),
        ("retrieval", {"image": ".", "texts": ["b"]}, ""),
        ("vqa", {"input": str(CONF)}, ""),
        ("vqa", {"input": "gone.jsonl"}, "no such file"),
    ],
)
def test_predict_says_what_is_missing(task: str, asked: dict[str, Any], missing: str) -> None:
    config = sound(PredictConfig)
    config.source, config.task = "run", TaskConfig(task, metric=described(task)["metric"])
    config.model.tasks.setdefault(task, config.model.tasks["vqa"])
    for key, value in asked.items():
        setattr(config, key, value)
    found = validate.problems(config)
    assert len(found) == bool(missing)
    assert missing in "".join(found)


def test_an_optional_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = put(sound(), "logger.name", "wandb")
    assert validate.problems(config) == ["logger=wandb: needs a package; pip install 'vlatrain[wandb]'"]


def choosing(task: str) -> set[str]:
    """The scores that can choose the best checkpoint."""
    return {metric.name for metric in shipped_spec(task).metrics if metric.higher_is_better}


def test_a_shortest_text_is_no_longer_than_the_longest() -> None:
    least = put(sound(), "task.decode.min_new_tokens", 9)
    assert validate.problems(least) == [], "auto is as many as that at least"
    (problem,) = validate.problems(put(least, "task.decode.max_new_tokens", 5))
    assert problem == "task.decode.min_new_tokens=9: is more than max_new_tokens=5"


def test_names_agree_with_the_code_behind_them() -> None:
    assert set(choices(TrainConfig, "adapter.activation")) == set(bottleneck.ACTIVATIONS)
    captions = caption.score(["a red dog"], [["a red dog"]]).corpus()
    assert choosing("captioning") == {*captions, "meteor", "spice", f"cider_d{AS_WRITTEN}"}
    recalls = {name.replace("@", "") for name in retrieval.recalls(torch.tensor([1]))}
    replies = {field.name for field in fields(instruct.ReplyScores)}
    told = replies - {"per_sample", "exact_per_sample"}
    assert choosing("instruct") == told | {f"{name}{AS_WRITTEN}" for name in told}
    assert choosing("classification") == {*classification.NAMES, "new_accuracy", "harmonic_mean"}
    ways = {f"{way}_{name}" for way in ("image_to_text", "text_to_image") for name in recalls}
    assert choosing("retrieval") == {"mean_recall", *ways}
