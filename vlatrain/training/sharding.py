"""Frozen weights that the processes hold together (`trainer.shard`): of each layer every process keeps a shard, and has the whole
layer while it computes with it. What trains, and what is in no layer, is whole in each of them.

The cutting and the gathering is FSDP2's (`torch.distributed.fsdp.fully_shard`). It is called for each layer by itself, not through
accelerate's plugin: that one can leave modules whole but no parameters (a bias that trains), and cuts the rest of a model as one
that is called as a whole. Backbones are called by their towers.

FSDP expects all processes to compute the same layers in the same order. Here they do not: evaluations are shared by batches, texts
end at different steps, a process alone tries whether a cache pays. So before a layer is gathered the processes agree on which one
it is: the first in the order of the model that any of them is about to compute. One that is about to compute another layer, or
waits for the others (`vlatrain.training.processes.agree`), hands in its shard and asks again. So none ever computes for the sake of
the others, and none waits for one that needs what it holds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from vlatrain.adapters import Adapter
from vlatrain.config import UserError
from vlatrain.training.modes import frozen_hashes
from vlatrain.training.processes import count, lowest, while_waiting

gather_into: Callable[..., Any] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)


def sharded(model: nn.Module, layers: Sequence[nn.Module]) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """What is cut of a model, each with the parameters that are: frozen, of no adapter, and not used outside of it.

    Args:
        model: the model.
        layers: its layers, in the order that data flows in.
    """
    uses = Counter(id(own) for module in model.modules() for own in module.parameters(recurse=False))
    ours = {id(own) for module in model.modules() if isinstance(module, Adapter) for own in module.parameters()}

    def can(parameter: nn.Parameter) -> bool:
        return not parameter.requires_grad and parameter.ndim > 0 and uses[id(parameter)] == 1

    found = [(layer, [own for own in layer.parameters() if can(own) and id(own) not in ours]) for layer in layers]
    return [(layer, own) for layer, own in found if own]


def shard(
    model: nn.Module, layers: Sequence[nn.Module], device: torch.device, hashes: Mapping[str, str] | None = None
) -> None:
    """Move a model to a device, and cut the frozen weights of its layers, in place, layer by layer: no process has more than one of
    them whole there.

    All processes call it, with equal models. A shard knows the hash of the whole (`hash_of`).

    Args:
        model: the model.
        layers: its layers, in the order that data flows in.
        device: where it goes.
        hashes: what `frozen_hashes` found of the model, if it has been asked.

    Raises:
        UserError: nothing in the layers is frozen.
    """
    hashes = frozen_hashes(model) if hashes is None else hashes
    world: Any = distributed.group.WORLD
    mesh, found = DeviceMesh.from_group(world, device.type), sharded(model, layers)
    if not found:
        raise UserError("trainer.shard=true: all weights of all layers train, and what trains is whole in each process")
    for layer, own in found:
        cut = {id(one) for one in own}
        for parameter in own:
            parameter.data = parameter.data.contiguous()
        others = {parameter for parameter in layer.parameters() if id(parameter) not in cut}
        layer.register_forward_hook(_without_views)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=others)
    model.to(device)
    _Exchange([_Unit(layer) for layer, _ in found], device)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            parameter.hash = hashes[name]  # type: ignore[attr-defined]


def _without_views(_: nn.Module, args: Any, output: Any) -> Any:
    """A layer's output, of which nothing is a view: what is computed in place on such a one would not gather the layer for its
    gradients."""
    return tree_map_only(Tensor, lambda own: own.clone() if own.requires_grad and own._is_view() else own, output)


class _Unit:
    """A layer that is gathered: what `FSDPModule.set_custom_all_gather` takes.

    Args:
        layer: the layer, cut.
    """

    def __init__(self, layer: Any) -> None:
        self.layer, self.number, self.called = layer, 0, False
        self.exchange: _Exchange | None = None
        modules = dict.fromkeys(_children_first(layer))
        own = [parameter for module in modules for parameter in module.parameters(recurse=False)]
        self.shards = [parameter for parameter in own if isinstance(parameter, DTensor)]
        self.bytes = sum(map(_bytes, self.shards))
        layer.set_custom_all_gather(self)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What the layer is gathered into."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather the layer, once it is its turn; one whose outcome is put back (`backbones.prefix`) needs no weights."""
        self.called = self.exchange is not None
        if hasattr(self.layer.forward, "returns"):
            return None
        if self.exchange is None:
            assert torch.equal(input_tensor.view(torch.uint8), self.packed()), "FSDP packs its shards in another way"
        else:
            self.exchange.wait_for(self.number)
        return gather_into(
            output_tensor.view(torch.uint8), input_tensor.view(torch.uint8), group=group, async_op=async_op
        )

    def packed(self) -> Tensor:
        """The shards as FSDP sends them, as bytes: one after the other, each filled up to the size of the first process's."""
        found = []
        for one in self.shards:
            local = one.to_local().detach().reshape(-1).view(torch.uint8)
            found.append(nn.functional.pad(local, (0, _bytes(one) - len(local))))
        return torch.cat(found)


class _Exchange:
    """What the processes gather, and when.

    Args:
        units: the layers, in the order of the model.
        device: where they are.
    """

    def __init__(self, units: Sequence[_Unit], device: torch.device) -> None:
        self.units, self.none = units, len(units)
        for number, unit in enumerate(units):
            unit.layer.unshard()  # once, while all processes do the same: it shows how FSDP packs
            unit.layer.reshard()
            unit.number, unit.exchange = number, self
        # memory that is there when it is needed: a process that found none could not tell the others
        self.room = torch.empty(count() * max(unit.bytes for unit in units), dtype=torch.uint8, device=device)
        while_waiting(self.serve)

    def wait_for(self, number: int) -> None:
        """Hand in shards of what others need first, until all processes gather this layer."""
        while (chosen := lowest(number)) != number:
            packed = self.units[chosen].packed()
            gather_into(self.room[: count() * len(packed)], packed)

    def serve(self) -> None:
        """Hand in shards until no process needs one; a layer that was left in the middle, by an error or as no more of it was
        wanted, is cut again."""
        self.wait_for(self.none)
        for unit in self.units:
            if unit.called and hasattr(unit.layer, "reset_iter_state"):  # torch 2.13
                unit.layer.reset_iter_state()


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in one, in the order that FSDP has their parameters in."""
    for child in module.children():
        yield from _children_first(child)
    yield module


def _bytes(shard: DTensor) -> int:
    """Of the first process's shard, which has the most rows."""
    return -(-shard.shape[0] // count()) * math.prod(shard.shape[1:]) * shard.element_size()
