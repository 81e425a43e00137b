"""What is in a saved adapter, against what the model has a place for: nothing is left out or made up in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlatrain.config import UserError
from vlatrain.config.keys import few
from vlatrain.injection.site import CHILD, UNITS

INSIDE = "base_model.model."  # what the names of a model's tensors start with inside a `PeftModel`
MARK = "refuses_partial"
WEIGHTS = "adapter_model.safetensors"
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file.

    Raises:
        UserError: it is not there, or is damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118, no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: the weights cannot be read ({error})") from error


def differences(shapes: Shapes, wanted: Shapes) -> str:
    """How tensors differ from those that are wanted, in words; empty if they do not.

    Args:
        shapes: the shapes that there are, by name.
        wanted: those that there should be.
    """
    missing = [name for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted]
    other = [name for name in wanted if name in shapes and shapes[name] != wanted[name]]
    sizes = [
        f"{name} {'x'.join(map(str, shapes[name]))} instead of {'x'.join(map(str, wanted[name]))}" for name in other
    ]
    told = [f"{len(missing)} of {len(wanted)} tensors missing ({few(missing)})"] if missing else []
    told += [f"{len(extra)} tensor{'s' * (len(extra) > 1)} without a place ({few(extra)})"] if extra else []
    told += [f"{len(other)} of {len(wanted)} tensors of another shape ({few(sizes)})"] if other else []
    return ", ".join(told)


def made_for(config: PeftConfig) -> str:
    """The backbone that an adapter was made for, as its configuration says."""
    kind, name = (config.auto_mapping or {}).get("base_model_class"), config.base_model_name_or_path
    return f"it was made for {kind or 'a backbone'}{f' from {name}' if name else ''}"


def refuse_partial(model: nn.Module, config: Any, adapter: str, names: Iterable[str]) -> None:
    """Refuse to load an adapter of which a tensor is missing, or has no place in the model.

    Shapes are torch's to compare, as PEFT may be told to pass over them.

    Args:
        model: the model with the adapter in it, PEFT's wrapper around it or not.
        config: the adapter's configuration.
        adapter: its name.
        names: the tensors that are to be loaded, called as in the model.

    Raises:
        RuntimeError: as torch's `load_state_dict` does.
    """
    there = {name.removeprefix(INSIDE) for name in model.state_dict()}
    units = tuple(f"{place['output']}.{CHILD}.{UNITS}.{adapter}." for place in config.points.values())
    wanted: Shapes = {name: () for name in sorted(there) if name.startswith(units)}
    names = [name.removeprefix(INSIDE) for name in names]
    if told := differences({name: () for name in names if name in wanted or name not in there}, wanted):
        raise RuntimeError(f"adapter {adapter!r} is not loaded as it was saved: {told}; {made_for(config)}")


def refusing_partial(load: Any, kind: type[PeftConfig]) -> Any:
    """transformers' `load_adapter`, which logs what is missing and goes on, with that an error for one method, as in PEFT.

    Args:
        load: the function; one that this has returned stays as it is.
        kind: the method's configuration.
    """
    if hasattr(load, MARK):
        return load

    @wraps(load)
    def load_adapter(model: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = load(model, *args, **kwargs)
        adapter = signature(load).bind(model, *args, **kwargs).arguments.get("adapter_name") or "default"
        if isinstance(config := model.peft_config.get(adapter), kind):
            found = (set(model.state_dict()) - set(outcome.missing_keys)) | set(outcome.unexpected_keys)
            refuse_partial(model, config, adapter, found)
        return outcome

    setattr(load_adapter, MARK, True)
    return load_adapter


def load_peft(
    model: nn.Module, folder: Path, own: Callable[[str, PeftModel], bool] = lambda name, model: True
) -> PeftModel:
    """`PeftModel.from_pretrained`, for inference, of a folder that has exactly the tensors that its configuration asks for.

    Args:
        model: the backbone; changed in place.
        folder: the adapter's folder.
        own: of a tensor's name in the adapted model, whether it can be the adapter's.

    Raises:
        UserError: the folder lacks a file or a tensor, has others, or is of another backbone.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        stored = shapes_in(folder / WEIGHTS)
        adapted = PeftModel(model, config)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: {' '.join(str(error).split())[:400]}") from error
    tensors: dict[str, Any] = {name: tensor for name, tensor in adapted.state_dict().items() if own(name, adapted)}
    wanted = shapes_of(peft.get_peft_model_state_dict(adapted, state_dict=tensors, save_embedding_layers=False))
    bare = [{name.removeprefix(INSIDE): shape for name, shape in shapes.items()} for shapes in (stored, wanted)]
    if told := differences(*bare):
        raise UserError(f"{folder / WEIGHTS} does not fit the backbone: {told}; {made_for(config)}")
    adapted.load_adapter(str(folder), "default")
    return adapted
