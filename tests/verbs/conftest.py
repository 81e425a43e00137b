"""Images to ask about."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three: red, green and blue."""
    folder = tmp_path / "images"
    folder.mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (70, 50), colour).save(folder / f"{colour}.png")
    return folder
