"""Write a pre-trained tiny backbone as a `from_pretrained` folder: half-precision weights, fp32 when loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_words import PAD, SEP, dialogue_tokenizer, tokenizer
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPProcessor,
    GPT2Config,
)

HALF = [0.5, 0.5, 0.5]


def _weights(state: dict[str, Tensor], folder: Path) -> None:
    """The weights less what only pre-training uses and what transformers ties by itself."""
    alone, tied = ("aux_", "lm_head."), "cls.predictions.decoder."
    kept = {name: value for name, value in state.items() if not name.startswith(alone) and tied not in name}
    half = {name: value.detach().to("cpu", torch.float16).clone().contiguous() for name, value in kept.items()}
    path = folder / "model.safetensors"
    save_file(half, path, metadata={"format": "pt"})
    path.chmod(0o644)


def export_blip(model: nn.Module, config: BlipConfig, folder: Path) -> None:
    """One folder for BLIP's question answering, captioning and retrieval classes."""
    words = tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    _weights(model.state_dict(), folder)
    config.architectures = ["BlipForQuestionAnswering"]
    config.dtype = "float32"  # the file's half precision is for its size; computing in it is not wanted
    config.save_pretrained(folder)
    pixels = BlipImageProcessor(size={"height": 64, "width": 64}, image_mean=HALF, image_std=HALF)
    BlipProcessor(pixels, words).save_pretrained(folder)


def export_clip(model: nn.Module, config: CLIPConfig, folder: Path) -> None:
    """A CLIPModel folder; the text ends with [SEP], which the configuration names as its end token."""
    words = tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    assert (config.text_config.eos_token_id, config.text_config.pad_token_id) == (SEP, PAD)
    assert (words.sep_token_id, words.pad_token_id) == (SEP, PAD)
    _weights(model.state_dict(), folder)
    config.architectures = ["CLIPModel"]
    config.dtype = "float32"
    config.save_pretrained(folder)
    side = {"height": 64, "width": 64}
    pixels = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, image_mean=HALF, image_std=HALF)
    CLIPProcessor(pixels, words).save_pretrained(folder)


def export_gpt(model: nn.Module, config: GPT2Config, folder: Path) -> None:
    """A GPT2LMHeadModel folder with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    _weights(model.state_dict(), folder)
    config.architectures = ["GPT2LMHeadModel"]
    config.dtype = "float32"
    config.save_pretrained(folder)
    dialogue_tokenizer().save_pretrained(folder)
