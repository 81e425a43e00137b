from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlatrain.cli import main as cli
from vlatrain.cli.compose import prepare
from vlatrain.cli.overrides import Request
from vlatrain.cli.registry import GROUPS
from vlatrain.config import UserError
from vlatrain.config.folder import conf_dir, options_of

NEEDS = {"data=files": ["data.train=pyproject.toml"], "data=hub": ["data.path=somebody/something"]}
NEEDS |= {"task=instruct": ["model=tiny_composite"]}
NEEDS |= {"adapter=coop": ["task=classification", "model=tiny_clip"]}
NEEDS |= {f"adapter={name}": ["task=retrieval"] for name in ("clip_adapter", "tip_adapter", "tip_adapter_f")}
ALONE = {  # what has finished runs to start from
    f"adapter={name}": f"adapter={name}: needs adapter.sources=[RUN,RUN]" for name in ("fusion", "router")
}
MANY = {"model": ("blip", "composite"), "adapter": ("bottleneck", "fusion", "mixed"), "experiment": ("smoke",)}
"""Of groups with many options those that are composed in the quick suite: those of all are read by their rooms' tests."""


def served(model: str) -> list[str]:
    """The tasks in a backbone's YAML and those that it extends."""
    values = yaml.safe_load((conf_dir() / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    named = ["/".join(*base.items()) if isinstance(base, dict) else base for base in values.get("defaults", [])]
    within = [str(Path(model).parent / name) for name in named]
    bases = [name for name in within if (conf_dir() / "model" / f"{name}.yaml").is_file()]
    return [*(task for base in bases for task in served(base)), *values.get("tasks", {})]


def needed(choice: str) -> list[str]:
    """What an option takes beside it; a backbone that answers no questions, a task that it serves."""
    group, _, option = choice.partition("=")
    other = [f"task={served(option)[0]}"] if group == "model" and "vqa" not in served(option) else []
    return NEEDS.get(choice, other)


def choices() -> Iterator[Any]:
    for group, options in options_of(conf_dir()).items():
        for option in options:
            slow = option not in MANY.get(group, options)
            yield pytest.param(f"{group}={option}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("choice", list(choices()))
def test_every_option_is_sound(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(conf_dir().parent)
    if choice in ALONE:
        with pytest.raises(UserError, match=re.escape(ALONE[choice])) as error:
            prepare(Request("train", [choice]), cli._check_compatibility)
        assert len(error.value.problems) == 1
        return
    assert prepare(Request("train", [choice, *needed(choice)]), cli._check_compatibility).overrides[0] == choice


def test_every_group_has_options() -> None:
    assert set(options_of(conf_dir())) == {*GROUPS, "experiment"}


@pytest.mark.slow
def test_every_task_selects_points_on_every_backbone_that_serves_it() -> None:
    tasks = "task=vqa,captioning,retrieval,classification"
    request = Request("train", ["model=blip,tiny_blip", tasks], multirun=True)
    assert prepare(request, cli._check_compatibility).swept == ("model", "task")


@pytest.mark.slow
def test_a_large_sweep_has_every_choice_checked() -> None:
    wide = [f"{key}=1,2" for key in ("seed", "adapter.dim", "trainer.epochs")]
    with pytest.raises(UserError) as error:
        prepare(Request("train", [*wide, "optim.lr=1e-3,1e-4,0"], multirun=True))
    assert error.value.problems == ["optim.lr=0.0: must be more than 0"]
