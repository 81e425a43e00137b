"""Adapter designs: pure torch modules, one design a file.

`DESIGNS` maps the name a configuration or a saved adapter carries to the module class; `register` adds one from outside the
package. See `vlatrain.adapters.base.Adapter` for what a design is.
"""

from vlatrain.adapters.base import Adapter, Call, borrow
from vlatrain.adapters.bottleneck import Bottleneck

DESIGNS: dict[str, type[Adapter]] = {"bottleneck": Bottleneck}


def register(name: str, design: type[Adapter]) -> None:
    """Make a design of one's own known: `adapter=NAME`, with a NAME.yaml in the `adapter` group of a `--config-dir`.

    Args:
        name: what a configuration and a saved adapter call it.
        design: the class.

    Raises:
        ValueError: the name is taken by another class.
    """
    if DESIGNS.setdefault(name, design) is not design:
        raise ValueError(f"there is a design {name!r} already: {DESIGNS[name].__qualname__}")


__all__ = ["DESIGNS", "Adapter", "Bottleneck", "Call", "borrow", "register"]
