"""Tables that are as wide as the console at most: no name is cut in the middle, and columns of least importance go first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

ENDLESS = 10_000  # characters: a width at which nothing is cut


def fitted(
    columns: Mapping[str, Sequence[str | Text]],
    console: Console,
    spare: Sequence[str] = (),
    wraps: Collection[str] = (),
    right: Collection[str] = (),
    **about: Any,
) -> Table:
    """A table that a console has room for, whose caption names the columns that were left out for that.

    Args:
        columns: by heading the cells.
        console: where it is to be shown.
        spare: the columns that may be left out, the first one first; those that say nothing are left out in any case.
        wraps: those whose cells go over several lines, between words.
        right: those that stand on the right.
        about: what else rich's tables are told: title, caption.
    """
    shown = {heading: cells for heading, cells in columns.items() if heading not in spare or any(map(str, cells))}
    gone: list[str] = []
    table = _made(shown, wraps, right, about)
    for heading in spare:
        if needed(table, console) <= console.width:
            break
        if heading in shown:
            del shown[heading]
            gone.append(heading)
            said = f"left out for want of room: {', '.join(gone)}"
            caption = f"{about['caption']}\n{said}" if about.get("caption") else said
            table = _made(shown, wraps, right, {**about, "caption": caption})
    return table


def needed(table: Table, console: Console) -> int:
    """The least width of a table, in characters."""
    return Measurement.get(console, console.options.update(max_width=ENDLESS), table).minimum


def shortened(name: str, most: int) -> str:
    """A path or a name of so many characters at most: its end, which tells it from others."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _made(
    columns: Mapping[str, Sequence[str | Text]],
    wraps: Collection[str],
    right: Collection[str],
    about: Mapping[str, Any],
) -> Table:
    table = Table(title_justify="left", caption_justify="left", **about)
    for heading in columns:
        justify: Any = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in wraps, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table
