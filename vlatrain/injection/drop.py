"""AdapterDrop: the adapters of the lowest layers are left out.

Rücklé et al., "AdapterDrop: On the Efficiency of Adapters in Transformers" (EMNLP 2021, arXiv:2010.11918). At inference a fixed
number of layers goes without (`adapter.drop_layers`): the fewer adapters, the faster. A training that draws it anew in each step
(`adapter.drop_random`) gives adapters that bear it. Layers are counted from the input of each tower, those without a point too.

Deviation: the paper has one tower; here every tower loses its lowest layers.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

from torch import nn

from vlatrain.injection.context import setting


def drawn(most: int, seed: int, step: int) -> int:
    """How many layers go without in a step of a training: 0 to `most`, each as likely; a pure function of seed and step."""
    return random.Random(f"adapter drop {seed} {step}").randint(0, most)


def dropping(model: nn.Module, layers: int) -> AbstractContextManager[None]:
    """Leave out the adapters in so many of the lowest layers of each tower, instead of those left out before."""
    return setting(model, dropped=layers)
