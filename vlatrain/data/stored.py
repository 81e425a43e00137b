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
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pyarrow

from vlatrain import __version__
from vlatrain.config.data import DataConfig
from vlatrain.config.files import PARTIAL, flush, kept_folder, state_of
from vlatrain.config.memo import key_of
from vlatrain.config.task import TaskConfig
from vlatrain.data import mapped
from vlatrain.data.finder import is_image
from vlatrain.data.sample import Picture, Sample

log = logging.getLogger("vlatrain")

RULES = "vlatrain-samples-1"  # raise it whenever rows become other samples, or the files have another form
FEWEST = 100_000  # rows that are worth it: of fewer the objects take little memory and little time
SMALLEST = 1_000_000  # bytes of data files, of which fewer hold no so many rows
FOLDER = "samples"  # below `kept_folder()`
LOCK = ".lock"  # ends the name of the file by which processes wait for each other
MOST = 20  # tables that are kept; of more, those that were used last
LEFT = 86_400  # seconds after which what is half written was left by a process that was killed
SHARE = 0.5  # of the free disk that images in the rows may take
# options that change nothing of what is read
FREE = ("crop", "flip", "views", "scale_jpegs", "save_images", "shots", "balance", "subtasks")


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
    folder = tables_folder() / name
    with _turn(folder) as waited:
        if (found := _opened(folder)) is not None:
            return found
        if not waited:
            return _read_and_keep(folder, read)
    return _read_and_keep(folder, read)  # whoever was first kept nothing; those who waited need not wait for each other


def tables_folder() -> Path:
    """Where tables are kept."""
    return kept_folder() / FOLDER


def tables() -> list[Path]:
    """The tables that are kept, the last used first; what is half written is not among them."""
    with suppress(OSError):
        found = [path for path in tables_folder().iterdir() if path.is_dir() and path.suffix != PARTIAL]
        return sorted(found, key=lambda path: -_last_used(path))
    return []


def remove(folder: Path) -> int:
    """Remove a table; bytes that were freed. Processes that have it mapped go on."""
    size = table_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.with_suffix(LOCK).unlink(missing_ok=True)
        folder.parent.rmdir()  # if it is empty
    return size


def numbers_of(folder: Path) -> dict[str, int]:
    """The number of samples of each split of a table; empty if it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((folder / mapped.ABOUT).read_text(encoding="utf-8"))
        return {split: int(about["numbers"][split]) for split in about["fingerprints"]}
    return {}


def table_bytes(folder: Path) -> int:
    """Bytes of a table."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


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
    return key_of(form, os.getcwd(), root, settings, task.name, asdict(task.spec), list(splits), files)


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
        found, about = mapped.opened(folder)
        album = next(iter(found.values())).album
        if any((state_of(path) or [-1, -1]) != state for path, state in album.files()):
            return None
        with suppress(OSError):
            os.utime(folder)
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
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        images = sum(
            len(data) for own in loaded.samples.values() for one in own if (data := getattr(one.image, "data", b""))
        )
        if images > SHARE * shutil.disk_usage(folder.parent).free:
            raise OSError(f"{images / 1e9:.1f} GB of images have no room")
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=PARTIAL, dir=folder.parent))
        mapped.write(partial, loaded.samples, loaded.left_out, state_of, said)
        for path in (*partial.iterdir(), partial):
            flush(path)
        if folder.exists():  # its images have changed, or it is damaged
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / mapped.ABOUT).is_file():  # else another process has just been first
                raise
        flush(folder.parent)
    except mapped.NotStorableError as error:
        log.info("Data: held in memory, in each process: %s", error)
        return False
    except (OSError, pyarrow.ArrowException) as error:
        _warn(f"{folder.parent} cannot be written ({getattr(error, 'strerror', None) or error})")
        return False
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    for old in tables()[MOST:]:
        remove(old)
    for left in folder.parent.glob(f"*{PARTIAL}"):
        if time.time() - _last_used(left) > LEFT:
            shutil.rmtree(left, ignore_errors=True)
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
        file = open(folder.with_suffix(LOCK), "wb")  # noqa: SIM115, closed below, which unlocks it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
    except (
        ImportError,
        OSError,
    ):  # Windows; or a folder that cannot be written, which is said if there is something to keep
        pass
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


def _last_used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
