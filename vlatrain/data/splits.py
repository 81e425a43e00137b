"""Seeded splits and caps of a list of samples. Both depend on the seed and the order of the data, nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlatrain.data.images import identity
from vlatrain.data.sample import Sample


def hold_out(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split off about `count` samples, whole images at a time.

    Samples that share an image stay together, else the model would be scored on images it was trained on. Images are
    drawn at random until `count` samples are reached or passed; at least one image stays on each side.

    Args:
        samples: the samples to split.
        count: samples to split off.
        seed: seed of the draw.

    Returns:
        The rest and the split-off samples, each in the order given. If all samples share one image nothing is split
        off.
    """
    groups: dict[str, int] = {}  # image -> number of its samples
    for sample in samples:
        key = identity(sample.image)
        groups[key] = groups.get(key, 0) + 1
    order = list(groups)
    random.Random(f"hold out {seed}").shuffle(order)
    chosen: set[str] = set()
    total = 0
    for key in order[:-1]:  # the last stays, whatever the count
        if total >= max(1, count):
            break
        chosen.add(key)
        total += groups[key]
    rest = [sample for sample in samples if identity(sample.image) not in chosen]
    held = [sample for sample in samples if identity(sample.image) in chosen]
    return rest, held


def cap(samples: Sequence[Sample], size: int | None, seed: int) -> list[Sample]:
    """At most `size` samples, drawn at random and kept in the order given; null keeps all.

    A smaller cap draws a subset of what a larger one draws, so that runs over growing `train_size` nest. Not the first
    `size`: files are often sorted, by class or by image.
    """
    if size is None or size >= len(samples):
        return list(samples)
    order = list(range(len(samples)))
    random.Random(f"cap {seed}").shuffle(order)
    return [samples[index] for index in sorted(order[:size])]
