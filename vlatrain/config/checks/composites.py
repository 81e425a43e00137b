"""Whether a composite is put together as it can work: what its description alone can tell. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlatrain.config import TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.config.families import COMPOSITE
from vlatrain.config.keys import did_you_mean, type_name
from vlatrain.config.methods import BARE, components
from vlatrain.config.spec import TOLD_QUESTION, TOLD_TURNS

FEATURES = "features"  # the architecture of a vision submodel without a tower


def ill_composed(config: TrainConfig) -> Iterator[str]:
    """What is wrong with the submodels and options of a composite, and with a method that would not see the image as shown."""
    model = config.model
    for submodel in ("vision", "language"):
        if submodel not in model.submodels:
            yield f"model={model.name}: has no {submodel} submodel: model/{submodel}=NAME chooses one"
    for name, value in model.options.items():
        key, known = f"model.options.{name}", COMPOSITE.get(name)
        if isinstance(known, tuple) and value not in known:
            yield f"{key}={value}: must be one of {', '.join(known)}{did_you_mean(str(value), known)}"
        elif isinstance(known, type) and type(value) is not known:
            yield f"{key}={value}: expected {type_name(known)}"
        elif known is int and value < 0:
            yield f"{key}={value}: must be 0 or more"
    count = model.options.get("visual_tokens", 0)
    if type(count) is int and count > 0:
        if math.isqrt(count) ** 2 != count:
            below = math.isqrt(count) ** 2
            yield f"model.options.visual_tokens={count}: must be a square number, as {below} or {(math.isqrt(count) + 1) ** 2}"
        if model.submodels.get("vision") and model.submodels["vision"].architecture == FEATURES:
            yield f"model.options.visual_tokens={count}: model/vision=features takes as many as there are in the files"
    for task, prompt in model.prompts.items():
        if task in (TOLD_QUESTION, TOLD_TURNS) and "{question}" not in prompt:
            yield f"model.prompts.{task}={prompt}: lacks {{question}}, which stands for the question"
    yield from _sight(config)


def _sight(config: TrainConfig) -> Iterator[str]:
    visual, name = config.model.options.get("visual", "both"), config.adapter.name
    if name == "none":
        return
    reads = name not in BARE and any("other" in method.needs for method in components(config.adapter).values())
    if visual == "adapters" and not reads:
        yield Incompatible(
            f"adapter={name}: with model.options.visual=adapters only adapters that read the image see it (adapter=cross_modal); "
            "set model.options.visual=both or tokens"
        )
    if visual == "tokens" and reads:
        yield Incompatible(
            f"adapter={name}: reads the image, which model.options.visual=tokens shows as tokens only; set "
            "model.options.visual=both"
        )
