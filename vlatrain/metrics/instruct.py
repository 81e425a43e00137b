"""Metrics of replies in a conversation: normalised exact match, ROUGE-L and perplexity.

- exact match: equal after the normalisation that VQA answers get (`vlatrain.metrics.vqa.normalise`);
- ROUGE-L: Lin, 2004, as of captions (`vlatrain.metrics.caption`);
- perplexity: e to the mean negative log-likelihood of the replies' tokens, over all tokens alike. Models with other tokens are not
  to be compared by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlatrain.metrics.caption import rouge_l
from vlatrain.metrics.vqa import exact


@dataclass(frozen=True, slots=True)
class ReplyScores:
    """Mean scores, and ROUGE-L and exact match of each sample, in percent."""

    exact_match: float
    rouge_l: float
    per_sample: list[float]
    exact_per_sample: list[float]


def score(replies: Sequence[str], references: Sequence[str]) -> ReplyScores:
    """Score one reply a sample against the one that was given.

    Raises:
        ValueError: nothing to score, or lengths that differ.
    """
    overlaps = [100.0 * overlap for overlap in rouge_l(replies, [[reference] for reference in references])]
    equal = [100.0 * exact(reply, reference) for reply, reference in zip(replies, references, strict=True)]
    return ReplyScores(sum(equal) / len(equal), sum(overlaps) / len(overlaps), overlaps, equal)


def perplexity(loss: float, tokens: float) -> float:
    """Perplexity of so many tokens from their summed negative log-likelihood in nats."""
    return math.exp(loss / tokens)
