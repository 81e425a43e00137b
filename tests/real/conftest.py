"""Scripts as modules, and the real towers: those of `make real-towers`, or made here where a package registry can be reached."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> ModuleType:
    """A script, which may import others beside it."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec
        assert spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture(scope="session")
def towers() -> Path:
    """The folder with both."""
    made = script("real_towers")
    folder: Path = made.default_folder()
    if not made.made(folder):
        try:
            made.make(folder)
        except RuntimeError as error:
            pytest.skip(f"no real towers: {error}")
    return folder


@pytest.fixture(scope="session")
def results() -> ModuleType:
    """The script of the tables of results."""
    return script("real_results")
