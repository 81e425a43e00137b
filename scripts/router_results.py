"""What a router scores beside the oracle, its runs alone, AdapterFusion and one adapter trained on everything.

Two comparisons on `tiny_blip`, each with the built-in scenes:

- tasks: VQA, captioning, classification and grounding, a run each, at each task's own points;
- domains: VQA with equal questions about two renderings of scenes whose answers contradict each other ("large" means small, "warm"
  cool in pictures that are dark and grainy), so that only the image tells; a run each, at fusion and decoder, and at the decoder.

    python scripts/router_results.py --out FOLDER [--only tasks,domains] [--steps 300] [--seeds 0,1]

What is finished in the folder is not run again. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import vlatrain
from vlatrain.data import shapes

TASKS = ("vqa", "captioning", "classification", "grounding")
SIZES = {"train": 1200, "eval": 200}
CONVENTION = {"large": "small", "small": "large", "warm": "cool", "cool": "warm"}
KINDS = ("prototype", "linear", "mlp")
FULLY = "fusion and decoder"  # where all kinds are compared
EXTRA = ("extra time a sample", "of CPU")
POINTS = {FULLY: "[fusion.*.*,decoder.*.*]", "decoder": "[decoder.*.*]"}


@dataclass(frozen=True)
class Place:
    """Where runs of a seed go.

    Attributes:
        folder: the folder.
        seed: the seed.
        steps: of each training.
    """

    folder: Path
    seed: int
    steps: int

    def run(self, name: str, *overrides: str) -> Path:
        """The folder of a run, which is trained if it is not there."""
        folder = self.folder / f"seed{self.seed}" / name
        if not (folder / "metrics.json").is_file():
            print(f"-- {folder}", flush=True)
            vlatrain.train(vlatrain.compose(*overrides, f"run.dir={folder}", f"seed={self.seed}", "resume=auto"))
        return folder

    def trained(self, name: str, *overrides: str) -> Path:
        """The same of a run that trains so many steps, and is evaluated once."""
        steps = (f"trainer.max_steps={self.steps}", "trainer.epochs=100", f"trainer.eval_every={self.steps}")
        return self.run(name, *overrides, *steps)

    def router(self, name: str, sources: Sequence[Path], *overrides: str) -> Path:
        """The same of a router over runs."""
        return self.run(name, "adapter=router", f"adapter.sources=[{','.join(map(str, sources))}]", *overrides)


def metrics(run: Path) -> dict[str, Any]:
    """The content of a run's `metrics.json`."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return found


def dark_and_grainy(image: Image.Image, seed: str) -> Image.Image:
    """The second rendering: six tenths of the brightness, and noise."""
    rng = random.Random(seed)
    data = bytes(min(255, max(0, int(0.6 * value + 40 * (rng.random() - 0.5)))) for value in image.tobytes())
    return Image.frombytes("RGB", image.size, data)


def write_domains(folder: Path) -> None:
    """Write both domains, `plain` and `dark`, and all of it in one file, `both`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        lines: dict[str, list[str]] = {}
        for number, domain in enumerate(("plain", "dark")):
            for sample in shapes.build("vqa", split, size, seed=number):
                image, answer, name = sample.image.load(), sample.answers[0], f"{domain}-{sample.id}.png"
                if domain == "dark":
                    image, answer = dark_and_grainy(image, name), CONVENTION.get(answer, answer)
                image.save(folder / name)
                row = {"image": name, "question": sample.question, "answer": answer, "domain": domain}
                for file in (domain, "both"):
                    lines.setdefault(file, []).append(json.dumps(row))
        for file, rows in lines.items():
            (folder / f"{file}-{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def row(cells: Sequence[object]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(f'{cell:.1f}' if isinstance(cell, float) else str(cell) for cell in cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """The lines of a Markdown table; what a row lacks at its end is left blank."""
    yield row(head)
    yield row(["---"] * len(head)).replace(" ", "")
    yield from (row([*cells, *[""] * (len(head) - len(cells))]) for cells in rows)


def routed(label: str, found: dict[str, Any], names: Sequence[str]) -> list[object]:
    """A router's line: its scores, the share of the oracle's, right choices, and what choosing costs."""
    facts = found["router"]
    scores = [found["metrics"][name] for name in names]
    extra = facts["extra_time"]
    times = (f"{extra[f'{kind}ms_extra']:.2f} ms, {extra[f'{kind}percent_extra']:.1f} %" for kind in ("", "cpu_"))
    return [label, *scores, facts["of_oracle"], facts["accuracy"], *times]


def compare_tasks(place: Place) -> Iterator[str]:
    """Routers over a run of each task."""
    sizes = (f"data.train_size={SIZES['train']}", f"data.eval_size={SIZES['eval']}")
    sources = [place.trained(f"task-{task}", f"task={task}", *sizes) for task in TASKS]
    joint = place.trained("task-joint", "task=joint", *sizes)
    routers = {kind: metrics(place.router(f"tasks-{kind}", sources, f"adapter.router={kind}")) for kind in KINDS}
    one = routers["linear"]
    names = one["settings"]["mean_of"]
    rows: list[list[object]] = [
        ["each by its own run (oracle)", *(one["router"]["oracle"][name] for name in names), 100.0]
    ]
    rows += [routed(f"router, {kind}", found, names) for kind, found in routers.items()]
    for kind, found in routers.items():
        alone = found["router"]["image_alone"]
        scores = [alone["metrics"][name] for name in names]
        rows.append([f"router, {kind}, without a request", *scores, alone["of_oracle"], alone["accuracy"]])
    rows += [[f"{name} alone", *(own.get(n, 0.0) for n in names)] for name, own in one["router"]["singles"].items()]
    of_joint = metrics(joint)["metrics"]
    rows.append(
        ["one joint adapter (two tasks: what the backbone serves)", *(of_joint.get(name, "") for name in names)]
    )
    yield from table(["seed " + str(place.seed), *names, "of the oracle (%)", "right choices (%)", *EXTRA], rows)


def compare_domains(place: Place) -> Iterator[str]:
    """Routers over a run of each domain."""
    data = place.folder / "domains"
    if not (data / "both-eval.jsonl").is_file():
        write_domains(data)

    def files(name: str) -> tuple[str, ...]:
        return "task=vqa", "data=files", f"data.train={data}/{name}-train.jsonl", f"data.eval={data}/{name}-eval.jsonl"

    for label, points in POINTS.items():
        at, key = f"adapter.points={points}", label.replace(" ", "-")
        sources = [place.trained(f"{key}-{name}", *files(name), at) for name in ("plain", "dark")]
        fused = ("adapter=fusion", f"adapter.sources=[{','.join(map(str, sources))}]")
        both = {
            "one joint adapter": place.trained(f"{key}-joint", *files("both"), at),
            "AdapterFusion": place.trained(f"{key}-fusion", *files("both"), at, *fused),
        }
        ways = {"linear": ("adapter.router=linear",)}
        if label == FULLY:
            ways |= {kind: (f"adapter.router={kind}",) for kind in KINDS} | {"linear, k=2": ("adapter.options.k=2",)}
        routers = {
            name: metrics(place.router(f"{key}-{name.replace(', ', '-')}", sources, *way)) for name, way in ways.items()
        }
        facts = routers["linear"]["router"]
        names = routers["linear"]["settings"]["mean_of"]
        rows: list[list[object]] = [
            [
                "each by its own run (oracle)",
                *(facts["oracle"][name] for name in names),
                facts["oracle"]["mean"],
                100.0,
            ]
        ]
        for name, found in routers.items():
            first, *rest = routed(f"router, {name}", found, names)
            rows.append([first, *rest[: len(names)], found["metrics"]["mean"], *rest[len(names) :]])
        rows += [[f"{name} alone", *(own[n] for n in names), own["mean"]] for name, own in facts["singles"].items()]
        rows += [[said, *[""] * len(names), metrics(run)["metrics"]["accuracy"]] for said, run in both.items()]
        yield f"\nPoints: {label}\n"
        yield from table(
            [f"seed {place.seed}", *names, "mean", "of the oracle (%)", "right choices (%)", *EXTRA],
            rows,
        )


COMPARISONS = {"tasks": compare_tasks, "domains": compare_domains}


def main() -> None:
    """Run what is asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(COMPARISONS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.only.split(","):
            print("\n".join(COMPARISONS[name](Place(arguments.out, seed, arguments.steps))), flush=True)


if __name__ == "__main__":
    main()
