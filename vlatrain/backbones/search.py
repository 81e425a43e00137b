"""How a text is searched for: the settings of transformers' `generate`, and where a word may begin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vlatrain.config import DecodeConfig


class WordStart(LogitsProcessor):
    """Keeps every text from beginning with a piece of a word, which a WordPiece tokenizer would write as `##s`.

    Args:
        pieces: ids of the tokens that continue a word.
        words: ids of the tokens that begin one.
    """

    def __init__(self, pieces: Tensor, words: Tensor) -> None:
        self.pieces, self.words = pieces, words
        self.begin = -1  # tokens that are given: known once the first is asked for

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, V) of the next token behind tokens (N, L), -inf for pieces in rows that have no word yet."""
        if self.begin < 0:
            self.begin = input_ids.shape[1]
            self.pieces, self.words = (_mask(ids, scores) for ids in (self.pieces, self.words))
        begun = self.words[input_ids[:, self.begin :]].any(dim=1)  # (N,)
        return scores.masked_fill(~begun[:, None] & self.pieces, -torch.inf)


def word_start(tokenizer: Any) -> tuple[Tensor, Tensor] | None:
    """What `WordStart` takes; None where the tokenizer marks no pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    prefix = getattr(getattr(backend, "model", None), "continuing_subword_prefix", None)
    if not prefix:
        return None
    special = set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab()
    pieces = [number for token, number in vocabulary.items() if token.startswith(prefix)]
    words = sorted(set(vocabulary.values()) - special - set(pieces))
    return torch.tensor(pieces), torch.tensor(words)


def generate_settings(decode: DecodeConfig, alternatives: int, start: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """Settings of transformers' `generate`, as a task has them.

    Args:
        decode: the task's settings; the search is the same however many texts are asked for.
        alternatives: texts for each row, at most `decode.num_beams`.
        start: what `word_start` found.

    Raises:
        ValueError: more texts than there are beams.
    """
    if alternatives > decode.num_beams:
        raise ValueError(
            f"alternatives={alternatives}: a search with num_beams={decode.num_beams} finds no more than that"
        )
    return {
        "do_sample": False,
        "num_beams": decode.num_beams,
        "num_return_sequences": alternatives,
        "max_new_tokens": decode.most_new,
        "min_new_tokens": decode.min_new_tokens,
        **({"length_penalty": decode.length_penalty, "early_stopping": False} if decode.num_beams > 1 else {}),
        **({"logits_processor": [WordStart(*start)]} if start else {}),
    }


def _mask(ids: Tensor, scores: Tensor) -> Tensor:
    """Of a vocabulary (V,) whether each token is one of some."""
    return torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device).index_fill(
        0, ids.to(scores.device), True
    )
