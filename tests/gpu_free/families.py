"""One small backbone of each description, and of each vision tower and language model of a composite, for tests of all of them."""

from __future__ import annotations

from torch import nn

from tests.backbones import composites
from tests.backbones.small import SETTINGS
from tests.conftest import make_samples, small_config
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.loading import load
from vlatrain.config import ModelConfig, TaskConfig
from vlatrain.tasks import Task, build, prepare

COMPOSITES = ("clip+gpt2", "siglip+llama", "dinov2+bart", "dinov3+t5")
SAME = {"siglip_so400m", "siglip2", "qwen2_5_vl_3b", "smolvlm_2b"}  # at this size, as others
NAMES = (*(name for name in SETTINGS if name not in SAME), *COMPOSITES)
BY_FAMILY = (
    "blip", "clip", "vilt", "clip+gpt2", "clip+t5", "blip2_opt", "blip2_itm", "llava", "paligemma", "florence2",
)  # fmt: skip
"""Of these, one for each kind of code that runs them, on each of its tasks: for tests that take long."""


def config_of(name: str) -> ModelConfig:
    """The description: of a composite, named VISION+LANGUAGE, too."""
    vision, _, language = name.partition("+")
    return composites.small(vision, language) if language else small_config(name)


def set_up(config: ModelConfig, task: str = "") -> tuple[Backbone, TaskConfig]:
    """The backbone and the task's configuration; without a task, vqa where it can do that and retrieval where not."""
    settings = TaskConfig(name=task or ("vqa" if "vqa" in config.tasks else "retrieval"))
    backbone = load(config, settings.name, texts=composites.TEXTS)
    prepare(settings, backbone, make_samples())
    return backbone, settings


def task_of(backbone: Backbone, settings: TaskConfig) -> Task:
    """The task on the backbone, once the adapters are in."""
    return build(settings, backbone, make_samples())


def with_dropout(model: nn.Module, share: float = 0.3) -> None:
    """Have every place of a model that can drop something out drop a share of it, as soon as it is in train mode."""
    for module in model.modules():
        rates = [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        vars(module).update(dict.fromkeys(["p"] if isinstance(module, nn.Dropout) else rates, share))
