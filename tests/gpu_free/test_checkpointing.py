"""Gradient checkpointing changes what is kept, and nothing of what is computed, on every family."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from tests.commands import MOMENT, losses_of, small_model, tiny_run
from tests.conftest import adapter_config, make_samples
from tests.gpu_free.families import BY_FAMILY, NAMES, config_of, set_up, task_of, with_dropout
from vlatrain.backbones.describe import sites
from vlatrain.backbones.quantise import layers_of
from vlatrain.injection.attach import attach
from vlatrain.training.modes import checkpoint_gradients, train_mode, trainable


def trained(name: str, checkpointing: bool) -> tuple[float, dict[str, Tensor | None], Counter[int]]:
    """Loss and gradients of adapters everywhere, and how often each layer was computed."""
    backbone, settings = set_up(config_of(name))
    config, layers = backbone.config, layers_of(backbone.model, backbone.config, settings.name)
    with_dropout(backbone.model)
    model = attach(backbone.model, adapter_config("bottleneck", dim=4), sites(config, settings.name, ["*"]))
    for number, parameter in enumerate(trainable(model).values()):
        generator = torch.Generator().manual_seed(number)
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    calls: Counter[int] = Counter()
    for number, layer in enumerate(layers):
        inside = next(module for module in layer.modules() if not list(module.children()))
        inside.register_forward_hook(lambda *_, number=number: calls.update([number]))
    if checkpointing:
        checkpoint_gradients(model, layers)
    task = task_of(backbone, settings)
    train_mode(model)
    torch.manual_seed(5)
    loss = task.loss(task.collate(make_samples()[:4]))
    loss.backward()
    return loss.item(), {key: parameter.grad for key, parameter in trainable(model).items()}, calls


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_equal_with_and_without_it(name: str) -> None:
    loss, gradients, calls = trained(name, checkpointing=False)
    again, recomputed, more = trained(name, checkpointing=True)
    assert again == loss, "the frozen trunk drops out"
    assert {key for key, gradient in recomputed.items() if gradient is None} == {
        key for key, gradient in gradients.items() if gradient is None
    }
    for key, gradient in gradients.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-5, atol=1e-6, msg=key)
    # but for one whose output nobody wants: LLaVA takes the states of the last layer but one
    assert sum(more[number] == 2 * calls[number] for number in calls) >= len(calls) - 1


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, 8, 4])
@pytest.mark.parametrize("name", BY_FAMILY)
def test_a_run_in_bf16_is_the_same_with_and_without_it(name: str, quantize: int | None, tmp_path: Path) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes")
    words = [*small_model(tmp_path / "conf", name), "trainer.precision=bf16", "trainer.cache=off", *MOMENT]
    words += [f"model.quantize={quantize or 'null'}"]
    task = next(iter(config_of(name).tasks))
    losses, calls = [], []
    for checkpointing in (False, True):
        done: Counter[str] = Counter()
        with register_module_forward_hook(lambda *_, done=done: done.update(["forward"])):
            run = tiny_run(
                tmp_path / f"{checkpointing}", task, *words, f"trainer.gradient_checkpointing={checkpointing}"
            )
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        losses.append(losses_of(run))
        calls.append(done.total())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert calls[1] > calls[0], "layers are computed again"
