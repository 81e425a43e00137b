"""What a training step's forward pass would run on a GPU, counted on fake CUDA: one device, its types, no waiting, few kernels."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import adapter_config, make_samples
from tests.fake_cuda import DEVICE, Calls, Counts, Kernels, claimed, forward, unavailable
from tests.gpu_free.families import NAMES, config_of, set_up, task_of
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
DRAWS = {"blip2_itm"}  # its matching loss draws from the pairs that can be drawn
CALLS = [(name, "") for name in NAMES if name not in VALUES | DRAWS]
CALLS += [("clip", "classification"), ("llava", "instruct"), ("clip+gpt2", "instruct"), ("blip", "captioning")]


@pytest.fixture(autouse=True)
def _there() -> None:
    if reason := unavailable():
        pytest.skip(reason)


def counted(name: str, asked: str = "", method: str = "bottleneck") -> tuple[torch.Tensor, Counts, int]:
    """Loss, counts and adapted places of a family's forward pass with adapters everywhere."""
    backbone, settings = set_up(config_of(name), asked)
    options = {"dim": 4} if method != "none" else {}
    where = sites(backbone.config, settings.name, ["*"])
    model = attach(backbone.model, adapter_config(method, **options), where)
    task = task_of(backbone, settings)
    loss, counts = forward(model, task, task.collate(make_samples()[:4]))
    return loss, counts, sum(isinstance(module, Site) for module in model.modules())


@pytest.mark.parametrize(("name", "asked"), CALLS)
def test_a_forward_pass_stays_on_the_device_in_its_type(name: str, asked: str) -> None:
    loss, counts, _ = counted(name, asked)
    assert (loss.device, loss.dtype) == (DEVICE, torch.float32)
    assert counts.products[torch.bfloat16] > 20
    assert counts.products[torch.float32] <= 2, "but for scores, products are in the lower type"
    assert set(counts.products) <= {torch.bfloat16, torch.float32}


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
