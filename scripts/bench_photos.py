"""What large photographs cost a training, against the same images made small: milliseconds of a training sample, epoch by epoch.

    python scripts/bench_photos.py

24 JPEGs of 9 megapixels, and the same at 428 x 338, on `tiny_blip` (64 pixels), captions, with the vision tower adapted from its
first layer on, so that no prefix is kept. `photo`: about as many bytes as a camera's have (2 MB); `noise`: 5 MB, in which decoding
itself is the most there is to do. Each way is a process of its own. `whole`: `data.scale_jpegs=false` and nothing kept, as it was
before either; `scaled`: large JPEGs decoded small; `kept`: and resized images kept (`trainer.cache=auto`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZES = {"large": (3420, 2700), "small": (428, 338)}
NUMBER, EPOCHS, BATCH = 24, 3, 4
KINDS = ("photo", "noise")
WAYS = {
    "whole": ["data.scale_jpegs=false", "trainer.cache=off"],
    "scaled": ["trainer.cache=off"],
    "kept": ["trainer.cache=auto"],
}


def picture(kind: str, number: int) -> Image.Image:
    """An image of the large size."""
    noise = Image.effect_noise(SIZES["large"], 60 + number)
    if kind == "photo":
        shapes = Image.effect_noise((SIZES["large"][0] // 30, SIZES["large"][1] // 30), 120)
        noise = Image.blend(shapes.resize(noise.size, Image.Resampling.BICUBIC), noise, 0.1)
    return noise.convert("RGB")


def write(folder: Path, kind: str) -> None:
    """The images, and a file of captions for each size."""
    lines: dict[str, list[str]] = {name: [] for name in SIZES}
    for number in range(NUMBER):
        image = picture(kind, number)
        for name, size in SIZES.items():
            file = folder / f"{name}{number}.jpg"
            image.resize(size).save(file, quality=80)
            lines[name].append(json.dumps({"image": file.name, "caption": f"picture {number}"}))
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def milliseconds(folder: Path, name: str, way: str) -> list[float]:
    """Milliseconds that a training sample takes in each epoch."""
    run = folder / f"{name}-{way}"
    words = [
        "task=captioning", "adapter.points=[vision.*.*]", "data=files",
        f"data.train={folder / name}.jsonl", f"trainer.batch_size={BATCH}",
        f"trainer.epochs={EPOCHS}", f"trainer.log_every={NUMBER // BATCH}", f"data.eval={folder}/small.jsonl", "data.eval_size=4",
        f"run.dir={run}", *WAYS[way],
    ]  # fmt: skip
    environment = {**os.environ, "VLATRAIN_CACHE": str(folder / f"cache-{name}-{way}")}
    subprocess.run([sys.executable, "-m", "vlatrain", *words], check=True, capture_output=True, env=environment)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [1000 / record["samples_per_s"] for record in records if "samples_per_s" in record]


def main() -> None:
    """Print the table, and large against small."""
    epochs = " | ".join(f"epoch {number + 1}" for number in range(EPOCHS))
    print(f"| images | | size | {epochs} |\n|---|---|---|{'---|' * EPOCHS}")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write(folder, kind)
            for way in WAYS:
                took = {name: milliseconds(folder, name, way) for name in SIZES}
                ratios = [large / small for large, small in zip(took["large"], took["small"], strict=True)]
                for name, values in took.items():
                    print(
                        f"| {kind} | {way} | {name} | {' | '.join(f'{value:.1f} ms' for value in values)} |", flush=True
                    )
                print(
                    f"| {kind} | {way} | large / small | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True
                )


if __name__ == "__main__":
    main()
