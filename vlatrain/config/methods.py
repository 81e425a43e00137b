"""A method's YAML file as the schema of its options: what it sets is what it has, with the type of its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from vlatrain.config.adapter import COMMON, AdapterConfig
from vlatrain.config.folder import conf_dir
from vlatrain.config.keys import did_you_mean, type_name

SHARED = ("none", "down", "up", "columns", "all")
OVER = ("layer", "tower", "site", "task")
BARE = ("full", "none")  # methods without modules of their own, hence without options


@cache
def described(name: str) -> Mapping[str, Any] | None:
    """The YAML of a method by the name of its design; None if it is not one of vlatrain's."""
    file = conf_dir() / "adapter" / f"{name}.yaml"
    if not file.is_file():
        return None
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return values.get("adapter", values)


def part(value: AdapterConfig | Mapping[str, Any]) -> AdapterConfig:
    """A part of a mixed method, typed."""
    return value if isinstance(value, AdapterConfig) else AdapterConfig(**value)


def parts(config: AdapterConfig) -> dict[str, AdapterConfig]:
    """The methods by name: those of a mixed one, else the method itself under an empty name."""
    return {name: part(value) for name, value in config.parts.items()} if config.parts else {"": config}


def is_peft(config: AdapterConfig) -> bool:
    """Whether it is a method of PEFT: one that says which existing layers it changes."""
    return config.targets is not None


def problems(config: AdapterConfig, key: str = "adapter") -> Iterator[str]:
    """What is wrong with the options of a method: unknown ones, ones that it has not, and wrong types."""
    if config.parts:
        for name, value in config.parts.items():
            unknown = set(value) - _fields() if isinstance(value, Mapping) else set()
            if unknown:
                yield from (
                    f"{key}.parts.{name}.{k}: there is no such key{did_you_mean(k, [*_fields()])}" for k in unknown
                )
            else:
                yield from problems(part(value), f"{key}.parts.{name}")
    schema = described(config.name)
    if schema is None or config.name in BARE:
        return
    title = f"adapter={config.name}"
    has = [name for name in COMMON if schema.get(name) is not None]
    for name in COMMON:
        if getattr(config, name) is not None and name not in has:
            yield f"{key}.{name}: {title} has no such option; it has {', '.join([*has, *schema.get('options', {})])}"
        elif getattr(config, name) is None and name in has:
            yield f"{key}.{name}=null: {title} needs {type_name(type(schema[name]))}"
    yield from _shared(config, schema, f"{key}.share", title)
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


def _fields() -> set[str]:
    return {field.name for field in dataclasses.fields(AdapterConfig)}


def _shared(config: AdapterConfig, schema: Mapping[str, Any], key: str, title: str) -> Iterator[str]:
    share = config.share
    if share.what not in SHARED:
        yield f"{key}.what={share.what}: must be one of {', '.join(SHARED)}{did_you_mean(share.what, SHARED)}"
    elif share.what != "none" and "share" not in schema:
        yield f"{key}.what={share.what}: {title} has no halves that could be shared"
    for name in share.over:
        if name not in OVER:
            yield f"{key}.over: {name}: must be some of {', '.join(OVER)}{did_you_mean(name, OVER)}"
    if share.columns < 1:
        yield f"{key}.columns={share.columns}: must be 1 or more"


def _options(values: Mapping[str, Any], known: Mapping[str, Any], key: str, title: str) -> Iterator[str]:
    for name, value in values.items():
        if name not in known:
            yield f"{key}.{name}: {title} has no such option{did_you_mean(name, [*known])}; it has {', '.join(known)}"
        elif not _fits(value, known[name]):
            yield f"{key}.{name}={value}: expected {type_name(type(known[name]))}"


def _fits(value: Any, default: Any) -> bool:
    if default is None or (isinstance(default, str) and "${" in default):
        return True
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, (int, float))
    return type(value) is type(default)
