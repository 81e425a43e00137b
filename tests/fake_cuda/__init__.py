"""Fake CUDA: the real code on tensors that only claim to be on a GPU, under the real table of CUDA's autocast.

FakeTensors know their shape, type and device, and compute nothing. So a forward pass tells in seconds, on any machine, which
kernels a GPU would run, how many of them only cast, what they read and write, where the host would wait for the device, and whether
two devices meet (which a FakeTensor refuses). There is no backward pass: its engine wants a real device.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlatrain.tasks import Task
from vlatrain.tasks.base import Batch, move
from vlatrain.training.lowering import Lowering
from vlatrain.training.modes import cast_trunk, train_mode

DEVICE = torch.device("cuda:0")
OURS = ("/vlatrain/", "/transformers/", "/peft/", "/accelerate/")  # whose lines are named
# begins of names of what runs no kernel
FREE = ("empty", "new_empty", "lift", "_unsafe_view", "detach", "is_", "sym_", "prim::")
TOGETHER = "_foreach_copy_"  # the kernel that casts many tensors at once
# the size of what these give, or their answer, is a value
WAITS = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


@cache
def unavailable() -> str:
    """Why there is no fake CUDA here; empty: there is. Called once, it builds the device guard and loads it."""
    if torch.cuda.is_available():  # whose device guard would be gone
        return "fake CUDA is for machines without a GPU"
    compiler = shutil.which("g++")
    if compiler is None:
        return "fake CUDA needs a C++ compiler (g++)"
    home, library = Path(torch.__file__).parent, Path(mkdtemp(prefix="fake-cuda-")) / "guard.so"
    source = Path(__file__).with_name("guard.cpp")
    words = ["-shared", "-fPIC", "-std=c++20", f"-I{home}/include", source, f"-L{home}/lib", "-lc10", "-o", library]
    built = subprocess.run([compiler, *words], capture_output=True, text=True)
    if built.returncode:
        return f"fake CUDA: the device guard cannot be compiled: {built.stderr.splitlines()[0]}"
    ctypes.CDLL(str(library))
    return ""


@dataclass
class Counts:
    """What a GPU would have run.

    Attributes:
        kernels: how often each; casts by their types.
        bytes: that they read and write.
        products: how many matrix products and attentions compute in each type.
        waits: where the host waits for the device, by file and line.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    products: Counter[torch.dtype] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def casts(self) -> int:
        """Kernels that only change the type."""
        return sum(count for name, count in self.kernels.items() if name.startswith(("cast ", TOGETHER)))

    def add(self, name: str, tensors: list[Tensor]) -> None:
        """A kernel that reads and writes these tensors."""
        self.kernels[name] += 1
        self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention"):
            self.products[tensors[0].dtype] += 1

    def wait(self, what: str) -> None:
        """The host waits for the device here."""
        frames = [frame for frame in traceback.extract_stack() if any(name in frame.filename for name in OURS)]
        place = f"{frames[-1].filename.rpartition('site-packages/')[2]}:{frames[-1].lineno}" if frames else "?"
        self.waits[f"{what}, {os.path.relpath(place) if place.startswith('/') else place}"] += 1


class Kernels(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name == "_local_scalar_dense" and given[0].device == DEVICE:
            self.counts.wait("a value")
            return {torch.bool: True}.get(given[0].dtype, 1.0 if given[0].is_floating_point() else 1)
        found = func(*args, **kwargs)
        made = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
        devices = {value.device for value in (*given, *made) if value.dim() or value.device == DEVICE}
        view = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
        if DEVICE not in devices or view or name.startswith(FREE):
            return found
        if name == "_to_copy":
            kinds = [str(value.dtype).removeprefix("torch.") for value in (given[0], made[0])]
            name = f"cast {kinds[0]} to {kinds[1]}" if kinds[0] != kinds[1] else "copy"
        moves = name.startswith(("cast", "copy")) and len({value.device.type for value in (*given, *made)}) > 1
        if moves and not kwargs.get("non_blocking"):
            self.counts.wait("a copy between host and device")
        picks = name in ("index", "index_put", "index_put_") and any(value.dtype == torch.bool for value in given[1:])
        if name in WAITS or picks or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.counts.wait(name)
        self.counts.add(name, [*given, *made])
        return found


class Calls(TorchFunctionMode):
    """Stands in for what is not dispatched: numbers in texts, and torch's choice of an attention kernel, which asks the device."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        first = args[0] if args else None
        if not isinstance(first, FakeTensor) or first.device != DEVICE:
            return func(*args, **kwargs)
        if name == "__format__" and not first.dim():
            self.counts.wait("a value")
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """One kernel, (B, heads, L, head), in the type that autocast has for it."""
        given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        if torch.is_autocast_enabled("cuda"):
            lower = torch.get_autocast_dtype("cuda")
            given = [one.to(lower) if one.is_floating_point() else one for one in given]
        assert len({one.dtype for one in given[:3]}) == 1, "attention of several types"
        rows, heads, length, _ = query.shape
        with torch.no_grad():
            found = given[0].new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        self.counts.add("attention", [*given, found])
        return found


@contextmanager
def claimed() -> Iterator[FakeTensorMode]:
    """Let FakeTensors be on a GPU that is not there, with autocast for it."""
    if reason := unavailable():  # torch would abort the process
        raise RuntimeError(reason)
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True))
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


def to_device(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put a model onto the GPU that is not there, tied weights once."""
    seen: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(mode, shape, DEVICE)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                own = nn.Parameter(fake(parameter.data), parameter.requires_grad)
                module._parameters[name] = seen.setdefault(id(parameter), own)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def forward(
    model: nn.Module, task: Task, batch: Batch, dtype: torch.dtype = torch.bfloat16, low_norms: bool = False
) -> tuple[Tensor, Counts]:
    """The loss of a batch and what a training forward of it would run on a GPU. The model cannot be used any more.

    Args:
        model: the model, adapters in it.
        task: the task on it.
        batch: what its `collate` made.
        dtype: what autocast computes in.
        low_norms: whether frozen layer norms put out that type (`trainer.low_norms`).
    """
    cast_trunk(model, dtype, low_norms)
    train_mode(model)
    counts = Counts()
    with claimed() as mode:
        to_device(model, mode)
        batch = move(batch, DEVICE)
        # without gradients autocast would keep no casts of weights: as in training, they are kept
        with Calls(counts), Kernels(counts), torch.autocast("cuda", dtype=dtype), Lowering(model):
            return task.loss(batch), counts
