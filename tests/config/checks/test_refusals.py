"""Each owner of options (task, data source, logger, family of backbones, method, verb) is given one of another: it is refused with
who has it, by exit status 2, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command
from tests.conftest import CONF, adapter_config, model_config
from vlatrain.cli.registry import OF_RUN, SCHEMAS
from vlatrain.config import TrainConfig
from vlatrain.config.adapter import COMMON
from vlatrain.config.checks import owners
from vlatrain.config.families import FORMER, OPTIONS
from vlatrain.config.folder import options_of, set_by
from vlatrain.config.keys import required, type_of
from vlatrain.config.limits import Choice, limits
from vlatrain.config.methods import BARE, described, having
from vlatrain.config.schema import readers
from vlatrain.runs import save_config

METHODS = [name for name in options_of(CONF)["adapter"] if (described(name) or {}).get("name") == name]


@dataclass(frozen=True)
class Case:
    """An owner and an option that it has not.

    Attributes:
        who: the owner, as the message names it.
        words: the command line that chooses it.
        key: the option.
        others: those who have it; the message names one of them at least.
    """

    who: str
    words: tuple[str, ...]
    key: str
    others: tuple[str, ...]


def value(key: str) -> str:
    """A value that the key's type and choices allow."""
    limit = limits(TrainConfig).get(key)
    if isinstance(limit, Choice):
        return str(limit.values[0])
    try:
        return {int: "1", float: "0.5", bool: "true", list[str]: "[a]"}.get(required(type_of(TrainConfig, key)), "a")
    except KeyError:
        return "1"  # of another verb


def dotted(values: Mapping[str, Any], key_prefix: str = "") -> Iterator[str]:
    for name, inner in values.items():
        nested = isinstance(inner, dict) and name not in ("spec", "subtasks")
        yield from dotted(inner, f"{key_prefix}{name}.") if nested and inner else [f"{key_prefix}{name}"]


def of_files() -> Iterator[Case]:
    """Tasks, data sources and loggers: what their files set is what they have."""
    for group in owners.BY_FILE:
        options = options_of(CONF)[group]
        has = {name: {*dotted(set_by(group, name))} - {"spec", "subtasks"} for name in options}
        for name in options:
            if foreign := sorted(set().union(*has.values()) - has[name]):
                able = tuple(f"{group}={other}" for other in options if foreign[0] in has[other])
                yield Case(f"{group}={name}", (f"{group}={name}",), f"{group}.{foreign[0]}", able)


def of_families() -> Iterator[Case]:
    models = {}
    for file in sorted((CONF / "model").glob("*.yaml")):
        if family := re.search(r"^family: (\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            models.setdefault(family[1], file.stem)
    for family, own in OPTIONS.items():
        foreign = next(name for names in OPTIONS.values() for name in names if name not in own)
        able = tuple(f"family={other}" for other, names in OPTIONS.items() if foreign in names and other not in FORMER)
        name = models.get(family, "clip")
        yield Case(f"family={family}", (f"model={name}", f"model.family={family}"), f"model.options.{foreign}", able)


def of_methods() -> Iterator[Case]:
    options = {name for method in METHODS for name in (described(method) or {}).get("options", {})}
    for name in METHODS:
        schema = described(name) or {}
        foreign = ["dim"] if name in BARE else [key for key in COMMON if schema.get(key) is None]
        foreign = foreign or [f"options.{key}" for key in sorted(options - {*schema["options"]})]
        able = tuple(f"adapter={other}" for other in having(foreign[0].removeprefix("options.")))
        others = ("methods with modules of their own",) if name in BARE else able
        yield Case(f"adapter={name}", (f"adapter={name}",), f"adapter.{foreign[0]}", others)


def of_verbs() -> Iterator[Case]:
    for verb, schema in SCHEMAS.items():
        others = {key: other for other, its in SCHEMAS.items() for key in its.__dataclass_fields__}
        foreign = [key for key in others if key not in schema.__dataclass_fields__]
        yield Case(f"vlatrain {verb}", (verb,), foreign[0], (f"vlatrain {others[foreign[0]]}",))
        if verb in OF_RUN:
            assert verb not in readers("optim.lr")
            yield Case(f"vlatrain {verb}", (verb,), "optim.lr", ("vlatrain train",))


CASES = [*of_files(), *of_families(), *of_methods(), *of_verbs()]


def test_every_owner_is_in_the_table() -> None:
    every = [f"{group}={name}" for group in owners.BY_FILE for name in options_of(CONF)[group]]
    every += [f"family={name}" for name in OPTIONS] + [f"adapter={name}" for name in METHODS]
    every += [f"vlatrain {verb}" for verb in SCHEMAS]
    assert {*every} - {case.who for case in CASES} == {"logger=wandb"}  # it has all that others have
    assert all(case.others for case in CASES)


def refused(cases: list[Case], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the command line of owners of several kinds in one, and see that each of their options is refused."""
    verb = next((word for case in cases for word in case.words if word in SCHEMAS), "train")
    run = folder / "source"
    where = [f"run.dir={folder / 'run'}"]
    if verb in OF_RUN:
        save_config(TrainConfig(model=model_config("tiny_blip"), adapter=adapter_config("bottleneck")), run)
        where = [f"sources=[{run},{run}]", f"output={folder / 'new'}"] if verb == "merge" else [f"run={run}"]
    before = sorted(folder.rglob("*"))
    words = [word for case in cases for word in case.words if word not in SCHEMAS]
    assert command(verb, *words, *(f"{case.key}={value(case.key)}" for case in cases), *where) == 2
    lines = [line.removeprefix("error ") for line in capsys.readouterr().err.splitlines()]
    for case in cases:
        (line,) = [line for line in lines if re.search(rf"{re.escape(case.key)}[:; ]", line) and case.who in line]
        assert re.search(r" takes no |: .* has no such option", line)
        assert any(re.search(rf"{re.escape(other)}\b", line) for other in case.others), line
    assert sorted(folder.rglob("*")) == before


def test_of_each_kind_one_and_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = {case.who.partition("=")[0]: case for case in CASES if "=" in case.who}
    chosen["vlatrain train"] = next(case for case in CASES if case.who == "vlatrain train")
    assert [*chosen] == ["task", "data", "logger", "family", "adapter", "vlatrain train"]
    refused([*chosen.values()], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.who} {case.key}")
def test_an_option_of_another(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused([case], tmp_path, capsys)


def test_a_wrong_value_of_a_key_of_its_own_is_no_other_verb_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("seed=abc") == 2
    assert "seed=abc: expected a whole number" in capsys.readouterr().err


def test_the_cache_takes_its_own_words_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cache", "optim.lr=1") == 2
    assert "optim.lr=1: cache takes prune=all, prune=NAME and older_than=DAYS" in capsys.readouterr().err
