"""Adapter designs: pure torch modules, one design a file.

`DESIGNS` maps the name a configuration or a saved adapter carries to the module class; `register` adds one from outside the
package. See `vlatrain.adapters.base.Adapter` for what a design is.
"""

from dataclasses import is_dataclass

from vlatrain.adapters.base import Adapter, Call, Facts, borrow, options_of
from vlatrain.adapters.bitfit import BitFit
from vlatrain.adapters.bottleneck import Bottleneck
from vlatrain.adapters.clip_adapter import ClipAdapter
from vlatrain.adapters.compacter import Compacter
from vlatrain.adapters.coop import Coop
from vlatrain.adapters.cross_modal import CrossModal
from vlatrain.adapters.fusion import Fusion
from vlatrain.adapters.hyperformer import Hyperformer
from vlatrain.adapters.knn import Knn
from vlatrain.adapters.ladder import Ladder
from vlatrain.adapters.llama_adapter import LlamaAdapter
from vlatrain.adapters.lst import Lst
from vlatrain.adapters.prompt import Prompt
from vlatrain.adapters.routing import Routing
from vlatrain.adapters.task_lora import TaskLora
from vlatrain.adapters.tip_adapter import TipAdapter
from vlatrain.adapters.uniadapter import UniAdapter

DESIGNS: dict[str, type[Adapter]] = {
    "bitfit": BitFit,
    "bottleneck": Bottleneck,
    "clip_adapter": ClipAdapter,
    "compacter": Compacter,
    "coop": Coop,
    "cross_modal": CrossModal,
    "fusion": Fusion,
    "hyperformer": Hyperformer,
    "knn": Knn,
    "ladder": Ladder,
    "llama_adapter": LlamaAdapter,
    "lst": Lst,
    "prompt": Prompt,
    "routing": Routing,
    "task_lora": TaskLora,
    "tip_adapter": TipAdapter,
    "uniadapter": UniAdapter,
}


def register(name: str, design: type[Adapter]) -> None:
    """Make a design of one's own known: `adapter=NAME`, with a NAME.yaml in the `adapter` group of a `--config-dir`.

    Args:
        name: what a configuration and a saved adapter call it.
        design: the class.

    Raises:
        ValueError: the name is taken by another class, or its options are no dataclass.
    """
    if not is_dataclass(design.Options):
        raise ValueError(f"{design.__qualname__}.Options: must be a dataclass, which says what options the design has")
    if DESIGNS.setdefault(name, design) is not design:
        raise ValueError(f"there is a design {name!r} already: {DESIGNS[name].__qualname__}")


__all__ = ["DESIGNS", "Adapter", "Bottleneck", "Call", "Facts", "Fusion", "borrow", "options_of", "register"]
