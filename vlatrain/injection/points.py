"""Injection points, named by role, and the patterns that select them. No torch here: patterns are checked before it loads.

A point is `tower.layer.site`, such as `decoder.7.cross`. A pattern has the same three parts, and missing parts at its end
mean everything (`vision` is `vision.*.*`):

    tower, site    a name, `*`, or alternatives: `{vision,text}`; the tower `end` is every tower that ends in a head
    layer          a number, a range `6-11`, `first4`, `last4`, `*`, or alternatives of these: `{0,6-11}`

`TOWER.projection` is one more: the linear layer between a tower's states and its features, where there is one. No other pattern
selects it.

`firstN` and `lastN` select every layer of a tower that has fewer than N. Alternatives that a backbone lacks select
nothing as long as the pattern as a whole selects something; a pattern that selects nothing is an error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vlatrain.config.errors import UserError

PROJECTION = "projection"
_LAYER = re.compile(r"\*|\d+|\d+-\d+|(?:first|last)\d+")
_NAME = re.compile(r"\*|[a-z_][a-z_0-9]*")


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A place where an adapter can be put: the output of a site in a layer of a tower."""

    tower: str
    layer: int
    site: str

    def __str__(self) -> str:
        return f"{self.tower}.{self.layer}.{self.site}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """The point written as `tower.layer.site`."""
        tower, layer, site = text.split(".")
        return cls(tower, int(layer), site)


@dataclass(frozen=True, slots=True)
class Stack:
    """What patterns need to know of a tower: how many layers, the sites of each, and whether it ends in a head.

    Attributes:
        every: of sites that only each so manieth layer has, from the first on, this number.
        projection: whether its features come from a linear layer behind it.
    """

    layers: int
    sites: tuple[str, ...]
    end: bool = False
    every: Mapping[str, int] = field(default_factory=dict)
    projection: bool = False

    def at(self, layer: int) -> list[str]:
        """The sites that a layer has."""
        return [site for site in self.sites if layer % self.every.get(site, 1) == 0]


@dataclass(frozen=True)
class Place:
    """Where a module goes in a backbone, and what is known there.

    Attributes:
        output: path of the module whose output is adapted.
        input: path of the module whose input the place has; empty if there is none.
        layer: path of the layer it is in; empty for features.
        layers: path of the list of the tower's layers; empty for features.
        modules: paths of the frozen modules of the place, by role.
        width: width of the tower's states; 0 for features: that of the module's output.
        heads: attention heads of the tower.
        other: the tower of the other modality whose states can be read here; empty if there is none.
        other_width: their width.
        cross: the tower whose states the layers attend to by themselves; empty if they have no cross-attention.
        cross_width: their width.
        end: whether the tower ends in a head.
        role: which of the modules, or of the features, it is; empty for a site or a layer.
        causal: whether a token of the tower sees only those before it.
    """

    output: str
    input: str = ""
    layer: str = ""
    layers: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    heads: int = 0
    other: str = ""
    other_width: int = 0
    cross: str = ""
    cross_width: int = 0
    end: bool = False
    role: str = ""
    causal: bool = False

    def paths(self, role: str) -> list[str]:
        """Path of a role's module, if the place has it; a fused `qkv` serves for query, key and value."""
        if PROJECTION in self.modules:  # there is nothing else to choose
            return [self.modules[PROJECTION]]
        found = self.modules.get(role) or (self.modules.get("qkv") if role in ("query", "key", "value") else None)
        return [found] if found else []


@dataclass(frozen=True)
class Sites:
    """Where a method goes in one backbone.

    Attributes:
        places: the selected points with their places.
        stacks: the towers, for further patterns.
        heads: modules outside the towers that may be trained too.
        features: path of the module that gives the features of `image` and `text`; empty if the task has none.
        trained: modules outside the towers that are new, and train with any method (path prefixes).
        inside: by tower, the modules that it consists of in its layers and around them, by role: `layers`, `embeddings`, `norm`
            (the final one), and what else it has outside its layers (`embedding_norm`, `head`).
    """

    places: Mapping[Point, Place]
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    heads: Sequence[str] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    trained: Sequence[str] = ()
    inside: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def targeted(self, wanted: Iterable[str]) -> list[str]:
        """Paths of the modules of these roles (`query`, or `ffn.out` in one site only)."""
        return sorted(
            {
                path
                for point, place in self.places.items()
                for site, _, role in (name.rpartition(".") for name in wanted)
                if site in ("", point.site) or point.site == PROJECTION
                for path in place.paths(role)
            }
        )

    def divided(self, patterns: Mapping[str, Sequence[str] | None]) -> dict[str, Sites]:
        """The places of each of several methods: those that its patterns select; without patterns, those that the others leave."""
        chosen = {name: set(select(own, self.stacks)) for name, own in patterns.items() if own is not None}
        left = set(self.places).difference(*chosen.values())
        return {
            name: replace(self, places={p: place for p, place in self.places.items() if p in chosen.get(name, left)})
            for name in patterns
        }

    def at(self, kind: str) -> dict[Point, Place]:
        """The places of a kind: `site` as they are; `layer`, each layer once; `features`; `modules`, each module of each site, and
        those outside the layers, as if they were a site in a further layer."""
        if kind == "features":
            return {
                Point("features", 0, name): Place(output=path, input=path, role=name)
                for name, path in self.features.items()
            }
        found: dict[Point, Place] = {}
        last: dict[str, Place] = {}
        for point, place in self.places.items():
            if kind == "site":
                found[point] = place
            if point.site == PROJECTION:
                continue
            last[point.tower] = place
            if kind == "site":
                continue
            if kind == "layer":
                whole = found.setdefault(
                    Point(point.tower, point.layer, "layer"), replace(place, output=place.layer, input="", modules={})
                )
                found[Point(point.tower, point.layer, "layer")] = replace(
                    whole, modules={**whole.modules, **{f"{point.site}.{r}": path for r, path in place.modules.items()}}
                )
            else:
                for role, path in place.modules.items():
                    found[Point(point.tower, point.layer, f"{point.site}:{role}")] = replace(
                        place, output=path, input=path, role=role
                    )
        for tower, place in last.items() if kind == "modules" else ():
            for role, path in self.inside.get(tower, {}).items():
                if role not in ("layers", "embeddings"):
                    point = Point(tower, self.stacks[tower].layers, f"outside:{role}")
                    found[point] = Place(output=path, input=path, width=place.width, role=role, causal=place.causal)
        return found


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern: the alternatives of each part."""

    text: str
    towers: tuple[str, ...]
    layers: tuple[str, ...]
    sites: tuple[str, ...]

    def select(self, towers: Mapping[str, Stack]) -> list[Point]:
        """The points it matches, in the order of the towers, layers and sites."""
        own = {
            name: stack
            for name, stack in towers.items()
            if _any_name(self.towers, name) or ("end" in self.towers and stack.end)
        }
        if self.layers == (PROJECTION,):
            return [Point(name, stack.layers, PROJECTION) for name, stack in own.items() if stack.projection]
        return [
            Point(name, layer, site)
            for name, stack in own.items()
            for layer in range(stack.layers)
            if any(_layer_matches(selector, layer, stack.layers) for selector in self.layers)
            for site in stack.at(layer)
            if _any_name(self.sites, site)
        ]


def parse(text: str) -> Pattern:
    """Parse a pattern.

    Raises:
        UserError: it is not `tower.layer.site` with the selectors of this module.
    """
    parts = text.strip().split(".")
    if not 1 <= len(parts) <= 3:
        raise UserError(f"point pattern '{text}': expected tower.layer.site, such as decoder.6-11.cross")
    if len(parts) == 2 and parts[1] == PROJECTION:
        return Pattern(text, _alternatives(parts[0]), (PROJECTION,), ("*",))
    parts += ["*"] * (3 - len(parts))
    towers, layers, sites = (_alternatives(part) for part in parts)
    for alternatives, form, what in (
        (towers, _NAME, "tower"),
        (layers, _LAYER, "layer (a number, 6-11, first4, last4, *; TOWER.projection is a point of its own)"),
        (sites, _NAME, "site"),
    ):
        for alternative in alternatives:
            if not form.fullmatch(alternative):
                raise UserError(f"point pattern '{text}': '{alternative}' is not a {what}")
    return Pattern(text, towers, layers, sites)


def select(patterns: Iterable[str], towers: Mapping[str, Stack]) -> list[Point]:
    """The points that any of the patterns matches, each once, in the order data flows through them.

    Args:
        patterns: patterns.
        towers: the backbone's towers, in the order data flows.

    Raises:
        UserError: patterns that do not parse or match nothing, all of them, each with the nearest points.
    """
    problems: list[str] = []
    found: set[Point] = set()
    for text in patterns:
        try:
            points = parse(text).select(towers)
        except UserError as error:
            problems += error.problems
            continue
        if not points:
            problems.append(f"point pattern '{text}' matches nothing; {_nearest(text, towers)}")
        found.update(points)
    if problems:
        raise UserError(problems)
    behind = parse(f"*.{PROJECTION}").select(towers)
    return [point for point in [*everything(towers), *behind] if point in found]


def everything(towers: Mapping[str, Stack]) -> list[Point]:
    """Every point in the layers of the towers, in the order data flows through them."""
    return parse("*").select(towers)


def _alternatives(field: str) -> tuple[str, ...]:
    inner = field[1:-1] if field.startswith("{") and field.endswith("}") else field
    return tuple(alternative.strip() for alternative in inner.split(","))


def _any_name(alternatives: tuple[str, ...], name: str) -> bool:
    return "*" in alternatives or name in alternatives


def _layer_matches(selector: str, layer: int, layers: int) -> bool:
    if selector == "*":
        return True
    if selector.startswith("first"):
        return layer < int(selector[5:])
    if selector.startswith("last"):
        return layer >= layers - int(selector[4:])
    low, _, high = selector.partition("-")
    return int(low) <= layer <= int(high or low)


def _nearest(text: str, towers: Mapping[str, Stack]) -> str:
    behind = [f"{name}.{PROJECTION}" for name, stack in towers.items() if stack.projection]
    points = [*map(str, everything(towers)), *behind]
    close = difflib.get_close_matches(text, points, n=3, cutoff=0.5)
    there_are = "; ".join(
        f"{name}.{f'0-{stack.layers - 1}' if stack.layers > 1 else '0'}.{{{','.join(stack.sites)}}}"
        for name, stack in towers.items()
    )
    return (f"nearest: {', '.join(close)}; " if close else "") + "; ".join([f"there are {there_are}", *behind])
