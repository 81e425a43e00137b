"""Several methods in one model, each on points of its own: LoRA in the image tower, bottlenecks in the decoder.

Each component is a PEFT adapter like any other, in a folder of its own, which PEFT alone can load. All of them are called
`default`, so that what PEFT does to every adapter layer of a model (it knows of one configuration only) suits every component. What
PEFT does to the components that were there before, freezing them above all, is undone here.

PEFT's methods go in first: they replace the modules that they change, whereas ours leave every path as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from vlatrain.config import AdapterConfig
from vlatrain.config.methods import components, is_peft
from vlatrain.injection.peft_method import VlatrainConfig
from vlatrain.injection.saved import load_peft
from vlatrain.injection.site import UNITS


class Mixed(nn.Module):
    """A model with the adapters of several methods in it.

    Attributes:
        components: by name, PEFT's view of the model with this component's method; their modules are those of the model.
    """

    components: dict[str, PeftModel]

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": base})  # parameters are then called as in a `PeftModel`
        self.__dict__["components"] = {}  # not registered: nothing must be counted twice

    def add(self, name: str, wrap: Callable[[nn.Module], PeftModel]) -> None:
        """Put a component in.

        Args:
            name: of the component.
            wrap: makes a `PeftModel` of the base model.
        """
        training = (
            [parameter for parameter in self.get_base_model().parameters() if parameter.requires_grad]
            if self.components
            else []
        )
        # else PEFT would put this component's in place of the last one's
        self.get_base_model().__dict__.pop("peft_config", None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
            self.components[name] = wrap(self.get_base_model())
        for parameter in training:
            parameter.requires_grad_(True)

    def get_base_model(self) -> nn.Module:
        """The model that the components are in."""
        return self.base_model["model"]

    def save_pretrained(self, folder: Path) -> None:
        """Write each component into a folder of its name."""
        for name, model in self.components.items():
            own = {key: tensor for key, tensor in model.state_dict().items() if _belongs(key, model)}
            model.save_pretrained(str(folder / name), state_dict=own, save_embedding_layers=False)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The frozen model, for the time of the context."""
        with ExitStack() as stack:
            for model in self.components.values():
                stack.enter_context(model.disable_adapter())
            yield

    def unload(self) -> nn.Module:
        """Take all components out again.

        Returns:
            the frozen model.
        """
        for name in reversed([*self.components]):
            self.components.pop(name).unload()
        return self.get_base_model()


def _belongs(key: str, model: Any) -> bool:
    """Whether a tensor is the component's: PEFT takes every tensor that is called as its method calls them."""
    prefix = "base_model.model."
    if not key.startswith(prefix):
        return True  # what the layers of the component share
    ours = isinstance(model.peft_config["default"], VlatrainConfig)
    inside = any(key.startswith(f"{prefix}{path}.") for path in model.base_model.targeted_module_names)
    return inside and (f".{UNITS}." in key) == ours


def in_order(config: AdapterConfig) -> dict[str, AdapterConfig]:
    """The components in the order in which they go into a model: PEFT's first."""
    return dict(sorted(components(config).items(), key=lambda item: not is_peft(item[1])))


def load(model: nn.Module, folder: Path | str) -> Mixed:
    """Put the components that `save_pretrained` wrote into a fresh model, for inference.

    Args:
        model: the model; changed in place.
        folder: the folder with a folder for each component.

    Raises:
        UserError: a component does not fit the model.
    """
    found = [file.parent for file in sorted(Path(folder).glob("*/adapter_config.json"))]
    mixed = Mixed(model)
    for into in sorted(
        found, key=lambda component: isinstance(PeftConfig.from_pretrained(str(component)), VlatrainConfig)
    ):
        mixed.add(into.name, partial(load_peft, folder=into, own=_belongs))
    return mixed


def refuse_overlap(configs: Mapping[str, PeftConfig]) -> None:
    """Make sure that no two components change the same module in the same way.

    Raises:
        ValueError: two of ours, or two of PEFT's, do.
    """
    seen: dict[tuple[bool, str], str] = {}
    for name, config in configs.items():
        modules: Any = config.target_modules  # type: ignore[attr-defined]
        for path in sorted(modules):
            other = seen.setdefault((isinstance(config, VlatrainConfig), path), name)
            if other != name:
                raise ValueError(f"the components {other} and {name} both change {path}: give them points of their own")
