"""The peak of memory that is predicted, against the one that is measured: `python scripts/compare_memory.py [RUN ...]`

Each run is a training of a middle-sized random model on the CPU, in a process of its own, whose peak (`metrics.json`'s `peak_mb`)
is read. Then the same process predicts it from the configuration and the lengths of the data's texts, as `trainer.batch_size=auto`
does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NEAR = 0.15  # what is predicted may be apart from what is measured by this share

_BLIP = [
    "model=blip", "model.random_init=true",
    "model.config.vision_config={hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, num_attention_heads: 4, "
    "image_size: 192}",
    "model.config.text_config={hidden_size: 256, encoder_hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, "
    "num_attention_heads: 4}",
]  # fmt: skip
_CLIP = [
    "model=clip", "model.random_init=true",
    "model.config.vision_config={hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, num_attention_heads: 4}",
    "model.config.text_config={hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, num_attention_heads: 4}",
]  # fmt: skip
_VILT = [
    "model=vilt", "model.random_init=true", "model.config.hidden_size=256", "model.config.intermediate_size=1024",
    "model.config.num_hidden_layers=4", "model.config.num_attention_heads=4", "model.config.image_size=192",
]  # fmt: skip
_COMPOSITE = ["model=tiny_composite", "model.random_init=true"]

# by name: the words of the command line, and samples, words of a text, captions of an image
RUNS: dict[str, tuple[list[str], tuple[int, int, int]]] = {
    "captions, decoder": (["task=captioning", *_BLIP, "adapter.points=[decoder]", "trainer.batch_size=32"], (64, 12, 1)),
    "captions, both": (["task=captioning", *_BLIP, "adapter.points=[vision,decoder]", "trainer.batch_size=24"], (48, 12, 1)),
    "captions, late": (
        ["task=captioning", *_BLIP, "adapter.points=[vision.3.ffn,decoder.2-3.*]", "trainer.batch_size=32"],
        (64, 12, 1),
    ),
    "five long captions": (
        ["task=captioning", *_BLIP, "adapter.points=[decoder]", "trainer.batch_size=16", "task.max_length=64"],
        (32, 40, 5),
    ),
    "five beams": (
        ["task=captioning", *_BLIP, "adapter.points=[decoder]", "trainer.batch_size=8", "trainer.eval_batch_size=32",
         "task.decode.num_beams=5", "task.decode.max_new_tokens=30", "task.decode.min_new_tokens=30"],
        (32, 12, 1),
    ),
    "captions, kept in memory": (
        ["task=captioning", *_BLIP, "adapter.points=[decoder]", "trainer.batch_size=32", "trainer.cache=memory"],
        (512, 12, 1),
    ),
    "captions, kept on disk": (
        ["task=captioning", *_BLIP, "adapter.points=[decoder]", "trainer.batch_size=32", "trainer.cache=disk"],
        (512, 12, 1),
    ),
    "questions": (["task=vqa", *_BLIP, "trainer.batch_size=24"], (48, 8, 1)),
    "questions, lora": (
        ["task=vqa", *_BLIP, "adapter=lora", "adapter.points=[vision,fusion,decoder]", "trainer.batch_size=24"],
        (48, 8, 1),
    ),
    "answers of a list": (
        ["task=vqa", *_BLIP, "adapter.points=[fusion]", "trainer.batch_size=16", "task.answers=rank",
         f"task.answer_list=[{','.join(f'answer {number}' for number in range(500))}]"],
        (32, 8, 1),
    ),
    "recomputed": (
        ["task=vqa", *_BLIP, "trainer.batch_size=32", "trainer.gradient_checkpointing=true"],
        (64, 8, 1),
    ),
    "retrieval": (["task=retrieval", *_CLIP, "adapter.points=[vision,text]", "trainer.batch_size=48"], (96, 12, 1)),
    "retrieval, five texts": (["task=retrieval", *_CLIP, "adapter.points=[text]", "trainer.batch_size=32"], (64, 20, 5)),
    "matching": (
        ["task=retrieval", *_BLIP, "adapter.points=[vision,fusion]", "trainer.batch_size=16", "task.rerank=8"],
        (32, 12, 2),
    ),
    "classes": (["task=classification", *_CLIP, "trainer.batch_size=48"], (96, 12, 1)),
    "full fine-tuning": (["task=retrieval", *_CLIP, "adapter=full", "trainer.batch_size=24"], (48, 12, 1)),
    "ViLT": (["task=vqa", *_VILT, "trainer.batch_size=32"], (64, 8, 1)),
    "a chat": (["task=instruct", *_COMPOSITE, "trainer.batch_size=64"], (128, 16, 1)),
}  # fmt: skip


def write_data(folder: Path, samples: int, words: int, captions: int) -> list[str]:
    """Write images and rows for every task; returns the words of the command line that name them."""
    text = " ".join(["a man in a red shirt", *["and another"] * words][: words - 1])
    rows = []
    for number in range(samples):
        Image.new("RGB", (64, 48), (number % 256, number // 256, 0)).save(folder / f"{number}.png")
        rows.append(
            {
                "image": f"{number}.png",
                "question": f"what of {text} {number}",
                "answers": [f"answer {number % 7}"],
                "captions": [f"{'a ' * one}{text} {number}" for one in range(captions)],
                "label": f"class {number % 20}",
                "conversations": [
                    {"from": "human", "value": f"<image> tell me of {text} {number}"},
                    {"from": "gpt", "value": f"{text} {number}"},
                ],
            }
        )
    for split, own in (("train", rows), ("eval", rows[: max(32, samples // 4)])):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    return ["data=files", f"data.train={folder / 'train.jsonl'}", f"data.eval={folder / 'eval.jsonl'}"]


def measure(name: str) -> dict[str, Any]:
    """Run one training in this process, then predict its peak; both in MB."""
    words, sizes = RUNS[name]
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        os.environ["VLATRAIN_CACHE"] = str(Path(scratch) / "kept")
        data = write_data(Path(scratch), *sizes)
        from vlatrain.cli.compose import composed
        from vlatrain.data.subtasks import load_run
        from vlatrain.training.memory import lengths_of, on_meta, predicted
        from vlatrain.training.setup import new_setup
        from vlatrain.verbs.train import train

        cache = [] if any(word.startswith("trainer.cache") for word in words) else ["trainer.cache=off"]
        config = composed(
            "train",
            [*words, *data, *cache, "trainer.accumulate=1", "trainer.max_steps=3", "trainer.device=cpu", "trainer.threads=2",
             f"run.dir={Path(scratch) / 'run'}"],
        )  # fmt: skip
        train(config)
        measured = json.loads((Path(scratch) / "run" / "metrics.json").read_text(encoding="utf-8"))["memory"]["peak_mb"]
        samples = load_run(config, ["train", "eval"])
        setup = new_setup(config, samples)
        size = config.trainer.samples_per_pass
        lengths = lengths_of(setup.task, samples["train"], size)
        every = sum(map(len, samples.values()))
        found = predicted(setup.config, *on_meta(setup.backbone, setup.model), size, lengths, samples=every)
    resident = found.weights + found.optimizer + found.kept
    kinds = {"resident": resident, "training": found.training, "evaluation": found.evaluation, "predicted": found.peak}
    return {"measured": measured, **{kind: size / 1e6 for kind, size in kinds.items()}}


def main() -> int:
    """Run each in a process of its own and print the table; 1 if one is further apart than `NEAR`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"some of: {'; '.join(RUNS)}")
    parser.add_argument("--one", action="store_true", help="run one here, and print it as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.runs[0])))
        return 0
    print(
        "| run (MB) | resident | training | evaluation | predicted | measured | ratio |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    far = 0
    for name in options.runs or RUNS:
        told = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if told.returncode:
            print(f"| {name} | failed: {told.stderr[-2000:]} |", flush=True)
            far += 1
            continue
        one = json.loads(told.stdout.splitlines()[-1])
        ratio = one["predicted"] / one["measured"]
        far += abs(ratio - 1) > NEAR
        cells = [f"{one[key]:,.0f}" for key in ("resident", "training", "evaluation", "predicted", "measured")]
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
    return int(far > 0)


if __name__ == "__main__":
    sys.exit(main())
