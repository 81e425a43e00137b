"""What a vision tower still knows of other images once it was trained: nearest neighbours among these, by its features.

    python scripts/retention.py FOLDER RUN [RUN ...]          # FOLDER: that of easy-VQA (Victor Zhou, 2019, MIT)

Of each run of a vision tower alone (`model=dinov2`): the share of easy-VQA's test images whose colour and shape are those of most
of their 5 nearest training images, by cosine, with what was trained and with it switched off. `features` is a hash of all features:
with an adapter switched off they are the frozen tower's, bit for bit; full fine-tuning cannot be switched off.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from real_results import RETAINED, head, looks_of
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import vlatrain
from vlatrain.data.features import picture_from
from vlatrain.training.precision import choose_precision
from vlatrain.training.setup import TrainingSetup, load_setup
from vlatrain.training.validation import without_adapters

NEIGHBOURS = 5
MOST = {"train": 200, "test": 100}  # images
BATCH = 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    asked = parser.parse_args()
    known = {
        split: [
            (asked.folder / image, f"{color} {shape}")
            for image, (color, shape) in [*looks_of(asked.folder / f"{split}.jsonl").items()][:most]
        ]
        for split, most in MOST.items()
    }
    print(*head(RETAINED), sep="\n")
    for run in asked.runs:
        config = vlatrain.load(run).config
        device = torch.device("cpu")
        setup = load_setup(config, run, device, choose_precision("fp32", device))
        ways: dict[str, Any] = {"on": nullcontext()}
        if config.adapter.name != "full":
            ways["off"] = without_adapters(setup.model)
        for way, entered in ways.items():
            with entered, torch.no_grad():
                train, test = ([*features(setup, [image for image, _ in known[split]])] for split in ("train", "test"))
            found = torch.cat(train + test)
            share = right(torch.cat(train), torch.cat(test), *([look for _, look in known[split]] for split in known))
            name = hashlib.sha256(found.numpy().tobytes()).hexdigest()[:12]
            print(f"| {run} | {way} | {share:.1f} % | `{name}` |", flush=True)


def features(setup: TrainingSetup, images: Sequence[Path]) -> Any:
    """The tower's features of images, (batch, width) each."""
    backbone: Any = setup.backbone
    for start in range(0, len(images), BATCH):
        shown = [picture_from(image, str(image)).load() for image in images[start : start + BATCH]]
        yield backbone.image_features(backbone.inputs(shown))


def right(train: Tensor, test: Tensor, looks: Sequence[str], wanted: Sequence[str]) -> float:
    """Percent of the test images of which most neighbours among the training images look as they do.

    Args:
        train: (N, width) features.
        test: (M, width).
        looks: of the training images.
        wanted: of the test images.
    """
    names = sorted({*looks, *wanted})
    votes = one_hot(torch.tensor([names.index(look) for look in looks]), len(names))  # (N, looks)
    nearest = (normalize(test, dim=1) @ normalize(train, dim=1).T).topk(NEIGHBOURS, dim=1).indices  # (M, k)
    said = votes[nearest].sum(dim=1).argmax(dim=1)  # (M,)
    return 100 * (said == torch.tensor([names.index(look) for look in wanted])).float().mean().item()


if __name__ == "__main__":
    main()
