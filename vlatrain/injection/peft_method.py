"""Our adapters as a PEFT method, attached by forward hooks.

PEFT's own tuners replace the modules they adapt. This one leaves the module tree and the base keys as they are: an
adapted module gets a child that holds the adapters, and a forward hook that adds what they compute to the module's
output. (Wrapping whole layers corrupts the capture of hidden states in transformers 5, and breaks calls by keyword.)

With the method registered, `get_peft_model`, `PeftModel.from_pretrained`, `save_pretrained`, `set_adapter`,
`disable_adapter`, `delete_adapter`, `unload` and transformers' `model.load_adapter` work as with any PEFT method. All that depends
on PEFT's internals is in this file; `tests/injection/test_peft_method.py` is the contract with the pinned release.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

from vlatrain.adapters import DESIGNS

METHOD = "vlatrain"  # PEFT's name of the method; transformers derives the key prefix from it
UNITS = f"{METHOD}_unit"  # the ModuleDict of adapters in a site, by adapter name; starts with PEFT's prefix
CHILD = "adapter"  # the child of an adapted module; must not contain PEFT's prefix, or `delete_adapter` skips it


@dataclass
class VlatrainConfig(PeftConfig):
    """What is saved in `adapter_config.json`.

    Attributes:
        design: a key of `vlatrain.adapters.DESIGNS`.
        points: module path in the backbone by logical point (`decoder.7.cross`).
        options: options of the design (`dim`, `activation`, ...), plain JSON values.
        modules_to_save: modules outside the points that are trained and saved as they are (a task's heads).
    """

    design: str = field(default="bottleneck", metadata={"help": "the adapter design"})
    points: dict[str, str] = field(default_factory=dict, metadata={"help": "module path by injection point"})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of the design"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "other modules trained and saved with it"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = getattr(PeftType, METHOD.upper())
        if self.design not in DESIGNS:
            raise ValueError(f"unknown adapter design {self.design!r}; there are {', '.join(DESIGNS)}")

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The adapted modules' paths. Derived, hence not saved."""
        return tuple(self.points.values())


class Site(nn.Module, BaseTunerLayer):
    """The adapters of one adapted module, and the hook that applies the active ones.

    Args:
        width: width of the states the module puts out.
    """

    adapter_layer_names = (UNITS,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        setattr(self, UNITS, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters = []

    @property
    def units(self) -> nn.ModuleDict:
        """The adapters by name."""
        return getattr(self, UNITS)

    def hook(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Forward hook of the adapted module: its output, (..., width), with the active adapters' added."""
        if self._disable_adapters:
            return output
        states: Tensor = output[0] if isinstance(output, tuple) else output
        adapted = states
        for name in self.active_adapters:
            if name in self.units:
                adapted = adapted + self.units[name](states)
        if adapted is states:
            return output
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a non-linear adapter is no change of the weights."""
        raise ValueError("these adapters are not linear and cannot be merged into the weights; unload() removes them")

    def unmerge(self) -> None:
        """Nothing to do: they are never merged."""
        assert not self.merged_adapters


class VlatrainModel(BaseTuner):
    """The tuner: gives every module named by the configuration's points a `Site` with a new adapter in it."""

    prefix = f"{METHOD}_"
    tuner_layer_cls = Site
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        if not peft_config.points:
            raise ValueError("VlatrainConfig.points is empty: name the points to adapt")
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        name = next(name for name, known in self.peft_config.items() if known is config)
        # PEFT finds the adapter's name in dotted keys by looking for it as text
        if "." in name or name in UNITS or name == CHILD:
            raise ValueError(f"adapter name {name!r}: use one without dots that is no part of '{UNITS}' or '{CHILD}'")

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        return key in peft_config.target_modules

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = getattr(target, CHILD, None)
        if site is None:
            site = Site(width_of(target))
            target.add_module(CHILD, site)
            # prepended, so that hooks that record outputs see the adapted states
            target.register_forward_hook(site.hook, prepend=True, with_kwargs=True)
        unit = DESIGNS[peft_config.design](site.width, **peft_config.options)
        weight = next(target.parameters(recurse=False))
        if not any(parameter.is_meta for parameter in unit.parameters()):
            unit.to(weight.device)
        site.units[adapter_name] = unit.train(target.training)
        site.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        sites = [(module, getattr(module, CHILD)) for module in self.model.modules() if _is_adapted(module)]
        if merge and sites:
            sites[0][1].merge()
        for module, site in sites:
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__self__", None) is site:
                    del module._forward_hooks[key]
                    module._forward_hooks_with_kwargs.pop(key, None)
            delattr(module, CHILD)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{UNITS}.{adapter_name}.", f".{UNITS}.", 1)


def width_of(module: nn.Module) -> int:
    """Width of the states a module puts out: the last dimension of its output.

    Raises:
        ValueError: it is neither a linear layer (`out_features`, or `nf` of transformers' Conv1D) nor a norm.
    """
    for attribute in ("out_features", "nf"):
        if isinstance(width := getattr(module, attribute, None), int):
            return width
    if isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        return int(shape[-1])
    raise ValueError(f"{type(module).__name__} says nothing of its output width: adapt a linear layer or a norm")


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(getattr(module, CHILD, None), Site)


def _extend_enum(cls: Any, name: str) -> None:
    """Add a member to a closed string enum. PEFT's `PeftType` is one, and transformers needs a real member."""
    if name in cls.__members__:
        return
    member = str.__new__(cls, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(cls.__members__)
    member.__objclass__ = cls
    cls._member_map_[name] = member
    cls._member_names_.append(name)
    cls._value2member_map_[name] = member
    type.__setattr__(cls, name, member)


def register() -> None:
    """Make the method known to PEFT; again does nothing."""
    _extend_enum(PeftType, METHOD.upper())
    if getattr(PeftType, METHOD.upper()) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=METHOD, config_cls=VlatrainConfig, model_cls=VlatrainModel)


register()
