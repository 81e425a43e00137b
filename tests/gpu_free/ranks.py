"""Several processes on a CPU, joined as torchrun joins them, and the order in which each of them waits for the others."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.disk import FORK
from vlatrain.config import UserError
from vlatrain.training.processes import together


class Collectives(TorchDispatchMode):
    """Records each call of torch.distributed that waits for others: what it is, and the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            shapes = [list(leaf.shape) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.seen.append([func.overloadpacket.__name__, *shapes])
        return func(*args, **(kwargs or {}))


def _child(rank: int, count: int, port: int, work: Callable[[int], Any], file: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    PartialState._reset_state()  # an accelerator of the process that this is a copy of was alone
    status = 1
    try:
        with Collectives() as collectives:
            try:
                torch.distributed.init_process_group("gloo")
                with together():
                    outcome = work(rank)
            except UserError as error:
                outcome = error.problems
        file.write_text(json.dumps([outcome, collectives.seen]))
        time.sleep(0.1)  # a process that goes early takes its connections from under those that still read from them
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ranks(work: Callable[[int], Any], folder: Path, count: int = 2, seconds: float = 60.0) -> list[Any]:
    """Let `work(rank)` be done by processes that are forked from this one.

    Returns:
        what each has returned, or its problems. They have waited for each other in the same order, to the end.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = [folder / f"rank{rank}.json" for rank in range(count)]
    children = [FORK.Process(target=_child, args=(rank, count, port, work, files[rank])) for rank in range(count)]
    for child in children:
        child.start()
    until = time.monotonic() + seconds
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    hanging = [rank for rank, child in enumerate(children) if child.is_alive()]
    for child in children:
        child.kill()
        child.join()
    assert not hanging, f"these wait for ever: {hanging}"
    assert [child.exitcode for child in children] == [0] * count
    outcomes, orders = zip(*(json.loads(file.read_text()) for file in files), strict=True)
    assert all(order == orders[0] for order in orders), "they wait for each other in another order"
    (folder / "collectives.json").write_text(json.dumps(orders[0]))
    return list(outcomes)


def collectives(folder: Path) -> Sequence[list[Any]]:
    """What the processes of the last `ranks` have waited for."""
    return json.loads((folder / "collectives.json").read_text())
