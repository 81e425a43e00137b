"""Adapters' weights cast all together give what autocast's casts give, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples, small_config
from vlatrain.adapters.bottleneck import Bottleneck
from vlatrain.adapters.projections import Dense
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig
from vlatrain.injection.attach import save
from vlatrain.runs import RunFolder
from vlatrain.training.lowering import Lowering, lower_for_good
from vlatrain.training.setup import keep_processor, load_setup, new_setup

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


class Model(nn.Module):
    """A frozen layer between adapters: two that share a half, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = (adapter_of(Bottleneck, 24, 5, init="normal") for _ in range(3))
        self.second.down = self.first.down
        self.trunk = nn.Linear(24, 24).requires_grad_(False)
        self.first.up.projection.bias.requires_grad_(False)  # type: ignore[union-attr, union-attr]

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.first(states)
        states = self.trunk(states)
        return (states + self.second(states)).float().square().mean()


def plainly(model: Model, states: Tensor) -> Tensor:
    return model(states)


def checkpointed(model: Model, states: Tensor) -> Tensor:
    return checkpoint(model, states, use_reentrant=False)  # type: ignore[return-value]


@pytest.mark.parametrize("run", [plainly, checkpointed])
def test_loss_and_gradients_are_those_of_autocast(run: Callable[[Model, Tensor], Tensor]) -> None:
    one = Model()
    two = copy.deepcopy(one)
    lowering, states = Lowering(two), torch.randn(2, 2, 7, 24)
    for micro_batch in states:  # two of a step
        with torch.autocast(**BF16):
            expected = run(one, micro_batch)
        expected.backward()
        with torch.autocast(**BF16), lowering:
            assert two.first.down.projection.lowered[0].dtype == torch.bfloat16  # type: ignore[index, union-attr]
            loss = run(two, micro_batch)
        loss.backward()
        assert torch.equal(loss, expected)
    gradients = {name: parameter.grad for name, parameter in two.named_parameters()}
    assert gradients["idle.up.projection.weight"] is None
    for name, parameter in one.named_parameters():
        assert (gradients[name] is None) == (parameter.grad is None), name
        assert parameter.grad is None or torch.equal(gradients[name], parameter.grad), name  # type: ignore[arg-type]
    copy.deepcopy(two)  # nothing of the step is left


def test_without_autocast_weights_are_as_they_are() -> None:
    model, states = Model(), torch.randn(2, 7, 24)
    expected = model(states)
    with Lowering(model):
        assert torch.equal(model(states), expected)
    lower_for_good(model, torch.bfloat16)
    assert torch.equal(model(states), expected)


def test_a_model_that_trains_no_more_is_cast_once() -> None:
    model, states = Model().requires_grad_(False), torch.randn(2, 7, 24)
    with torch.autocast(**BF16):
        expected = model(states)
        lower_for_good(model, torch.bfloat16)
        assert torch.equal(model(states), expected)
    layers = [layer for layer in model.modules() if isinstance(layer, Dense)]
    assert {layer.lowered[0].dtype for layer in layers if layer.lowered} == {torch.bfloat16}
    assert {layer.weight.dtype for layer in layers} == {torch.float32}


def test_a_finished_run_is_cast_once_for_all(tmp_path: Path) -> None:
    config = TrainConfig(
        task=TaskConfig(name="retrieval", points=["text"]),
        model=small_config("clip"),
        adapter=adapter_config("bottleneck", dim=2),
        trainer=TrainerConfig(device="cpu"),
    )
    setup = new_setup(config, {"train": make_samples()})
    keep_processor(setup, tmp_path)
    save(setup.model, RunFolder(tmp_path).adapter)
    for precision, dtypes in (("bf16", {torch.bfloat16}), ("fp32", set())):
        model = load_setup(config, tmp_path, torch.device("cpu"), precision).model
        layers = [layer for layer in model.modules() if isinstance(layer, Dense)]
        assert len(layers) == 2 * 2 * 2, "two layers, two places each, down and up"
        assert {layer.lowered[0].dtype for layer in layers if layer.lowered} == dtypes
