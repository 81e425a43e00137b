"""One table of behaviour: every method on every backbone and task. A new method is a row, a new backbone one in `PLACES`.

What a method cannot do is declared with its reason: a place in `Row.unfit`, a behaviour in `Row.cannot`. The tests make
sure that it is refused, so that nothing is skipped in silence.
"""

from __future__ import annotations

import copy
import math
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from tests.conftest import copied, make_samples, small_config
from tests.injection import (
    rows_bottleneck,
    rows_cross_modal,
    rows_features,
    rows_fusion,
    rows_mixed,
    rows_peft,
    rows_shared,
    rows_structural,
)
from tests.injection.table import Row, randomise
from tests.numerics import assert_close, near
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.backbones.quantise import layers_of
from vlatrain.config import DecodeConfig, TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.injection.attach import attach, check, group_of, mixed_rows, restore, save
from vlatrain.injection.older_peft import CURRENT
from vlatrain.injection.points import Sites
from vlatrain.injection.sources import TRUNK
from vlatrain.injection.trunk import load_trunk
from vlatrain.tasks import Task, build
from vlatrain.training.modes import checkpoint_gradients, compile_layers, fingerprint

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
PLACES = [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval"), ("clip", "retrieval")]
BY_SAMPLE = [place for place in PLACES if place[1] != "retrieval"]  # whose loss and scores are of the batch as a whole
TOPICS = (
    rows_bottleneck,
    rows_cross_modal,
    rows_features,
    rows_fusion,
    rows_mixed,
    rows_peft,
    rows_shared,
    rows_structural,
)
ROWS: dict[str, Row] = {name: row for topic in TOPICS for name, row in topic.ROWS.items()}
REFUSED = [(name, place, reason) for name, row in ROWS.items() for place, reason in row.unfit.items()]


def is_variant(name: str) -> bool:
    """Whether a row is another setting of a design that has a row, or one more of PEFT's methods: the same mechanism."""
    return name != ROWS[name].config.name or (name in rows_peft.ROWS and name != "lora")


def cells(
    variants: bool = False, both_ends: bool = False, places: Sequence[tuple[str, str]] = PLACES
) -> pytest.MarkDecorator:
    """The cells of a behaviour: every method at each of the places that it can go to. What differs from a quick one by the place,
    or as a variant, is slow. Quick is a method's last place, which is the smallest model.

    Args:
        variants: whether it is quick for variants, too.
        both_ends: whether it is quick at a method's first place, too.
        places: those at which the behaviour can be asked for.
    """
    found = []
    for name, row in ROWS.items():
        own = [place for place in places if place not in row.unfit]
        chosen = {*own[-1:], *own[: both_ends and not is_variant(name)]}
        for place in own:
            quick = place in chosen and (variants or not is_variant(name))
            marks = [] if quick else [pytest.mark.slow]
            found.append(pytest.param(name, place, id=f"{name}-{'-'.join(place)}", marks=marks))
    return pytest.mark.parametrize(("name", "place"), found)


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


@cache
def template(place: tuple[str, str]) -> Backbone:
    return load(small_config(place[0]), place[1], texts=TEXTS)


def loaded(place: tuple[str, str]) -> Backbone:
    """A frozen backbone of its own."""
    return copied(template(place))


def adapted(row: Row, place: tuple[str, str], trained: bool = True) -> tuple[Backbone, nn.Module]:
    """A small backbone with the method; `trained` gives every trainable tensor random values."""
    backbone = loaded(place)
    assert not incompatibilities(train_config(row, place))
    check(row.config)
    torch.manual_seed(3)
    model = attach(backbone.model, row.config, where_of(row, place))
    if trained:
        randomise(model)
    return backbone, model


def folders_of(folder: Path) -> list[Path]:
    """Where `save` has put what PEFT can load: the folder itself, or of a mixed method one for each component, PEFT's first."""
    if (folder / "adapter_config.json").is_file():
        return [folder]
    found = [file.parent for file in folder.glob("*/adapter_config.json")]
    return sorted(found, key=lambda component: PeftConfig.from_pretrained(str(component)).peft_type == "VLATRAIN")


def task_of(backbone: Backbone, **decode: Any) -> Task:
    rerank = 2 if backbone.config.name == "clip" else 0
    return build(TaskConfig(name=backbone.task, rerank=rerank, decode=DecodeConfig(**decode)), backbone)


def loss_of(backbone: Backbone, samples: Any = None) -> float:
    backbone.model.eval()  # LoHa and LoKr draw a number in train mode, which would change the next draw
    torch.manual_seed(0)  # hard negatives are drawn
    task = task_of(backbone)
    batch = task.collate(samples or make_samples())
    with torch.no_grad():
        if backbone.config.name != "clip":
            return float(task.loss(batch))
        # only with adapters that read the image is there a matching loss: the pairs' own scores can always be compared
        task.config.matching = False
        states = backbone.image_features(batch["inputs"])[1][batch["group_index"]]  # type: ignore[attr-defined]
        return float(task.loss(batch)) + float(backbone.match(states, batch["text"]).mean())  # type: ignore[attr-defined]


def gradients(backbone: Backbone, model: nn.Module) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(0)
    task = task_of(backbone)
    model.zero_grad(set_to_none=True)
    loss = task.loss(task.collate(make_samples()))
    if any(parameter.requires_grad for parameter in model.parameters()):
        loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "place", "reason"), REFUSED, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_is_refused_where_it_cannot_go(name: str, place: tuple[str, str], reason: str) -> None:
    found = incompatibilities(train_config(ROWS[name], place))
    assert any(isinstance(problem, Incompatible) and reason in problem for problem in found)


@cells(variants=True, both_ends=True)
def test_starts_as_the_frozen_model_and_trains_only_its_own(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    before = loss_of(loaded(place))
    backbone, model = adapted(row, place, trained=False)
    if row.tolerance == math.inf:
        assert loss_of(backbone) != before, row.inexact
    elif row.inexact:
        assert loss_of(backbone) == pytest.approx(before, rel=row.tolerance), row.inexact
    else:
        assert loss_of(backbone) == before
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == row.count(where_of(row, place))
    assert (trainable == 0) == ("train" in row.cannot)
    randomise(model)
    assert loss_of(backbone) != before
    frozen = fingerprint(model)
    for key, gradient in gradients(backbone, model).items():
        assert group_of(key) == "adapter" or (row.config.trunk and group_of(key) == "trunk"), key
        assert gradient is not None, key
        assert bool(gradient.abs().sum() > 0), key
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert fingerprint(model) == frozen


@cells(variants=True)
def test_saves_exactly_its_own_and_loads_everywhere(name: str, place: tuple[str, str], tmp_path: Path) -> None:
    row = ROWS[name]
    backbone, model = adapted(row, place)
    save(model, tmp_path)
    folders = folders_of(tmp_path)
    stored = {key for folder in folders for key in load_file(folder / "adapter_model.safetensors")}
    if row.config.trunk:
        stored |= {f"base_model.model.{key}" for key in load_file(tmp_path / TRUNK)}
    trained = {key.replace(".default", "") for key, parameter in model.named_parameters() if parameter.requires_grad}
    trained = {re.sub(*row.renamed, key) if row.renamed[0] else key for key in trained}
    extra = {key for key in stored if key not in trained}
    if row.fixed:
        drawn_by_peft = {key for key in extra if re.search(row.fixed, key)}
        assert drawn_by_peft, "declared, but not there"
        extra -= drawn_by_peft
    assert trained <= stored, "everything that is trained is saved"
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    drawn = [*frozen, *(key for key, _ in model.named_buffers())]
    fixed = {key.replace(".default", "") for key in drawn if "vlatrain_unit" in key}
    assert extra <= fixed, "and nothing else but what of the adapter is fixed for good"
    expected = loss_of(backbone)
    one, other = loaded(place), loaded(place)
    load_trunk(one.model, tmp_path)  # without a file for it, nothing happens
    for folder in folders:
        PeftModel.from_pretrained(one.model, str(folder))
    restore(other.model, row.config, tmp_path)
    assert [loss_of(one), loss_of(other)] == [expected] * 2


@cache
def loads_lora(place: tuple[str, str]) -> bool:
    """Whether transformers, with the PEFT that is here, loads PEFT's own LoRA."""
    backbone, model = adapted(ROWS["lora"], place)
    other = loaded(place)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        other.model.load_adapter(folder)
        return loss_of(other) == near(loss_of(backbone), other.model)


@cells()
def test_loads_with_transformers_alone(name: str, place: tuple[str, str], tmp_path: Path) -> None:
    row = ROWS[name]
    if not CURRENT and not loads_lora(place):
        pytest.skip(
            f"transformers {transformers.__version__} with PEFT {peft.__version__} loads not even a LoRA of PEFT's"
        )
    backbone, model = adapted(row, place)
    save(model, tmp_path)
    expected = loss_of(backbone)
    other = loaded(place)
    load_trunk(other.model, tmp_path)
    if "transformers" in row.cannot:
        try:
            other.model.load_adapter(str(tmp_path))
        except ValueError as error:
            assert re.search("does not support|file not found", str(error))  # noqa: PT017, others are loaded, but wrongly
        else:
            assert loss_of(other) != expected, "it can"
    else:
        other.model.load_adapter(str(tmp_path))
        # transformers leaves the tensors where they are in the file, aligned to 8 bytes, which may change how they are summed
        assert loss_of(other) == near(expected, other.model)


@cells()
def test_loads_with_the_tensors_of_the_file_in_place(name: str, place: tuple[str, str], tmp_path: Path) -> None:
    backbone, model = adapted(ROWS[name], place)
    save(model, tmp_path)
    expected = loss_of(backbone)
    other = loaded(place)
    load_trunk(other.model, tmp_path)
    for folder in folders_of(tmp_path):
        PeftModel.from_pretrained(other.model, str(folder), low_cpu_mem_usage=True)
    assert loss_of(other) == near(expected, other.model)  # as with transformers: other alignment


@cells()
def test_switches_disables_deletes_and_unloads(name: str, place: tuple[str, str], tmp_path: Path) -> None:
    row = ROWS[name]
    backbone, model = adapted(row, place)
    frozen = loaded(place)
    save(model, tmp_path)
    load_trunk(frozen.model, tmp_path)  # what of the trunk has trained stays as it is, whatever becomes of the adapter
    base = loss_of(frozen)
    first = loss_of(backbone)
    with model.disable_adapter():
        assert loss_of(backbone) == base
    assert loss_of(backbone) == first
    if "names" in row.cannot:
        assert not hasattr(model, "add_adapter")
    else:
        switches(row, backbone, model, base, first)
    keys = set(loaded(place).model.state_dict())
    assert set(model.unload().state_dict()) == keys
    assert loss_of(backbone) == base
    assert not any(module._forward_hooks for module in backbone.model.modules()), "no hook is left behind"


def switches(row: Row, backbone: Backbone, model: Any, base: float, first: float) -> None:
    """Add a second adapter, switch to it and back, and delete it."""
    model.add_adapter("another", copy.deepcopy(model.peft_config["default"]))
    row.finish(model, "another")
    assert loss_of(backbone) == first
    model.set_adapter("another")
    for key, parameter in model.named_parameters():
        if group_of(key) == "trunk":  # there is but one, for both
            parameter.requires_grad_(False)
    randomise(model, seed=6)
    second = loss_of(backbone)
    assert len({base, first, second}) == 3
    model.set_adapter("default")
    assert loss_of(backbone) == first
    assert all("another" not in key for key, parameter in model.named_parameters() if parameter.requires_grad)
    model.delete_adapter("another")
    assert not any("another" in key for key, _ in model.named_parameters())
    assert loss_of(backbone) == first


@cells(places=BY_SAMPLE)
def test_a_batch_of_several_adapters(name: str, place: tuple[str, str]) -> None:
    """Rows without any included; with beams, where there is generation."""
    row = ROWS[name]
    backbone, model = adapted(row, place)
    if "names" not in row.cannot:
        model.add_adapter("another", copy.deepcopy(model.peft_config["default"]))
        row.finish(model, "another")
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
    assert_same(mixed, [alone[adapter][index] for index, adapter in enumerate(names)], backbone)


def answers(task: Task, batch: Any) -> list[Any]:
    """What is generated for each sample: texts, each with its probability."""
    return task.caption(batch) if task.name == "captioning" else task.answer(batch)  # type: ignore[attr-defined, no-any-return]


def assert_same(found: list[Any], expected: list[Any], backbone: Backbone) -> None:
    """The same texts, their probabilities up to rounding."""
    for one, other in zip(found, expected, strict=True):
        assert [text for text, _ in one] == [text for text, _ in other]
        assert [p for _, p in one] == near([p for _, p in other], backbone.model, scale=1.0)


@cells(places=BY_SAMPLE)
def test_generates_the_same_with_and_without_a_cache(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
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
    for cached, whole in zip(found[:2], found[2:], strict=True):
        assert_same(cached, whole, backbone)


@cells()
def test_gradient_checkpointing_changes_no_gradient(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    found = []
    for checkpointing in (False, True):
        backbone, model = adapted(row, place)
        if checkpointing:
            checkpoint_gradients(backbone.model, layers_of(backbone.model, backbone.config, backbone.task))
        found.append(gradients(backbone, model))
    assert_close(*found, backbone.model)


@cells()
def test_runs_in_a_bf16_trunk(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    backbone, model = adapted(row, place)
    expected = loss_of(backbone)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(backbone) == pytest.approx(expected, rel=0.2, abs=0.05)
        found = gradients(backbone, model)
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in found.values())


@pytest.mark.slow
@cells()
def test_compiles_without_a_graph_break(name: str, place: tuple[str, str]) -> None:
    row = ROWS[name]
    torch._dynamo.reset()
    backbone, model = adapted(row, place)
    model.eval()
    expected = loss_of(backbone)
    config = small_config(place[0])
    towers = [config.towers[tower].layers for tower in config.tasks[place[1]].towers]
    layers = [layer for path in towers for layer in backbone.model.get_submodule(path).children()]
    compile_layers(layers, backend="eager", fullgraph=True)
    if "compile" in row.cannot:
        with pytest.raises((TorchDynamoException, RuntimeError)):
            loss_of(backbone)
        return
    assert loss_of(backbone) == near(expected, backbone.model)
