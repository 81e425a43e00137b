"""What steps came to, read a step late as on a GPU: the training is the same, and what is not finite changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fake_cuda import DEVICE, Calls, Counts, Kernels, claimed, unavailable
from tests.training.conftest import load_adapter, make_config, same
from tests.training.test_loop import Records
from vlatrain.config import OptimConfig, UserError
from vlatrain.training.loop import Loop
from vlatrain.training.optimizer import make_optimizer
from vlatrain.training.outcomes import Outcome, Outcomes


def loop_of(small: SimpleNamespace, late: bool, **trainer: Any) -> tuple[Loop, Records]:
    sink = Records()
    loop = small.loop(f"late {late}", config=make_config(**{"epochs": 2, "log_every": 4, **trainer}), sinks=[sink])
    assert not loop.outcomes.late, "on a CPU nothing is gained"
    loop.outcomes.late = late
    return loop, sink


def test_a_training_read_late_is_the_same(small: SimpleNamespace) -> None:
    (one, now), (two, later) = (loop_of(small, late) for late in (False, True))
    one.run()
    two.run()
    assert same(load_adapter(one.folder), load_adapter(two.folder))
    for key in ("step", "loss", "grad_norm"):
        assert [record.get(key) for record in later.records] == [record.get(key) for record in now.records]


def test_all_is_read_before_an_evaluation_and_its_trial(small: SimpleNamespace) -> None:
    """A signal during either ends with a checkpoint."""
    loop, _ = loop_of(small, late=True, eval_share=0.5, log_every=100)
    evaluate, waiting = loop.task.evaluate, []

    def seen(*given: Any) -> Any:
        waiting.append((loop.progress.step, len(loop.outcomes.waiting)))
        return evaluate(*given)

    loop.task.evaluate = seen  # type: ignore[method-assign]
    loop.run()
    assert waiting[0] == (10, 0)
    assert not any(number for _, number in waiting)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_not_finite_changes_no_weights(small: SimpleNamespace, accumulate: int) -> None:
    found: list[tuple[str, dict[str, Tensor], dict[str, Tensor]]] = []
    loops = [loop_of(small, late, batch_size=2, accumulate=accumulate, log_every=100)[0] for late in (False, True)]
    first = loops[0].order.step(0)
    poison = next(f"s{i}" for i in range(22) if i not in first)  # after a step that changes weights
    for loop in loops:
        loop.task.poison = poison  # type: ignore[attr-defined]
        with pytest.raises(UserError) as caught:
            loop.run()
        moments = {str(key): state["exp_avg"] for key, state in enumerate(loop.raw_optimizer.state.values())}  # type: ignore[union-attr]
        found.append((str(caught.value), {key: p.detach() for key, p in loop.parameters.items()}, moments))
    (error, weights, moments), (again, kept, own) = found
    assert error == again
    assert "the loss is not finite" in error
    assert same(weights, kept)
    assert same(moments, own)
    assert loops[1].progress.step == loops[0].progress.step + 1, "it was read a step late"


class Event:
    """An event of a device that is not there."""

    def record(self) -> None:
        """Nothing to note."""


def test_the_host_does_not_wait_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    counts = Counts()
    with claimed(), Calls(counts), Kernels(counts):
        parameters = {name: nn.Parameter(torch.ones(3, 2, device=DEVICE)) for name in ("a", "b")}
        optimizer = make_optimizer(parameters, OptimConfig(), lambda name: "adapter")
        outcomes = Outcomes(optimizer, late=True)
        loop: Any = SimpleNamespace(
            signals=SimpleNamespace(received=0), device=DEVICE, accelerator=SimpleNamespace(num_processes=1)
        )
        for step in range(2):
            for parameter in parameters.values():
                parameter.grad = torch.ones(3, 2, device=DEVICE)
            norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            losses = [torch.ones((), device=DEVICE)]
            outcomes.add(Outcome(step + 1, Loop._values(loop, losses, norm), losses, [["s0"]]))
            assert len(outcomes.due(everything=False)) == step
            optimizer.step()
    assert counts.kernels["_fused_adamw_"] == 2
    assert not counts.waits
