"""Weights of the trunk that train where they are, beside any method: norms, biases, and modules that are new in a backbone.

They are no copies, so that nothing counts twice, and no part of a PEFT adapter: PEFT finds what is its own by name. They lie beside
it, in a file of their own, under the names that they have in the backbone without adapters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from vlatrain.config import UserError
from vlatrain.injection.context import context_of
from vlatrain.injection.points import Sites
from vlatrain.injection.saved import INSIDE, differences, shapes_in
from vlatrain.injection.sources import TRUNK as FILE

WRAPPED = ".base_layer."  # what PEFT puts into the name of a parameter whose module it wraps


def chosen(model: nn.Module, kinds: Iterable[str], sites: Sites) -> list[str]:
    """Names of the trunk's parameters that train.

    Args:
        model: the backbone, without adapters.
        kinds: any of the choices of `AdapterConfig.trunk`.
        sites: where the method goes: the towers that have a point are those whose weights train.

    Raises:
        UserError: these towers have none of a kind, or there is no such module as is said to be new.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for prefix in sites.trained:
        own = [name for name in names if name.startswith(f"{prefix}.")]
        if not own:
            raise UserError(f"the model's description calls {prefix} new (trained), but the model has no such weights")
        found.update(own)
    towers = list(dict.fromkeys(point.tower for point in sites.places))
    paths = [path for tower in towers for path in sites.inside.get(tower, {}).values()]
    for kind in kinds:
        own = [f"{path}.{name}" for path in paths for name in FIND[kind](model.get_submodule(path))]
        if not own:
            raise UserError(f"adapter.trunk: {kind}: there are none in {', '.join(towers)}")
        found.update(own)
    return [name for name in names if name in found]


def at_points(model: nn.Module, sites: Sites) -> list[str]:
    """Names of the parameters of the places where a method goes, and of the modules that are new: of a layer all of whose sites are
    selected every parameter, of any other those of the selected sites' modules.

    Args:
        model: the backbone, without adapters.
        sites: where the method goes.
    """
    layers: dict[str, int] = Counter(place.layer for place in sites.places.values() if place.layer)
    whole = {
        place.layer
        for point, place in sites.places.items()
        if place.layer and layers[place.layer] == len(sites.stacks[point.tower].at(point.layer))
    }
    paths = [*whole, *(path for place in sites.places.values() for path in place.modules.values()), *sites.trained]
    starts = tuple(f"{path}." for path in paths)
    return [name for name, _ in model.named_parameters() if name.startswith(starts)]


def norms(module: nn.Module) -> Iterator[str]:
    """Names of the parameters of layer norms in a module: those whose weight is a vector, and that keep no statistics."""
    for name, inner in module.named_modules():
        weight = getattr(inner, "weight", None)
        plain = not any(True for _ in inner.children()) and not any(True for _ in inner.buffers())
        if plain and isinstance(weight, nn.Parameter) and weight.dim() == 1:
            yield from (f"{name}.{own}" if name else own for own, _ in inner.named_parameters())


def biases(module: nn.Module) -> Iterator[str]:
    """Names of the parameters in a module that have "bias" in them; T5's table of relative positions is called so, too."""
    return (name for name, _ in module.named_parameters() if "bias" in name)


FIND = {"norms": norms, "biases": biases}


def train_in_place(model: nn.Module, names: Sequence[str]) -> None:
    """Let weights of the trunk train. Called when the method is in, as PEFT freezes whatever is not its own.

    Args:
        model: the model, PEFT's wrapper around it or not.
        names: what `chosen` returned.
    """
    context_of(model).trunk = list(names)
    wanted = set(names)
    for name, parameter in model.named_parameters():
        if bare(name) in wanted:
            parameter.requires_grad_(True)


def bare(name: str) -> str:
    """A parameter's name as it is in the backbone without adapters."""
    return name.removeprefix(INSIDE).replace(WRAPPED, ".")


def save_trunk(model: nn.Module, folder: Path) -> None:
    """Write the trunk's weights that train, if there are any."""
    wanted = set(context_of(model).trunk)
    tensors = {bare(name): parameter for name, parameter in model.named_parameters() if bare(name) in wanted}
    if tensors:
        plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(plain, str(folder / FILE), metadata={"format": "pt"})


def load_trunk(model: nn.Module, folder: Path | str, trained: Sequence[str] = ()) -> None:
    """Load what `save_trunk` wrote, into a backbone without adapters; without such a file nothing happens.

    The weights stay in the precision they were trained in.

    Args:
        model: the backbone.
        folder: the adapter's folder.
        trained: what `chosen` returned: the weights that must be there; empty: whichever are.

    Raises:
        UserError: the file lacks some, or has some that the backbone does not have, or has in another shape.
    """
    file, own = Path(folder) / FILE, dict(model.named_parameters())
    if not file.is_file():
        if trained:
            raise UserError(f"{folder}: there is no {FILE}, the weights of the trunk that trained with the adapter")
        return
    found = shapes_in(file)
    wanted = {name: tuple(own[name].shape) for name in trained or found if name in own}
    if told := differences(found, wanted):
        raise UserError(f"{file} does not fit the backbone: {told}")
    for name, tensor in load_file(str(file)).items():
        own[name].data = tensor.to(own[name].device)
