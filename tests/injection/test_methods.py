"""One table of behaviour: every method on every backbone and task. A new method is a row, a new backbone one in `PLACES`.

What a method cannot do is declared with its reason: a place in `Row.unfit`, a behaviour in `Row.cannot`. The tests make
sure that it is refused, so that nothing is skipped in silence.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from tests.conftest import make_samples, small_config
from tests.injection import rows_bottleneck, rows_peft
from tests.injection.table import Row
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.fit import misfits
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig, TaskConfig, TrainConfig
from vlatrain.config.errors import Unfit
from vlatrain.injection.attach import attach, check, group_of, mixed_rows, restore, save
from vlatrain.injection.points import Sites
from vlatrain.tasks import Task, build
from vlatrain.training.modes import compile_layers, fingerprint

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
PLACES = [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval"), ("clip", "retrieval")]


ROWS: dict[str, Row] = {**rows_bottleneck.ROWS, **rows_peft.ROWS}
CASES = [pytest.param(name, place, id=f"{name}-{place[0]}-{place[1]}") for name in ROWS for place in PLACES]
table = pytest.mark.parametrize(("name", "place"), CASES)


def train_config(row: Row, place: tuple[str, str]) -> TrainConfig:
    """The whole configuration of a case."""
    config = TrainConfig(
        task=TaskConfig(name=place[1], points=["*"]), model=template(place).config, adapter=copy.deepcopy(row.config)
    )
    if row.points is not None:
        config.adapter.points = row.points
    if place[0] == "clip":
        config.task.rerank = 2
    return config


def where_of(row: Row, place: tuple[str, str]) -> Sites:
    config = train_config(row, place)
    return sites(config.model, place[1], config.points)


def fits(row: Row, place: tuple[str, str]) -> bool:
    """Whether the method can go there. If not, it is refused as declared."""
    found = misfits(train_config(row, place))
    if place in row.unfit:
        assert any(isinstance(problem, Unfit) and row.unfit[place] in problem for problem in found)
        return False
    assert not found
    return True


@cache
def template(place: tuple[str, str]) -> Backbone:
    return load(small_config(place[0]), place[1], texts=TEXTS)


def loaded(place: tuple[str, str]) -> Backbone:
    """A frozen backbone of its own."""
    return copy.deepcopy(template(place))


def adapted(row: Row, place: tuple[str, str], trained: bool = True) -> tuple[Backbone, nn.Module]:
    """A small backbone with the method; `trained` gives every trainable tensor random values."""
    backbone = loaded(place)
    check(row.config)
    torch.manual_seed(3)
    model = attach(backbone.model, row.config, where_of(row, place))
    if trained:
        randomise(model)
    return backbone, model


def randomise(model: nn.Module, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def task_of(backbone: Backbone, **decode: Any) -> Task:
    rerank = 2 if backbone.config.name == "clip" else 0
    return build(TaskConfig(name=backbone.task, rerank=rerank, decode=DecodeConfig(**decode)), backbone)


def loss_of(backbone: Backbone, samples: Any = None) -> float:
    torch.manual_seed(0)  # hard negatives are drawn
    task = task_of(backbone)
    with torch.no_grad():
        return float(task.loss(task.collate(samples or make_samples())))


def gradients(backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(0)
    task = task_of(backbone)
    model.zero_grad(set_to_none=True)
    task.loss(task.collate(make_samples())).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@table
def test_starts_as_the_frozen_model_and_trains_only_its_own(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    if not fits(row, place):
        return
    before = loss_of(loaded(place))
    backbone, model = adapted(row, place, trained=False)
    if row.inexact:
        assert loss_of(backbone) == pytest.approx(before, rel=1e-3), row.inexact
    else:
        assert loss_of(backbone) == before
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == row.count(where_of(row, place))
    randomise(model)
    assert loss_of(backbone) != before
    frozen = fingerprint(model)
    for key, gradient in gradients(backbone, model).items():
        assert group_of(key) == "adapter", key
        assert gradient is not None, key
        assert bool(gradient.abs().sum() > 0), key
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert fingerprint(model) == frozen


@table
def test_saves_exactly_its_own_and_loads_everywhere(name: str, place: tuple[str, str], tmp_path: Path) -> None:
    row = ROWS[name]
    if not fits(row, place):
        return
    backbone, model = adapted(row, place)
    save(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    trained = {key.replace(".default", "") for key, parameter in model.named_parameters() if parameter.requires_grad}
    extra = {key for key in stored if key not in trained}
    assert trained <= set(stored), "everything that is trained is saved"
    fixed = {key.replace(".default", "") for key, _ in model.named_buffers() if "vlatrain_unit" in key}
    assert extra <= fixed, "and nothing else but what the adapter has drawn for good"
    expected = loss_of(backbone)
    one, two, three = (loaded(place) for _ in range(3))
    PeftModel.from_pretrained(one.model, str(tmp_path))
    two.model.load_adapter(str(tmp_path))
    restore(three.model, row.config, tmp_path)
    assert [loss_of(other) for other in (one, two, three)] == [expected] * 3
    four = loaded(place)
    PeftModel.from_pretrained(four.model, str(tmp_path), low_cpu_mem_usage=True)
    assert loss_of(four) == expected


@table
def test_switches_disables_deletes_and_unloads(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    if not fits(row, place):
        return
    base = loss_of(loaded(place))
    backbone, model = adapted(row, place)
    first = loss_of(backbone)
    with model.disable_adapter():
        assert loss_of(backbone) == base
    assert loss_of(backbone) == first
    model.add_adapter("another", copy.deepcopy(model.peft_config["default"]))
    assert loss_of(backbone) == first
    model.set_adapter("another")
    randomise(model, seed=6)
    second = loss_of(backbone)
    assert len({base, first, second}) == 3
    model.set_adapter("default")
    assert loss_of(backbone) == first
    assert all("another" not in key for key, parameter in model.named_parameters() if parameter.requires_grad)
    model.delete_adapter("another")
    assert not any("another" in key for key, _ in model.named_parameters())
    assert loss_of(backbone) == first
    keys = set(loaded(place).model.state_dict())
    assert set(model.unload().state_dict()) == keys
    assert loss_of(backbone) == base
    assert not any(module._forward_hooks for module in backbone.model.modules()), "no hook is left behind"


@table
def test_a_batch_of_several_adapters(name: str, place: tuple[str, str]) -> None:
    """Rows without any included; with beams, where there is generation."""
    row = ROWS[name]
    if not fits(row, place) or place[1] == "retrieval":
        return  # its loss and its scores are of the batch as a whole
    backbone, model = adapted(row, place)
    model.add_adapter("another", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("another")
    randomise(model, seed=6)
    model.set_adapter("default")
    model.eval()
    names = ["default", "another", "__base__", "another"]
    samples = make_samples()[:4]
    task = task_of(backbone, num_beams=2, max_new_tokens=4)
    batch = task.questions(samples) if place[1] == "vqa" else task.images(samples)  # type: ignore[attr-defined]
    if "rows" in row.cannot:
        with pytest.raises(ValueError), torch.no_grad(), mixed_rows(model, names):  # noqa: PT011, each has its own words
            answers(task, batch)
        return
    with torch.no_grad():
        with mixed_rows(model, names):
            mixed = answers(task, batch)
        alone = {}
        for adapter in ("default", "another"):
            model.set_adapter(adapter)
            alone[adapter] = answers(task, batch)
        with model.disable_adapter():
            alone["__base__"] = answers(task, batch)
    assert mixed == [alone[adapter][index] for index, adapter in enumerate(names)]


def answers(task: Task, batch: Any) -> list[Any]:
    """What is generated: texts, and for answers their probabilities, rounded."""
    if task.name == "captioning":
        return task.caption(batch)  # type: ignore[attr-defined, no-any-return]
    return [[(text, round(p, 4)) for text, p in row] for row in task.answer(batch)]  # type: ignore[attr-defined]


@table
def test_generates_the_same_with_and_without_a_cache(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    if not fits(row, place) or place[1] == "retrieval":
        return
    backbone, _model = adapted(row, place)
    found = []
    for use_cache in (True, False):
        backbone.model.text_decoder.generation_config.use_cache = use_cache
        for beams in (1, 3):
            task = task_of(backbone, num_beams=beams, max_new_tokens=5, min_new_tokens=5)
            samples = make_samples()
            batch = task.questions(samples) if place[1] == "vqa" else task.images(samples)  # type: ignore[attr-defined]
            with torch.no_grad():
                found.append(answers(task, batch))
    assert found[:2] == found[2:]


@table
def test_gradient_checkpointing_changes_no_gradient(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    if not fits(row, place):
        return
    found = []
    for checkpointing in (False, True):
        backbone, model = adapted(row, place)
        if checkpointing:
            backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            backbone.model.disable_input_require_grads()
            backbone.model.train()  # transformers checkpoints in train mode only; these models have no dropout
        found.append(gradients(backbone, model))
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key])


@table
def test_runs_in_a_bf16_trunk(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    if not fits(row, place):
        return
    backbone, model = adapted(row, place)
    expected = loss_of(backbone)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(backbone) == pytest.approx(expected, rel=0.2)
        found = gradients(backbone, model)
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in found.values())


@pytest.mark.slow
@table
def test_compiles_without_a_graph_break(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    if not fits(row, place):
        return
    if "compile" in row.cannot:
        return
    torch._dynamo.reset()
    backbone, model = adapted(row, place)
    model.eval()
    expected = loss_of(backbone)
    config = small_config(place[0])
    towers = [config.towers[tower].layers for tower in config.tasks[place[1]].towers]
    layers = [layer for path in towers for layer in backbone.model.get_submodule(path).children()]
    compile_layers(layers, backend="eager", fullgraph=True)
    assert loss_of(backbone) == pytest.approx(expected, rel=1e-4)
