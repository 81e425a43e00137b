from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from vlatrain.cli.overrides import Request, aliased, joined, quoted
from vlatrain.config import TrainConfig, UserError
from vlatrain.runs import save_config

PARSER = OverridesParser.create()


@given(st.text("ab \\\"',()[]{}=:$&é", min_size=1))
def test_quoting_survives_hydras_grammar(text: str) -> None:
    assert PARSER.parse_override(f"question={quoted(text)}").value() == text


@pytest.mark.parametrize("text", ["what's this, (really)?", "a\\", "\\'", "it's \\\\' odd\\\\", "[a,b]", "a=b"])
def test_quoting_of_known_troubles(text: str) -> None:
    assert PARSER.parse_override(f"question={quoted(text)}").value() == text


def test_run_becomes_source_and_texts_a_list(tmp_path: Path) -> None:
    run = tmp_path / "my run, the (first)"
    save_config(TrainConfig(), run)
    typed = [f"run={run}", "question=why, though?", "texts=labels.txt", "task.decode.num_beams=2", "image='a b.jpg'"]
    assert aliased(Request("predict", typed)) == [
        f"source={quoted(str(run))}",
        "question='why, though?'",
        "texts=['labels.txt']",
        "task.decode.num_beams=2",
        "image='a b.jpg'",
    ]


def test_training_overrides_stay_as_typed() -> None:
    assert aliased(Request("train", ["run.name=x", "adapter.dim=3"])) == ["run.name=x", "adapter.dim=3"]


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_run_is_required(verb: str) -> None:
    with pytest.raises(UserError, match="run=FOLDER"):
        aliased(Request(verb, []))


def test_choices_are_joined_again() -> None:
    assert joined(["adapter.dim=1", "adapter.dim=2"]) == "adapter.dim=1,2"
    assert joined(["~logger"]) == "~logger"
