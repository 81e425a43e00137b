"""AdapterDrop: the adapters of the lowest layers are left out.

Rücklé et al., "AdapterDrop: On the Efficiency of Adapters in Transformers" (EMNLP 2021, arXiv:2010.11918). At inference a fixed
number of layers goes without (`adapter.drop_layers`): the fewer adapters, the faster. A training that draws it anew in each step
(`adapter.drop_random`) gives adapters that bear it. Layers are counted from the input of each tower, those without a point too.

Deviation: the paper has one tower; here every tower loses its lowest layers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vlatrain.injection.context import context_of


def drawn(most: int, seed: int, step: int) -> int:
    """How many layers go without in a step of a training: 0 to `most`, each as likely; a pure function of seed and step."""
    return random.Random(f"adapter drop {seed} {step}").randint(0, most)


@contextmanager
def dropping(model: nn.Module, layers: int) -> Iterator[None]:
    """Leave out the adapters in so many of the lowest layers of each tower, instead of those left out before."""
    context = context_of(model)
    before, context.dropped = context.dropped, layers
    try:
        yield
    finally:
        context.dropped = before
