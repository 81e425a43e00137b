"""Results on real data with real weights, as tables in Markdown: `make real DATA=FOLDER`.

    python scripts/real_results.py DATA [SET ...] [--rows NAME ...] [--seeds 0 1 2] [--jobs 1] [--runs FOLDER] [--out FILE]

What is run is data: `real_results.yaml` has the sets, and of each its rows. A set whose data are not in DATA is left out, and said.
Runs that are finished in FOLDER are read and not run again, so that a table goes on where it was stopped. `--jobs 2` runs two rows
at a time, each on half of the cores: each run takes longer, and all of them less. Real towers: `make real-towers`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from real_towers import default_folder

HERE = Path(__file__).resolve().parent
HEAD = ["", "score", "95 % interval, or deviation", "baseline", "trainable", "wall, s", "peak MB", "chosen"]
RETAINED = ["run", "its adapter", "neighbours right", "features"]
CELLS = {"RBC": "red blood cells", "WBC": "white blood cells", "Platelets": "platelets"}
HELD_OUT = 50  # photographs of cells for validation, and as many for the test


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        words: of its command line, behind those of its set.
        steps: of its training; None: as the command line says.
        tries: words of which those with the best score on the validation data are taken.
        seeds: so many of the seeds are run; None: all.
    """

    words: str
    steps: int | None = None
    tries: Sequence[str] = ()
    seeds: int | None = None


@dataclass(frozen=True)
class Made:
    """What was made of a row.

    Attributes:
        words: those that were chosen.
        found: the `metrics.json` of a run with them for each seed; empty ones failed.
        retained: rows of a table of what the first of them still knows of other images.
    """

    words: str
    found: Sequence[Mapping[str, Any]]
    retained: Sequence[str]


@dataclass(frozen=True)
class Runs:
    """Runs of a set, each made if it is not there.

    Attributes:
        folder: where.
        words: of every command line.
        places: what stands for `{data}`, `{towers}` and `{made}` in it.
        threads: of a run; None: as it likes.
        others: other images, of which it is told what is still known of them; None: of none.
    """

    folder: Path
    words: str
    places: Mapping[str, Path]
    threads: int | None = None
    others: Path | None = None

    def metrics(self, name: str, words: str) -> dict[str, Any]:
        """The `metrics.json` of a run; empty if it failed."""
        run = self.folder / name
        file = run / "metrics.json"
        if not file.is_file():
            typed = [word.format(**self.places) for word in shlex.split(f"{self.words} {words}")]
            print(f"{run} ...", file=sys.stderr, flush=True)
            run.parent.mkdir(parents=True, exist_ok=True)
            command = ["-m", "vlatrain", *typed, f"run.dir={run}", "resume=auto"]
            if not self._run(command, run.parent / f"{run.name}.txt", subprocess.STDOUT):
                return {}
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def chosen(self, name: str, row: Row) -> str:
        """The words of the try that is best on the validation data, with one seed and a third of the steps."""
        scores = {}
        for number, words in enumerate(row.tries):
            steps = f"trainer.max_steps={max(1, (row.steps or 0) // 3)}"
            if found := self.metrics(f"{name}/try-{number}", f"{row.words} {words} {steps} data.test=null seed=0"):
                scores[words] = float(found["metrics"][found["metric"]])
        return max(scores, key=lambda words: scores[words], default="")

    def row(self, title: str, row: Row, seeds: Sequence[int]) -> Made:
        """All of a row, made if it is not there."""
        folder = title.replace(" ", "-").replace(",", "")
        words = self.chosen(folder, row)
        steps = f"trainer.max_steps={row.steps}" if row.steps else ""
        runs = {
            f"{folder}/seed-{seed}": self.metrics(f"{folder}/seed-{seed}", f"{row.words} {words} {steps} seed={seed}")
            for seed in seeds[: row.seeds]
        }
        trained = [name for name, one in runs.items() if one and one["parameters"]["trainable"]]
        return Made(words, [*runs.values()], self.retained(trained[0]) if trained else [])

    def retained(self, name: str) -> list[str]:
        """Rows of `retention.py` on a run: what it still knows of other images."""
        table = self.folder / f"{name}-retention.md"
        if self.others is None or not self.others.exists():
            return []
        if not table.is_file():
            print(f"{table} ...", file=sys.stderr, flush=True)
            command = [str(HERE / "retention.py"), str(self.others), str(self.folder / name)]
            if not self._run(command, table.with_suffix(".tmp"), None):
                return []
            table.with_suffix(".tmp").replace(table)
        return table.read_text(encoding="utf-8").splitlines()[2:]

    def _run(self, command: Sequence[str], into: Path, errors: int | None) -> bool:
        """Whether a command of this Python ended well; what it prints is in a file."""
        threads = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        with into.open("w", encoding="utf-8") as file:
            ended = subprocess.run([sys.executable, *command], stdout=file, stderr=errors, env=os.environ | threads)
        if ended.returncode:
            print(f"{' '.join(command[:2])}: failed, see {into}", file=sys.stderr)
        return not ended.returncode


def main() -> int:
    """Run what is missing, and print the tables; 0 if every run ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--rows", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("outputs/real"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    known: dict[str, Any] = yaml.safe_load((HERE / "real_results.yaml").read_text(encoding="utf-8"))
    if unknown := [name for name in asked.sets if name not in known]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(known)}")
    titles = [title for name in asked.sets or known for title in known[name]["rows"]]
    if unknown := [title for title in asked.rows if title not in titles]:
        parser.error(f"no row {', '.join(unknown)}; there are: {'; '.join(dict.fromkeys(titles))}")
    if asked.jobs < 1:
        parser.error(f"--jobs {asked.jobs}: at least 1")
    made = asked.runs.resolve() / "made"
    write_files(asked.data, made)
    places = {"data": asked.data.resolve(), "towers": default_folder(), "made": made}
    threads = max(1, (os.cpu_count() or 1) // asked.jobs) if asked.jobs > 1 else None
    tables: dict[str, dict[str, Future[Made]]] = {}
    with ThreadPoolExecutor(asked.jobs) as pool:
        for name in asked.sets or known:
            one = known[name]
            if not (asked.data / one["needs"]).exists():
                print(f"{name}: left out, there is no {asked.data / one['needs']}", file=sys.stderr)
                continue
            others = asked.data / one["retention"] if "retention" in one else None
            runs = Runs(asked.runs / name, one["words"], places, threads, others)
            tables[name] = {
                title: pool.submit(runs.row, title, Row(**values), asked.seeds)
                for title, values in one["rows"].items()
                if not asked.rows or title in asked.rows
            }
    lines, failed = [], False
    for name, rows in tables.items():
        lines += ["", f"{name}: {known[name]['about']}", "", *head(HEAD)]
        for title, future in rows.items():
            row = future.result()
            failed = failed or not all(row.found)
            if found := [metrics for metrics in row.found if metrics]:
                lines.append(_line([title, *cells(found), row.words]))
        if retained := [line for future in rows.values() for line in future.result().retained]:
            lines += ["", f"what {name} still know of {known[name]['retention']}", "", *head(RETAINED), *retained]
    text = "\n".join(lines).strip() + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    return int(failed)


def cells(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row of a table: means over the seeds, of the test data where there are any."""
    scores = [one.get("test") or one for one in found]
    name = found[0]["metric"]
    values = [float(one["metrics"][name]) for one in scores]
    interval = scores[0].get("intervals", {}).get(name)
    spread = f"± {statistics.stdev(values):.1f} ({len(values)} seeds)" if len(values) > 1 else _between(interval)
    baseline = max((one["metrics"].get(name, 0) for one in scores[0].get("baselines", {}).values()), default=None)
    wall = statistics.mean(one["speed"]["wall_s"] for one in found)
    peak = max(one["memory"]["peak_mb"] for one in found)
    return [
        f"{statistics.mean(values):.1f}", spread, "" if baseline is None else f"{baseline:.1f}",
        f"{found[0]['parameters']['percent']:.2f} %", f"{wall:.0f}", f"{peak:.0f}",
    ]  # fmt: skip


def head(titles: Sequence[str]) -> list[str]:
    """The two lines that a table begins with."""
    return [_line(titles), _line(["---"] * len(titles))]


def write_files(data: Path, into: Path) -> None:
    """Write the files that sets are made of, where what they are of is there."""
    into.mkdir(parents=True, exist_ok=True)
    if (data / "bccd/boxes.csv").exists():
        for split, lines in cell_counts(data / "bccd/boxes.csv").items():
            _write(into / f"cells-{split}.jsonl", lines)
    for split, most in (("train", 400), ("test", 200)):
        if (file := data / f"easy_vqa/{split}.jsonl").exists():
            captions, chats = captions_and_chats(file, most)
            _write(into / f"captions-{split}.jsonl", captions)
            _write(into / f"chats-{split}.jsonl", chats)


def cell_counts(boxes: Path) -> dict[str, list[dict[str, str]]]:
    """By split, a question and answer for each photograph and kind of cell: how many there are."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with boxes.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            counts[row["filename"]][row["cell_type"]] += 1
    images = sorted(counts)
    random.Random(0).shuffle(images)
    cuts = {
        "test": images[:HELD_OUT],
        "validation": images[HELD_OUT : 2 * HELD_OUT],
        "train": images[2 * HELD_OUT :],
    }
    return {
        split: [
            {"image": image, "question": f"how many {words} are there?", "answer": str(counts[image][kind])}
            for image in own
            for kind, words in CELLS.items()
        ]
        for split, own in cuts.items()
    }


def captions_and_chats(questions: Path, most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of images of easy-VQA a caption each, of those whose questions tell colour and shape, and of the first ones a conversation of
    all that is asked."""
    captions = [
        {"image": image, "caption": f"a {color} {shape}"} for image, (color, shape) in looks_of(questions).items()
    ]
    chats = []
    for image, rows in [*_by_image(questions).items()][:most]:
        turns = [turn for row in rows for turn in (("user", row["question"]), ("assistant", row["answer"]))]
        chats.append({"image": image, "messages": [{"role": role, "content": text} for role, text in turns]})
    return captions[:most], chats


def looks_of(questions: Path) -> dict[str, tuple[str, str]]:
    """By image of easy-VQA colour and shape, of those whose questions tell both."""
    found = {}
    for image, rows in _by_image(questions).items():
        asked = [row for row in rows if row["question"].startswith("what")]
        color = {row["answer"] for row in asked if "color" in row["question"]}
        shape = {row["answer"] for row in asked if "color" not in row["question"]}
        if color and shape:
            found[image] = (color.pop(), shape.pop())
    return found


def _by_image(questions: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    with questions.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            found[row["image"]].append(row)
    return found


def _write(file: Path, lines: Iterable[Any]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _between(interval: Any) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else ""


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    sys.exit(main())
