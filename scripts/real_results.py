"""Results on real data with real weights, as tables in Markdown: `make real DATA=FOLDER`.

    python scripts/real_results.py DATA [SET ...] [--rows NAME ...] [--seeds 0 1 2] [--runs FOLDER] [--out FILE]

What is run is data: `real_results.yaml` has the sets, and of each its rows, the words of a command line. A set whose data are not
in DATA is left out, and said. Runs that are finished in FOLDER are read and not run again, so that a table goes on where it was
stopped. Real towers: `make real-towers`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from real_towers import default_folder

HERE = Path(__file__).resolve().parent
HEAD = ["", "score", "interval or deviation", "baseline", "trainable", "wall, s", "peak MB"]


def main() -> int:
    """Run what is missing, and print the tables; 0 if every run ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--rows", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("outputs/real"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    known: dict[str, Any] = yaml.safe_load((HERE / "real_results.yaml").read_text(encoding="utf-8"))
    if unknown := [name for name in asked.sets if name not in known]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(known)}")
    lines, failed = [], False
    for name in asked.sets or known:
        one = known[name]
        if not (asked.data / one["needs"]).exists():
            print(f"{name}: left out, there is no {asked.data / one['needs']}", file=sys.stderr)
            continue
        rows = {row: words for row, words in one["rows"].items() if not asked.rows or row in asked.rows}
        lines += ["", f"{name}: {one['about']}", "", _line(HEAD), _line(["---"] * len(HEAD))]
        for row, words in rows.items():
            found = []
            for seed in asked.seeds:
                run = asked.runs / name / row.replace(" ", "-").replace(",", "") / f"seed-{seed}"
                if metrics := result(run, f"{one['words']} {words} seed={seed}", asked.data):
                    found.append(metrics)
                else:
                    failed = True
            if found:
                lines.append(_line(cells(row, found)))
    text = "\n".join(lines).strip() + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    return int(failed)


def result(run: Path, words: str, data: Path) -> dict[str, Any]:
    """The `metrics.json` of a run, which is made if there is none; empty if that failed."""
    file = run / "metrics.json"
    if not file.is_file():
        filled = [word.format(data=data.resolve(), towers=default_folder()) for word in shlex.split(words)]
        print(f"{run} ...", file=sys.stderr, flush=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        with (run.parent / f"{run.name}.txt").open("w", encoding="utf-8") as log:
            ended = subprocess.run(
                [sys.executable, "-m", "vlatrain", *filled, f"run.dir={run}", "resume=auto"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if ended.returncode:
            print(f"{run}: failed, see {log.name}", file=sys.stderr)
            return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def cells(row: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row of a table: means over the seeds, of the test data where there are any."""
    scores = [scored(one) for one in found]
    name = found[0]["metric"]
    values = [float(one["metrics"][name]) for one in scores]
    interval = scores[0].get("intervals", {}).get(name)
    spread = f"± {statistics.stdev(values):.1f} ({len(values)} seeds)" if len(values) > 1 else _between(interval)
    baseline = max((one["metrics"].get(name, 0) for one in scores[0].get("baselines", {}).values()), default=None)
    share = found[0]["parameters"]["percent"]
    wall = statistics.mean(one["speed"]["wall_s"] for one in found)
    peak = max(one["memory"]["peak_mb"] for one in found)
    return [
        row, f"{statistics.mean(values):.1f}", spread, "" if baseline is None else f"{baseline:.1f}", f"{share:.2f} %",
        f"{wall:.0f}", f"{peak:.0f}",
    ]  # fmt: skip


def scored(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was scored last: the test data, else the evaluation's."""
    return metrics.get("test") or metrics


def _between(interval: Any) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else ""


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    sys.exit(main())
