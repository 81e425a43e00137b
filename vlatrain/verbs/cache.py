"""`vlatrain cache`: the prefixes, tables of samples and resized images that runs have kept on disk, what they are of, and how
to be rid of them; data reports and counts of tokens, too."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vlatrain.config import UserError, disk_cache, memo
from vlatrain.config.keys import did_you_mean
from vlatrain.config.memo import results
from vlatrain.data import stored
from vlatrain.reporting.console import RichConsole as Console
from vlatrain.reporting.console import print_sentence
from vlatrain.reporting.fitted import fitted
from vlatrain.tasks.looks import counts
from vlatrain.training import resized
from vlatrain.training.prefix_cache import store

DAY = 86_400
KEYS = ("prune", "older_than")
OTHERS = {stored.FOLDER: stored.numbers_of, resized.FOLDER: resized.numbers_of}


@dataclass(frozen=True)
class Folder:
    """A folder of kept states, or of samples.

    Attributes:
        path: the folder; its name is the hash of the prefix, or of the data.
        note: what it is of: model, source, task, prefix, precision; of samples their number by split; empty if nothing whole is in
            it.
        bytes: of what is in it.
        days: since it was last used.
    """

    path: Path
    note: dict[str, Any]
    bytes: int
    days: float


def folders() -> list[Folder]:
    """All that is kept, the last used first; what a killed run has left is among it."""
    if os.path.isfile(store.kept_folder()):
        raise UserError(f"VLATRAIN_CACHE={store.kept_folder()} is a file; set it to a folder")
    found = []
    for path in store.folders():
        with suppress(FileNotFoundError):  # another process has just removed it
            days = (time.time() - path.stat().st_mtime) / DAY
            found.append(Folder(path, store.note_of(path), store.sizes(path), days))
    return sorted(found, key=lambda folder: folder.days)


def others() -> list[Folder]:
    """The tables of samples, and the resized images, that are kept, the last used first."""
    found = []
    for kind, numbers_of in OTHERS.items():
        for path in disk_cache.folders(kind):
            with suppress(FileNotFoundError):  # another process has just removed it
                days = (time.time() - path.stat().st_mtime) / DAY
                found.append(Folder(path, numbers_of(path), disk_cache.bytes_of(path), days))
    return sorted(found, key=lambda folder: folder.days)


def show(words: Sequence[str], console: Console | None = None) -> None:
    """List what is kept, or prune it.

    Args:
        words: `prune=all`, `prune=NAME` (its first letters do), `older_than=DAYS`; none: list.
        console: where to print.

    Raises:
        UserError: other words, or a name that there is not.
    """
    console = console or Console()
    asked = _asked(words)
    found, of_data = folders(), others()
    half_written = [*memo.leftovers(), *(path for kind in OTHERS for path in disk_cache.leftovers(kind))]
    name, days = asked.get("prune", "all"), asked.get("older_than", 0.0)
    chosen, doomed = (
        [one for one in kept if one.days >= days and (name == "all" or one.path.name.startswith(name))]
        for kept in (found, of_data)
    )
    if name != "all" and not chosen and not doomed:
        raise UserError(f"prune={name}: nothing is kept under this name; vlatrain cache lists what is")
    if asked:
        freed = store.clear(folder.path for folder in chosen)
        if name == "all":
            _remove_files(days)
            freed += sum(_remove_leftover(path) for path in half_written if _days(path) >= days)
        print_sentence(f"Removed {len(chosen)} of {len(found)} prefixes, {freed / 1e9:.2f} GB", console)
        if of_data:
            freed = sum(disk_cache.remove(folder.path) for folder in doomed)
            about = f"{len(doomed)} of {len(of_data)} folders of samples and images"
            print_sentence(f"Removed {about}, {freed / 1e9:.2f} GB", console)
        return
    console.print(f"Kept in {store.kept_folder()}", markup=False, highlight=False, soft_wrap=True)
    facts = ("model", "task", "prefix", "precision")
    noted = {key: [str(folder.note.get(key, "?")) for folder in found] for key in facts}
    console.print(_listed(found, noted, console, ("precision", "task")))
    if of_data:
        numbers = [", ".join(f"{number:,} {split}" for split, number in one.note.items()) or "?" for one in of_data]
        console.print(_listed(of_data, {"samples, or resized images": numbers}, console))
    if left := [*store.leftovers(), *half_written]:
        size = sum(disk_cache.bytes_of(path) if path.is_dir() else path.stat().st_size for path in left)
        begun = f"{len(left)} half written, by runs that were killed or are at it"
        print_sentence(f"{begun}, {size / 1e9:.2f} GB; prune=all removes", console)
    size = sum(folder.bytes for folder in [*found, *of_data])
    print_sentence(f"{size / 1e9:.2f} GB in all; prune=all, prune=NAME or older_than=DAYS removes", console)


def _listed(
    listed: Sequence[Folder], about: Mapping[str, Sequence[str]], console: Console, spare: Sequence[str] = ()
) -> Table:
    """A table of what is kept: a name that `prune=` takes, what it is, its size and its age."""
    columns = {
        "name": [folder.path.name[:12] for folder in listed],
        **about,
        "GB": [f"{folder.bytes / 1e9:.2f}" for folder in listed],
        "last used": [f"{folder.days:.0f} days ago" for folder in listed],
    }
    return fitted(columns, console, spare, [*about][-1:] if not spare else (), ("GB",))


def _days(path: Path) -> float:
    """Since it was last written; 0: it is gone."""
    with suppress(OSError):
        return (time.time() - path.stat().st_mtime) / DAY
    return 0.0


def _remove_leftover(path: Path) -> int:
    """Remove what is half written; bytes that were freed."""
    if path.is_dir():
        return disk_cache.remove(path)
    size = path.stat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    return size


def _remove_files(days: float) -> None:
    """Remove the data reports, and the counts of tokens, that were last used so many days ago or more."""
    for file in [*results(), *counts()]:
        with suppress(OSError):
            if time.time() - file.stat().st_mtime >= days * DAY:
                file.unlink()


def _asked(words: Sequence[str]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    problems = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            problems.append(f"{word}: cache takes prune=all, prune=NAME and older_than=DAYS{did_you_mean(key, KEYS)}")
        elif key == "older_than":
            try:
                asked[key] = float(value)
            except ValueError:
                problems.append(f"{word}: expected a number of days")
        else:
            asked[key] = value
    if problems:
        raise UserError(problems)
    return asked
