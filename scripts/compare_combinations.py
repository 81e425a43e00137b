"""AdapterDrop, AdapterFusion and joint training on the built-in data, in one process run: prints (and writes) their tables.

    python scripts/compare_combinations.py [drop] [fusion] [joint] [--out combinations.md]

Each row is a whole run of the command line with seed 0. AdapterDrop: how much is lost, and how much faster the evaluation is,
without the adapters of the lowest layers. Fusion: its sources each saw a third of the questions (corners, tone or size), and are
asked all. Joint training: captions and questions in one run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlatrain.data.shapes import build

TOPICS = {"corners": "how many corners", "tone": "warm or cool", "size": "large or small"}
DROPPED = range(4)


def vlatrain(*words: str) -> None:
    """Run a command line."""
    subprocess.run([sys.executable, "-m", "vlatrain", *words], check=True)


def metrics(folder: Path) -> dict[str, Any]:
    """The content of a run's, or an evaluation's, `metrics.json`."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def drop(folder: Path) -> list[str]:
    """With and without random dropping in training; then without the lowest 0 to 3 layers' adapters."""
    rows = []
    for drawn in (0, 2):
        run = folder / f"drop-{drawn}"
        vlatrain(
            "adapter.points=['*']",
            f"adapter.drop_random={drawn}",
            "trainer.max_steps=400",
            "trainer.eval_every=400",
            f"run.dir={run}",
        )
        for dropped in DROPPED:
            output = folder / f"drop-{drawn}-{dropped}"
            vlatrain("eval", f"run={run}", f"adapter.drop_layers={dropped}", f"output={output}")
            found = metrics(output)
            rows.append(
                [drawn, dropped, f"{found['metrics']['accuracy']:.1f}", f"{found['speed']['samples_per_s']:.0f}"]
            )
    return table(["drop_random", "drop_layers", "accuracy", "samples/s"], rows)


def write_topics(folder: Path) -> None:
    """The built-in questions as files, one a topic, with their images."""
    (folder / "images").mkdir(parents=True)
    lines: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for sample in build("vqa", "train", 4000, 1):
        topic = next(topic for topic, words in TOPICS.items() if words in sample.question)
        image = f"images/{sample.id}.png"
        sample.image.load().save(folder / image)
        row = {"image": image, "question": sample.question, "answer": sample.answers[0]}
        lines[topic].append(json.dumps(row) + "\n")
    for topic, rows in lines.items():
        (folder / f"{topic}.jsonl").write_text("".join(rows), encoding="utf-8")


def fusion(folder: Path) -> list[str]:
    """Three sources, their mean, the fusion of them, and a new adapter of as many steps."""
    topics = folder / "topics"
    write_topics(topics)
    sources = {topic: folder / topic for topic in TOPICS}
    rows = []
    for topic, run in sources.items():
        vlatrain(
            "data=files",
            f"data.train={topics / topic}.jsonl",
            "data.eval_size=200",
            "trainer.max_steps=125",
            f"run.dir={run}",
        )
    named = f"sources=[{','.join(map(str, sources.values()))}]"
    vlatrain("merge", named, f"output={folder / 'mean'}")
    for name, run in {
        **{f"source: {topic}": run for topic, run in sources.items()},
        "their mean": folder / "mean",
    }.items():
        output = folder / f"{run.name}-all"
        vlatrain("eval", f"run={run}", "data=shapes", f"output={output}")
        rows.append([name, "-", f"{metrics(output)['metrics']['accuracy']:.1f}"])
    steps = ("trainer.max_steps=60", "trainer.eval_every=60")
    for folder_name, name, words in (
        ("fusion", "fusion", ["adapter=fusion", f"adapter.{named}"]),
        ("full", "fusion, value=full", ["adapter=fusion", f"adapter.{named}", "adapter.options.value=full"]),
        ("new", "a new bottleneck", []),
    ):
        run = folder / folder_name
        vlatrain(*words, *steps, f"run.dir={run}")
        found = metrics(run)
        rows.append([name, f"{found['parameters']['percent']:.2f} %", f"{found['metrics']['accuracy']:.1f}"])
    pruned = folder / "pruned"
    vlatrain("merge", f"sources=[{folder / 'fusion'}]", "keep=2", f"output={pruned}")
    vlatrain("eval", f"run={pruned}")
    rows.append(["fusion, keep=2", "-", f"{metrics(pruned / 'evaluations/eval')['metrics']['accuracy']:.1f}"])
    return table(["what", "trainable", "accuracy on all questions"], rows)


def joint(folder: Path) -> list[str]:
    """One adapter for both subtasks, one for each, and half of one for each."""
    half = ["adapter.by_task=true", "adapter.share.what=down", "adapter.share.over=[task]"]
    rows = []
    for name, words in {"shared": [], "by task": ["adapter.by_task=true"], "half-shared": half}.items():
        run = folder / f"joint-{name.replace(' ', '-')}"
        vlatrain("task=joint", *words, "trainer.max_steps=400", "trainer.eval_every=400", f"run.dir={run}")
        found = metrics(run)
        scores = found["metrics"]
        rows.append(
            [
                name,
                f"{found['parameters']['percent']:.2f} %",
                f"{scores['vqa/accuracy']:.1f}",
                f"{scores['captioning/cider_d']:.1f}",
            ]
        )
    return table(["adapters", "trainable", "VQA accuracy", "CIDEr-D"], rows)


STUDIES: dict[str, Callable[[Path], list[str]]] = {"drop": drop, "fusion": fusion, "joint": joint}


def main() -> None:
    """Run the studies and print their tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=[*STUDIES], help=f"some of {', '.join(STUDIES)}; all by default")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args()
    if unknown := set(options.studies) - set(STUDIES):
        parser.error(f"no such study: {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.studies:
            told += [f"### {name}", "", *STUDIES[name](Path(folder)), ""]
    print("\n".join(told))
    if options.out:
        options.out.write_text("\n".join(told), encoding="utf-8")


if __name__ == "__main__":
    main()
