"""Small results that are kept on disk, each under a hash of all that it depends on. What is kept is never needed: a folder that
cannot be written, or a file that cannot be read, only means that the work is done again. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlatrain.config.files import PARTIAL, kept_folder, replace_file

FOLDER = "reports"  # below `kept_folder()`
MOST = 200  # files that are kept; of more, those that were used last


def key_of(*facts: Any) -> str:
    """A hash of values: equal ones have equal hashes, in every process."""
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def load_result(key: str) -> Any:
    """What was kept under a key; None: nothing, or nothing that can be read."""
    file = _file(key)
    with suppress(OSError, ValueError):
        told, text = file.read_text(encoding="utf-8").split("\n", 1)
        if told != _sum(text):
            raise ValueError("it has changed since it was written")
        value = json.loads(text)
        os.utime(file)
        return value
    return None


def keep_result(key: str, value: Any) -> None:
    """Keep a JSON value under a key, where the folder can be written."""
    if str(kept_folder()).startswith("~"):  # there is no home folder
        return
    with suppress(OSError):
        text = json.dumps(value, ensure_ascii=False)
        replace_file(_file(key), f"{_sum(text)}\n{text}")
        for old in sorted(results(), key=lambda file: -file.stat().st_mtime)[MOST:]:
            old.unlink(missing_ok=True)


def results() -> list[Path]:
    """The files of all results that are kept."""
    with suppress(OSError):
        return [path for path in (kept_folder() / FOLDER).iterdir() if path.suffix == ".json"]
    return []


def leftovers() -> list[Path]:
    """Files of results that a process was writing when it was killed."""
    with suppress(OSError):
        return [path for path in (kept_folder() / FOLDER).iterdir() if path.suffix == PARTIAL]
    return []


def _sum(text: str) -> str:
    """The checksum that stands in front of a value."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _file(key: str) -> Path:
    return kept_folder() / FOLDER / f"{key}.json"
