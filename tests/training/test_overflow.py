"""Overflow in fp16 with a real scaler of gradients, on a CPU: such a step is left out and told; what always overflows ends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.training.conftest import SmallTask, load_adapter, make_config, make_loop, make_model, same
from vlatrain.config import UserError
from vlatrain.reporting.history import JsonLines
from vlatrain.training import loop
from vlatrain.training.modes import trainable

SCALE = 2.0**24  # with which the gradients of the small task overflow, until it is lower


@pytest.fixture(autouse=True)
def fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs compute in fp16 and scale their losses, as on a GPU: torch does both on a CPU, which accelerate refuses."""
    make = loop.make_accelerator

    def with_scaler(config: Any) -> Accelerator:
        accelerator = make(config)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        return accelerator

    monkeypatch.setattr(loop, "make_accelerator", with_scaler)
    monkeypatch.setattr(loop, "choose_precision", lambda *_: "fp16")


class Seen(SmallTask):
    """Keeps what was trained, as each step found it, and its loss's type; stops before a step; scales its loss."""

    def __init__(self, model: Any, stop: int = -1, factor: float = 1.0) -> None:
        super().__init__(model)
        self.stop, self.factor = stop, factor
        self.found: list[dict[str, Tensor]] = []

    def loss(self, batch: Any) -> Tensor:
        if len(self.found) == self.stop:
            raise KeyError("killed")
        self.found.append({name: one.detach().clone() for name, one in trainable(self.model).items()})
        assert self.model(batch["x"]).dtype == torch.float16
        return self.factor * super().loss(batch)


def make(folder: Path, stop: int = -1, factor: float = 1.0) -> tuple[loop.Loop, Seen]:
    model = make_model()
    task = Seen(model, stop, factor)
    folder.mkdir(exist_ok=True)
    sinks = [JsonLines(folder / "metrics.jsonl")]
    return make_loop(folder, make_config(epochs=3, save_every=1), model=model, task=task, sinks=sinks), task


def norms(folder: Path) -> list[float | None]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["grad_norm"] for record in records if "grad_norm" in record]


def test_a_step_that_overflows_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    running, task = make(tmp_path / "run")
    running.run()
    missing = [norm is None for norm in norms(tmp_path / "run")]
    count = sum(missing)
    assert 2 < count < 12, "some steps overflow, and most do not"
    assert missing[0]
    assert not missing[-1]
    assert running.accelerator.scaler.get_scale() == SCALE / 2**count
    moved = [not same(one, other) for one, other in zip(task.found, task.found[1:], strict=False)]
    assert moved == [not one for one in missing[:-1]]
    begun = sum(one and not before for one, before in zip(missing, [False, *missing], strict=False))
    assert caplog.text.count("gradients overflow in fp16") == begun, "the first of each series"
    assert (
        f"Step 1: gradients overflow in fp16: the step is left out, and losses are scaled by {SCALE / 2:g}"
        in caplog.text
    )


@pytest.mark.parametrize("stop", [4, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 13))])
def test_it_goes_on_with_its_scale_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    make(whole)[0].run()
    with pytest.raises(KeyError, match="killed"):
        make(stopped, stop)[0].run()
    running, task = make(stopped)
    running.run()
    assert len(task.found) == len(norms(whole)) - stop
    assert norms(stopped) == norms(whole)
    assert same(load_adapter(stopped), load_adapter(whole))


def test_what_always_overflows_ends_in_a_line(tmp_path: Path) -> None:
    running, task = make(tmp_path / "run", factor=1e30)
    running.total = 99
    with pytest.raises(
        UserError, match=r"step 26: the gradient is not finite .* use trainer\.precision=fp32"
    ) as raised:
        running.run()
    assert len(raised.value.problems) == 1
    assert all(same(one, task.found[0]) for one in task.found)
    assert math.isfinite(running.loss)
