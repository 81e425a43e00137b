"""Reports: one HTML file a run, or of several runs, that needs nothing outside of it.

A page is made of what run folders hold, by templates (jinja2) and plots (matplotlib), which the extra `report` brings. It asks no
network: images are inside it as thumbnails, and its policy forbids it to fetch anything or to run any script but its own.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlatrain.config import UserError
from vlatrain.config.files import write_file
from vlatrain.reporting.pages.reading import Selection, select, snapshot

if TYPE_CHECKING:
    from vlatrain.data.sample import Sample
    from vlatrain.reporting.pages.thumbnails import Pictures  # with numpy, which the command line does without

log = logging.getLogger("vlatrain")

NAME = "report.html"
PACKAGES = ("jinja2", "matplotlib")


def missing() -> list[str]:
    """The packages of a report that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def write_report(
    folders: list[Path], output: Path | None = None, pictures: Pictures | None = None
) -> tuple[Path, Selection]:
    """Write the report of run folders.

    Args:
        folders: a run, several, a sweep's folder, or one with runs below it.
        output: the file; None: `report.html` in the folder, of several folders in the working folder.
        pictures: finds the images of a single run that are no files; None: they are read or generated again.

    Returns:
        The file, and what it is of.

    Raises:
        UserError: a package is missing, a folder is none of these, or the file cannot be written.
    """
    if absent := missing():
        raise UserError(f"a report needs {' and '.join(absent)}: pip install 'vlatrain[report]'")
    selection = select(folders)
    output = output or selection.folder / NAME
    from vlatrain.reporting.pages.render import page  # its packages need not be there

    write_file(output, page(selection, output, pictures))
    return output, selection


def report_at_end(folder: Path, samples: Sequence[Sample] = ()) -> None:
    """Write the report of what has just ended, where the packages for it are installed. What goes wrong is said, and no more: the
    folder has everything without it.

    Args:
        folder: a run folder, or one of runs.
        samples: those that a run was scored on, by which its images are had; empty: they are found by their names.
    """
    if missing():
        return
    known = {sample.id: sample.pictures for sample in samples}
    try:
        write_report([folder], pictures=(lambda name: known.get(name, ())) if known else None)
    except Exception as error:  # whatever a plot or an image may raise
        log.warning("No report was written (%s: %s)", type(error).__name__, " ".join(str(error).split()))


__all__ = ["NAME", "PACKAGES", "Selection", "missing", "report_at_end", "select", "snapshot", "write_report"]
