"""What `trainer.low_norms=true` saves and what it costs, by backbone: `python scripts/compare_norms.py [BACKBONE ...]`

Saved: kernels and casts of a forward pass on a GPU, counted on fake CUDA. Cost: how far the loss of a batch, and the gradients of
adapters everywhere, are from those of fp32 with the same rounded weights, computed on the CPU by CUDA's rule (layer norms in fp32)
and with low norms. The backbones are the tests' small ones, with random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tests.conftest import adapter_config, make_samples
from tests.fake_cuda import forward, unavailable
from tests.gpu_free.families import NAMES, config_of, set_up, task_of
from vlatrain.backbones.describe import sites
from vlatrain.injection.attach import attach
from vlatrain.metrics.precision import full_precision
from vlatrain.tasks import Task, retrieval
from vlatrain.training.lowering import Lowering
from vlatrain.training.modes import cast_trunk, train_mode, trainable

LOW = torch.bfloat16


def as_cuda(norm: nn.LayerNorm, states: Tensor) -> Tensor:
    """What CUDA's autocast makes of a layer norm."""
    with full_precision(states.device):
        return layer_norm(states.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def made(name: str) -> tuple[nn.Module, Task]:
    """A backbone with adapters everywhere, none of them zero, and weights that bf16 can hold."""
    torch.manual_seed(0)
    backbone, settings = set_up(config_of(name))
    where = sites(backbone.config, settings.name, ["*"])
    model = attach(backbone.model, adapter_config("bottleneck", dim=4), where)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * 0.1
        elif parameter.is_floating_point() and parameter.dim() > 1:
            parameter.data = parameter.data.to(LOW).float()
    return model, task_of(backbone, settings)


def gradient(name: str, low_norms: bool | None) -> tuple[float, Tensor]:
    """Loss and the adapters' gradients in one vector; None: in fp32."""
    model, task = made(name)
    if low_norms is not None:
        cast_trunk(model, LOW, low_norms)
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.forward = as_cuda.__get__(module)
    train_mode(model)
    torch.manual_seed(0)
    batch = task.collate(make_samples()[:4])
    first = mock.patch.object(retrieval, "drawn", lambda odds: (odds > 0).long().argmax(dim=1))
    with first, torch.autocast("cpu", LOW, enabled=low_norms is not None), Lowering(model):
        loss = task.loss(batch)
    loss.float().backward()
    found = [parameter.grad.flatten() for parameter in trainable(model).values() if parameter.grad is not None]
    return loss.item(), torch.cat(found).float()


def counted(name: str, low_norms: bool) -> str:
    """Kernels and casts of a forward pass."""
    model, task = made(name)
    batch = task.collate(make_samples()[:4])
    with torch.no_grad():
        task.loss(batch)  # what is looked at once a run has been
    try:
        counts = forward(model, task, batch, low_norms=low_norms)[1]
    except Exception as error:  # shapes that come from values, in transformers
        return type(error).__name__
    return f"{counts.kernels.total()}, {counts.casts}"


def main(names: list[str]) -> None:
    """Print the table."""
    if reason := unavailable():
        sys.exit(reason)
    console = Console()
    table = Table("backbone", "kernels, casts", "low norms", "loss apart", "low norms", "gradients apart", "low norms")
    with console.status("computing") as status:
        for name in names or NAMES:
            status.update(name)
            loss, exact = gradient(name, None)
            apart = []
            for low_norms in (False, True):
                own, found = gradient(name, low_norms)
                apart.append((abs(own - loss) / abs(loss), ((found - exact).norm() / exact.norm()).item()))
            shown = [f"{value:.1e}" for kind in zip(*apart, strict=True) for value in kind]
            table.add_row(name, counted(name, False), counted(name, True), *shown)
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
