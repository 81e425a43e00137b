"""The processes of a training: what they agree on, how they share gradients, and how one that cannot go on ends them all.

Processes that wait for each other must do so in the same order. So whatever decides about waiting is the first process's word
(`from_main`) or known to all (`gather`), never each one's own clock, memory or disk. These agreements go through a group of their
own on the CPU: it keeps no GPU waiting, and is as patient as the slowest process needs.

A `UserError` of one process ends all of them. Around everything is `together`: what it catches takes the place of what the others
wait for next, be it `agree`, `gather` or `from_main`, so each of them ends with the same message. What waits in any other way (the
exchange of gradients) comes right after an `agree`.

Gradients are averaged here, after the last backward pass of a step, and not by `DistributedDataParallel` in the course of it. Those
of adapters are a few MB, so there is little to gain by sending some while others are computed. In return nothing frozen is ever
sent, the graph is not searched for parameters without a gradient, and the order of the sums is the same in a resumed run (DDP
regroups the gradients after the first step of a session; with `static_graph=True`, which spares the search, gradients of several
passes a step are wrong in torch 2.13).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vlatrain.config import UserError

PATIENCE = timedelta(days=1)  # keeping a prefix may take hours; a process that dies is noticed at once
CHUNK = 2**25  # bytes that are sent at once
FAILED = 2**31  # the state of a process that has problems


_helping: list[Callable[[], None]] = []


class Agreed(UserError):  # noqa: N818, as `UserError` says it
    """A `UserError` that all processes have raised, or are about to."""


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 is the first."""
    return distributed.get_rank() if count() > 1 else 0


@cache
def _group_of(world: Any) -> Any:
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _group() -> Any:
    return _group_of(distributed.group.WORLD)


def agree(problems: Sequence[str] = (), state: int = 0) -> int:
    """Wait for all processes.

    Args:
        problems: what keeps this one from going on.
        state: a small number.

    Returns:
        The largest state of all.

    Raises:
        UserError: the problems of any, in all; what the first process does not meet says which do.
    """
    if count() == 1:
        if problems:
            raise UserError(problems)
        return state
    for help in _helping:
        help()
    highest = torch.tensor(FAILED if problems else state)
    distributed.all_reduce(highest, op=distributed.ReduceOp.MAX, group=_group())
    if highest < FAILED:
        return int(highest)
    owners: dict[str, list[int]] = {}
    for number, found in enumerate(_gathered(list(problems))):
        for problem in found:
            owners.setdefault(problem, []).append(number)
    raise Agreed(
        problem if 0 in who else type(problem)(f"{problem} (in process {', '.join(map(str, who))})")
        for problem, who in owners.items()
    )


def while_waiting(help: Callable[[], None]) -> None:
    """Have something done before this process waits for the others (`agree`), instead of what was done before: what they may need
    of it until they wait, too. It ends with `together`. All processes must call it alike."""
    _helping[:] = [help]


def helping() -> bool:
    """Whether the processes need each other while they compute."""
    return bool(_helping)


def lowest(value: int) -> int:
    """The smallest of the values of all processes: for what is done `while_waiting`, which `agree` does first and this does not."""
    found = torch.tensor(value)
    distributed.all_reduce(found, op=distributed.ReduceOp.MIN, group=_group())
    return int(found)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their numbers. Raises the problems of any (`agree`)."""
    if count() == 1:
        return [value]
    agree()
    return _gathered(value)


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value, group=_group())
    return values


def from_main(value: Any) -> Any:
    """The first process's value, in all of them. Raises the problems of any (`agree`)."""
    return gather(value)[0]


@contextmanager
def together() -> Iterator[None]:
    """Let the `UserError` of one process be that of all, which wait for each other at the end."""
    try:
        yield
        agree()
    except Agreed:
        raise
    except UserError as error:
        if count() == 1:
            raise
        agree(error.problems or [str(error)])
    finally:
        _helping.clear()  # all have left, or are about to


def refuse_differing(facts: Mapping[str, Any]) -> None:
    """Refuse processes that are about to train different things.

    Raises:
        UserError: what differs; in all.
    """
    everyone = gather(dict(facts))
    problems = [
        f"{key}: {'; '.join(f'{found[key]} in process {number}' for number, found in enumerate(everyone))}"
        for key, value in everyone[0].items()
        if any(found[key] != value for found in everyone)
    ]
    if problems:
        raise Agreed([f"the {count()} processes do not train the same; they differ in", *problems])


@cache
def _neighbours_in(world: Any) -> list[int]:
    names = gather(socket.gethostname())
    return [number for number, name in enumerate(names) if name == names[rank()]]


def neighbours() -> list[int]:
    """The numbers of the processes on this machine, this one among them."""
    return _neighbours_in(distributed.group.WORLD) if count() > 1 else [0]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Let tensors be the first process's, in place."""
    if count() > 1:
        with torch.no_grad():
            for chunk in _chunks(tensors):
                flat = _flat(chunk)
                distributed.broadcast(flat, 0)
                _spread(flat, chunk)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Let the gradients of parameters be their means over the processes.

    A parameter without gradient counts as one of zeros, unless it has none in any process: then it keeps none, as in a training
    of a single process.

    Raises:
        UserError: the problems of any process, in all.
    """
    if count() == 1:
        return
    if agree(state=int(any(parameter.grad is None for parameter in parameters))):
        used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        distributed.all_reduce(used, op=distributed.ReduceOp.MAX, group=_group())
        parameters = [parameter for parameter, is_used in zip(parameters, used.tolist(), strict=True) if is_used]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for chunk in _chunks(parameter.grad for parameter in parameters if parameter.grad is not None):
        flat = _flat(chunk).div_(count())
        distributed.all_reduce(flat)
        _spread(flat, chunk)


def _chunks(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type that are sent together."""
    chunk: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        if chunk and (tensor.dtype != chunk[0].dtype or sum(one.nbytes for one in chunk) + tensor.nbytes > CHUNK):
            yield chunk
            chunk = []
        chunk.append(tensor)
    if chunk:
        yield chunk


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors, strict=True):
        tensor.copy_(part.view_as(tensor))
