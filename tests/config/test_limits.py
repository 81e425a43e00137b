"""Choices and ranges stand at the fields, and whatever lists choices lists them all."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import CONF
from vlatrain.config import EvalConfig, ExportConfig, MergeConfig, PredictConfig, TrainConfig
from vlatrain.config.adapter import AdapterConfig
from vlatrain.config.keys import required, type_of
from vlatrain.config.limits import Choice, choices, limits, problems
from vlatrain.config.methods import problems as method_problems
from vlatrain.config.optim import PARAMETER_GROUPS

CHOICES = {
    key: tuple(map(str, limit.values))
    for schema in (TrainConfig, EvalConfig, PredictConfig, MergeConfig, ExportConfig)
    for key, limit in limits(schema).items()
    if isinstance(limit, Choice)
}


def test_the_defaults_hold() -> None:
    for schema in (TrainConfig, EvalConfig, PredictConfig, MergeConfig, ExportConfig):
        assert list(problems(schema())) == []


def test_limits_of_all_levels_are_asked() -> None:
    made = EvalConfig(split="tset", resume="maybe")
    made.task.decode.num_beams, made.data.crop = 0, 0.0
    made.adapter.share.over, made.adapter.trunk = ["layer", "towers"], ["norm"]
    assert list(problems(made)) == [
        "task.decode.num_beams=0: must be 1 or more",
        "adapter.share.over: towers: must be some of layer, tower, site, task; did you mean tower?",
        "adapter.trunk: norm: must be some of norms, biases; did you mean norms?",
        "data.crop=0.0: must be more than 0 and at most 1",
        "resume=maybe: must be one of auto, no",
        "split=tset: must be one of eval, test; did you mean test?",
    ]
    assert choices(EvalConfig, "model.quantize") == (4, 8)


def test_so_are_those_of_the_components_of_a_method() -> None:
    components = {"some": {"name": "lora", "dim": 0, "share": {"what": "halves"}}}
    found = [found for found in method_problems(AdapterConfig("mixed", components=components)) if "must be" in found]
    assert found == [
        "adapter.components.some.dim=0: must be 1 or more",
        "adapter.components.some.share.what=halves: must be one of none, down, up, columns, all",
    ]


def comments() -> Iterator[tuple[str, str, str]]:
    """Of the YAML files, the keys with choices: file, key, and comment."""
    for file in sorted(CONF.rglob("*.yaml")):
        path = [] if file.parent == CONF else [file.relative_to(CONF).parts[0]]
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"( *)(\w+):.*? #(.*)", line):
                del path[(file.parent != CONF) + len(found[1]) // 2 :]
                path.append(found[2])
                if (key := ".".join(path)) in CHOICES:
                    yield str(file.relative_to(CONF)), key, found[3]
            elif found := re.match(r"( *)(\w+):$", line):
                del path[(file.parent != CONF) + len(found[1]) // 2 :]
                path.append(found[2])


def test_parameter_groups_are_documented_where_they_are_set() -> None:
    listed = (CONF / "optim" / "adamw.yaml").read_text(encoding="utf-8")
    assert f"rates of {', '.join(PARAMETER_GROUPS)} where" in listed


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text))


def test_comments_that_list_choices_list_them_all() -> None:
    lists = [(file, key, comment) for file, key, comment in comments() if len(words(comment) & {*CHOICES[key]}) > 1]
    assert {"trainer.precision", "adapter.share.over", "optim.schedule", "form"} <= {key for _, key, _ in lists}
    wrong = [line for line in lists if set(CHOICES[line[1]]) - words(line[2])]
    # PEFT's methods and those without `columns` have fewer
    assert [line for line in wrong if line[1] not in ("adapter.share.what", "adapter.activation")] == []


@pytest.mark.parametrize("key", CHOICES)
def test_the_field_s_doc_says_what_each_choice_is(key: str) -> None:
    group, _, name = key.rpartition(".")
    owners: list[Any] = (
        [required(type_of(TrainConfig, group))] if group else [TrainConfig, EvalConfig, MergeConfig, ExportConfig]
    )
    documented = "".join(
        owner.__doc__ for owner in owners if name in {field.name for field in dataclasses.fields(owner)}
    )
    (said,) = re.findall(rf"^ {{8}}{name}: (.*(?:\n {{12}}.*)*)", documented, flags=re.MULTILINE)
    assert set(CHOICES[key]) - words(said) == set()
