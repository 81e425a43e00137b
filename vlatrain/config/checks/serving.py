"""Which backbones serve a task: read from their YAML files, the user's among them. Only messages ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vlatrain.config.folder import conf_dir


def serving(task: str, folders: Sequence[Path] = ()) -> list[str]:
    """The names of the options of `model` that serve a task.

    Args:
        task: its name.
        folders: where YAML files are looked for beside ours.
    """
    files = {file.stem: file for folder in (conf_dir(), *folders) for file in sorted((folder / "model").glob("*.yaml"))}
    return sorted(name for name in files if task in _tasks(name, files))


def _tasks(name: str, files: dict[str, Path]) -> set[str]:
    """The tasks that a file names, and those that it extends."""
    try:
        read: Any = yaml.safe_load(files[name].read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return set()  # another message's matter
    values = read if isinstance(read, dict) else {}
    served = values.get("tasks")
    found = set(served) if isinstance(served, dict) else set()
    for base in values.get("defaults") or []:
        if isinstance(base, dict):  # a group of its own beside it
            base = "/".join(map(str, next(iter(base.items()))))
        within = (Path(name).parent / str(base)).as_posix()  # names are those of the file's own group
        known = files if within in files else {**files, within: files[name].parent / f"{base}.yaml"}
        if within != name and known[within].is_file():
            found |= _tasks(within, known)
    return found
