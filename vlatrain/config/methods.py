"""A method's YAML file as the schema of its options: what it sets is what it has, with the type of its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlatrain.config import limits
from vlatrain.config.adapter import COMMON, AdapterConfig
from vlatrain.config.errors import Incompatible, UserError
from vlatrain.config.folder import set_by, shipped
from vlatrain.config.keys import did_you_mean, problems_in, type_name

PROBE = "linear_probe"  # the new head of a vision tower, alone
BARE = ("full", "none", PROBE)  # methods without modules of their own, hence without options
ROUTER = "router"  # chooses among finished runs, and puts nothing of its own into the backbone


def described(name: str) -> Mapping[str, Any] | None:
    """The YAML of a method by the name of its design; None if it is not one of vlatrain's."""
    values = set_by("adapter", name)
    schema: Mapping[str, Any] | None = values.get("adapter", values) or None
    return schema


def completed(config: AdapterConfig) -> AdapterConfig:
    """The method and its components with what is not set (null) as in its YAML: a user's own file need only say what differs.

    Raises:
        UserError: a value that is not of its option's type.
    """
    if config.components:
        if any(wrong_components(config)):
            return config  # `problems` tells
        return dataclasses.replace(
            config, components={name: completed(method) for name, method in components(config).items()}
        )
    schema = described(config.name)
    if schema is None or config.name in BARE:
        return config
    defaults = {key: schema[key] for key in (*COMMON, "options") if schema.get(key) is not None}
    given = {key: getattr(config, key) for key in COMMON if getattr(config, key) is not None}
    try:
        merged = OmegaConf.merge(defaults, given, {"options": config.options})
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"adapter={config.name}: {str(error).splitlines()[0]}") from error
    return dataclasses.replace(
        config,
        **values,
        needs=config.needs or schema.get("needs", []),
        targets=config.targets if config.targets is not None else schema.get("targets"),
    )


def component(value: AdapterConfig | Mapping[str, Any]) -> AdapterConfig:
    """A component of a mixed method, typed.

    Raises:
        UserError: keys or types that a method has not.
    """
    if isinstance(value, AdapterConfig):
        return value
    plain = _of_file(value)
    if found := problems_in(AdapterConfig, plain):
        raise UserError(found)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AdapterConfig), plain))  # type: ignore[return-value]


def _of_file(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A component's values. A file that sets more than the method (a learning rate) has these below `adapter`."""
    inner = value.get("adapter")
    if not isinstance(inner, Mapping):
        return value
    return {**inner, **{key: other for key, other in value.items() if key not in ("adapter", "optim")}}


def components(config: AdapterConfig) -> dict[str, AdapterConfig]:
    """The methods by name: those of a mixed one, else the method itself under an empty name."""
    return {name: component(value) for name, value in config.components.items()} if config.components else {"": config}


def patterns(config: AdapterConfig, default: list[str]) -> list[str]:
    """The point patterns of a method: its own, else the default ones, which are the task's. A mixed one has its components'."""
    own = default if config.points is None else config.points
    if not config.components:
        return own
    methods = components(config).values()
    found = [pattern for method in methods for pattern in method.points or []]
    return [*found, *(own if any(method.points is None for method in methods) else [])]


def is_peft(config: AdapterConfig) -> bool:
    """Whether it is a method of PEFT: one that says which existing layers it changes."""
    return config.targets is not None


def problems(config: AdapterConfig, key: str = "adapter") -> Iterator[str]:
    """What is wrong with the options of a method: unknown ones, ones that it does not have, and wrong types. Of components also
    values that their fields do not allow; those of the whole configuration are reported elsewhere."""
    if wrong := list(wrong_components(config, key)):
        yield from wrong
    else:
        for name, method in components(config).items() if config.components else ():
            where = f"{key}.components.{name}"
            yield from [*limits.problems(method, where), *problems(method, where)]
    if config.trunk and config.name in BARE:
        trains = {"full": "everything anyway", PROBE: "the head alone"}.get(config.name, "nothing")
        yield f"{key}.trunk: adapter={config.name} trains {trains}"
    schema = described(config.name)
    if schema is None or config.name in BARE:
        return
    title = f"adapter={config.name}"
    has = [name for name in COMMON if schema.get(name) is not None]
    for name in COMMON:
        if getattr(config, name) is not None and name not in has:
            known = ", ".join([*has, *schema.get("options", {})]) or "none"
            known += f"; its components may: {key}.components.NAME.{name}" if config.components else ""
            yield Incompatible(f"{key}.{name}: {title} has no such option; it has {known}{others_having(name)}")
        elif getattr(config, name) is None and name in has:
            yield f"{key}.{name}=null: {title} needs {type_name(type(schema[name]))}"
    if config.share.what != "none" and "share" not in schema and not any(limits.problems(config.share)):
        yield f"{key}.share.what={config.share.what}: {title} has no halves that could be shared"
    if not is_peft(config):
        yield from _options(config.options, schema.get("options", {}), f"{key}.options", title)
    known = {name: schema[name] for name in has} | schema.get("options", {})
    for pattern, values in config.overrides.items():
        where = f"{key}.overrides.{pattern}"
        if not isinstance(values, Mapping):
            yield f"{where}={values}: expected options, such as {{dim: 8}}"
        elif is_peft(config):
            yield f"{where}: {title} is a method of PEFT; it takes adapter.options.rank_pattern and the like"
        else:
            yield from _options(values, known, where, title)


def wrong_components(config: AdapterConfig, key: str = "adapter") -> Iterator[str]:
    """What keeps the components of a mixed method from being components."""
    pointed: list[bool] = []
    for name, value in config.components.items():
        where = f"{key}.components.{name}"
        if "." in name:
            yield f"{where}: the name of a component has no dots"
        if not isinstance(value, (AdapterConfig, Mapping)):
            yield f"{where}={value}: expected a method, such as {{name: lora, points: [vision]}}"
            continue
        # OmegaConf makes attributes of keys that were forced in (`++`), so that vars() has what asdict() has not
        plain = vars(value) | dataclasses.asdict(value) if isinstance(value, AdapterConfig) else _of_file(value)
        if found := problems_in(AdapterConfig, plain):
            yield from (f"{where}: {problem}" for problem in found)
            continue
        method = component(value)
        if method.components or method.name in BARE:
            yield f"{where}: adapter={method.name} cannot be a component of another method"
        if method.heads or config.heads:
            yield f"{where}: a mixed method does not train the heads along: leave out heads=true"
        if method.trunk:
            yield f"{where}: the trunk's weights train for all components alike: {key}.trunk"
        if method.drop_layers or method.drop_random:
            yield f"{where}: layers are dropped for all components alike: {key}.drop_layers, {key}.drop_random"
        pointed.append(method.points is not None)
    if pointed and all(pointed) and config.points is not None:
        yield f"{key}.points: every component has points of its own, such as {key}.components.{name}.points"


def having(option: str) -> list[str]:
    """The methods that have an option, by the names of their designs."""
    methods = {name: described(name) or {} for name in shipped("adapter")}
    return [
        name
        for name, schema in methods.items()
        if schema.get("name") == name and (schema.get(option) is not None or option in schema.get("options", {}))
    ]


def others_having(option: str) -> str:
    """`; adapter=prompt has it`: of many the first few; empty if no method has it."""
    able = [f"adapter={name}" for name in having(option)]
    if len(able) < 2:
        return "".join(f"; {name} has it" for name in able)
    most, last = (able[:3], f"{len(able) - 3} more") if len(able) > 4 else (able[:-1], able[-1])
    return f"; {', '.join(most)} and {last} have it"


def _options(values: Mapping[str, Any], known: Mapping[str, Any], key: str, title: str) -> Iterator[str]:
    for name, value in values.items():
        if name not in known:
            yield (
                f"{key}.{name}: {title} has no such option{did_you_mean(name, [*known])}; it has "
                f"{', '.join(known) or 'none'}{others_having(name)}"
            )
        elif not _fits(value, known[name]):
            yield f"{key}.{name}={value}: expected {type_name(type(known[name]))}"


def _fits(value: Any, default: Any) -> bool:
    if default is None or (isinstance(default, str) and "${" in default):
        return True
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, (int, float))
    return type(value) is type(default)
