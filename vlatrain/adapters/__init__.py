"""Adapter designs: pure torch modules, one design a file.

`DESIGNS` maps the name a configuration or a saved adapter carries to the module class. A class takes the width of the
states it adapts and its own options, and its `forward(states)` returns what is added to them.
"""

from torch import nn

from vlatrain.adapters.bottleneck import Bottleneck

DESIGNS: dict[str, type[nn.Module]] = {"bottleneck": Bottleneck}

__all__ = ["DESIGNS", "Bottleneck"]
