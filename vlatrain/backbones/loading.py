"""Loading a backbone: pre-trained weights from a hub or a folder, or the architecture with random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from vlatrain.backbones import tokenizers
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.blip import Blip
from vlatrain.backbones.clip import Clip
from vlatrain.backbones.describe import checkpoint_of, settings_of
from vlatrain.config import ModelConfig, UserError

FAMILIES: dict[str, type[Backbone]] = {"blip": Blip, "clip": Clip}
PROCESSOR = "processor"  # folder in a run that keeps what a random backbone's tokenizer learned


def load(
    config: ModelConfig, task: str, *, texts: Iterable[str] = (), seed: int = 0, run: Path | None = None
) -> Backbone:
    """The backbone for a task, in fp32, on the CPU, in eval mode, nothing trainable.

    Args:
        config: its description.
        task: the task.
        texts: `random_init`: what its tokenizer is made from.
        seed: `random_init`: seed of the weights; the same seed gives the same weights.
        run: `random_init`: a run folder whose tokenizer is used instead of making one.

    Raises:
        UserError: the weights cannot be had, or are not for this task.
    """
    if config.family not in FAMILIES:
        raise UserError(f"model.family={config.family} is unknown; there are {', '.join(FAMILIES)}")
    checkpoint = checkpoint_of(config, task)
    if config.random_init:
        backbone = _random(config, task, texts, seed, run)
    else:
        backbone = _pretrained(config, task, checkpoint)
    backbone.model.requires_grad_(False).eval()
    return backbone


def write(backbone: Backbone, model: PreTrainedModel, folder: Path) -> None:
    """Write a checkpoint in the hub's layout: a model with the backbone's tokenizer and image processor."""
    with _quiet():
        for part in (model, backbone.tokenizer, backbone.image_processor):
            part.save_pretrained(str(folder))


def meta_model(config: ModelConfig, task: str) -> PreTrainedModel:
    """The architecture without weights, on the meta device: for counting, in a moment, with no network."""
    with torch.device("meta"):
        return _architecture(config, task)(_settings(settings_of(config, task)))


def _pretrained(config: ModelConfig, task: str, checkpoint: str) -> Backbone:
    try:
        with _quiet():
            loaded: Any = _architecture(config, task).from_pretrained(
                checkpoint, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            image_processor = _image_processor_class(config).from_pretrained(checkpoint)
    except OSError as error:
        raise UserError(_unreachable(config, task, checkpoint, error)) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model.checkpoint={checkpoint} lacks {len(missing)} of the weights of {type(model).__name__} ({missing[0]}, ...): "
            f"it is no checkpoint for task={task}"
        )
    named = config.checkpoint or config.tasks[task].checkpoint
    return FAMILIES[config.family](config, task, model, tokenizer, image_processor, named)


def _random(config: ModelConfig, task: str, texts: Iterable[str], seed: int, run: Path | None) -> Backbone:
    settings = _settings(config.config)
    if run is not None and (run / PROCESSOR).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(run / PROCESSOR)
    else:
        tokenizer = tokenizers.make_wordpiece(texts, settings.text_config.vocab_size)
    for name, value in tokenizers.settings(config.family, tokenizer).items():
        setattr(settings.text_config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _architecture(config, task)(settings)
    size = settings.vision_config.image_size
    image_processor = _image_processor_class(config)(
        size={"height": size, "width": size}, crop_size={"height": size, "width": size}, do_center_crop=False
    )
    return FAMILIES[config.family](config, task, model, tokenizer, image_processor, f"random weights (seed {seed})")


def _settings(settings: dict[str, Any]) -> transformers.PretrainedConfig:
    settings = dict(settings)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _architecture(config: ModelConfig, task: str) -> type[PreTrainedModel]:
    name = config.tasks[task].architecture
    found = getattr(transformers, name, None)
    # only model classes: a description is a user's file, and must not be able to name anything else
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(f"model.tasks.{task}.architecture={name} is no model class of transformers")
    return found


def _image_processor_class(config: ModelConfig) -> Any:
    # the PIL ones: equal on every machine, with or without torchvision
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return {"blip": BlipImageProcessorPil, "clip": CLIPImageProcessorPil}[config.family]


def _unreachable(config: ModelConfig, task: str, checkpoint: str, error: OSError) -> str:
    if Path(checkpoint).is_dir():
        return f"model.checkpoint={checkpoint}: {str(error).splitlines()[0]}"
    return (
        f"cannot load {checkpoint} for task={task}: it is no folder here, and the hub does not give it "
        f"({str(error).splitlines()[0]}); set model.checkpoint=FOLDER to a local copy, model.random_init=true for the "
        "architecture with random weights, or model=tiny_blip"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its table of unused keys (one file may serve several classes)."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
