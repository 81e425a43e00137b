"""Ladder side-tuning: the formula, what it starts from, and that nothing goes back through the trunk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples, small_config
from tests.numerics import assert_close
from vlatrain.adapters.base import Call
from vlatrain.adapters.ladder import Ladder, largest
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import ModelConfig, TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.injection.attach import attach
from vlatrain.injection.context import context_of
from vlatrain.tasks import build

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
PLACES = [("blip", "vqa"), ("blip", "captioning"), ("blip", "retrieval"), ("clip", "retrieval")]


def deeper(name: str) -> ModelConfig:
    """A small backbone whose towers have four layers."""
    config = small_config(name)
    for part in ("vision_config", "text_config"):
        config.config[part]["num_hidden_layers"] = 4
    return config


def adapted(config: ModelConfig, task: str, points: list[str]) -> tuple[Backbone, nn.Module]:
    backbone = load(config, task, texts=TEXTS)
    model = attach(backbone.model, adapter_config("ladder"), sites(config, task, points))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return backbone, model


def loss_of(backbone: Backbone) -> Tensor:
    torch.manual_seed(0)
    task = build(TaskConfig(name=backbone.task), backbone)
    return task.loss(task.collate(make_samples()))


def layers_of(backbone: Backbone) -> list[nn.Module]:
    config = backbone.config
    return [
        layer
        for tower in config.tasks[backbone.task].towers
        for layer in backbone.model.get_submodule(config.towers[tower].layers).children()
    ]


def test_is_the_formula() -> None:
    torch.manual_seed(0)
    rungs = [adapter_of(Ladder, 8, scaling=2.0, reduction=2, first=index == 0, last=index == 1) for index in range(2)]
    for parameter in (parameter for rung in rungs for parameter in rung.parameters()):
        nn.init.normal_(parameter)
    trunk = torch.randn(2, 3, 5, 8)  # the outputs of two layers
    side = None
    for rung, states in zip(rungs, trunk, strict=True):
        down = states @ rung.down.weight.T + rung.down.bias
        share = 1.0 if rung.gate is None else torch.sigmoid(rung.gate / 0.1)
        side = down if side is None else share * down + (1 - share) * side
        normed = layer_norm(side, (4,), rung.norm.weight, rung.norm.bias)
        side = side + gelu(normed @ rung.inner.weight.T + rung.inner.bias) @ rung.out.weight.T + rung.out.bias
    expected = 2 * (side @ rungs[1].up.weight.T + rungs[1].up.bias)
    carried: dict[str, Any] = {}
    assert rungs[0](trunk[0], Call(carried=carried)) is None
    assert_close(rungs[1](trunk[1], Call(carried=carried)), expected)
    assert not carried, "the states are handed on, not kept"


def test_counted() -> None:
    rungs = [adapter_of(Ladder, 32, first=not index, last=index == 2) for index in range(3)]
    assert sum(p.numel() for rung in rungs for p in rung.parameters()) == Ladder.count(32, 3)
    assert Ladder.count(768, 12) == 5_475_083  # BLIP-base's decoder


def test_starts_from_the_trunks_largest_rows() -> None:
    assert largest(torch.tensor([[1.0, -1.0], [0.5, 0.0], [-3.0, 0.0]]), 2).tolist() == [0, 2]
    inner, out = nn.Linear(8, 32), nn.Linear(32, 8)
    rung = adapter_of(Ladder, 8, reduction=4)  # a side of 2, an inner layer of 8
    rung.adopt({"ffn.inner": inner, "ffn.out": out})
    states, hidden = largest(out.weight, 2), largest(inner.weight, 8)
    for row, i in enumerate(hidden):
        assert rung.inner.bias[row] == inner.bias[i]
        for column, j in enumerate(states):
            assert rung.inner.weight[row, column] == inner.weight[i, j]
            assert rung.out.weight[column, row] == out.weight[j, i]
    assert torch.equal(rung.out.bias, out.bias[states])


@pytest.mark.parametrize(
    "frozen", [{}, {"ffn.inner": nn.Linear(8, 4), "ffn.out": nn.Linear(4, 8)}], ids=["none", "narrow"]
)
def test_without_weights_to_start_from_it_is_drawn(frozen: dict[str, nn.Module]) -> None:
    rung = adapter_of(Ladder, 8, reduction=4)
    before = copy.deepcopy(rung.state_dict())
    rung.adopt(frozen)
    assert all(torch.equal(before[name], tensor) for name, tensor in rung.state_dict().items())
    assert all(rung.inner.weight.flatten() != 0)


def test_what_is_attached_has_started_from_the_trunk() -> None:
    config = small_config("blip")
    backbone = load(config, "captioning", texts=TEXTS)
    attach(backbone.model, adapter_config("ladder"), sites(config, "captioning", ["end"]))
    layer = backbone.model.text_decoder.bert.encoder.layer[1]
    rows = largest(layer.intermediate.dense.weight, 32)
    assert torch.equal(layer.adapter.units["default"].inner.bias, layer.intermediate.dense.bias[rows])
    columns = largest(layer.output.dense.weight, 8)
    assert torch.equal(layer.adapter.units["default"].inner.weight, layer.intermediate.dense.weight[rows][:, columns])


@pytest.mark.parametrize("place", PLACES, ids="-".join)
@pytest.mark.parametrize("points", [["end"], ["end.{1,3}"]], ids=["every layer", "layers dropped"])
def test_nothing_goes_back_through_the_trunk(place: tuple[str, str], points: list[str]) -> None:
    backbone, model = adapted(deeper(place[0]), place[1], points)
    seen: list[tuple[str, Tensor]] = []
    chosen = {f"{path}" for path in model.peft_config["default"].target_modules}
    trunk = [name for name, _ in backbone.model.named_modules() if any(name.startswith(f"{path}.") for path in chosen)]
    for name in trunk:
        if ".adapter" not in name:
            module = backbone.model.get_submodule(name)
            module.register_forward_hook(lambda module, args, output, name=name: seen.append((name, output)))
    for name in chosen:
        layer = backbone.model.get_submodule(name)
        layer.forward = recording(layer.forward, name, seen)  # its output before the side adds to it
    loss = loss_of(backbone)
    assert len(seen) > 10 * len(chosen)
    for name, output in seen:
        for tensor in output if isinstance(output, tuple) else (output,):
            assert not isinstance(tensor, Tensor) or (tensor.grad_fn is None and not tensor.requires_grad), name
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def recording(forward: Any, name: str, seen: list[tuple[str, Tensor]]) -> Any:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.append((name, output))
        return output

    return recorded


def test_states_do_not_outlive_their_call() -> None:
    backbone, _model = adapted(small_config("blip"), "retrieval", ["end"])
    expected = loss_of(backbone)
    assert all(not carried for carried in context_of(backbone.model).call.carried.values())
    last = backbone.model.text_encoder.encoder.layer[1]
    handle = last.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        loss_of(backbone)
    handle.remove()
    assert torch.equal(loss_of(backbone), expected)


def test_a_copy_has_a_side_of_its_own() -> None:
    backbone, model = adapted(small_config("clip"), "retrieval", ["end"])
    before = loss_of(backbone)
    other = copy.deepcopy(model)
    assert context_of(other) is not context_of(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert torch.equal(loss_of(backbone), before)


def test_hidden_states_can_be_recorded() -> None:
    backbone, _model = adapted(small_config("clip"), "retrieval", ["end"])
    pixels = backbone.pixels([sample.image.load() for sample in make_samples()])
    output = backbone.model.vision_model(pixel_values=pixels, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert all(states.grad_fn is None for states in output.hidden_states[1:3])
    assert output.hidden_states[3].grad_fn is not None
    norm = backbone.model.vision_model.post_layernorm
    assert_close(norm(output.hidden_states[-1][:, 0]), output.pooler_output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": ["end.0"]}, "the last layer of decoder, 1, must be among its points"),
        ({"points": ["vision", "end"]}, "only towers that end in a head (decoder), and not vision"),
        ({"drop_layers": 1}, "adapter.drop_layers"),
        ({"drop_random": 1}, "adapter.drop_random"),
    ],
)
def test_refused_by_name_before_anything_loads(changes: dict[str, Any], message: str) -> None:
    config = TrainConfig(task=TaskConfig(name="captioning"), model=small_config("blip"))
    config.adapter = adapter_config("ladder", **changes)
    (problem,) = incompatibilities(config)
    assert message in problem
    assert isinstance(problem, Incompatible) == ("last layer" not in message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 9}, "from 1 to 8"),
        ({"temperature": 0.0}, "more than 0"),
        ({"activation": "gelo"}, "must be one of"),
    ],
)
def test_unknown_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_of(Ladder, 8, **options)
