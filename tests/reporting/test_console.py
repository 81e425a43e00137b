from __future__ import annotations

import io
import logging
import re
import threading
from pathlib import Path

import pytest
from rich.table import Table

from tests.disk import FORK
from vlatrain.config import UserError
from vlatrain.reporting.console import Console, RichConsole, collected, duration, joined, logged, report

log = logging.getLogger("vlatrain")


def test_plain_lines_say_how_far_it_is() -> None:
    stream = io.StringIO()
    with Console(stream, interval=0).track("training", 10, done=4) as track:
        track.advance(1, loss="0.5", speed="7.0 samples/s", peak="300 MB")
        track.advance(5)
    first, last = stream.getvalue().splitlines()
    assert first.startswith("training 5/10  loss 0.5  7.0 samples/s  peak 300 MB  ")
    assert last == "training 10/10  0 s left"


def test_plain_lines_come_only_now_and_then() -> None:
    stream = io.StringIO()
    with Console(stream, interval=1000).track("training", 10) as track:
        for _ in range(10):
            track.advance()
    assert stream.getvalue() == ""


def test_bars_on_a_terminal_can_be_nested_and_leave_messages_in_place() -> None:
    stream = io.StringIO()
    console = Console(stream, live=True)
    with console.track("training", 4) as training:
        training.advance(2, loss="0.25")
        with console.track("evaluation", 3) as evaluation:
            evaluation.advance(3)
            console.message("Step 2: accuracy 50.00 [best]")
        training.advance(2)
    written = stream.getvalue()
    for part in ("training", "evaluation", "2/4", "loss 0.25", "Step 2: accuracy 50.00 [best]"):
        assert part in written
    with console.track("again", 1) as track:  # a finished display starts anew
        track.advance()


def test_a_library_s_warning_does_not_damage_the_bars() -> None:
    stream = io.StringIO()
    library, handler = logging.getLogger("some.library"), logging.StreamHandler(stream)
    library.addHandler(handler)
    with Console(stream, live=True).track("training", 4) as track:
        track.advance(2)
        library.warning("careful")
    library.removeHandler(handler)
    assert handler.stream is stream
    above, _ = stream.getvalue().split("careful\n")
    assert above.endswith("\x1b[2K"), "the bar's line is erased first, and drawn again below"


def test_quiet_shows_nothing() -> None:
    stream = io.StringIO()
    console = Console(stream, quiet=True, interval=0)
    with console.track("training", 2) as track:
        track.advance()
    console.message("hello")
    assert stream.getvalue() == ""


def test_messages_go_to_the_console_and_everything_to_the_file(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "run" / "run.log"
    before = list(log.handlers), log.level, log.propagate
    for _ in range(2):  # a resumed run appends
        with logged(Console(stream), file):
            log.debug("detail")
            log.info("step %d", 3)
            log.warning("careful")
    assert stream.getvalue().splitlines() == ["step 3", "warning: careful"] * 2
    lines = [line.split(" ", 2)[2] for line in file.read_text().splitlines()]
    assert lines == ["DEBUG detail", "INFO step 3", "WARNING careful"] * 2
    assert (list(log.handlers), log.level, log.propagate) == before


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (65, "1 min 05 s"), (3599, "59 min 59 s"), (7810, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_facts() -> None:
    assert joined({"loss": "0.1", "speed": "3 samples/s", "peak": "9 MB"}) == "loss 0.1  3 samples/s  peak 9 MB"


def test_a_worker_shows_a_line_though_a_lock_was_held_when_it_was_forked() -> None:
    console, held, done = Console(io.StringIO(), live=True), threading.Event(), threading.Event()
    assert console._rich is not None

    def hold() -> None:
        with console._rich._lock:  # type: ignore[union-attr]
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    worker = FORK.Process(target=console.message, args=("damaged",))
    worker.start()
    worker.join(5)
    done.set()
    holder.join()
    hangs = worker.is_alive()
    worker.kill()
    assert not hangs


HOSTILE = "a\x1b]0;owned\x07\x9b2J\u202e.png"


def test_no_control_character_of_a_stranger_reaches_terminal_or_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file name that sets the terminal's title, in a message, an error, a table, and the log; on a terminal and elsewhere."""
    shown = []
    for live in (False, True):
        stream = io.StringIO()
        with logged(Console(stream, live=live), tmp_path / "run.log"):
            log.warning("%s\nis damaged", HOSTILE)
        shown.append(stream.getvalue())
    report(UserError(f"{HOSTILE}: no image"))
    table = Table("asked")
    table.add_row(HOSTILE)
    for terminal in (True, False):
        stream = io.StringIO()
        RichConsole(file=stream, force_terminal=terminal, width=80).print(table, HOSTILE)
        shown.append(stream.getvalue())
    shown += [(tmp_path / "run.log").read_text(), capsys.readouterr().err]
    for text in shown:
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert "a\\x1b]0;owned\\x07\\x9b2J\\u202e.png" in plain
        assert not set(text) & set("\x07\x9b\u202e")
        assert "\x1b]" not in text


def test_on_a_terminal_lines_end_between_words_and_paths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream, path = io.StringIO(), "/folder" * 9
    Console(stream, live=True).message(f"warning: what is said here takes more than one line, see {path}")
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert path in lines
    assert all(len(line) <= 40 for line in lines if line != path)
    assert " ".join(lines) == f"warning: what is said here takes more than one line, see {path}"


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    """As in the folder of a run that may only be read."""
    (tmp_path / "file").touch()
    stream = io.StringIO()
    with logged(Console(stream, live=False), tmp_path / "file" / "run.log"):
        log.info("step 1")
    assert stream.getvalue().startswith(f"warning: {tmp_path / 'file' / 'run.log'} cannot be written (")
    assert stream.getvalue().endswith("kept nowhere\nstep 1\n")


@pytest.mark.parametrize("collects", [True, False])
def test_a_handler_that_a_library_puts_on_the_root_logger_doubles_nothing(collects: bool) -> None:
    """TensorBoard's import may, in the middle of a run."""
    stream, shown = io.StringIO(), io.StringIO()
    library, logger = logging.StreamHandler(stream), logging.getLogger("vlatrain")
    try:
        with logged(Console(shown, live=False)) if not collects else collected() as said:
            logging.root.addHandler(library)
            logger.warning("once")
        assert logger.propagate
        logger.warning("afterwards")
    finally:
        logging.root.removeHandler(library)
    assert stream.getvalue() == "afterwards\n"
    assert (said == [(logging.WARNING, "once")]) if collects else (shown.getvalue() == "warning: once\n")
