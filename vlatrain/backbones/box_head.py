"""A head that finds what a text names in an image, on any backbone with states of patches and of words.

Patches and words go through a small transformer together, as in TransVG (Deng et al., "TransVG: End-to-End Visual Grounding with
Transformers", ICCV 2021, arXiv:2104.08541, section 3.3); there a token of its own is made into centre and sides of the box.
Deviation: here every patch says how likely the box lies on it and where the box is from there, as in FCOS (Tian et al., ICCV
2019), so that the same head finds one box or several, and what it says of places is more than a token can hold that is as narrow
as an adapter. The losses are those of DETR (Carion et al., ECCV 2020, section 3.1), L1 and generalised IoU, with its weights 5
and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vlatrain.backbones.describe import widths
from vlatrain.config import ModelConfig, UserError
from vlatrain.config.keys import few
from vlatrain.metrics.precision import full_precision

NAME = "box_head"  # of the module in the model, as `trained` in conf/model names it
LAYERS, HEADS = 2, 4
NARROWER = 4  # times than the wider tower: 192 beside a tower of 768, where TransVG has 256
SIDE = 0.2  # of the image: how large boxes are taken to be before anything is learned


class BoxHead(nn.Module):
    """Boxes from states of patches and words.

    With a width of d, the nearest multiple of 8 to a quarter of the wider tower: a layer has `12 d^2 + 13 d` parameters; around
    them are `(P + W + 5) d + 2 (P + W) + 7 d + d^2 + 5` for towers of P and W.

    Args:
        patches: width of the states of patches.
        words: width of the states of words.
    """

    def __init__(self, patches: int, words: int) -> None:
        super().__init__()
        width = 8 * max(2, round(max(patches, words) / NARROWER / 8))
        self.patches = nn.Sequential(nn.LayerNorm(patches), nn.Linear(patches, width))
        self.words = nn.Sequential(nn.LayerNorm(words), nn.Linear(words, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(width)
        self.inner, self.out = nn.Linear(width, width), nn.Linear(width, 5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, patches: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where a text may be, in fp32.

        Args:
            patches: (B, S, P) states of an image; the last ones are those of a square grid of C cells, row by row.
            words: (B, L, W) states of the text.
            mask: (B, L) 1 for words, 0 for padding.

        Returns:
            Of each cell how likely the box lies on it, as logits (B, C), and the box, its centre and sides in shares of the
            image: (B, C, 4).
        """
        with full_precision(patches.device):
            centres = cells(patches.shape[1], patches.device)  # (C, 2)
            seen = self.patches(patches[:, -len(centres) :].float())  # (B, C, width)
            seen = seen + sines(centres, seen.shape[-1])
            states = torch.cat([seen, self.words(words.float())], dim=1)  # (B, C + L, width)
            hidden = torch.cat([mask.new_zeros(seen.shape[:2]), 1 - mask], dim=1).bool()
            for layer in self.layers:
                states = layer(states, src_key_padding_mask=hidden)
            found = self.out(self.inner(self.norm(states[:, : len(centres)])).relu())  # (B, C, 5)
            places = centres + found[..., 1:3]
            sides = (found[..., 3:] + math.log(SIDE / (1 - SIDE))).sigmoid()
            return found[..., 0], torch.cat([places, sides], dim=-1)


def cells(count: int, device: torch.device | str) -> Tensor:
    """Centres (C, 2), x and y in shares of the image, of the largest square grid that so many states suffice for, row by row;
    what is in front of it (a class token, registers) has no place."""
    side = math.isqrt(count)
    steps = (torch.arange(side, device=device) + 0.5) / side
    return torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=1)


def sines(centres: Tensor, width: int) -> Tensor:
    """Positions (C, width) of centres (C, 2): sines and cosines of both coordinates, as in DETR."""
    number = width // 4
    rates = math.pi * 2 ** torch.linspace(0, 5, number, device=centres.device)
    angles = centres[:, :, None] * rates  # (C, 2, number)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) of centre and sides by their edges: left, top, right, bottom."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def add_box_head(model: nn.Module, config: ModelConfig, task: str, towers: Sequence[str], checkpoint: str = "") -> None:
    """Give a model the head where its description says that it trains: with new weights on torch's default device, or those of a
    checkpoint that has some.

    Args:
        model: the model; changed in place.
        config: its description.
        task: the task.
        towers: the towers whose states the head reads: of patches, of words.
        checkpoint: a folder, or a name on a hub, which has none.

    Raises:
        UserError: the checkpoint has only some of the head's weights, or those of another.
    """
    if NAME not in config.tasks[task].trained:
        return
    wide = widths(config, task)
    head = BoxHead(*(wide[tower] for tower in towers))
    own: dict[str, Tensor] = {}
    for file in sorted(Path(checkpoint).glob("*.safetensors")) if checkpoint and Path(checkpoint).is_dir() else []:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(f"{NAME}.")]  # noqa: SIM118, no dict
            own |= {name.removeprefix(f"{NAME}."): opened.get_tensor(name).float() for name in names}
    wanted = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if own and (unfit := [name for name, shape in wanted.items() if name not in own or own[name].shape != shape]):
        raise UserError(
            f"model.checkpoint={checkpoint}: its head for boxes lacks {len(unfit)} of {len(wanted)} tensors, or has them in "
            f"another shape: {few((f'{NAME}.{name}' for name in unfit), 10)}: it is not for this model"
        )
    if own:
        head.load_state_dict({name: own[name] for name in wanted})
    model.add_module(NAME, head)


def see_whole(processor: Any, config: ModelConfig, task: str) -> None:
    """Let an image processor squeeze images into the size that it cuts out of their middle, where the head is to find what lies
    at an edge, too.

    Args:
        processor: what has the `image_processor`; changed in place.
        config: the model's description.
        task: the task.
    """
    images: Any = getattr(processor, "image_processor", None)
    if NAME in config.tasks[task].trained and getattr(images, "do_center_crop", False):
        size = dict(images.crop_size)
        images.do_center_crop, images.size = False, type(images.size)(height=size["height"], width=size["width"])
