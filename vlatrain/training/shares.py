"""Work that several processes share: each computes every n-th piece of it, and all have the results of all, in order.

The pieces are the same as in a single process, so their results are, too, bit for bit on equal processors. Results are exchanged
through the CPU every few pieces (`ROUND`): so a signal that one process gets stops all of them at the same place, and what one is
refused (`UserError`) ends them all at the next exchange (`vlatrain.training.processes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vlatrain.training.processes import count, gather, helping, rank

ROUND = 4  # pieces that a process computes before it waits for the others: fewer are stopped sooner, more wait less

Result = TypeVar("Result")


class EvaluationStopped(Exception):  # noqa: N818, no error
    """A signal came during an evaluation, in some process; all of them raise it."""


@dataclass
class _Sent:
    """A tensor on its way to other processes.

    Attributes:
        tensor: on the CPU, with a storage of its own: that is what is sent, and a view's is the whole.
        on_device: whether it was on an accelerator.
    """

    tensor: Tensor
    on_device: bool


def shared(
    own: Callable[[range], Iterator[Result]],
    total: int,
    device: torch.device | str = "cpu",
    interrupted: Callable[[], bool] = lambda: False,
    local: bool = False,
) -> Iterator[Result]:
    """The results of so many pieces of work, in order. Every process must call it alike, and take all of them.

    Args:
        own: computes some of the pieces, given by their numbers, one after the other.
        total: how many there are.
        device: where tensors go that were on another process's accelerator.
        interrupted: asked before every piece; where it is true in any process, all of them stop.
        local: compute all of them here, whatever the other processes do.

    Raises:
        EvaluationStopped: by `interrupted`.
        UserError: the problems of any process, in all.
    """
    number, processes = (0, 1) if local else (rank(), count())
    results = own(range(number, total, processes))
    # layers that the processes hold together are best computed by all at the same time
    at_once = 1 if processes == 1 else processes if helping() else processes * ROUND
    for start in range(0, total, at_once):
        size = min(at_once, total - start)
        found: list[Result] = []
        for _ in range(number, size, processes):
            if stopped := interrupted():
                break
            found.append(next(results))
        else:
            stopped = False
        if processes == 1:
            everyone, stops = [found], [stopped]
        else:
            values = gather((tree_map_only(Tensor, _sent, found), stopped))
            everyone, stops = [_received(value, device) for value, _ in values], [stop for _, stop in values]
        if any(stops):
            raise EvaluationStopped
        for piece in range(size):
            yield everyone[piece % processes][piece // processes]


def _sent(tensor: Tensor) -> _Sent:
    on_device = tensor.device.type != "cpu"
    return _Sent(tensor.detach().cpu() if on_device else tensor.detach().clone(), on_device)


def _received(value: Any, device: torch.device | str) -> Any:
    return tree_map_only(_Sent, lambda sent: sent.tensor.to(device) if sent.on_device else sent.tensor, value)
