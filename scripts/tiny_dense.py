"""Dense supervision of a vision tower, in the space of the word embeddings; discarded after pre-training.

A language-model loss alone never taught the tiny towers to tell colours and shapes apart, let alone to match them with
words. Here every patch says, with the word embeddings themselves as classes, what it shows, so that word and patch
meet in one space before the first question.
"""

from __future__ import annotations

import torch
from tiny_batches import HUES, IDS, KINDS, Pictures
from torch import Tensor, nn
from torch.nn import functional as F


class DenseHead(nn.Module):
    """Projections of patches and of the class state, of a `width`, into the space of the word embeddings."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, 2 * words)
        self.image = nn.Linear(width, 2 * words)
        self.place = nn.Linear(width, 6)
        self.none = nn.Parameter(torch.randn(2, words) * 0.05)  # "no figure here"
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("hue_ids", torch.tensor([IDS[hue] for hue in HUES]), persistent=False)
        self.register_buffer("kind_ids", torch.tensor([IDS[kind] for kind in KINDS]), persistent=False)

    def forward(self, states: Tensor, table: Tensor, batch: Pictures) -> dict[str, Tensor]:
        """Losses: hue, kind and place (of the figure) of every patch, and what the picture has at all."""
        losses: dict[str, Tensor] = {}
        per_patch = self.patch(states[:, 1:]).chunk(2, -1)
        per_image = self.image(states[:, 0]).chunk(2, -1)
        targets = (("hue", self.hue_ids, batch.hue), ("kind", self.kind_ids, batch.kind))
        for side, (name, ids, target) in enumerate(targets):
            classes = torch.cat([table[ids], self.none[side : side + 1]])
            logits = (per_patch[side] @ classes.T * self.scale.exp()).float()
            weight = torch.ones(len(ids) + 1, device=logits.device)
            weight[-1] = 0.1  # most patches are empty
            losses[f"patch_{name}"] = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight)
            seen = per_image[side] @ table[ids].T * self.scale.exp() - 2
            truth = torch.zeros(len(states), len(ids) + 1, device=logits.device)
            facts = batch.facts[..., side]
            truth.scatter_(1, facts.where(facts >= 0, len(ids)), 1.0)
            losses[f"image_{name}"] = F.binary_cross_entropy_with_logits(seen.float(), truth[:, :-1])
        column, row = self.place(states[:, 1:]).float().flatten(0, 1).chunk(2, -1)
        where = batch.place.flatten(0, 1)
        losses["patch_place"] = (F.cross_entropy(column, where[:, 0]) + F.cross_entropy(row, where[:, 1])) / 2
        return losses
