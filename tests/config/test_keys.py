from __future__ import annotations

import pytest

from vlatrain.config import PredictConfig, TrainConfig
from vlatrain.config.keys import all_keys, nearest, open_below, problems_in, type_of, unknown_keys


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("adapter.dmi", "adapter.dim"),
        ("dim", "adapter.dim"),
        ("lr", "optim.lr"),
        ("adaptr", "adapter"),
        ("trainer.batchsize", "trainer.batch_size"),
        ("batch_size", "trainer.batch_size"),
        ("task.decode.beams", "task.decode.num_beams"),
        ("data.colums.image", "data.columns.image"),
    ],
)
def test_the_key_that_was_meant(word: str, meant: str) -> None:
    assert nearest(word, all_keys(TrainConfig)) == meant


def test_nothing_like_it_is_no_suggestion() -> None:
    assert nearest("xyzzy", all_keys(TrainConfig)) is None


def test_types_of_dotted_keys() -> None:
    assert type_of(TrainConfig, "trainer.epochs") is int
    assert type_of(TrainConfig, "optim.groups.head") is float
    assert type_of(TrainConfig, "model.towers.vision.layers") is str
    assert type_of(PredictConfig, "texts") == list[str]
    with pytest.raises(KeyError):
        type_of(TrainConfig, "trainer.epochs.more")
    with pytest.raises(KeyError):
        type_of(TrainConfig, "texts")


def test_keys_the_user_chooses() -> None:
    assert open_below(TrainConfig, "optim.groups.head")
    assert open_below(TrainConfig, "model.config.vision_config.hidden_size")
    assert not open_below(TrainConfig, "optim.groups")
    assert not open_below(TrainConfig, "optim.lr")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter.dim", 3),
        ("adapter.dim", "3"),
        ("optim.lr", 1),
        ("adapter.points", None),
        ("adapter.points", ["vision.*.*"]),
        ("adapter.points", "${task.points}"),
        ("adapter.bias", "true"),
        ("model.config", {"a": {"b": [1]}}),
        ("model.towers", {"vision": {"layers": "x", "sites": {"attn": {"modules": {"out": "q"}}}}}),
        ("", {"adapter": {"dim": 3}, "seed": 4}),
    ],
)
def test_values_that_fit(key: str, value: object) -> None:
    assert problems_in(TrainConfig, value, key) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("adapter.dim", "abc", ["adapter.dim=abc: expected a whole number"]),
        ("adapter.dim", 1.5, ["adapter.dim=1.5: expected a whole number"]),
        ("trainer.epochs", None, ["trainer.epochs=null: expected a whole number"]),
        ("trainer.max_steps", "x", ["trainer.max_steps=x: expected a whole number or null"]),
        ("adapter.points", "vision", ["adapter.points=vision: expected a list, such as [a,b] or null"]),
        ("adapter", {"dmi": 1, "bias": "maybe"}, ["adapter.dmi", "adapter.bias=maybe: expected true or false"]),
        ("optim.groups", {"head": "fast"}, ["optim.groups.head=fast: expected a number"]),
        ("model.towers", {"vision": {"layer": "x"}}, ["there is no key model.towers.vision.layer"]),
    ],
)
def test_every_misfit_is_told(key: str, value: object, said: list[str]) -> None:
    found = problems_in(TrainConfig, value, key, source="mine.yaml")
    assert len(found) == len(said)
    for problem, part in zip(found, said, strict=True):
        assert problem.startswith("mine.yaml: ")
        assert part in problem


def test_unknown_keys_at_every_depth() -> None:
    values = {
        "foo": 1,
        "adapter": {"dim": 2, "dmi": 3},
        "data": {"columns": {"imgae": "x"}},
        "model": {"config": {"a": 1}},
    }
    assert list(unknown_keys(TrainConfig, values)) == ["foo", "adapter.dmi", "data.columns.imgae"]


def test_a_number_or_a_word_is_named_as_both() -> None:
    assert (
        problems_in(TrainConfig, "auto", "trainer.batch_size") == problems_in(TrainConfig, 3, "trainer.workers") == []
    )
    (told,) = problems_in(TrainConfig, [3], "trainer.batch_size")
    assert told == "trainer.batch_size=[3]: expected a whole number or a text"


def test_keys_of_a_mapping_may_have_dots_in_them() -> None:
    renamed = {"model": {"towers": {"vision": {"renamed": {"5.23": {"attention.o_proj": "attention.output.dense"}}}}}}
    assert problems_in(TrainConfig, renamed) == []
    renamed["model"]["towers"]["vision"]["renamed"]["5.23"]["mlp.fc1"] = ["a"]  # type: ignore[assignment]
    (problem,) = problems_in(TrainConfig, renamed)
    assert problem == "model.towers.vision.renamed.5.23.mlp.fc1=['a']: expected a text"
    assert problems_in(TrainConfig, {"task": {"nme": 1}}) == ["there is no key task.nme; did you mean task.name?"]
