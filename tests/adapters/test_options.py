"""What a design is made from: options that it does not have are refused by its dataclass's fields, wherever they come from."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import adapter_config
from vlatrain.adapters import DESIGNS, Facts, options_of
from vlatrain.cli.compose import conf_dir
from vlatrain.config import UserError
from vlatrain.config.adapter import COMMON
from vlatrain.injection.attach import check


@pytest.mark.parametrize("name", DESIGNS)
def test_its_yaml_file_has_the_fields_of_its_options(name: str) -> None:
    read = yaml.safe_load((conf_dir() / "adapter" / f"{name}.yaml").read_text())
    told = {key for key in COMMON if read.get(key) is not None} | set(read.get("options", {}))
    known = {field.name for field in fields(DESIGNS[name].Options)}
    assert told <= known
    assert known - told <= {"columns", "sources", "norm_before", "norm_after", "scale", "projection", "rank", "terms"}


@pytest.mark.parametrize("name", DESIGNS)
def test_an_option_of_another_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"adapter={name}: has no option gamma; it has "):
        check(adapter_config(name, options={"gamma": 1}))


@pytest.mark.parametrize(
    ("values", "said"),
    [({"dim": 2, "beta": 1, "rows": 2}, "has no option beta, rows; it has dim, "), ({}, "needs the option dim")],
)
def test_all_that_is_wrong_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        options_of(DESIGNS["bottleneck"], values)


@pytest.mark.parametrize("name", DESIGNS)
def test_it_takes_facts_and_options(name: str) -> None:
    needed = {"dim": 4} if "dim" in {field.name for field in fields(DESIGNS[name].Options)} else {}
    facts = Facts(width=16, other_width=16, inputs=16, tower="fusion", site="ffn")
    with torch.device("meta"):
        assert DESIGNS[name](facts, options_of(DESIGNS[name], needed))
