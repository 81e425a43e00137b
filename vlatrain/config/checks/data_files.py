"""What can be seen of a data file without reading it: whether it is there, its ending, and its first bytes. No torch here, so that
a wrong file is told within a second."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

from vlatrain.config.data import DataConfig

JSON_LINES, JSON, DELIMITED, TEXT = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv", ".tab"), (".txt", ".token")
PARQUET, ARROW = (".parquet", ".pq"), (".arrow",)
ENDINGS = (*JSON_LINES, *JSON, *DELIMITED, *TEXT, *PARQUET, *ARROW)
OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet; save it as CSV"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z", ".rar"), "compressed; unpack it first"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "Python objects, which could run code; write them as JSONL"),
}  # fmt: skip
"""Endings of files that are no data files, and what to do."""
HEAD = 4096  # bytes that are looked at
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NEARBY = 5  # files that a message names


def problems(data: DataConfig, splits: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the files of a source.

    Args:
        data: `data=files`.
        splits: those that are read.
    """
    files: dict[str, str | None] = {}
    for split in splits:
        files[f"data.{split}"] = getattr(data, split)
        annotations = "annotations" if split == "train" else f"{split}_annotations"
        files[f"data.{annotations}"] = getattr(data, annotations)
    told: dict[str, str] = {}
    for option, file in files.items():
        if file and file not in told:
            told[file] = fault(file)
            if told[file]:
                yield f"{option}={file}: {told[file]}"


def fault(path: str) -> str:
    """What is wrong with a data file, and what to do; empty: nothing that can be seen of it."""
    file = Path(path).expanduser()
    if file.is_dir():
        return "" if any(file.iterdir()) else "an empty folder"
    if not file.exists():
        return f"no such file{nearby(file)}"
    ending = file.suffix.lower()
    if ending in OTHERS:
        return f"{ending[1:]} is {OTHERS[ending]}"
    if ending not in ENDINGS:
        return f"unknown ending {file.suffix!r}; it must be one of {', '.join(ENDINGS)}"
    try:
        with open(file, "rb") as opened:
            head = opened.read(HEAD)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return "" if not head else next((what for holds, what in FAULTS if holds(head, ending)), "")


def nearby(file: Path) -> str:
    """Where to look, for a file that is not there: the data files beside it."""
    if not file.parent.is_dir():
        return f" (nor a folder {file.parent})"
    beside = sorted(entry.name for entry in file.parent.iterdir() if entry.suffix.lower() in ENDINGS)
    if not beside:
        return ""
    more = f" and {len(beside) - NEARBY:,} more" if len(beside) > NEARBY else ""
    stems = {Path(name).stem: name for name in beside}
    close = difflib.get_close_matches(file.stem, stems, n=1)
    meant = f"; did you mean {stems[close[0]]}?" if close else ""
    return f"; the data files in that folder are {', '.join(beside[:NEARBY])}{more}{meant}"


def _first(head: bytes) -> bytes:
    """The first character of a text that is no blank."""
    for mark in MARKS:
        head = head.removeprefix(mark)
    return head.lstrip(b" \t\r\n\0")[:1]


def _binary(head: bytes, ending: str) -> bool:
    return ending not in PARQUET + ARROW and b"\0" in head and not head.startswith(MARKS)


FAULTS: tuple[tuple[Callable[[bytes, str], bool], str], ...] = (
    (lambda head, ending: head.startswith(b"version https://git-lfs"), "a Git LFS pointer and not the data: run git lfs pull"),
    (lambda head, ending: head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")), "a web page, not data: download it anew"),
    (lambda head, ending: ending in PARQUET and not head.startswith(b"PAR1"), "not Parquet, which begins with PAR1"),
    (
        lambda head, ending: ending in ARROW and not head.startswith((b"ARROW1", b"\xff\xff\xff\xff")),
        "not Arrow, which begins with ARROW1 or is a stream",
    ),
    (_binary, "not a text: it has zero bytes; save it as UTF-8"),
    (
        lambda head, ending: ending in JSON_LINES and _first(head) == b"[",
        "starts with '[': a JSON list; name the file .json",
    ),
    (
        lambda head, ending: ending in JSON + JSON_LINES and _first(head) not in (b"{", b"[", b""),
        "not JSON: it begins with neither { nor [",
    ),
)  # fmt: skip
"""What the first bytes of a file and its ending must not be, and what to say of it."""
