"""The adapters of one adapted module, and the hooks by which they take part in a call."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vlatrain.adapters import Adapter, Call
from vlatrain.injection.context import Context, ThisThread

METHOD = "vlatrain"  # PEFT's name of the method; transformers derives the key prefix from it
UNITS = f"{METHOD}_unit"  # the ModuleDict of adapters in a site, by adapter name; starts with PEFT's prefix
CHILD = "adapter"  # the child of an adapted module; must not contain PEFT's prefix, or `delete_adapter` skips it
OTHER = ("encoder_hidden_states", "encoder_attention_mask")  # a layer's arguments for the other modality's states


class Heard(ThisThread):
    """What the hooks of a site have heard in the call that a thread is in.

    Attributes:
        inputs: the first argument of the module whose input is wanted.
    """

    def __init__(self) -> None:
        self.inputs: Tensor | None = None


class Units(nn.ModuleDict):
    """Adapters by name. Any name does, those of a module's own methods too (`train`)."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Take an adapter."""
        self._modules[name] = module  # type: ignore[assignment]


class Site(nn.Module, BaseTunerLayer):
    """A child of the adapted module: its adapters by name, and the hooks that apply the active ones.

    Args:
        context: the model's context.
        tower: the tower it is in.
        layer: number of its layer.
    """

    adapter_layer_names = (UNITS,)

    def __init__(self, context: Context, tower: str, layer: int) -> None:
        super().__init__()
        self.context, self.tower, self.layer = context, tower, layer
        setattr(self, UNITS, Units())
        self._disable_adapters = False
        self.merged_adapters = []
        self.frozen: dict[str, Mapping[str, nn.Module]] = {}  # by adapter, the place's modules by role
        self.listening: dict[str, Any] = {}  # what has hooks already, and their handles
        self.around = False  # whether its adapters go around a whole layer: only they have something to hand on
        self.hears_other = False  # whether `listening` has hooks for it; torch.compile cannot look in there
        self.heard = Heard()

    @property
    def units(self) -> nn.ModuleDict:
        """The adapters by name."""
        units: nn.ModuleDict = getattr(self, UNITS)
        return units

    @property
    def reads_other(self) -> bool:
        """Whether an adapter at work here reads states of the other modality."""
        if self._disable_adapters or self.layer < self.context.without:
            return False
        units: list[Any] = [self.units[name] for name in self._named() if name in self.units]
        return any(unit.reads_other for unit in units)

    @property
    def contextual(self) -> bool:
        """Whether what its adapters compute depends on the call they are in, beyond the states and inputs they get."""
        return self.hears_other or self.around or any(isinstance(unit, ByTask) for unit in self.units.values())

    def register_hooks(
        self, target: nn.Module, module: nn.Module | None, layer: nn.Module | None, around: bool
    ) -> None:
        """Register the hooks that an adapter needs; those that are there already stay.

        Args:
            target: the adapted module.
            module: the module whose input is wanted.
            layer: the layer whose states of the other modality are wanted.
            around: whether adapters may change the target's arguments (`Adapter.enter`).
        """
        self.__dict__["target"] = target  # not registered: it is the parent
        if "output" not in self.listening:
            # prepended, so that hooks that record outputs see the adapted states
            self.listening["output"] = target.register_forward_hook(self.hook, prepend=True, with_kwargs=True)
        if around and "around" not in self.listening:
            self.around, self.names = True, tuple(inspect.signature(target.forward).parameters)
            self.listening["around"] = target.register_forward_pre_hook(self.enter, with_kwargs=True)
        if module is not None and "input" not in self.listening:
            self.listening["input"] = module.register_forward_pre_hook(self.hear_input, with_kwargs=True)
        if layer is not None and "other" not in self.listening:
            names = list(inspect.signature(layer.forward).parameters)
            self.positions = tuple(names.index(name) if name in names else -1 for name in OTHER)
            self.hears_other = True
            self.context.readers.append(self)
            self.listening["other"] = layer.register_forward_pre_hook(self.hear_other, with_kwargs=True)
            self.listening["forget"] = layer.register_forward_hook(self.forget_other)

    def leave(self) -> None:
        """Take all hooks out again."""
        for handle in self.listening.values():
            handle.remove()
        self.listening.clear()
        self.context.readers[:] = [site for site in self.context.readers if site is not self]

    def hear_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the module whose input is wanted: its first argument, whatever it is called."""
        self.heard.inputs = args[0] if args else next(iter(kwargs.values()))

    def hear_other(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the layer: the states of the other modality that it is called with, by position or by name.

        It is the context that keeps them: a layer that is recomputed in the backward pass does not call its own hooks again.
        """
        heard = [
            args[place] if 0 <= place < len(args) else kwargs.get(name)
            for name, place in zip(OTHER, self.positions, strict=True)
        ]
        self.context.call.heard = (heard[0], heard[1])

    def forget_other(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook of the layer: what it was called with is over."""
        self.context.call.heard = (None, None)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of the target: its arguments as the active adapters that go around it want them."""
        if self._disable_adapters or self.layer < self.context.without:
            return None
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        for name in self._at_work():
            if change := getattr(self.units[name], "enter", None):
                arguments = change(arguments, self._call(name))
        # as they came: hooks that record a layer's input look for it by position
        return tuple(arguments.pop(name) for name in self.names[: len(args)]), arguments

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the target: its output, (B, L, width), with the active adapters' added."""
        inputs, self.heard.inputs = self.heard.inputs, None
        if self._disable_adapters or self.layer < self.context.without:
            return output
        states: Tensor = output[0] if isinstance(output, tuple) else output
        given, mask = self._other(len(states))
        if self.context.call.rows is None:
            adapted = read = states
            for name in reversed(self._at_work()):  # what entered last leaves first
                if not self.units[name].residual:
                    read = adapted = self._applied(name, adapted, adapted, inputs, given, mask)
                else:
                    adapted = self._applied(name, read, adapted, inputs, given, mask)
        else:
            adapted = self._by_rows(states, inputs, given, mask)
        if adapted is states:
            return output
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

    def _applied(
        self,
        name: str,
        states: Tensor,
        adapted: Tensor,
        inputs: Tensor | None,
        other: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        unit: Any = self.units[name]
        found = unit(inputs if unit.reads == "input" else states, self._call(name, inputs, other, mask))
        if found is None:
            return adapted
        out: Tensor = adapted + found if unit.residual else found
        return out

    def _call(
        self, name: str, inputs: Tensor | None = None, other: Tensor | None = None, mask: Tensor | None = None
    ) -> Call:
        carried = self.context.call.carried.setdefault((self.tower, name), {}) if self.around else {}
        exported = self.context.call.exported.setdefault(name, {}) if self.around else {}
        return Call(inputs, other, mask, self.frozen[name], carried, exported)

    def _at_work(self) -> list[str]:
        """The adapters that are here and that take part in the call.

        Raises:
            ValueError: some rows of the batch have one that changes whole sequences, and others do not.
        """
        found = [name for name in self._named() if name in self.units]
        for name in found if self.context.call.rows is not None else ():
            unit: Any = self.units[name]
            if not unit.residual or unit.exclusive:
                raise ValueError(f"adapter {name!r} changes whole sequences: it cannot share a batch with others")
        return found

    def _named(self) -> list[str]:
        """The adapters that take part in the call, here or elsewhere."""
        if self.context.call.rows is None:
            return list(self.active_adapters)
        return list(dict.fromkeys(name for row in self.context.call.rows for name in _weights(row)))

    def _by_rows(self, states: Tensor, inputs: Tensor | None, other: Tensor | None, mask: Tensor | None) -> Tensor:
        """Each row with its own adapter, or with the weighted sum of what several add."""
        weights = [_weights(row) for row in self._repeated(self.context.call.rows or [], len(states))]
        adapted = states
        for name in self._at_work():
            rows = [row for row, wanted in enumerate(weights) if name in wanted]
            own = torch.tensor(rows, device=states.device)
            part = [value if value is None else value[own] for value in (states, inputs, other, mask)]
            added = self._applied(name, part[0], torch.zeros_like(part[0]), *part[1:])  # type: ignore[arg-type]
            if any(weights[row][name] != 1 for row in rows):
                shares = torch.tensor([weights[row][name] for row in rows], dtype=added.dtype, device=added.device)
                added = added * shares.view(-1, *[1] * (added.dim() - 1))  # (rows, 1, 1)
            adapted = adapted.index_add(0, own, added.to(adapted.dtype))
        return adapted

    def _repeated(self, names: list[Any], rows: int) -> list[Any]:
        allowed = self.context.call.repeats
        if not names or rows % len(names) or (allowed is not None and rows // len(names) not in allowed):
            raise ValueError(f"{self.tower}: adapters are named for {len(names)} rows, but the batch has {rows}")
        return [name for name in names for _ in range(rows // len(names))]

    def _other(self, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """States of the other modality: what the tower has been handed, else what the layer was called with."""
        if not self.hears_other:
            return None, None
        states, mask = self.context.call.handed.get(self.tower, self.context.call.heard)
        if states is None:
            return None, None
        if rows % len(states):
            raise ValueError(f"{self.tower}: {rows} rows of states, but {len(states)} of the other modality")
        if rows != len(states):
            states = states.repeat_interleave(rows // len(states), dim=0)
            mask = None if mask is None else mask.repeat_interleave(rows // len(mask), dim=0)
        return states, None if mask is None else _as_keep(mask)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters. Only those that were or become active are touched: it costs the same however many there are."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in {*self.active_adapters, *names}:
            self._train(name, name in names and not inference_mode)
        self._active_adapter = names

    def enable_adapters(self, enabled: bool) -> None:
        """Let adapters take part, or not. What trains and what is frozen stays so, where PEFT would let the active ones train."""
        self._disable_adapters = not enabled

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Let adapters train, or not."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self._train(name, requires_grad)

    def _train(self, name: str, flag: bool) -> None:
        if name not in self.units:
            return
        unit: Any = self.units[name].requires_grad_(flag)
        for module in unit.modules():
            for frozen in getattr(module, "frozen", ()) if isinstance(module, Adapter) else ():
                module.get_submodule(frozen).requires_grad_(False)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if adapter_name in self.units:
            target: Any = self.target
            self.units[adapter_name].to(device or next(target.parameters()).device)

    def changes(self) -> dict[str, Tensor]:
        """What the active adapters come to as a change of the adapted module's weights: by name, what is added.

        Raises:
            ValueError: one is no such change, as most of the designs are none, or the module lacks the weight.
        """
        found: dict[str, Tensor] = {}
        target: Any = self.target
        for unit in (self.units[name] for name in self.active_adapters if name in self.units):
            change = unit.change_of(target) if isinstance(unit, Adapter) else None
            if change is None:
                raise ValueError(
                    "these adapters cannot be merged into the weights, as PEFT's can; unload() removes them"
                )
            for key, tensor in change.items():
                found[key] = found[key] + tensor.detach() if key in found else tensor.detach()
        return found

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Change the adapted module's weights by what its active adapters come to; see `changes`."""
        for name, change in self.changes().items():
            weight = getattr(self.target, name)
            weight.data += change.to(weight.dtype)

    def unmerge(self) -> None:
        """Nothing to do: they are never merged."""
        assert not self.merged_adapters


class ByTask(nn.Module):
    """A unit for each task; the context says whose turn it is.

    Args:
        context: the model's context.
        units: by task.
    """

    def __init__(self, context: Context, units: dict[str, nn.Module]) -> None:
        super().__init__()
        self.context = context
        self.tasks = tuple(units)
        # keys of their own: a task may be called as an attribute that every module has
        self.units = nn.ModuleDict({f"task_{task}": unit for task, unit in units.items()})

    @property
    def current(self) -> Any:
        """The unit of the task.

        Raises:
            ValueError: the context names no task that there is one for.
        """
        if self.context.call.task not in self.tasks:
            raise ValueError(
                f"task-specific adapters for {', '.join(self.tasks)}: none for {self.context.call.task or 'a call without task'}"
            )
        return self.units[f"task_{self.context.call.task}"]

    def __getattr__(self, name: str) -> Any:
        if name in ("reads", "reads_inputs", "residual", "reads_other", "exclusive"):  # the same for all
            return getattr(next(iter(self.units.values())), name)
        if name == "enter":
            return getattr(self.current, name)
        return super().__getattr__(name)

    def forward(self, states: Tensor, call: Call) -> Tensor:
        """What the task's unit computes."""
        found: Tensor = self.current(states, call)
        return found


class Alias(nn.Module):
    """Stands where a unit is used that belongs to another place: nothing of its own is registered, stored or counted."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.__dict__["unit"] = unit

    def __getattr__(self, name: str) -> Any:
        if name in ("reads", "reads_inputs", "residual", "reads_other", "exclusive", "enter"):
            return getattr(self.unit, name)
        return super().__getattr__(name)

    def forward(self, states: Tensor, call: Call) -> Tensor:
        """What the other place's unit computes."""
        found: Tensor = self.unit(states, call)
        return found


def _weights(row: str | Mapping[str, float]) -> Mapping[str, float]:
    """The weight of each adapter of a row."""
    return {row: 1.0} if isinstance(row, str) else row


def _as_keep(mask: Tensor) -> Tensor:
    """A mask (B, S) of ones and zeros, or the additive or boolean one (B, 1, 1 or L, S) that a layer gets, as bool (B, S)."""
    if mask.dim() == 4:
        mask = mask[:, 0, 0]
    return mask if mask.dtype == torch.bool else mask > (0 if not mask.is_floating_point() else -1)


# PEFT may have been imported from here first: then its hook (vlatrain/__init__.py) leaves it to us to make the method known
importlib.import_module("vlatrain.injection.peft_method")
