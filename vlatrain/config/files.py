"""Files and folders that are written whole or not at all: after a kill at any moment, or on a full disk, there is what was there
before or what is new, never half of it. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlatrain.config.errors import UserError

PARTIAL = ".tmp"  # ends the name of what is being written
MANIFEST = "manifest.json"  # of a folder: size and SHA-256 of each of its files
CHECKSUM = "sha256"  # of a JSON object that is a file of its own: that of all its other values


def kept_folder() -> Path:
    """The folder of what runs keep for others: `VLATRAIN_CACHE`, or one in the user's own folder for such things."""
    return Path(os.path.expanduser(os.environ.get("VLATRAIN_CACHE") or "~/.cache/vlatrain/prefixes"))


def state_of(path: str) -> list[int] | None:
    """When a file was last changed, and its size; None: there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return [about.st_mtime_ns, about.st_size]


def replace_file(path: Path, data: str | bytes) -> None:
    """Write a file beside its place, flush it to the disk, and rename it. Its folder is made if it is missing.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        flush(partial)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_file(path: Path, data: str | bytes) -> None:
    """`replace_file` for the files of a run folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise UserError(_described(path, error)) from error


def write_json(path: Path, value: Any) -> None:
    """`write_file` with a value as indented JSON."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """`write_file` with each record as JSON on a line."""
    write_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder as a whole: `fill(temporary folder)`, then put it in the place of `folder`.

    Args:
        folder: the folder; what is in it goes.
        fill: called with a fresh folder beside it.

    Raises:
        UserError: it cannot be written.
    """
    fresh, before = _beside(folder, ""), _beside(folder, ".old")
    try:
        for leftover in (fresh, before):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        fill(fresh)
        for path in (*(path for path in fresh.rglob("*") if path.is_file()), fresh):
            flush(path)
        if folder.exists():
            os.rename(folder, before)
        os.rename(fresh, folder)
        flush(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(_described(folder, error)) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there: renamed first, so that half of it does not look like the whole."""
    if folder.exists():
        doomed = folder if folder.suffix == PARTIAL else _beside(folder, ".old")
        if doomed != folder:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(folder, doomed)
        shutil.rmtree(doomed)


def write_manifest(folder: Path, leave_out: Sequence[str] = ()) -> None:
    """Write down size and SHA-256 of each file in a folder and below, but for files of some names. Raises `OSError`."""
    without = (MANIFEST, *leave_out)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    (folder / MANIFEST).write_text(manifest_of(folder, files), encoding="utf-8")


def manifest_of(folder: Path, files: Iterable[Path]) -> str:
    """The content of a folder's manifest: size and SHA-256 of some files. Raises `OSError`."""
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    return json.dumps({"files": entries}, indent=1)


def changed(path: Path) -> str:
    """What is wrong with a file by the manifest beside it, if anything; a file that it does not name is taken as it is."""
    manifest = path.parent / MANIFEST
    try:
        entry = json.loads(manifest.read_text(encoding="utf-8"))["files"].get(path.name)
        if entry is None or (path.stat().st_size == entry["bytes"] and _sha256(path) == entry["sha256"]):
            return ""
    except FileNotFoundError:
        return "is missing, though it was written" if manifest.exists() else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be compared with {manifest}, which cannot be read ({' '.join(str(error).split())})"
    return f"has changed since it was written (if that was on purpose, remove {manifest})"


def files_in(folder: Path, missing: bool = False) -> list[str]:
    """The files of a folder's manifest, each of which is as it was written.

    Args:
        folder: the folder.
        missing: whether files may be missing, as whoever reads them says it better.

    Raises:
        FileNotFoundError: it has no manifest.
        ValueError: a file has changed or is missing, or the manifest cannot be read.
    """
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    try:
        entries = json.loads(text)["files"]
        for name, entry in entries.items():
            file = folder / name
            if missing and not file.exists():
                continue
            if not file.is_file():
                raise ValueError(f"{name} is missing")
            if file.stat().st_size != entry["bytes"] or _sha256(file) != entry["sha256"]:
                raise ValueError(f"{name} has changed since it was written")
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from error
    return [*entries]


def has_manifest(folder: Path) -> bool:
    """Whether a folder has a manifest of ours: others call files of another kind so."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].values()
        return all({"bytes", "sha256"} <= entry.keys() for entry in entries)
    return False


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be written as JSON, with a checksum of it."""
    return {**value, CHECKSUM: _checksum(value)}


def without_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_checksum` was given, read again; what was written without one is taken as it is.

    Raises:
        ValueError: it has changed since it was written.
    """
    plain = {key: one for key, one in value.items() if key != CHECKSUM}
    if value.get(CHECKSUM, _checksum(plain)) != _checksum(plain):
        raise ValueError("has changed since it was written")
    return plain


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _described(path: Path, error: Exception) -> str:
    return f"{path} could not be written ({error}); make room there, then run the same again (a training: with resume=auto)"


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}{what}{PARTIAL}")
