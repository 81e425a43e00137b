"""Imports point one way: what stands higher may import what stands lower, never the reverse."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vlatrain"

# cli -> training, inference, reporting -> tasks -> data, injection, backbones -> adapters, metrics, config
LEVELS = [
    {"adapters", "metrics", "config"},
    {"data", "injection", "backbones"},
    {"tasks"},
    {"training", "inference", "reporting"},
    {"cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imports(path: Path) -> Iterator[str]:
    """The modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "vlatrain" else (module,)


def files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_file_has_its_room() -> None:
    assert {room_of(path) for path in files()} <= set(LEVEL)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upwards(path: Path) -> None:
    own = room_of(path)
    for module in imports(path):
        if module.startswith("vlatrain."):
            room = module.split(".")[1]
            if room not in LEVEL:  # the package's own names, such as __version__
                continue
            assert LEVEL[room] <= LEVEL[own], f"{path.relative_to(PACKAGE)} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "adapters").glob("*.py")), ids=lambda path: path.name)
def test_the_science_stands_alone(path: Path) -> None:
    """`adapters/` are pure torch modules."""
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in {"peft", "transformers", "accelerate", "hydra", "omegaconf"}, module
        assert top != "vlatrain" or module.startswith("vlatrain.adapters"), module


@pytest.mark.parametrize("path", sorted((PACKAGE / "config").glob("*.py")), ids=lambda path: path.name)
def test_the_configuration_needs_no_torch(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & {"torch", "transformers", "peft", "accelerate"}


def test_hydra_stays_at_the_command_line() -> None:
    """No DictConfig beyond cli.py and what composes for it."""
    for path in files():
        if room_of(path) not in {"cli", "config"}:
            tops = {module.split(".")[0] for module in imports(path)}
            assert not tops & {"hydra", "omegaconf"}, path.relative_to(PACKAGE)
