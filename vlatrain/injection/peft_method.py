"""Our adapters as a PEFT method, attached by forward hooks.

PEFT's own tuners replace the modules they adapt. This one leaves the module tree and the base keys as they are: an
adapted module gets a child that holds the adapters, and a forward hook that adds what they compute to the module's
output. (Wrapping whole layers corrupts the capture of hidden states in transformers 5, and breaks calls by keyword.)

With the method registered, `get_peft_model`, `PeftModel.from_pretrained`, `save_pretrained`, `set_adapter`,
`disable_adapter`, `delete_adapter`, `unload` and transformers' `model.load_adapter` work as with any PEFT method. All that depends
on PEFT's internals is in this file, in `rows`, in `saved` and in `older_peft`; `tests/injection/test_peft_method.py` is the
contract with both ends of the range of releases.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import AuxiliaryTrainingWrapper, register_peft_method
from torch import Tensor, nn
from transformers.integrations import PeftAdapterMixin

from vlatrain.adapters import DESIGNS, Adapter, Facts, borrow, options_of
from vlatrain.injection.context import context_of
from vlatrain.injection.older_peft import CURRENT, Tuner, name_tensors
from vlatrain.injection.points import Point
from vlatrain.injection.rows import named_rows
from vlatrain.injection.saved import few, made_for, refuse_partial, refusing_partial
from vlatrain.injection.site import CHILD, METHOD, UNITS, Alias, ByTask, Site

PARTS = {"down": "down", "up": "up", "columns": "up.projection.common"}  # what a sharing rule names, in an adapter

SAVED_AS = f"{METHOD.upper()}: first `import {METHOD}` (pip install {METHOD})"  # in an adapter's file


@dataclass
class VlatrainConfig(PeftConfig):
    """What is saved in `adapter_config.json`.

    Attributes:
        design: a key of `vlatrain.adapters.DESIGNS`.
        points: by logical point (`decoder.7.cross`), its `Place` in the backbone as plain values.
        options: options of the design (`dim`, `activation`, ...), plain JSON values.
        overrides: by point, options that differ there.
        share: what places have in common, `{"what": "down", "over": ["layer", "tower"]}`; empty: nothing.
        tasks: names of the tasks, where each has its own adapters; empty: one for all.
        modules_to_save: modules outside the points that are trained and saved as they are (a task's heads).
    """

    design: str = field(default="bottleneck", metadata={"help": "the adapter design"})
    points: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"help": "place by injection point"})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of the design"})
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"help": "options by point"})
    share: dict[str, Any] = field(default_factory=dict, metadata={"help": "what places have in common"})
    tasks: list[str] = field(default_factory=list, metadata={"help": "tasks with adapters of their own"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "other modules trained and saved with it"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = getattr(PeftType, METHOD.upper())
        if self.design not in DESIGNS:
            raise ValueError(f"unknown adapter design {self.design!r}; there are {', '.join(DESIGNS)}")

    def to_dict(self) -> dict[str, Any]:
        """Its values. The name of the method says what PEFT must be given first: its error for an unknown one is that name."""
        return {**super().to_dict(), "peft_type": SAVED_AS}

    @property
    def target_modules(self) -> frozenset[str]:
        """The adapted modules' paths. Derived, hence not saved."""
        return frozenset(place["output"] for place in self.points.values())

    @property
    def towers(self) -> list[str]:
        """The towers that have a point."""
        return list(dict.fromkeys(point.tower for point in map(Point.parse, self.points)))

    def readers_of(self, tower: str) -> list[str]:
        """The towers with a point whose layers attend to a tower's states by themselves."""
        found = (Point.parse(text).tower for text, place in self.points.items() if place.get("cross") == tower)
        return list(dict.fromkeys(found))

    def layers_of(self, tower: str) -> list[int]:
        """The layers of a tower that have a point."""
        return [point.layer for point in map(Point.parse, self.points) if point.tower == tower]


class VlatrainModel(Tuner):
    """The tuner: gives every module named by the configuration's points a `Site` with a new adapter in it."""

    prefix = f"{METHOD}_"
    tuner_layer_cls = Site
    target_module_mapping: dict[str, list[str]] = {}
    sites: list[Site]
    # what is shared, by adapter, part and what the places have in common
    owners: dict[tuple[str, str, tuple[Any, ...]], nn.Module]

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        # not registered: they are in the model already. Found once, so that switching need not look for them
        self.__dict__["sites"] = [module for module in model.modules() if isinstance(module, Site)]
        self.__dict__["owners"] = {}
        super().__init__(model, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if not peft_config.points:
            raise ValueError("VlatrainConfig.points is empty: name the points to adapt")
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        name = next(name for name, known in self.peft_config.items() if known is config)
        ours = (UNITS, CHILD, METHOD)
        if "." in name or name in ours:
            raise ValueError(
                f"adapter name {name!r}: use one without dots, and not {', '.join(ours[:-1])} or {ours[-1]}"
            )
        if not CURRENT and name in UNITS:
            raise ValueError(
                f"adapter name {name!r}: PEFT before 0.21 looks for it as text in '{UNITS}': use another, or a newer PEFT"
            )

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        there = {name for name, _ in model.named_modules()}
        lacking = [
            point
            for point, place in peft_config.points.items()
            if not there.issuperset({place["output"], *place.get("modules", {}).values()})
        ]
        if lacking:
            if hasattr(model, "_orig_mod"):
                raise ValueError("the model is compiled already: attach or load the adapter first, then torch.compile")
            raise ValueError(
                f"{type(model).__name__} lacks {len(lacking)} of the adapter's {len(peft_config.points)} points "
                f"({few(lacking)}); {made_for(peft_config)}"
            )

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
        text, place = next(item for item in peft_config.points.items() if item[1]["output"] == current_key)
        point = Point.parse(text)
        site = getattr(target, CHILD, None)
        if site is None:
            site = Site(context_of(self.model), point.tower, point.layer)
            target.add_module(CHILD, site)
            self.sites.append(site)
        unit: Any = self._unit(peft_config, adapter_name, point, place, target)
        design = DESIGNS[peft_config.design]
        site.register_hooks(
            target,
            self._module(place, "input")
            if place.get("input") and (unit.reads == "input" or unit.reads_inputs)
            else None,
            self._module(place, "layer") if place.get("other") and unit.reads_other else None,
            hasattr(design, "enter"),
        )
        weight = next(target.parameters())
        if not any(parameter.is_meta for parameter in unit.parameters()):
            unit.to(weight.device)
        site.units[adapter_name] = unit.train(target.training)
        site.frozen[adapter_name] = {
            role: self.model.get_submodule(path) for role, path in place.get("modules", {}).items()
        }
        site.set_requires_grad(adapter_name, adapter_name in self.active_adapters and not peft_config.inference_mode)
        site.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    def _module(self, place: Mapping[str, Any], key: str) -> nn.Module:
        module: nn.Module = self.model.get_submodule(place[key])
        return module

    def _unit(
        self, config: VlatrainConfig, adapter: str, point: Point, place: Mapping[str, Any], target: nn.Module
    ) -> nn.Module:
        """The new module of a point, with what it shares; for several tasks, one for each."""
        made = {
            task: self._tied(config, adapter, point, task, self._build(config, point, place, target))
            for task in config.tasks or [""]
        }
        return ByTask(context_of(self.model), made) if config.tasks else made[""]

    def _build(self, config: VlatrainConfig, point: Point, place: Mapping[str, Any], target: nn.Module) -> Adapter:
        design = DESIGNS[config.design]
        options = options_of(design, {**config.options, **config.overrides.get(str(point), {})})
        unit = design(self._facts(config, point, place, target), options)
        if not any(parameter.is_meta for parameter in (*unit.parameters(), *target.parameters())):
            unit.adopt({role: self.model.get_submodule(path) for role, path in place.get("modules", {}).items()})
        return unit

    def _facts(self, config: VlatrainConfig, point: Point, place: Mapping[str, Any], target: nn.Module) -> Facts:
        """What a place tells, from where it is, from the others of the adapter, and from its module."""
        depth = len(self._module(place, "layers")) if place.get("layers") else 1  # type: ignore[arg-type]  # a list
        having = config.layers_of(point.tower)
        return Facts(
            width=width_of(target, place.get("width", 0)),
            other_width=place.get("other_width", 0),
            heads=place.get("heads", 0),
            tower=point.tower,
            index=point.layer,
            site=point.site,
            layers=depth,
            first=point.layer == min(having),
            last=point.layer == max(having),
            whole=bool(place.get("layers")) and having == [*range(depth)],
            causal=place.get("causal", False),
            end=place.get("end", False),
            cross=place.get("cross", ""),
            cross_width=place.get("cross_width", 0),
            towers=config.towers,
            readers=config.readers_of(point.tower),
            role=place.get("role", ""),
            inputs=inputs_of(target),
            tasks=config.tasks,
        )

    def _tied(self, config: VlatrainConfig, adapter: str, point: Point, task: str, unit: Adapter) -> nn.Module:
        """The unit with its shared modules borrowed from the unit that had them first."""
        ties = ties_of(unit, config.share)
        for path, over in ties.items():
            own = unit.get_submodule(path)
            owner = self.owners.setdefault((adapter, path, kept(point, over, task)), own)
            if owner is own:
                continue
            if not path:
                _refuse_other_shapes(owner, own, "all", point, tuple(f"{other}." for other in ties if other))
                return Alias(owner)
            _refuse_other_shapes(owner, own, path, point)
            borrow(unit, path, owner)
        unit.resolve()
        return unit

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter. PEFT walks the whole model for it, several times; what is resident stays out of its way."""
        resident = [(site.units._modules, dict(site.units._modules)) for site in self.sites]
        for modules, _ in resident:
            modules.clear()
        try:
            super().inject_adapter(*args, **kwargs)
        finally:
            for modules, before in resident:
                added = dict(modules)
                modules.clear()
                modules.update({**before, **added})

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters, at a cost that does not grow with the number of resident ones."""
        if any(getattr(config, "modules_to_save", None) for config in self.peft_config.values()):
            super().set_adapter(adapter_name, inference_mode)
            return
        for site in self.sites:
            site.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and what it shared with itself."""
        super().delete_adapter(adapter_name)
        for key in [key for key in self.owners if key[0] == adapter_name]:
            del self.owners[key]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's `model(..., adapter_names=[...])`: a batch whose rows have adapters of their own.

        Raises:
            ValueError: a name that no adapter has, or not a name for each row.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        known = {name for site in self.sites for name in site.units}
        with named_rows(self.model, names, known, args, kwargs):
            yield

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        adapted = [module for module in self.model.modules() if _is_adapted(module)]
        for module in adapted if merge else ():
            getattr(module, CHILD).changes()  # all or none
        for module in adapted if merge else ():
            getattr(module, CHILD).merge()
        for module in adapted:
            getattr(module, CHILD).leave()
            delattr(module, CHILD)
        wrappers = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, AuxiliaryTrainingWrapper)
        ]
        for name, wrapper in wrappers:  # heads that were trained with the adapters
            parent, _, last = name.rpartition(".")
            trained = getattr(wrapper, "modules_to_save", {})
            merged = [trained[name] for name in self.active_adapters if merge and name in trained]
            setattr(self.model.get_submodule(parent), last, merged[0] if merged else wrapper.original_module)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        refuse_partial(model, config, adapter_name, found)
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        if f".{UNITS}.{adapter_name}." not in key:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return key.replace(f".{UNITS}.{adapter_name}.", f".{UNITS}.", 1)


def ties_of(unit: Adapter, share: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What a unit has in common with others, and what places may differ in and still have it; the part "" is the whole unit."""
    what = share.get("what", "none")
    ties = {"": tuple(share["over"])} if what == "all" else {}
    ties |= unit.ties
    return ties | ({PARTS[what]: tuple(share["over"])} if what in PARTS else {})


def kept(point: Point, over: Sequence[str], task: str = "") -> tuple[str | int, ...]:
    """What places have in common that share a part: all but what they may differ in."""
    place: dict[str, str | int] = {"tower": point.tower, "layer": point.layer, "site": point.site, "task": task}
    return tuple(value for name, value in place.items() if name not in over)


def _refuse_other_shapes(owner: nn.Module, own: nn.Module, path: str, point: Point, but: tuple[str, ...] = ()) -> None:
    """Refuse to share what is not of one shape; parameters that start with one of `but` may differ."""
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in module.named_parameters() if not name.startswith(but)}
        for module in (owner, own)
    ]
    if shapes[0] != shapes[1]:
        there, elsewhere = _described(shapes[1]), _described(shapes[0])
        raise ValueError(f"{point} cannot share {path}: it is {there} there and {elsewhere} elsewhere")


def _described(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def width_of(module: nn.Module, otherwise: int = 0) -> int:
    """Width of the states a module puts out: the last dimension of its output.

    Args:
        module: a linear layer (`out_features`, or `nf` of transformers' Conv1D) or a norm, or one that ends in one.
        otherwise: width of any other module, if it is known.

    Raises:
        ValueError: neither can be told.
    """
    for attribute in ("out_features", "nf"):
        if isinstance(width := getattr(module, attribute, None), int):
            return width
    if isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        return int(shape[-1])
    if otherwise:
        return otherwise
    inside = [m for name, m in module.named_modules() if name and not name.startswith(CHILD)]
    for inner in reversed(inside):  # SigLIP's attention pooling ends in a linear layer
        if isinstance(inner, (nn.Linear, nn.LayerNorm)):
            return width_of(inner)
    raise ValueError(f"{type(module).__name__} says nothing of its output width: adapt a linear layer or a norm")


def inputs_of(module: nn.Module) -> int:
    """Inputs of a linear layer (transformers' Conv1D too); 0 for what is none."""
    return int(getattr(module, "in_features", 0) or getattr(module, "nx", 0))


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
        name_tensors(METHOD.upper(), VlatrainModel, UNITS)
    PEFT_TYPE_TO_CONFIG_MAPPING[SAVED_AS] = VlatrainConfig  # type: ignore[index]  # saved before, it is the plain name
    # PEFT warns of every name that is a part of this as text, as of old; ours are told apart by whole segments
    warnings.filterwarnings("ignore", message=f".*should not be contained in the prefix '{METHOD}_'")
    PeftAdapterMixin.load_adapter = refusing_partial(PeftAdapterMixin.load_adapter, VlatrainConfig)  # type: ignore[method-assign]


register()
