"""Scores of answers that are read in a document or a chart, or chosen among options.

- ANLS, average normalised Levenshtein similarity (Biten et al., "Scene Text Visual Question Answering", ICCV 2019,
  arXiv:1905.13648, equation 1; Mathew et al., "DocVQA", WACV 2021): of each answer the best of its references, 1 - distance /
  length of the longer one, and 0 where that is below one half; blind to case, and to how many blanks stand together. The paper
  counts exactly one half as 0; the challenges' evaluation (Robust Reading Competition) counts it, and so it is here.
- Relaxed accuracy (Masry et al., "ChartQA", Findings of ACL 2022, arXiv:2203.10244, section 5.1, after Methani et al., "PlotQA",
  WACV 2020): a number is right within 5 % of the reference, another answer if it is the same text, blind to case. Numbers are read
  as in pix2struct's evaluation, by which published scores are made: Python's, and percentages, `12%` as 0.12; numbers with
  separators of thousands are texts, and a reference of 0 is. What differs: `nan` and `inf` are texts, too.
- Multiple choice: an answer is right if it is one of the references, to the letter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

LEAST = 0.5  # similarity, below which an answer is another one, and not one misread
TOLERANCE = 0.05  # share of the reference by which a number may be off

ANLS, RELAXED, CHOICE = "anls", "relaxed_accuracy", "choice"


def levenshtein(first: str, second: str) -> int:
    """The fewest insertions, deletions and replacements of a character by which one text becomes the other."""
    previous = list(range(len(second) + 1))
    for row, character in enumerate(first, 1):
        current = [row]
        for column, wanted in enumerate(second, 1):
            replaced = previous[column - 1] + (character != wanted)
            current.append(min(previous[column] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]


def similarity(prediction: str, reference: str) -> float:
    """Normalised Levenshtein similarity, 0 to 1; 0 where it is below one half."""
    one, other = (" ".join(text.lower().split()) for text in (prediction, reference))
    if one == other:
        return 1.0
    alike = 1 - levenshtein(one, other) / max(len(one), len(other))
    return alike if alike >= LEAST else 0.0


def relaxed(prediction: str, reference: str) -> float:
    """1 where an answer is right within 5 %, or the same text, else 0."""
    found, wanted = number_in(prediction), number_in(reference)
    if found is not None and wanted:
        return float(abs(found - wanted) / abs(wanted) <= TOLERANCE)
    return float(prediction.strip().lower() == reference.strip().lower())


def number_in(text: str) -> float | None:
    """A text as a number; None if it is none."""
    text = text.strip()
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def same(prediction: str, reference: str) -> float:
    """1 where two texts are the same, else 0."""
    return float(prediction == reference)


MEASURES: Mapping[str, Callable[[str, str], float]] = {ANLS: similarity, RELAXED: relaxed, CHOICE: same}
"""By name, what an answer scores against one reference, 0 to 1."""


def per_sample(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """What each answer scores against the best of its references, percent.

    Args:
        name: one of `MEASURES`.
        predictions: an answer a sample.
        references: each sample's answers.

    Raises:
        ValueError: a sample without references, or lengths that differ.
    """
    if empty := [place for place, answers in enumerate(references) if not answers]:
        raise ValueError(f"samples without reference answers: {empty[:10]}")
    measure = MEASURES[name]
    pairs = zip(predictions, references, strict=True)
    return [100.0 * max(measure(text, answer) for answer in answers) for text, answers in pairs]
