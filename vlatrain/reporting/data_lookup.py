"""Finding a kept data report by the state of the files that it is of: none of them is read for it, and no torch imported."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlatrain import __version__
from vlatrain.backbones.describe import checkpoints_of
from vlatrain.config import TrainConfig
from vlatrain.config.files import state_of
from vlatrain.config.joint import subtasks
from vlatrain.config.memo import key_of, load_result

FORM = 1  # raise it when what a report says changes, so that no older one is taken for it
SETTINGS = (".json", ".txt", ".model")  # endings of the files that a tokenizer is made of


def look_up(config: TrainConfig) -> tuple[dict[str, Any], list[tuple[int, str]]] | None:
    """The whole report of data files that are, with their images, as they were when it was made; nothing is read for it.

    Returns:
        The report, and what was logged when the samples were read; None: there is none, or something has changed.
    """
    key = key_of_files(config)
    note = load_result(key) if key else None
    if not note or any(state_of(path) != state for path, *state in note["images"]):
        return None
    report = load_result(note["about"])
    return (report, [(level, message) for level, message in note["said"]]) if report else None


def key_of_files(config: TrainConfig) -> str:
    """A hash of the configuration and of the state of its data files; empty where the samples are not all in such files."""
    files: list[Hashable] = []
    for subtask in subtasks(config).values():
        named = [value for key, value in asdict(subtask.data).items() if isinstance(value, str) and key != "root"]
        if subtask.data.name != "files" or getattr(subtask.data, "skip_broken", False):
            return ""
        for path in map(os.path.expanduser, named):
            if os.path.isdir(path):
                return ""
            if state := state_of(path):
                files.append((os.path.abspath(path), *state))
    settings = (asdict(config.task), asdict(config.model), asdict(config.data), config.seed, config.trainer.batch_size)
    return key_of(FORM, __version__, os.getcwd(), settings, files, tokenizer_files(config))


def tokenizer_files(config: TrainConfig) -> list[Hashable]:
    """The state of the files that the tokenizer is made of, where they lie in a folder."""
    if config.model.random_init:
        return []
    found: list[Hashable] = []
    for checkpoint in checkpoints_of(config.model, config.task.name).values():
        folder = Path(checkpoint).expanduser()
        paths = [path for path in sorted(folder.iterdir()) if path.suffix in SETTINGS] if folder.is_dir() else []
        found += [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
    return found
