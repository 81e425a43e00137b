"""Plots as SVG that is part of a page: their colours are the page's own, so that they are light and dark as it is."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, FIRST = "#010203", "#040506", 0xA00001  # stand for the page's colours while matplotlib draws
SERIES = 8
MOST_SERIES = 12  # curves over one another
SIZE = (4.4, 2.7)  # inches
Points = Sequence[tuple[float, float]]


def colour(number: int) -> str:
    """The colour of a series."""
    return f"#{FIRST + number % SERIES:06x}"


def curves(
    title: str, series: Mapping[str, Points], levels: Mapping[str, float] | None = None, unit: str = ""
) -> Markup:
    """Values over steps.

    Args:
        title: what they are.
        series: by name the points, step and value; those without points are left out.
        levels: values that do not depend on the step, by name, as dashed lines.
        unit: of the values.
    """
    shown = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return Markup()
    figure, axes = _axes("step", unit)
    for number, (name, points) in enumerate(shown.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps, values, color=colour(number), label=name, linewidth=1.6,
            marker="o" if len(points) < 30 else None, markersize=3, linestyle=("-", "--", ":")[number // SERIES % 3],
        )  # fmt: skip
    for number, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, color=INK, linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=name)
    if len(shown) + len(levels or {}) > 1:
        _legend(axes)
    return _svg(figure, title)


def scatter(
    title: str,
    points: Sequence[tuple[str, float, float]],
    labels: tuple[str, str],
    front: Sequence[int] = (),
    logarithmic: bool = False,
) -> Markup:
    """Named points, those of the front marked and joined.

    Args:
        title: what it shows.
        points: name, x and y of each.
        labels: of the two axes.
        front: places of the points that no other beats.
        logarithmic: whether x is.
    """
    figure, axes = _axes(*labels)
    if logarithmic and all(x > 0 for _, x, _ in points):
        _logarithmic(axes)
    marked = set(front)
    for place, (name, x, y) in enumerate(points):
        on = place in marked
        axes.plot(
            [x], [y], marker="D" if on else "o", markersize=7 if on else 5, color=colour(1 if on else 0), linestyle=""
        )
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=INK)
    ordered = sorted(points[place][1:] for place in front)
    if len(ordered) > 1:
        axes.plot(*zip(*ordered, strict=True), color=colour(1), linewidth=1, linestyle="--")
    axes.margins(0.12)
    return _svg(figure, title)


def strip(title: str, points: Sequence[tuple[Any, float]], labels: tuple[str, str]) -> Markup:
    """Values by what was varied, with the mean of each choice: over a line of numbers, or over names.

    Args:
        title: what it shows.
        points: what was chosen, and what came of it.
        labels: of the two axes.
    """
    figure, axes = _axes(*labels)
    choices = [*dict.fromkeys(choice for choice, _ in points)]
    numbers = [_number(choice) for choice in choices]
    if None in numbers:
        places: dict[Any, float] = {choice: float(place) for place, choice in enumerate(choices)}
        axes.set_xticks([*places.values()], [_short(str(choice)) for choice in choices])
        if max(len(str(choice)) for choice in choices) * len(choices) > 40:
            axes.tick_params(axis="x", labelrotation=25)
    else:
        places = dict(zip(choices, [number or 0.0 for number in numbers], strict=True))
        values = sorted(places.values())
        if values[0] > 0 and values[-1] / values[0] >= 8:
            _logarithmic(axes)
    means = {
        choice: [value for other, value in points if other == choice]
        for choice in sorted(choices, key=places.__getitem__)
    }
    axes.plot(
        [places[choice] for choice in means], [sum(own) / len(own) for own in means.values()],
        color=colour(0), linewidth=1.2, marker="_", markersize=14, label="mean",
    )  # fmt: skip
    axes.plot(
        [places[choice] for choice, _ in points], [value for _, value in points], "o", color=colour(1), markersize=4
    )
    axes.margins(0.12)
    return _svg(figure, title)


def towers(described: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The layers of each tower with the parameters that train at each site.

    Args:
        described: by tower `layers`, `sites`, and `trainable` by `layer.site`.
    """
    from matplotlib.patches import Rectangle

    lanes = [(tower, site) for tower, about in described.items() for site in about["sites"]]
    if not lanes:
        return Markup()
    largest = max((number for about in described.values() for number in about["trainable"].values()), default=0)
    depth = max(int(about["layers"]) for about in described.values())
    figure, axes = _axes("layer", "", (max(SIZE[0], 1.6 + 0.24 * depth), 0.7 + 0.26 * len(lanes)))
    for lane, (tower, site) in enumerate(lanes):
        for layer in range(int(described[tower]["layers"])):
            number = described[tower]["trainable"].get(f"{layer}.{site}", 0)
            strength = 0.15 + 0.4 * number / largest if number else 0.0
            face = {"facecolor": colour(0), "alpha": strength} if number else {"facecolor": "none"}
            axes.add_patch(Rectangle((layer - 0.42, -lane - 0.4), 0.84, 0.8, edgecolor="none", **face))
            axes.add_patch(Rectangle((layer - 0.42, -lane - 0.4), 0.84, 0.8, edgecolor=GRID, facecolor="none"))
            if number and depth <= 16:
                axes.text(layer, -lane, _brief(number), ha="center", va="center", fontsize=6.5, color=INK)
    axes.set_yticks([-lane for lane in range(len(lanes))], [f"{tower}.{site}" for tower, site in lanes])
    axes.set_xticks(range(0, depth, max(1, depth // 12)))
    axes.set_xlim(-0.6, depth - 0.4)
    axes.set_ylim(0.6 - len(lanes), 0.6)
    axes.grid(visible=False)
    return _svg(figure, "Trainable parameters by tower, layer and site")


def _axes(x: str, y: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x, color=INK, fontsize=8)
    axes.set_ylabel(y, color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.patch.set_visible(False)
    return figure, axes


def _logarithmic(axes: Axes) -> None:
    """A logarithmic x axis, its numbers written out: matplotlib's own are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    few = len(axes.get_lines()) <= 4
    axes.legend(
        fontsize=7, labelcolor=INK, frameon=False, ncols=2 if few else 1,
        **({"loc": "best"} if few else {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}),
    )  # fmt: skip


def _svg(figure: Figure, title: str) -> Markup:
    """A figure as the content of a page: what it shows as its label, no metadata, colours by CSS."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called $5
    stream = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg [^>]*?)width="[^"]*" ?', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg [^>]*?)height="[^"]*" ?', r"\1", drawn, count=1)
    drawn = re.sub(r"\s*xmlns:?\w*=\"[^\"]*\"", "", drawn)
    drawn = drawn.replace("xlink:href", "href")
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    for number in range(SERIES):
        drawn = drawn.replace(colour(number), f"var(--s{number})")
    drawn = drawn.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    label = Markup.escape(title)
    return Markup(drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


def _brief(number: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)
