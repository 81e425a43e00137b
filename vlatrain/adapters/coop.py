"""CoOp: the words in front of a class's name are learned, the same for all classes.

Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022, arXiv:2109.01134), section 3.2, unified context: of "a
photo of a {}." the vectors of "a photo of a" train, and start as those words. Its random start is `init=normal` with a template of
so many words that mean nothing ("X X X X {}.").

What trains is by how much the vectors differ from the words' own, added where those stand among the states that the first layer
gets. With plain gradient descent that is the same as to learn the vectors; with weight decay they are drawn to the words, and not
to zero. In towers that normalise their embeddings (BERT's) it is added behind the norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlatrain.adapters.base import Adapter, Call, Facts


@dataclass(frozen=True)
class CoopOptions:
    """Options of `Coop`.

    Attributes:
        dim: number of words that are learned, in tokens: the first of each text.
        init: `zero`: they start as the words of the text; `normal`: as these with N(0, init_std) added.
        init_std: standard deviation of `init=normal`.
    """

    dim: int = 4
    init: str = "zero"
    init_std: float = 0.02


class Coop(Adapter):
    """The learned words, before the first layer of a text tower.

    Parameters: `dim * width`: 2,048 for CLIP ViT-B and "a photo of a". Where the words begin, behind a start token, is a buffer.

    Raises:
        ValueError: it is put into another layer, or learns no word.
    """

    Options = CoopOptions
    at: ClassVar[str] = "layer"
    residual: ClassVar[bool] = False

    def __init__(self, facts: Facts, options: CoopOptions) -> None:
        super().__init__(facts, options)
        if facts.index > 0:
            raise ValueError(f"learns words, which are there before layer 0, not before layer {facts.index}")
        if options.dim < 1:
            raise ValueError(f"dim={options.dim}: must be 1 or more")
        self.context = nn.Parameter(torch.zeros(options.dim, facts.width))
        if options.init == "normal":
            nn.init.normal_(self.context, std=options.init_std)
        self.start: Tensor
        self.register_buffer("start", torch.ones((), dtype=torch.long))

    def begin_at(self, place: int) -> None:
        """Say how many special tokens stand in front of a text's first word."""
        self.start.fill_(place)

    def enter(self, arguments: dict[str, Any], call: Call) -> dict[str, Any]:
        """The layer's arguments with the words' difference added to their states (B, L, width).

        Raises:
            ValueError: texts of no more tokens.
        """
        states: Tensor = arguments["hidden_states"]
        length, dim = states.shape[1], len(self.context)
        if length <= dim:
            raise ValueError(f"learns the first {dim} tokens of a text, and there are texts of {length} in all")
        word = torch.arange(length, device=states.device) - self.start  # (L,)
        there = (word >= 0) & (word < dim)
        change = self.context[word.clamp(0, dim - 1)] * there.unsqueeze(1)  # (L, width)
        return arguments | {"hidden_states": states + change.to(states.dtype)}

    def forward(self, states: Tensor, call: Call) -> Tensor:
        """The layer's output as it is."""
        return states
