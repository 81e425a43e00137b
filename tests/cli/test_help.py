"""`vlatrain VERB --help` lists what the verb takes, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from tests.conftest import CONF
from vlatrain.cli import help as texts
from vlatrain.cli.main import GROUP_ORDER
from vlatrain.cli.registry import OF_RUN, SCHEMAS
from vlatrain.config import TrainConfig
from vlatrain.config.folder import options_of

OPTIONS = options_of(CONF, GROUP_ORDER)


def listed(verb: str, section: str) -> dict[str, list[str]]:
    """What a section of the help lists, by group."""
    _, _, rest = texts.of_verb(verb, OPTIONS).partition(f"\n{section} (")
    found: dict[str, list[str]] = {}
    group = ""
    for line in (line for line in rest.split("\n\n")[0].splitlines() if line.startswith("  ")):
        group = line[2:13].strip() or group
        found.setdefault(group.replace("no group", ""), []).extend(line[13:].strip(" ,").split(", "))
    return found


@pytest.mark.parametrize(
    ("verb", "groups"),
    [
        ("train", [*GROUP_ORDER]),
        ("inspect", [*GROUP_ORDER]),
        ("check", [*GROUP_ORDER]),
        ("eval", ["task", "model", "data", "trainer", "logger"]),
        ("predict", ["task", "model", "data", "trainer", "logger"]),
        ("merge", ["model"]),
        ("report", []),
        ("cache", []),
    ],
)
def test_a_verb_lists_the_groups_that_it_takes(verb: str, groups: list[str]) -> None:
    assert listed(verb, "groups") == {group: OPTIONS[group] for group in groups}


def test_a_verb_lists_the_keys_that_it_takes() -> None:
    every = listed("train", "keys")
    assert (every["run"], every[""]) == (["name", "dir", "report"], ["seed", "resume"])
    assert "decode.num_beams" in every["task"]
    assert not {"name", "spec.query", "decode"} & {*every["task"]}
    assert listed("inspect", "keys") == every
    scored = listed("eval", "keys")
    assert (scored["adapter"], scored[""]) == (["drop_layers", "sources"], ["seed"])
    assert "epochs" not in scored["trainer"]
    assert "eval_batch_size" in scored["trainer"]
    assert not {"optim", "run"} & {*scored}
    assert "artifact" not in scored["logger"]
    assert "train" in scored["data"]
    assert "train" not in listed("predict", "keys")["data"]
    assert set(listed("merge", "keys")) == {"model", ""}
    assert listed("cache", "keys") == listed("report", "keys") == {}


@pytest.mark.parametrize("verb", [*OF_RUN, "check"])
def test_keys_of_a_verb_s_own_are_explained(verb: str) -> None:
    fields = dataclasses.fields(SCHEMAS[verb])[len(dataclasses.fields(TrainConfig)) :]
    text = " ".join(texts.of_verb(verb, {}).partition("\nkeys (")[0].split())
    assert [field.name for field in fields if f" {field.name}=" not in text and field.name != "source"] == []
