"""Training speed and memory of full-size BLIP-base and CLIP-B/16: vlatrain, full fine-tuning, and PEFT's LoRA with `Trainer`.

    python scripts/bench_training.py [--rows captioning vqa ...] [--steps 4] [--samples 16] [--json FILE] [--plot FILE]

Weights are random and images are generated JPEGs of 640 x 480, as speed depends on neither; everything else is the real thing:
vlatrain is its own command line on data=files, through its loop; `Trainer` gets the transformers class with PEFT's LoRA of rank 8
on the linear layers of the same towers (query, value, and both of the feed-forward), a `Dataset` that opens the image and
calls the processor, and no metrics. Every side is a process of its own, one after the other, so that each has its own peak of
memory. Steady state leaves the first step out. FLOPs are those that torch's counter counts in one step (forward and backward).

`reached` is the measured ratio over the one that the FLOPs allow: 100 % means that only the arithmetic is left.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

DECODER, FUSION = ["decoder"], ["fusion", "decoder"]
LAST4 = ["vision.last4.*", "text.last4.*"]
QUESTION, ANSWER = "what is the man in the red shirt holding?", "a tennis racket"
CAPTION = "a man in a red shirt is holding a tennis racket on a green court"


@dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Attributes:
        model: the backbone.
        task: the task.
        points: where adapters and LoRA go.
        batch: samples in a step.
        epochs: passes of a whole run; 0: steady state.
        jobs: runs in a sweep over `adapter.dim`.
        full: whether full fine-tuning is measured too.
    """

    model: str
    task: str
    points: list[str]
    batch: int = 4
    epochs: int = 0
    jobs: int = 1
    full: bool = True


ROWS = {
    "captioning": Row("blip", "captioning", DECODER),
    "vqa": Row("blip", "vqa", FUSION),
    "vqa-decoder": Row("blip", "vqa", DECODER, full=False),
    "retrieval": Row("clip", "retrieval", LAST4, batch=8),
    "retrieval-last2": Row("clip", "retrieval", ["vision.last2.*", "text.last2.*"], batch=8, full=False),
    "everywhere": Row("blip", "captioning", ["vision", "decoder"]),
    "10-epochs": Row("blip", "captioning", DECODER, epochs=10, full=False),
    "sweep": Row("blip", "captioning", DECODER, epochs=3, jobs=4, full=False),
}
WANTED = {  # against PEFT with Trainer, against full fine-tuning
    "captioning": (6, 18), "vqa": (5, 14), "vqa-decoder": (25, None), "retrieval": (1.9, 4.3), "everywhere": (1.2, 1.8),
    "10-epochs": (4, None), "sweep": (4, None),
}  # fmt: skip


def make_data(folder: Path, samples: int) -> Path:
    """JPEGs and the file that names them."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(samples + 1):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        words = {"question": QUESTION, "answer": f"{ANSWER} {number}", "caption": f"{CAPTION} {number}"}
        lines.append(json.dumps({"image": f"{number}.jpg", **words}))
    (folder / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    (folder / "eval.jsonl").write_text("\n".join(lines[-2:]) + "\n", encoding="utf-8")
    return folder


def ours(row: Row, data: Path, adapter: str, steps: int, out: Path, more: list[str]) -> dict[str, Any]:
    """A whole `vlatrain` run, or several; what its metrics.json says of the last, and the seconds of all."""
    length = [f"trainer.epochs={row.epochs}"] if row.epochs else [f"trainer.max_steps={steps}"]
    words = [
        f"task={row.task}", f"model={row.model}", "model.random_init=true", f"adapter={adapter}", "data=files",
        f"data.train={data / 'train.jsonl'}", f"data.eval={data / 'eval.jsonl'}", f"trainer.batch_size={row.batch}",
        "trainer.accumulate=1", "trainer.eval_every=100000", "task.decode.max_new_tokens=2", "task.decode.num_beams=1",
        *length, *more,
    ]  # fmt: skip
    if adapter != "full":
        words.append(f"adapter.points={json.dumps(row.points)}".replace('"', ""))
    started = time.perf_counter()
    for job in range(row.jobs):
        width = [f"adapter.dim={16 * (job + 1)}"] if row.jobs > 1 else []
        command = [sys.executable, __file__, "--inside", json.dumps([*words, *width, f"run.dir={out}-{job}"])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    found = json.loads(Path(f"{out}-0", "metrics.json").read_text(encoding="utf-8"))
    flops = json.loads(Path(f"{out}-0", "flops.json").read_text(encoding="utf-8"))
    speed = found["speed"]["samples_per_s"]
    return {
        "samples_per_s": speed,
        "peak_mb": found["memory"]["peak_mb"],
        "seconds": seconds,
        "cache": found["cache"],
        **flops,
    }


def inside(words: list[str]) -> None:
    """In a process of its own: the command line, and then the FLOPs of one step of what it trained."""
    from torch.utils.flop_counter import FlopCounterMode

    import vlatrain.training.run as training
    from vlatrain.cli import main
    from vlatrain.training.loop import Loop

    seen: list[Loop] = []
    prepare = Loop.run

    def run(self: Loop) -> Any:
        seen.append(self)
        return prepare(self)

    training.Loop.run = run  # type: ignore[method-assign]
    status = main(words)
    loop = seen[0]
    batch = loop.task.collate(loop.train[: loop.trainer.batch_size])
    for parameter in loop.parameters.values():
        parameter.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        loop.task.loss(batch).backward()
    flops = counter.get_total_flops() / loop.trainer.batch_size
    (loop.folder / "flops.json").write_text(json.dumps({"gflop": flops / 1e9}))
    sys.exit(status)


def theirs(row: Row, data: Path, steps: int, out: Path) -> dict[str, Any]:
    """PEFT's LoRA with transformers' Trainer, in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--trainer",
        json.dumps([row.model, row.task, row.points, row.batch, row.epochs, steps, str(data)]),
    ]
    subprocess.run([*command, "--json", str(out)], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(out.read_text(encoding="utf-8"))
    found["seconds"] *= row.jobs  # every job of a sweep costs the same
    return found


def trainer(
    model_name: str, task: str, points: list[str], batch: int, epochs: int, steps: int, data: str, out: Path
) -> None:
    """What a user would write instead."""
    import torch
    import transformers
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from vlatrain.backbones.describe import settings_of, sites
    from vlatrain.backbones.loading import load
    from vlatrain.config import ModelConfig
    from vlatrain.config.folder import conf_dir
    from vlatrain.config.registry import register

    started = time.perf_counter()
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = compose("train", [f"model={model_name}", f"task={task}", "model.random_init=true"]).model
    config: ModelConfig = OmegaConf.to_object(node)  # type: ignore[assignment]
    processor = load(config, task, texts=[QUESTION, ANSWER, CAPTION])  # for its tokenizer and image processor
    settings = {**settings_of(config, task)}
    model_class = getattr(transformers, config.tasks[task].architecture)
    model = model_class(transformers.AutoConfig.for_model(settings.pop("model_type"), **settings))
    where = sites(config, task, points)
    targets = where.targeted(["query", "value", "qkv", "ffn.inner", "ffn.out"])
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    lines = [json.loads(line) for line in Path(data, "train.jsonl").read_text(encoding="utf-8").splitlines()]

    def collate(items: list[dict]) -> dict[str, Any]:
        images = [Image.open(Path(data, item["image"])).convert("RGB") for item in items]
        found = {"pixel_values": processor.image_processor(images=images, return_tensors="pt")["pixel_values"]}
        key = "question" if task == "vqa" else "caption"
        text = processor.text([item[key] for item in items], 40)
        found |= {"input_ids": text.ids, "attention_mask": text.mask}
        if task == "vqa":
            found["labels"] = processor.text([item["answer"] for item in items], 20).ids
        elif task == "captioning":
            found["labels"] = text.ids
        else:
            found["return_loss"] = True
        return found

    class Times(TrainerCallback):
        at: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.at.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(out.parent / "trainer"), per_device_train_batch_size=batch, remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(), report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, label_names=["labels"],
        **({"num_train_epochs": epochs} if epochs else {"max_steps": steps}),
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=lines, data_collator=collate, callbacks=[Times()]).train()  # type: ignore[arg-type]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    seconds = time.perf_counter() - started
    with FlopCounterMode(display=False) as counter:
        model(**collate(lines[:batch])).loss.backward()
    speed = batch * (len(Times.at) - 1) / (Times.at[-1] - Times.at[0])
    gflop = counter.get_total_flops() / batch / 1e9
    out.write_text(json.dumps({"samples_per_s": speed, "peak_mb": peak, "seconds": seconds, "gflop": gflop}))


def measure(name: str, row: Row, samples: int, steps: int) -> dict[str, Any]:
    """All sides of a row."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["VLATRAIN_CACHE"] = str(folder / "kept")
        data = make_data(folder, max(samples, row.batch))
        way = "trainer.cache=disk" if name != "everywhere" else "trainer.cache=off"
        found = {
            "vlatrain": ours(
                row, data, "bottleneck", 10 * steps if way.endswith("disk") else steps, folder / "ours", [way]
            )
        }
        found["peft"] = theirs(row, data, steps, folder / "peft.json")
        if row.full:
            found["full"] = ours(row, data, "full", max(2, steps // 2), folder / "full", ["trainer.cache=off"])
        return found


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--steps", type=int, default=4, help="optimizer steps of each side (ten times as many of a cached one)"
    )
    parser.add_argument("--samples", type=int, default=16, help="images")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--trainer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(json.loads(options.inside))
    if options.trainer:
        trainer(*json.loads(options.trainer), options.json)
        return
    table = Table("work", "side", "samples/s", "seconds", "peak MB", "GFLOP", "ratio", "wanted", "by FLOPs", "reached")
    found: dict[str, Any] = {}
    for name in options.rows:
        row = ROWS[name]
        found[name] = measure(name, row, options.samples, options.steps)
        mine = found[name]["vlatrain"]
        for side, one in found[name].items():
            whole = row.epochs > 0
            ratio = one["seconds"] / mine["seconds"] if whole else mine["samples_per_s"] / one["samples_per_s"]
            limit = one["gflop"] / mine["gflop"]
            wanted = (WANTED.get(name) or (None, None))[1 if side == "full" else 0] if side != "vlatrain" else None
            found[name][side] |= {"ratio": ratio, "by_flops": limit, "wanted": wanted}
            told = [
                name,
                side,
                f"{one['samples_per_s']:.2f}",
                f"{one['seconds']:.0f}",
                f"{one['peak_mb']:,.0f}",
                f"{one['gflop']:.0f}",
            ]
            if side != "vlatrain":
                told += [
                    f"{ratio:.1f}x",
                    f"{wanted}x" if wanted else "",
                    f"{limit:.1f}x",
                    f"{100 * ratio / limit:.0f} %",
                ]
            table.add_row(*told)
        Console().print(table)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        plot(found, options.plot)


def plot(found: dict[str, Any], file: Path) -> None:
    """Bars of samples/s by row and side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.55 * len(found)))
    for place, sides in enumerate(reversed(found.values())):
        for offset, (side, one) in enumerate(sides.items()):
            value = one["ratio"] if side != "vlatrain" else 1.0
            if side != "vlatrain":
                axes.barh(
                    place + 0.35 * (offset - 1.5), value, 0.33, color={"peft": "tab:blue", "full": "tab:gray"}[side]
                )
                axes.text(value, place + 0.35 * (offset - 1.5), f" {value:.1f}x {side}", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), [*reversed(found)])
    axes.set_xlabel("times faster than PEFT LoRA with Trainer, and than full fine-tuning")
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
