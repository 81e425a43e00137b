"""Damage files, one at a time, and let the verb that reads them meet it: `python scripts/damages.py [--count 200] [--seed 0]`.

Small runs are made once: a training on images in files with all that it keeps (samples, prefixes, resized images, reports), an
evaluation of it and one that was stopped, what export and merge write, a sweep, a training on a backbone in a local folder, and one
on a random backbone. Each damage is done to a copy: a file is cut, emptied, replaced by another one, removed, or has a bit flipped;
of the backbone's weights, which are not vlatrain's own, the bit is one of the header. Then a verb runs, in a process of its own
that has everything imported. What must come of it: one line and status 2, or the very result of undamaged files. A traceback,
another status, another result or none within two minutes is printed, with status 1 at the end; `--only 17,40` does some again, and
shows what was said.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FORK = multiprocessing.get_context("fork")  # the imports are done: a verb takes a second
SECONDS = 120
SMALL = (
    "trainer.batch_size=4",
    "trainer.accumulate=1",
    "trainer.threads=1",
    "trainer.save_every=2",
    "trainer.log_every=1",
    "adapter.dim=4",
)
RANDOM = (  # a backbone of a few parameters, whose tokenizer is kept in the run alone
    "model=blip",
    "model.random_init=true",
    "model.config.vision_config={hidden_size: 48, intermediate_size: 80, num_hidden_layers: 3, num_attention_heads: 3}",
    "model.config.text_config={hidden_size: 48, intermediate_size: 112, num_hidden_layers: 2, num_attention_heads: 4}",
    "model.config.vision_config.image_size=64",
    "model.config.text_config.encoder_hidden_size=48",
)
SWEEP = ("-m", "adapter.dim=2,4", "hydra.sweep.dir=sweep", "trainer.cache=off", "trainer.max_steps=2", "run.report=off")
ASKED = ("eval", "run=run", "output=journals/scored", "trainer.eval_batch_size=2")
STEPS = ("trainer.max_steps=6", "trainer.eval_every=2", "trainer.cache=disk")
QUESTIONS = ("what colour is it?", "is it red?")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}


@dataclass(frozen=True)
class Place:
    """Files of one kind, and what reads them.

    Attributes:
        name: what they are called in the table.
        folder: where they are, below the folder of all runs.
        uses: names of `USES`, each of which reads them.
        own: whether vlatrain wrote them, and so knows what they were.
        below: whether files in folders below it are meant too.
    """

    name: str
    folder: str
    uses: tuple[str, ...]
    own: bool = True
    below: bool = True


PLACES = (
    Place("run", "run", ("eval", "read", "predict"), below=False),
    Place("stopped run", "stopped", ("resume",), below=False),
    Place("evaluation", "run/evaluations", ("read",)),
    Place("checkpoint", "stopped/checkpoints", ("resume",)),
    Place("adapter", "run/adapter", ("eval", "predict", "merge")),
    Place("cache", "cache", ("train", "eval", "cache")),
    Place("backbone", "backbone", ("begin", "begin", "ask"), own=False),
    Place("processor", "random/processor", ("eval random",)),
    Place("exported run", "exported", ("eval exported", "predict exported")),
    Place("merged run", "merged", ("eval merged",)),
    Place("merged model", "model", ("begin merged",)),
    Place("sweep", "sweep", ("resume sweep",)),
    Place("journal", "journals", ("eval on",)),
)


def flip(path: Path, draw: random.Random, most: int | None = None) -> None:
    """Flip a bit, among the first bytes if so many are given."""
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(min(len(data), most or len(data)))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flip_header(path: Path, draw: random.Random) -> None:
    """Flip a bit; of weights in the header, which says where each of them is."""
    weights = path.suffix == ".safetensors"
    flip(path, draw, 8 + int.from_bytes(path.read_bytes()[:8], "little") if weights else None)


def cut(path: Path, draw: random.Random) -> None:
    """Cut a file anywhere."""
    os.truncate(path, draw.randrange(max(1, path.stat().st_size)))


DAMAGES: dict[str, Callable[[Path, random.Random, Sequence[Path]], object]] = {
    "cut": lambda path, draw, others: cut(path, draw),
    "bit flipped": lambda path, draw, others: flip(path, draw),
    "emptied": lambda path, draw, others: path.write_bytes(b""),
    "foreign": lambda path, draw, others: shutil.copyfile(draw.choice(others), path),
    "removed": lambda path, draw, others: path.unlink(),
}


def make_data(folder: Path) -> list[str]:
    """Images with questions and answers in files; the words of a command line that take them."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    noise = np.random.default_rng(0)
    records = []
    for number in range(32):
        name, rgb = list(COLOURS.items())[number % 4]
        image = np.clip(np.array(rgb) + noise.integers(0, 30, (600, 800, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.jpg")
        answer = name if number % 2 else ("yes" if name == "red" else "no")
        records.append({"image": f"{number}.jpg", "question": QUESTIONS[1 - number % 2], "answer": answer})
    for split, part in (("train", records[:24]), ("eval", records[24:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    return ["data=files", f"data.train={folder / 'train.jsonl'}", f"data.eval={folder / 'eval.jsonl'}"]


def state_of(run: Path) -> str:
    """What a training has come to: the bits of its adapter, its scores, and the course of it."""
    from vlatrain.runs import Run

    found = Run(run)
    adapter = hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return json.dumps([adapter, found.metrics["metrics"], _untimed(found.history), _untimed(found.predictions)])


def _untimed(records: Sequence[dict]) -> list[dict]:
    """Records without what differs from run to run: seconds, memory, and the folder that a run is in."""
    volatile = re.compile("seconds|_s$|_mb$|time|speed")
    return [{key: value for key, value in record.items() if not volatile.search(key)} for record in records]


def scores_in(folder: Path) -> str:
    """What an evaluation has come to."""
    from vlatrain.runs import Run

    found = Run(folder)
    compared = {
        key: found.metrics.get(key) for key in ("metrics", "baselines", "settings", "intervals", "samples", "data")
    }
    return json.dumps([compared, found.predictions])


def read_all(run: Path) -> str:
    """All that Python reads of a run and of its evaluations."""
    from vlatrain.runs import Run

    each = [Run(run), *Run(run).evaluations]
    return json.dumps([[one.config, one.metrics, one.history, one.predictions] for one in each]).replace(
        str(run), "RUN"
    )


def learned(folder: Path, *words: str) -> str:
    """Train; what came of it."""
    command(*words, f"run.dir={folder}")
    return state_of(folder)


class StatusError(Exception):
    """A command has ended with another status than 0."""


def command(*words: str) -> None:
    """Run a command line in this process."""
    from vlatrain.cli.main import main

    if status := main(list(words)):
        raise StatusError(status)


class Uses:
    """What can be done with a copy of the runs, each with its result as a string.

    Args:
        at: the copy.
        data: the words that take the data.
    """

    def __init__(self, at: Path, data: Sequence[str]) -> None:
        self.at, self.data = at, data

    def sweep(self) -> str:
        """A sweep that goes on."""
        with contextlib.chdir(self.at):
            command(*self.data, *SMALL, *SWEEP, "resume=auto")
            rows = json.loads(Path("sweep/sweep.json").read_text())
            return json.dumps([[row[key] for key in ("number", "varied", "metrics", "failure")] for row in rows])

    def evaluate_on(self) -> str:
        """An evaluation that goes on, by its own command."""
        with contextlib.chdir(self.at):
            command(*ASKED)
        return scores_in(self.at / "journals" / "scored")

    def evaluate(self, run: str = "run") -> str:
        """`vlatrain eval`."""
        command("eval", f"run={self.at / run}", f"output={self.at / 'scored'}")
        return scores_in(self.at / "scored")

    def predict(self, run: str = "run") -> str:
        """`vlatrain predict`."""
        questions = Path(self.data[-1].partition("=")[2])
        command("predict", f"run={self.at / run}", f"input={questions}", f"output={self.at / 'answers.jsonl'}")
        return (self.at / "answers.jsonl").read_text()

    def resume(self) -> str:
        """The stopped training's own command."""
        return learned(self.at / "stopped", *self.data, *SMALL, *STEPS, "resume=auto")

    def read(self) -> str:
        """All that Python reads of a run."""
        return read_all(self.at / "run")

    def merge(self) -> str:
        """`vlatrain merge` of the run with another."""
        sources = f"sources=[{self.at / 'other'},{self.at / 'run'}]"
        command("merge", sources, f"output={self.at / 'mean'}")
        return hashlib.sha256((self.at / "mean" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()

    def train(self) -> str:
        """Another training over the same data."""
        return learned(self.at / "again", *self.data, *SMALL, "trainer.cache=disk", "trainer.max_steps=3")

    def cache(self) -> str:
        """`vlatrain cache`, and a check of the data, which reads what is kept of it."""
        command("cache")
        command("check", *self.data)
        return ""

    def begin(self, backbone: str = "backbone") -> str:
        """A training on the backbone in a folder."""
        words = (f"model.checkpoint={self.at / backbone}", "trainer.cache=off", "trainer.max_steps=2")
        return learned(self.at / "again", *self.data, *SMALL, *words)

    def ask(self) -> str:
        """A prediction by a run on the backbone in a folder."""
        words = (f"run={self.at / 'local'}", f"model.checkpoint={self.at / 'backbone'}")
        questions = Path(self.data[-1].partition("=")[2])
        command("predict", *words, f"input={questions}", f"output={self.at / 'answers.jsonl'}")
        return (self.at / "answers.jsonl").read_text()


USES: dict[str, Callable[[Uses], str]] = {
    "eval": Uses.evaluate,
    "predict": Uses.predict,
    "resume": Uses.resume,
    "read": Uses.read,
    "merge": Uses.merge,
    "train": Uses.train,
    "cache": Uses.cache,
    "begin": Uses.begin,
    "ask": Uses.ask,
    "eval random": lambda uses: uses.evaluate("random"),
    "eval exported": lambda uses: uses.evaluate("exported"),
    "predict exported": lambda uses: uses.predict("exported"),
    "eval merged": lambda uses: uses.evaluate("merged"),
    "begin merged": lambda uses: uses.begin("model"),
    "resume sweep": Uses.sweep,
    "eval on": Uses.evaluate_on,
}


@contextlib.contextmanager
def stopping_after(step: int) -> Iterator[None]:
    """While inside, a training gets a SIGTERM when it has recorded a step."""
    from vlatrain.reporting.history import JsonLines

    write = JsonLines.write

    def write_and_stop(sink: JsonLines, record: Any) -> None:
        write(sink, record)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    JsonLines.write = write_and_stop  # type: ignore[method-assign]
    yield
    JsonLines.write = write  # type: ignore[method-assign]


@contextlib.contextmanager
def stopping_after_batches(number: int) -> Iterator[None]:
    """While inside, an evaluation is stopped when so many of its batches are known."""
    from vlatrain.training.journal import Journal
    from vlatrain.training.signals import Stopped

    add = Journal.add

    def add_and_stop(journal: Journal, call: int, result: Any) -> None:
        add(journal, call, result)
        if journal.results == number:
            raise Stopped(signal.SIGTERM)

    Journal.add = add_and_stop  # type: ignore[method-assign]
    yield
    Journal.add = add  # type: ignore[method-assign]


def prepare(whole: Path, data: Sequence[str]) -> None:
    """Make all runs."""
    shutil.copytree(ROOT / "vlatrain" / "assets" / "tiny_blip", whole / "backbone")
    command(*data, *SMALL, *STEPS, f"run.dir={whole / 'run'}")
    command("eval", f"run={whole / 'run'}")
    command(*data, *SMALL, *STEPS, "seed=1", f"run.dir={whole / 'other'}")
    with stopping_after(4), contextlib.suppress(StatusError):
        command(*data, *SMALL, *STEPS, f"run.dir={whole / 'stopped'}")
    assert (whole / "stopped" / "checkpoints" / "step_4").is_dir()
    local = (f"model.checkpoint={whole / 'backbone'}", "trainer.cache=off", "trainer.max_steps=2")
    command(*data, *SMALL, *local, f"run.dir={whole / 'local'}")
    command(*data, *SMALL, *RANDOM, "trainer.max_steps=2", f"run.dir={whole / 'random'}")
    command("export", f"run={whole / 'run'}", f"to={whole / 'exported'}")
    command("merge", f"sources=[{whole / 'run'},{whole / 'other'}]", f"output={whole / 'merged'}")
    command(*data, *SMALL, "adapter=lora", "trainer.max_steps=2", f"run.dir={whole / 'lora'}")
    command("export", f"run={whole / 'lora'}", f"to={whole / 'model'}", "form=merged")
    with contextlib.chdir(whole):
        command(*data, *SMALL, *SWEEP)
        with stopping_after_batches(2), contextlib.suppress(StatusError):
            command(*ASKED)
    assert [*(whole / "journals").iterdir()], "the evaluation was stopped"


@contextlib.contextmanager
def everything_is_kept() -> Iterator[None]:
    """Tables of few samples are kept too, and images of any size resized."""
    from vlatrain.data import stored
    from vlatrain.tasks import looks
    from vlatrain.training import resized

    stored.FEWEST, stored.SMALLEST, resized.SLOW, resized.GAIN, looks.WORTH_KEEPING = 1, 1, 0.0, 0, 1
    yield


def warm(folder: Path) -> None:
    """Import all that the verbs import, and what torch imports with its first step, once and not in each process."""
    from vlatrain.verbs import VERBS

    for verb in VERBS.values():
        assert verb.call
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        command(
            "data.train_size=8",
            "data.eval_size=4",
            "trainer.max_steps=1",
            *SMALL,
            "trainer.cache=off",
            f"run.dir={folder}",
        )


def in_process(work: Callable[[], str], at: Path, seconds: float = SECONDS) -> tuple[int | None, str, str]:
    """Do some work in a process of its own.

    Args:
        work: returns its result.
        at: where its cache is, and what it says goes.
        seconds: after which it is killed.

    Returns:
        Its exit status (None: it hung), all that it said, and its result.
    """

    def child() -> None:
        os.environ["VLATRAIN_CACHE"] = str(at / "cache")
        with open(at / "said", "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                (at / "result").write_text(work())
            except StatusError as error:
                sys.exit(error.args[0])
            except BaseException as error:
                from vlatrain.config import UserError

                if isinstance(error, UserError):
                    print("error", error)
                    sys.exit(2)
                import traceback

                traceback.print_exc(file=said)
                sys.exit(1)

    process = FORK.Process(target=child)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
    status = process.exitcode
    process.join()
    said = (at / "said").read_text(errors="replace")
    return status, said, (at / "result").read_text() if (at / "result").exists() else ""


@dataclass(frozen=True)
class Damage:
    """One damage.

    Attributes:
        number: its place in the draw.
        place: where.
        file: the file, below the folder of all runs.
        kind: one of `DAMAGES`.
        use: one of `USES`.
    """

    number: int
    place: Place
    file: Path
    kind: str
    use: str


def drawn(whole: Path, count: int, seed: int) -> list[Damage]:
    """So many damages: every file once, each by a damage of its own, before one comes again."""
    draw = random.Random(seed)
    files = [(place, path) for place in PLACES for path in _files(whole / place.folder, place.below)]
    kinds = {path: draw.sample([*DAMAGES], len(DAMAGES)) for _, path in files}
    found: list[Damage] = []
    for turn in range(-(-count // len(files))):
        draw.shuffle(files)
        for place, path in files:
            kind = kinds[path][turn % len(DAMAGES)]
            found.append(Damage(len(found), place, path.relative_to(whole), kind, draw.choice(place.uses)))
    return found[:count]


def _files(folder: Path, below: bool) -> list[Path]:
    return sorted(path for path in (folder.rglob("*") if below else folder.iterdir()) if path.is_file())


def outcome(damage: Damage, status: int | None, said: str, same: bool) -> tuple[str, bool]:
    """What came of a damage, in a word, and whether it may."""
    if status is None:
        return "hangs", False
    if "Traceback" in said:
        return "traceback", False
    if status == 2:
        errors = [line for line in said.splitlines() if line.startswith("error")]
        return ("refused", True) if len(errors) == 1 else (f"refused in {len(errors)} lines", False)
    if status:
        return f"status {status}", False
    if "some of what was recorded" in said and "metrics.jsonl" in str(damage.file):
        return "went on, and said so", True
    if same:
        return (
            ("went on, and said so", True)
            if any(word in said for word in ("warning", "is restored from", "is not believed"))
            else ("made no difference", True)
        )
    if not damage.place.own and damage.kind == "bit flipped":
        return "another model, as no hash says what it was", True
    return "believed", False


def try_out(damage: Damage, whole: Path, data: Sequence[str], expected: str, show: bool) -> tuple[str, bool]:
    """Do a damage to a copy of the runs, and use it."""
    with tempfile.TemporaryDirectory(dir=whole.parent) as scratch:
        at = Path(scratch)
        shutil.copytree(whole, at, dirs_exist_ok=True)
        draw, file = random.Random(damage.number), at / damage.file
        others = [path for place in PLACES for path in _files(whole / place.folder, place.below)]
        others = [path for path in others if path.relative_to(whole) != damage.file]
        if damage.kind == "bit flipped" and not damage.place.own:
            flip_header(file, draw)
        else:
            DAMAGES[damage.kind](file, draw, others)
        status, said, result = in_process(lambda: USES[damage.use](Uses(at, data)), at)
        word, well = outcome(damage, status, said, result.replace(str(at), "AT") == expected)
        if show or not well:
            lines = said.splitlines()
            print("\n".join(f"    | {line}" for line in (lines if show else lines[-12:])))
        return word, well


def expectations(whole: Path, data: Sequence[str]) -> dict[str, str]:
    """What each use comes to with nothing damaged."""
    found = {}
    for use in USES:
        with tempfile.TemporaryDirectory(dir=whole.parent) as scratch:
            at = Path(scratch)
            shutil.copytree(whole, at, dirs_exist_ok=True)
            status, said, result = in_process(lambda use=use, at=at: USES[use](Uses(at, data)), at)  # type: ignore[misc]
            assert status == 0, f"{use} fails with nothing damaged:\n{said}"
            found[use] = result.replace(str(at), "AT")
    return found


def main() -> int:
    """Do all, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many damages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--only", default="", help="numbers of damages, by comma: these alone, with what was said")
    options = parser.parse_args()
    only = [int(number) for number in options.only.split(",") if number]
    began = time.perf_counter()
    counts: Counter[tuple[str, str]] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="damages-") as scratch, everything_is_kept():
        whole = Path(scratch) / "whole"
        whole.mkdir()
        data = make_data(Path(scratch) / "data")
        warm(Path(scratch) / "warm")
        status, said, _ = in_process(lambda: prepare(whole, data) or "", whole, 10 * SECONDS)  # type: ignore[func-returns-value]
        assert status == 0, said
        expected = expectations(whole, data)
        for damage in drawn(whole, options.first + options.count, options.seed)[options.first :]:
            if only and damage.number not in only:
                continue
            word, well = try_out(damage, whole, data, expected[damage.use], bool(only))
            counts[damage.place.name, word] += 1
            failures += not well
            told = f"{damage.number:4} {damage.place.name:12} {damage.file} {damage.kind}, {damage.use}: {word}"
            print(told if well else f"{told}  <-- FAILS", flush=True)
    print(_table(counts))
    number = sum(counts.values())
    print(f"{number - failures} of {number} as they should, seed {options.seed}, {time.perf_counter() - began:.0f} s")
    return int(failures > 0)


def _table(counts: Counter[tuple[str, str]]) -> str:
    words = sorted({word for _, word in counts})
    lines = ["", f"{'files of':12}" + "".join(f"{word:>24}" for word in words)]
    for place in [*(place.name for place in PLACES), "all"]:
        numbers = [sum(n for (p, w), n in counts.items() if w == word and place in (p, "all")) for word in words]
        lines.append(f"{place:12}" + "".join(f"{number:>24}" for number in numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
