"""Whoever looks may go: the run goes on."""

from __future__ import annotations

import io
import subprocess
import sys

from vlatrain.reporting.stream import Forgiving

SCRIPT = """
import sys
from vlatrain.reporting.stream import Forgiving
sys.stderr = Forgiving(sys.stderr)
for _ in range(2_000):
    print("x" * 100, file=sys.stderr, flush=True)
print("done")
"""


def test_what_cannot_be_written_is_left_out() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    stream = Forgiving(Full())
    assert stream.write("abc") == 3
    stream.flush()
    assert not stream.isatty()
    kept = io.StringIO()
    print("seen", file=Forgiving(kept))
    assert kept.getvalue() == "seen\n"


def test_a_pipe_that_closes_ends_nothing() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    assert process.stdout
    process.stderr.readline()
    process.stderr.close()  # as head does
    assert process.stdout.read() == "done\n"
    assert process.wait() == 0
