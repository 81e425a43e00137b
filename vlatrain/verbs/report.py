"""`vlatrain report`: one HTML file of a run, of several, of a sweep or of a folder. Loads neither torch nor weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlatrain.config import UserError
from vlatrain.config.keys import did_you_mean
from vlatrain.reporting.fitted import fitted
from vlatrain.reporting.pages import write_report
from vlatrain.reporting.pages.methods import HEAD, methods_table

KEYS = ("run", "output")
ENDINGS = (".html", ".htm")


def report(words: Sequence[str], console: Console | None = None) -> Path:
    """Write a report.

    Args:
        words: `run=FOLDER` or `run=[FOLDER,FOLDER]`, and perhaps `output=FILE`.
        console: where to print.

    Returns:
        The file.

    Raises:
        UserError: other words, a folder without runs, or a package that is not installed.
    """
    console = console or Console()
    asked = _asked(words)
    folders, output = _folders(asked["run"]), asked.get("output")
    path, selection = write_report(folders, Path(output).expanduser() if output else None)
    if not selection.single and (table := methods_table(selection.runs)):
        console.print(_shown(table, console))
    console.print(f"The report is in {path}", markup=False, highlight=False, soft_wrap=True)
    return path


def _shown(table: Sequence[Sequence[str]], console: Console) -> Table:
    columns = dict(zip(HEAD, map(list, zip(*table, strict=True)), strict=True))
    spare = ("peak MB", "seconds", "samples/s", "trainable")
    return fitted(columns, console, spare, right=HEAD[2:], padding=(0, 0), pad_edge=False)


def _folders(value: str) -> list[Path]:
    """The folders in `[A,B]` or `A`; a comma belongs to the name of a folder that is there."""
    if not value.startswith("[") and ("," not in value or Path(value).expanduser().exists()):
        return [Path(value.strip("'\"")).expanduser()]
    names = re.findall(r"""'([^']*)'|"([^"]*)"|([^,'"\[\]]+)""", value)
    return [Path(name).expanduser() for name in dict.fromkeys("".join(own).strip() for own in names) if name]


def _asked(words: Sequence[str]) -> dict[str, Any]:
    asked: dict[str, str] = {}
    problems = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            problems.append(f"{word}: report takes run=FOLDER and output=FILE{did_you_mean(key, KEYS)}")
        elif key == "output" and Path(value).suffix.lower() not in ENDINGS:
            problems.append(f"{word}: the report is a page: name a file that ends in .html")
        else:
            asked[key] = value
    if "run" not in asked and not problems:
        problems.append("report needs run=FOLDER: a run, a sweep, or a folder with runs in it; run=[A,B] for several")
    if problems:
        raise UserError(problems)
    return asked
