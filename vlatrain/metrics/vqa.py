"""VQA accuracy, as the evaluation script of the VQA challenge computes it, and exact match for a single reference.

Antol et al., "VQA: Visual Question Answering", ICCV 2015, https://arxiv.org/abs/1505.00468. Followed to the digit:
GT-Vision-Lab/VQA at HEAD (a013f00), `PythonEvaluationTools/vqaEvaluation/vqaEval.py`. Its rules:

- line breaks and tabs become blanks and the ends are stripped, always;
- only if the annotators' answers then differ, they and the prediction are processed: punctuation, lower case, number
  words to digits, articles dropped, apostrophes put into contractions. Where all annotators agree nothing is processed,
  not even case: ten times "2" against "two" scores 0;
- the score is the mean, over leaving out each annotator in turn, of min(matches among the others / 3, 1).

Copies of the script differ: LAVIS' always processes the prediction, so ten times "the dog" against "the dog" scores 0
there, 100 here. Other reference values: 2 of 10 answers matched 60.0 (not 66.7), 1 of 10 30.0, 3 of 10 90.0.

With n annotators no prediction scores above (n - 1) / 3 where n < 4 (33.3 % with two), by the script's definition;
`VqaScores.ceiling` is what the best prediction would score on the given references.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?![0-9])")
_COMMA_IN_NUMBER = re.compile(r"[0-9],[0-9]")
# The script passes a flag (re.UNICODE, 32) where `re.sub` takes a count: no more than 32 periods go.
_MAX_PERIODS = 32
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})

# The right spellings; a word that lacks exactly one of their apostrophes is mended. The script's table as far as it has
# an effect: its entries with a capital letter (`Im`, `Ive`) never meet the lower-case words they are compared with.
_SPELLINGS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    spelling[:at] + spelling[at + 1 :]: spelling
    for spelling in _SPELLINGS.split()
    for at, letter in enumerate(spelling)
    if letter == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the script's own slip, kept


@dataclass(frozen=True, slots=True)
class VqaScores:
    """VQA accuracy of a set of predictions.

    Attributes:
        accuracy: mean over the samples, percent.
        per_sample: score of each sample, percent.
        variant: `official` where every sample has several annotators' answers, `exact` where every sample has a single
            one, `mixed` where both occur (each sample scored by its own rule).
        ceiling: the accuracy of the best possible predictions against these references, percent.
    """

    accuracy: float
    per_sample: list[float]
    variant: str
    ceiling: float


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> VqaScores:
    """VQA accuracy of predictions against the annotators' answers.

    Args:
        predictions: one answer a sample.
        references: each sample's answers, an entry an annotator; a repeated answer is repeated.

    Raises:
        ValueError: nothing to score, lengths that differ, or a sample without answers.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} lists of reference answers")
    if not predictions:
        raise ValueError("no predictions to score")
    empty = [i for i, answers in enumerate(references) if not answers]
    if empty:
        raise ValueError(f"samples without reference answers: {empty[:10]}")
    per_sample, kinds = [], set()
    for prediction, answers in zip(predictions, references, strict=True):
        if len(answers) == 1:
            kinds.add("exact")
            per_sample.append(100.0 * exact(prediction, answers[0]))
        else:
            kinds.add("official")
            per_sample.append(100.0 * official(prediction, answers))
    return VqaScores(
        accuracy=sum(per_sample) / len(per_sample),
        per_sample=per_sample,
        variant=kinds.pop() if len(kinds) == 1 else "mixed",
        ceiling=ceiling(references),
    )


def ceiling(references: Sequence[Sequence[str]]) -> float:
    """The accuracy of the best possible predictions, percent; see `score` for the references."""
    return sum(100.0 * _best(answers) for answers in references) / len(references)


def worth(answers: Sequence[str]) -> dict[str, float]:
    """What each of a sample's answers would score as a prediction, 0 to 1."""
    if len(answers) == 1:
        return {answers[0]: 1.0}
    stripped = [_strip(answer) for answer in answers]
    counts, total = Counter(_comparable(answers)), len(answers)
    differing = len(set(stripped)) > 1
    found = {}
    for answer, own in zip(answers, stripped, strict=True):
        matches = counts[process(own) if differing else own]
        # `_leave_one_out`, with the annotators who match taken together, and those who do not
        scores = matches * min((matches - 1) / 3, 1.0) + (total - matches) * min(matches / 3, 1.0)
        found[answer] = scores / total
    return found


def _best(answers: Sequence[str]) -> float:
    """What the best prediction for a sample scores, 0 to 1."""
    if len(answers) == 1:
        return 1.0
    compared = _comparable(answers)
    return max(_leave_one_out(answer, compared) for answer in set(compared))


def official(prediction: str, answers: Sequence[str]) -> float:
    """The challenge's accuracy of one prediction, 0 to 1, against two or more annotators' answers."""
    stripped = [_strip(answer) for answer in answers]
    prediction = _strip(prediction)
    if len(set(stripped)) > 1:
        prediction = process(prediction)
    return _leave_one_out(prediction, _comparable(answers))


def lost(candidates: Sequence[str], answers: Sequence[str]) -> float:
    """How much less the best of some candidates scores against the annotators' answers than the best of these, percent."""
    if all(answer in candidates for answer in answers):
        return 0.0
    best = max(score([candidate], [answers]).accuracy for candidate in {*candidates})
    return score([candidates[0]], [answers]).ceiling - best


def exact(prediction: str, answer: str) -> float:
    """1 where the two are equal after `normalise`, else 0."""
    return float(normalise(prediction) == normalise(answer))


def normalise(answer: str) -> str:
    """The form in which a single reference is compared: the script's processing, always applied.

    Where it leaves nothing (the answer is an article, such as the letter "A", or punctuation only) the lower-case text
    with single blanks is kept instead, so that "A" and "the" stay different answers.
    """
    return process(_strip(answer)) or " ".join(answer.lower().split())


@lru_cache(maxsize=65536)
def process(answer: str) -> str:
    """The script's answer processing: punctuation, lower case, number words, articles, contractions.

    A punctuation mark becomes a blank where it stands between letters throughout (`red/white`), and vanishes where one
    of its kind touches a blank, or where the answer has a comma within a number.
    """
    text = answer
    number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _PUNCTUATION:
        vanishes = number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    text = _PERIOD.sub("", text, count=_MAX_PERIODS)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _comparable(answers: Sequence[str]) -> list[str]:
    """The answers as the script compares them: processed only where the annotators disagree."""
    stripped = [_strip(answer) for answer in answers]
    return [process(answer) for answer in stripped] if len(set(stripped)) > 1 else stripped


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(matches among the others / 3, 1)."""
    matches = Counter(answers)[prediction]
    return sum(min((matches - (answer == prediction)) / 3, 1.0) for answer in answers) / len(answers)
