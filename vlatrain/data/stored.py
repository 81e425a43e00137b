"""Large tables are read and checked once: their samples are then kept as Arrow files (`vlatrain.data.mapped`), which all processes
map, in this run and the next.

They are kept in `kept_folder()` by the state of the data files and by what of the configuration says what becomes of their rows,
and hold as long as each image's file is as it was. Of processes that begin together one reads and the others wait for it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pyarrow

from vlatrain import __version__
from vlatrain.config import disk_cache
from vlatrain.config.data import DataConfig
from vlatrain.config.files import files_in, kept_folder, state_of
from vlatrain.config.memo import key_of
from vlatrain.config.task import TaskConfig
from vlatrain.data import mapped
from vlatrain.data.finder import is_image
from vlatrain.data.sample import Picture, Sample

log = logging.getLogger("vlatrain")

RULES = "vlatrain-samples-2"  # raise it whenever rows become other samples, or the files have another form
FEWEST = 100_000  # rows that are worth it: of fewer the objects take little memory and little time
SMALLEST = 1_000_000  # bytes of data files, of which fewer hold no so many rows
FOLDER = "samples"  # below `kept_folder()`
MOST = 20  # tables that are kept; of more, those that were used last
SHARE = 0.5  # of the free disk that images in the rows may take
# options that change nothing of what is read
FREE = ("crop", "flip", "views", "scale_jpegs", "images", "save_images", "shots", "balance", "subtasks")


@dataclass(frozen=True)
class Loaded:
    """What has been read of a source.

    Attributes:
        samples: by split.
        rows: number of rows that were read.
        left_out: pictures of samples that are left out, as they cannot be read.
    """

    samples: dict[str, list[Sample]]
    rows: int
    left_out: Sequence[Picture] = ()


def stored_or_read(
    config: DataConfig, task: TaskConfig, splits: Sequence[str], read: Callable[[], Loaded]
) -> dict[str, Sequence[Sample]]:
    """The samples of the splits: those that are kept, else those that are read, which are then kept if they are many.

    Args:
        config: the source.
        task: the task.
        splits: the splits that are asked for.
        read: reads them. What it raises is raised, and nothing kept.
    """
    if not (name := _name(config, task, splits)):
        return {**read().samples}
    folder = disk_cache.place_of(FOLDER) / name
    with _turn(folder) as waited:
        if (found := _opened(folder)) is not None:
            return found
        if not waited:
            return _read_and_keep(folder, read)
    return _read_and_keep(folder, read)  # whoever was first kept nothing; those who waited need not wait for each other


def numbers_of(folder: Path) -> dict[str, int]:
    """The number of samples of each split of a table; empty if it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((folder / mapped.ABOUT).read_text(encoding="utf-8"))
        return {split: int(about["numbers"][split]) for split in about["fingerprints"]}
    return {}


def _name(config: DataConfig, task: TaskConfig, splits: Sequence[str]) -> str:
    """A hash of all that the samples depend on but the images; empty: they are not from files, or from small ones."""
    if config.name != "files" or str(kept_folder()).startswith("~"):
        return ""
    files: list[Hashable] = []
    size = 0
    for option, value in asdict(config).items():
        if not isinstance(value, str) or option in ("name", "root", "path", "subset") or option in FREE:
            continue
        path = os.path.abspath(os.path.expanduser(value))
        if os.path.isdir(path):
            listed, own = _listed(path)
            files.append((path, listed))
            size += own
        elif state := state_of(path):
            files.append((path, *state))
            size += state[1]
    if size < SMALLEST:
        return ""
    settings = {option: value for option, value in asdict(config).items() if option not in FREE}
    root = os.path.abspath(os.path.expanduser(config.root or ""))
    form = (RULES, __version__, mapped.PLAIN)
    said = asdict(task.wording)
    return key_of(form, os.getcwd(), root, settings, task.name, asdict(task.spec), said, list(splits), files)


def _listed(folder: str) -> tuple[str, int]:
    """A hash of what is in a folder and below, images by their names, as their state is compared later; and bytes of it all."""
    names: list[Hashable] = []
    size = 0
    for above, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(above, name)
            state = None if is_image(name) else state_of(path)
            names.append((path, state))
            size += state[1] if state else len(path)
    return key_of(names), size


def _opened(folder: Path) -> dict[str, Sequence[Sample]] | None:
    """The samples of a table whose images are as they were; what was said when they were read is said again."""
    if not (folder / mapped.ABOUT).is_file():
        return None
    try:
        files_in(folder)  # each is as it was written
        found, about = mapped.opened(folder)
        album = next(iter(found.values())).album
        if any((state_of(path) or [-1, -1]) != state for path, state in album.files()):
            return None
        disk_cache.use(folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError, pyarrow.ArrowException) as error:
        log.warning(
            "Data: %s cannot be read (%s), and is made anew",
            folder,
            str(error).splitlines()[0] if str(error) else error,
        )
        return None
    for level, message in about["said"]:
        log.log(level, "%s", message)
    log.info("Data: mapped from %s, as no file has changed since it was read", folder)
    return {**found}


def _read_and_keep(folder: Path, read: Callable[[], Loaded]) -> dict[str, Sequence[Sample]]:
    with _collected() as said, without_collector():
        loaded = read()
    if loaded.rows <= FEWEST or not all(loaded.samples.values()):
        return {**loaded.samples}
    if not _keep(folder, loaded, said):
        return {**loaded.samples}
    try:
        found, _ = mapped.opened(folder)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException):  # it has just been removed
        return {**loaded.samples}
    rows = loaded.rows
    loaded.samples.clear()
    del loaded
    _give_back_memory()
    log.info(
        "Data: %s rows are kept in %s, which processes share; the next run reads nothing again", f"{rows:,}", folder
    )
    return {**found}


def _keep(folder: Path, loaded: Loaded, said: Sequence[tuple[int, str]]) -> bool:
    """Write a table as a whole; whether that could be done."""
    try:
        pictures = (picture for own in loaded.samples.values() for one in own for picture in one.pictures)
        images = sum(len(getattr(picture, "data", b"")) for picture in pictures)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if images > SHARE * shutil.disk_usage(folder.parent).free:
            raise OSError(f"{images / 1e9:.1f} GB of images have no room")
        disk_cache.put(folder, lambda into: mapped.write(into, loaded.samples, loaded.left_out, state_of, said))
    except mapped.NotStorableError as error:
        log.info("Data: held in memory, in each process: %s", error)
        return False
    except (OSError, pyarrow.ArrowException) as error:
        _warn(f"{folder.parent} cannot be written ({getattr(error, 'strerror', None) or error})")
        return False
    for old in disk_cache.folders(FOLDER)[MOST:]:
        disk_cache.remove(old)
    return True


@cache
def _warn(fault: str) -> None:
    """Say once why nothing is kept."""
    log.warning(
        "Data: %s: the samples are held in memory, in each process, and read again by the next run; make room, or set "
        "VLATRAIN_CACHE to a folder that can be written", fault,
    )  # fmt: skip


@contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Wait for other processes that read the same; whether there was one. Without locks of files there is no waiting."""
    waited, file = False, None
    try:
        import fcntl

        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_suffix(disk_cache.LOCK), "wb")  # noqa: SIM115, closed below, which unlocks it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass  # Windows; or a folder that cannot be written, which is said if there is something to keep
    try:
        yield waited
    finally:
        if file is not None:
            file.close()


class _ToList(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelno, record.getMessage()))


@contextmanager
def _collected() -> Iterator[list[tuple[int, str]]]:
    """What is logged while inside."""
    handler = _ToList()
    log.addHandler(handler)
    try:
        yield handler.said
    finally:
        log.removeHandler(handler)


@contextmanager
def without_collector() -> Iterator[None]:
    """While inside, the garbage collector does not go through the samples again and again: a fourth of the time of a large set."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _give_back_memory() -> None:
    """Let the system have the memory of the objects that were read, which the C library would keep for this process."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
