"""From what a page shows to its text: the templates, their style and their script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vlatrain import __version__
from vlatrain.reporting.pages import one, several
from vlatrain.reporting.pages.reading import Selection
from vlatrain.reporting.pages.thumbnails import Pictures

TEMPLATES = Path(__file__).parent / "templates"


def page(selection: Selection, output: Path, pictures: Pictures | None = None) -> str:
    """The report of some runs as HTML.

    Args:
        selection: the runs.
        output: the file that it is written to.
        pictures: finds the images of a single run that are no files.
    """
    if selection.single:
        return rendered("run.html", one.content(selection.runs[0], pictures))
    return rendered("runs.html", several.content(selection, output))


def rendered(template: str, content: dict[str, Any]) -> str:
    """A template with its content. All text is escaped; only the script whose hash stands in the page's policy may run."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shared = {
        "style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "version": __version__,
    }
    return environment.get_template(template).render(**shared, **content)
