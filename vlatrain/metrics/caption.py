"""Caption metrics: BLEU-1..4, ROUGE-L and CIDEr-D, on Penn-Treebank tokens, without Java.

- BLEU: Papineni et al., ACL 2002. Corpus level, the reference length closest to the candidate's, as in the COCO caption
  evaluation (Chen et al., 2015, https://arxiv.org/abs/1504.00325).
- ROUGE-L: Lin, 2004; F with beta 1.2 of the best precision and the best recall over the references.
- CIDEr-D: Vedantam et al., CVPR 2015, https://arxiv.org/abs/1411.5726; n-grams up to 4, sigma 6, clipped. Inverse
  document frequencies come from the references given, so a corpus of one image scores 0 by definition.

The reference values are those of `pycocoevalcap` 1.2, which the tests match to 1e-6, its oddities included: "length" in
CIDEr-D's penalty counts bigrams; an empty caption is one empty token to ROUGE-L. Tokens are those of `ptb.py`; on the
same four images a plain regular-expression tokenizer gave CIDEr-D 2.797 where these tokens give 2.988.

Everything is times 100: BLEU and ROUGE-L in percent; CIDEr-D by the field's convention (133.3 where the scorer itself
says 1.333; it may exceed 100, its maximum is 1000).
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlatrain.metrics.ptb import tokenize

ORDER = 4
SIGMA = 6.0
BETA = 1.2

Grams = Counter[tuple[str, ...]]


CORPUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Corpus scores, and what they are made of.

    Attributes:
        bleu_1: like the others of the corpus, times 100.
        per_sample: CIDEr-D of each sample, times 100.
        rouge_per_sample: ROUGE-L of each sample, times 100.
        bleu_counts: of each sample the integers whose sums are BLEU's, see `bleu_of`.
    """

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider_d: float
    per_sample: list[float]
    rouge_per_sample: list[float]
    bleu_counts: list[list[int]]

    def corpus(self) -> dict[str, float]:
        """The corpus scores by name."""
        return {name: getattr(self, name) for name in CORPUS}


def score(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one candidate caption an image against that image's reference captions.

    Args:
        candidates: raw text, one a sample.
        references: raw text, one or more a sample.

    Raises:
        ValueError: nothing to score, lengths that differ, or a sample without references.
    """
    candidate_tokens, reference_tokens = _tokens(candidates, references)
    counts = [_bleu_counts(c, rs) for c, rs in zip(candidate_tokens, reference_tokens, strict=True)]
    bleu = bleu_of([sum(column) for column in zip(*counts, strict=True)])
    rouge = [_rouge_l(c, rs) for c, rs in zip(candidate_tokens, reference_tokens, strict=True)]
    cider = _cider_d(candidate_tokens, reference_tokens)
    return CaptionScores(
        bleu_1=bleu[0],
        bleu_2=bleu[1],
        bleu_3=bleu[2],
        bleu_4=bleu[3],
        rouge_l=100.0 * sum(rouge) / len(rouge),
        cider_d=100.0 * sum(cider) / len(cider),
        per_sample=[100.0 * c for c in cider],
        rouge_per_sample=[100.0 * r for r in rouge],
        bleu_counts=counts,
    )


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each sample, as a fraction; see `score` for the arguments and errors."""
    return [_rouge_l(*texts) for texts in zip(*_tokens(candidates, references), strict=True)]


def optional_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    """METEOR and SPICE (times 100) where the machine can compute them.

    Both are Java programs that `pycocoevalcap` carries. SPICE also needs CoreNLP's models, which its package downloads
    on first use; nothing is downloaded here.

    Returns:
        The scores by name (`meteor`, `spice`), and for each one missing the reason.
    """
    names = ("meteor", "spice")
    candidate_tokens, reference_tokens = _tokens(candidates, references)
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return {}, dict.fromkeys(names, "pycocoevalcap is not installed (pip install 'vlatrain[captions]')")
    if shutil.which("java") is None:
        return {}, dict.fromkeys(names, "there is no Java on this machine")
    results = {i: [" ".join(tokens)] for i, tokens in enumerate(candidate_tokens)}
    truths = {i: [" ".join(tokens) for tokens in captions] for i, captions in enumerate(reference_tokens)}
    scores, skipped = {}, {}
    for name in names:
        try:
            scores[name] = 100.0 * _run_java(name, Path(package.submodule_search_locations[0]), truths, results)
        except Exception as error:  # a broken Java set-up must not cost the other scores
            skipped[name] = f"{type(error).__name__}: {error}"
    return scores, skipped


def _run_java(name: str, package: Path, truths: dict[int, list[str]], results: dict[int, list[str]]) -> float:
    scorer: Any
    if name == "meteor":
        from pycocoevalcap.meteor.meteor import Meteor

        scorer = Meteor()
        try:
            return float(scorer.compute_score(truths, results)[0])
        finally:
            # its destructor takes the lock that a failed run still holds, and would wait for ever
            if scorer.lock.locked():
                scorer.lock.release()
    else:
        if not any((package / "spice" / "lib").glob("stanford-corenlp-*-models.jar")):
            raise FileNotFoundError("SPICE needs CoreNLP's models: run pycocoevalcap's spice/get_stanford_models.py")
        from pycocoevalcap.spice.spice import Spice

        scorer = Spice()
        return float(scorer.compute_score(truths, results)[0])


def _tokens(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates but {len(references)} lists of reference captions")
    if not candidates:
        raise ValueError("no captions to score")
    empty = [i for i, captions in enumerate(references) if not captions]
    if empty:
        raise ValueError(f"samples without reference captions: {empty[:10]}")
    return [tokenize(c) for c in candidates], [[tokenize(r) for r in captions] for captions in references]


def grams_of(tokens: Sequence[str]) -> Grams:
    """Counts of all n-grams up to order 4. A no-break space within a token separates here, as in pycocoevalcap."""
    words = " ".join(tokens).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


def _length(tokens: Sequence[str]) -> int:
    return len(" ".join(tokens).split())


def _bleu_counts(candidate: Sequence[str], captions: Sequence[Sequence[str]]) -> list[int]:
    """What BLEU adds up over samples: matched n-grams and all n-grams of orders 1 to 4, length, and length of the reference."""
    length = _length(candidate)
    most: Grams = Counter()
    for caption in captions:
        most |= grams_of(caption)
    matched = [0] * ORDER
    for gram, count in (grams_of(candidate) & most).items():
        matched[len(gram) - 1] += count
    nearest = min((_length(c) for c in captions), key=lambda n: (abs(n - length), n))
    return [*matched, *(max(0, length - n) for n in range(ORDER)), length, nearest]


def bleu_of(sums: Sequence[float]) -> list[float]:
    """Corpus BLEU of orders 1 to 4, times 100, from the sums over the samples of `CaptionScores.bleu_counts`."""
    matched, total, (candidate_length, reference_length) = sums[:ORDER], sums[ORDER:-2], sums[-2:]
    # pycocoevalcap's guards against division by zero; they are part of its sixth digit on tiny corpora
    tiny, small = 1e-15, 1e-9
    ratio = (candidate_length + tiny) / (reference_length + small)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(ORDER):
        product *= (matched[n] + tiny) / (total[n] + small)
        scores.append(100.0 * (penalty * product ** (1 / (n + 1))))
    return scores


def _rouge_l(candidate: Sequence[str], captions: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one candidate, as a fraction."""
    candidate = candidate or [""]  # "".split(" ") is one empty token
    precision = recall = 0.0
    for caption in captions:
        caption = caption or [""]
        common = _common(candidate, caption)
        precision, recall = max(precision, common / len(candidate)), max(recall, common / len(caption))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, in one row of memory."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


Vectors = tuple[list[dict[tuple[str, ...], float]], list[float], int]
"""Of a caption the tf-idf vector of each order, their norms, and its length (in bigrams, as the scorer has it)."""


@dataclass(frozen=True, slots=True)
class Frequencies:
    """In how many images' captions each n-gram occurs, as CIDEr's inverse document frequencies have it.

    Attributes:
        documents: by n-gram, the number of images.
        log_images: the logarithm of the number of all images.
    """

    documents: Grams
    log_images: float

    @classmethod
    def of(cls, references: Sequence[Sequence[Grams]]) -> Frequencies:
        """Those of the references: an entry an image, the n-grams of each of its captions."""
        documents: Grams = Counter()
        for captions in references:
            documents.update({gram for caption in captions for gram in caption})
        return cls(documents, math.log(len(references)))

    def vectors(self, grams: Grams) -> Vectors:
        """A caption's vectors."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for gram, count in grams.items():
            weights[len(gram) - 1][gram] = count * (self.log_images - math.log(max(1, self.documents[gram])))
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
        return weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2)


def _cider_d(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each sample on the scorer's own scale (0 to 10)."""
    reference_grams = [[grams_of(caption) for caption in captions] for captions in references]
    vectors = Frequencies.of(reference_grams).vectors
    scores = []
    for candidate, captions in zip(candidates, reference_grams, strict=True):
        weights, norms, length = vectors(grams_of(candidate))
        total = 0.0
        for caption in captions:
            other_weights, other_norms, other_length = vectors(caption)
            similarity = 0.0
            for order, other, norm, other_norm in zip(weights, other_weights, norms, other_norms, strict=True):
                dot = sum(min(w, other[gram]) * other[gram] for gram, w in order.items() if gram in other)
                similarity += dot / (norm * other_norm) if norm and other_norm else dot
            total += similarity * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))
        scores.append(10.0 * total / ORDER / len(captions))
    return scores
