"""Words for places in an image, in models that were trained with none: rows of an embedding that train, beside the frozen ones.

As in Pix2Seq (Chen et al., "Pix2seq: A Language Modeling Framework for Object Detection", ICLR 2022, arXiv:2109.10852, 2.1),
an edge of a box is one of so many bins, and each bin is a word that the model reads and writes. Deviations: the words of a box are
left, top, right and bottom, where the paper has y first; and all but the new rows is frozen. The vocabulary grows by rows that stay
as they are; what is read and written of them comes from here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken

from vlatrain.backbones.box_words import BINS
from vlatrain.config import ModelConfig
from vlatrain.config.model import LOCATION_WORDS as NAME

WAVES = 8  # of which new rows are made, so that those of near bins are alike


class LocationWords(nn.Module):
    """The rows of the words, as they are read and as they are written: `2 * BINS * width` parameters.

    Args:
        first: number of the first word in the vocabulary.
        table: (V, width) the embeddings of the other words, whose mean and spread the new ones begin with.
    """

    def __init__(self, first: int, table: Tensor) -> None:
        super().__init__()
        self.first = first
        rows = smooth_rows(table.detach().float())
        self.read, self.written = nn.Parameter(rows), nn.Parameter(rows.clone())

    def forward(self, states: Tensor, ids: Tensor | None = None) -> Tensor:
        """What is read, or what is written.

        Args:
            states: (..., width) the frozen embeddings of tokens; without `ids`, states that tokens are written from.
            ids: (...) the tokens.

        Returns:
            The embeddings (..., width), or logits of the words (..., BINS).
        """
        if ids is None:
            return states @ self.written.to(states.dtype).T
        place = ids - self.first
        known = (place >= 0) & (place < BINS)
        return torch.where(known[..., None], self.read[place.clamp(0, BINS - 1)].to(states.dtype), states)


def smooth_rows(table: Tensor) -> Tensor:
    """Rows (BINS, width) about the mean of those of a table (V, width), as far from it as these, neighbours near each other."""
    angles = torch.arange(BINS, device=table.device)[:, None] * torch.arange(1, WAVES + 1, device=table.device)
    waves = (math.pi / BINS * angles).cos() * math.sqrt(2 / WAVES)  # (BINS, WAVES)
    return table.mean(dim=0) + waves @ torch.randn(WAVES, table.shape[1], device=table.device) * table.std(dim=0)


def add_location_words(model: Any, processor: Any, config: ModelConfig, task: str, writes_at: str) -> None:
    """Give a model and its tokenizer the words where its description says that they train.

    Args:
        model: the model; changed in place.
        processor: what has the `tokenizer`, changed in place; None: there is none, and only sizes count.
        config: the model's description.
        task: the task.
        writes_at: path of the model in it that writes; empty: itself.
    """
    if NAME not in config.tasks[task].trained:
        return
    writing = model.get_submodule(writes_at)
    table = writing.get_input_embeddings().weight
    first = table.shape[0]
    if processor is not None:
        words = [AddedToken(f"<loc_{place}>", special=True, normalized=False) for place in range(BINS)]
        processor.tokenizer.add_tokens(words, special_tokens=True)
        first = processor.tokenizer.convert_tokens_to_ids(str(words[0]))
    if hasattr(model, "word_size"):  # by the words that were there before
        model.word_size()
    new = LocationWords(first, table)
    writing.resize_token_embeddings(max(table.shape[0], first + BINS), mean_resizing=False)
    size = writing.get_input_embeddings().weight.shape
    for module in writing.modules():
        if isinstance(module, nn.Embedding) and module.weight.shape == size:
            module.register_forward_hook(partial(_read, model))
    writing.get_output_embeddings().register_forward_hook(partial(_write, model, first))
    model.add_module(NAME, new)


def _read(model: Any, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Hook of an embedding."""
    read: Tensor = model.location_words(output, args[0])
    return read


def _write(model: Any, first: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Hook of what makes logits (..., V) of states."""
    return torch.cat([output[..., :first], model.location_words(args[0]), output[..., first + BINS :]], dim=-1)
