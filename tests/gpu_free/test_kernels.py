"""What a training step's forward pass would run on a GPU, counted on fake CUDA: one device, its types, no waiting, few kernels."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples
from tests.fake_cuda import DEVICE, TOGETHER, Calls, Counts, Kernels, claimed, forward, unavailable
from tests.gpu_free.families import NAMES, config_of, set_up, task_of
from vlatrain.adapters.bottleneck import Bottleneck
from vlatrain.backbones.describe import sites
from vlatrain.injection.attach import attach
from vlatrain.injection.site import Site

VALUES = {
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
    "siglip2_naflex",
    "llava_onevision",
}  # shapes come from values, in transformers
CALLS = [(name, "") for name in NAMES if name not in VALUES]
CALLS += [("clip", "classification"), ("llava", "instruct"), ("clip+gpt2", "instruct"), ("blip", "captioning")]
CALLS += [("blip", "retrieval"), ("vilt", "retrieval")]

BUDGETS = {"blip": 128, "clip": 72, "vilt": 46}
"""Of casts: 60 % of those that there were when each weight and mask was cast by its own kernel."""


@pytest.fixture(autouse=True)
def _there() -> None:
    if reason := unavailable():
        pytest.skip(reason)


def counted(
    name: str, asked: str = "", method: str = "bottleneck", low_norms: bool = False
) -> tuple[torch.Tensor, Counts, int]:
    """Loss, counts and adapted places of a family's forward pass with adapters everywhere."""
    backbone, settings = set_up(config_of(name), asked)
    options = {"dim": 4} if method != "none" else {}
    where = sites(backbone.config, settings.name, ["*"])
    model = attach(backbone.model, adapter_config(method, **options), where)
    task = task_of(backbone, settings)
    batch = task.collate(make_samples()[:4])
    with torch.no_grad():
        task.loss(batch)  # what is looked at once a run has been
    loss, counts = forward(model, task, batch, low_norms=low_norms)
    return loss, counts, sum(isinstance(module, Site) for module in model.modules())


@pytest.mark.parametrize(("name", "asked"), CALLS)
def test_a_forward_pass_is_on_one_device_and_does_not_wait(name: str, asked: str) -> None:
    loss, counts, _ = counted(name, asked)
    assert (loss.device, loss.dtype) == (DEVICE, torch.float32)
    assert counts.products[torch.bfloat16] > 20
    assert counts.products[torch.float32] <= 6, "but for similarities and heads, products are in the lower type"
    assert set(counts.products) <= {torch.bfloat16, torch.float32}
    assert not counts.waits


def test_what_is_counted() -> None:
    counts = Counts()
    with claimed(), Calls(counts), Kernels(counts):
        states = torch.ones(2, 3, device=DEVICE)
        states.view(3, 2).t()[0]
        assert counts.kernels.total() == 1
        (states.to(torch.bfloat16) + 1).to(torch.bfloat16)
        assert (counts.kernels["add"], counts.casts, counts.bytes["cast float32 to bfloat16"]) == (1, 1, 36)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert (states @ states.t()).dtype == torch.bfloat16
        assert not counts.waits
        waiting = [
            lambda: states.sum().item(),
            lambda: bool((states > 0).all()),
            lambda: states.tolist(),
            lambda: f"{states.sum()}",
            lambda: states.cpu(),
            lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        ]
        for call in waiting:
            before = counts.waits.total()
            call()
            assert counts.waits.total() > before
        before = counts.waits.total()
        torch.ones(2).to(DEVICE, non_blocking=True)
        assert counts.waits.total() == before
        with pytest.raises(RuntimeError, match="device"):
            states + torch.ones(2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUDGETS)
def test_budgets(name: str) -> None:
    _, counts, places = counted(name)
    _, bare, _ = counted(name, method="none")
    added = counts.kernels - bare.kernels
    assert added.pop(TOGETHER) == 1, "the weights of all adapters are cast together"
    assert added.total() <= 5 * places, added
    assert counts.casts <= BUDGETS[name]
    assert counted(name, low_norms=True)[1].casts <= BUDGETS[name] / 4
    assert counts.kernels["clamp"] <= 5, (
        "masks are made once a call: two towers, self- and cross-attention, and the loss"
    )


@pytest.mark.parametrize("scaling", [1.0, 4.0])
def test_a_scale_of_one_is_no_kernel(scaling: float) -> None:
    counts = Counts()
    with claimed(), DEVICE, torch.autocast("cuda", dtype=torch.bfloat16):
        adapter, states = adapter_of(Bottleneck, 12, 4, scaling=scaling), torch.ones(2, 3, 12, dtype=torch.bfloat16)
        with Kernels(counts):
            adapter(states)
    assert counts.kernels["mul"] == (scaling != 1)
