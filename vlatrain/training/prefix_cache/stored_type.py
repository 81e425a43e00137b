"""The type in which a tower's states are kept: that in which they are computed, or a lower one if all that reads them casts to it.

In mixed precision most towers leave states in autocast's type already. What others leave is mostly read as it is: by the residual
of the next layer, or by a norm, which autocast computes in fp32. But the states of a tower that is frozen to its end and has no
norm there (BLIP's question encoder) only go into linear layers, each of which casts them. Kept in the low type they are half the
bytes, and the values are the same. Which of these holds is seen by watching a pass, adapters and their dropout included.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlatrain.backbones.base import Backbone
from vlatrain.config import TaskConfig
from vlatrain.tasks import build
from vlatrain.training import rng
from vlatrain.training.modes import train_mode
from vlatrain.training.precision import DTYPES, autocast
from vlatrain.training.prefix_cache.frontier import Frontier

# what hands values on as they are, in a tensor of its own; whatever else makes one (and is no view) reads them
MOVES = {"index_select", "index", "gather", "cat", "stack", "clone", "repeat", "constant_pad_nd"}


def read_low(config: TaskConfig, backbone: Backbone, kept: Mapping[str, Frontier], precision: str) -> set[str]:
    """The towers whose states are cast to the type of `precision` by all that reads them.

    Args:
        config: the task.
        backbone: on its device, adapters in it, in eval mode.
        kept: by tower, the frozen part.
        precision: fp32, bf16 or fp16.
    """
    # a layer that is left has a residual, a norm is computed in fp32: both read what they get as it is
    ends = {name: kept[name] for name in kept if kept[name].whole and not backbone.config.towers[name].norm}
    if precision == "fp32" or not ends:
        return set()
    readers = _Readers(DTYPES[precision])
    with ExitStack() as stack:
        for name, frontier in ends.items():
            assert frontier.boundary is not None
            layers = backbone.model.get_submodule(backbone.config.towers[name].layers)
            last = layers.get_submodule(str(frontier.boundary.layers - 1))
            handle = last.register_forward_hook(partial(readers.enter, name), prepend=True)
            stack.callback(handle.remove)
        # compiled kernels are not seen; what training draws, an evaluation does not
        for context in (torch.compiler.set_stance("force_eager"), rng.preserved(), torch.no_grad()):
            stack.enter_context(context)
        stack.enter_context(autocast(backbone.device, precision))
        train_mode(backbone.model)
        with readers:
            build(config, backbone).loss_on_meta(1, backbone.device)
        backbone.model.eval()
    return readers.cast - readers.as_they_are


class _Readers(TorchDispatchMode):
    """Sees what reads some tensors, or copies of them.

    Args:
        dtype: the low type.

    Attributes:
        cast: the towers whose states have been cast to it.
        as_they_are: the towers whose states have been read otherwise.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.cast: set[str] = set()
        self.as_they_are: set[str] = set()
        self.towers: dict[int, str] = {}  # by storage, which views share
        self.held: list[Tensor] = []  # lest another tensor gets the storage

    def enter(self, tower: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """See what reads a layer's output, as a forward hook."""
        self._mark(tower, output[0] if isinstance(output, tuple) else output)

    def _mark(self, tower: str, states: Tensor) -> None:
        self.towers[_storage(states)] = tower
        self.held.append(states)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        towers = {self.towers[_storage(tensor)] for tensor in given if _storage(tensor) in self.towers}
        name = func._schema.name
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if not towers or name.startswith("prim::"):  # others, or a question: on which device?
            return found
        view = made and all(_storage(one) in self.towers for one in made) and not func._schema.is_mutable
        mask = name.startswith("aten::new_") and not made[0].is_floating_point()  # of which only the shape is read
        if name == "aten::_to_copy" and made[0].dtype == self.dtype:
            self.cast |= towers
        elif name.removeprefix("aten::") in MOVES:
            for tower in towers:
                self._mark(tower, made[0])
        elif not (view or mask):
            self.as_they_are |= towers
        return found


def _storage(tensor: Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata
    return storage
