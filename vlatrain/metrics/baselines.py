"""What scores without a look at the image: answers that are always the same, or depend on the question's wording alone.

Goyal et al., "Making the V in VQA Matter", CVPR 2017, section 3: a model that reads the question alone answers 44 % of VQA v2, and
one that always says "yes" 26 %. A score is worth as much as it is above these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

WORDINGS = 10_000  # wordings of questions that are told apart: of larger data the most frequent ones


@dataclass(frozen=True)
class Constants:
    """The best constant answers by some data.

    Attributes:
        overall: the answer to any question.
        by_wording: the answer to a question by its wording, see `wording`.
    """

    overall: str = ""
    by_wording: dict[str, str] = field(default_factory=dict)

    def answer(self, question: str) -> str:
        """The answer to a question by its wording; to one of unknown wording the one to any question."""
        return self.by_wording.get(wording(question), self.overall)


def wording(question: str) -> str:
    """A question in lower case with single blanks, without punctuation at its end."""
    return " ".join(question.lower().split()).rstrip(" ?.!:")


def best_constants(
    asked: Iterable[tuple[str, Mapping[str, float]]], form: Callable[[str], Hashable], wordings: int = WORDINGS
) -> Constants:
    """The constants that score most on some questions. Of equals the first one that occurs.

    Args:
        asked: of each sample the question and what each answer to it that scores anything would score.
        form: of an answer, what is the same for answers that count as equal; the most frequent way of writing stands for them.
        wordings: the most wordings that are told apart.
    """
    worth: dict[str, dict[Hashable, float]] = {}
    often: Counter[str] = Counter()
    written: dict[Hashable, Counter[str]] = {}
    overall: dict[Hashable, float] = {}
    for question, answers in asked:
        key = wording(question)
        often[key] += 1
        best: dict[Hashable, float] = {}
        for answer, score in answers.items():
            known = form(answer)
            written.setdefault(known, Counter())[answer] += 1
            best[known] = max(score, best.get(known, 0.0))
        own = worth.setdefault(key, {})
        for known, score in best.items():
            own[known] = own.get(known, 0.0) + score
            overall[known] = overall.get(known, 0.0) + score

    def likeliest(totals: Mapping[Hashable, float]) -> str:
        return written[max(totals, key=lambda known: totals[known])].most_common(1)[0][0] if totals else ""

    return Constants(likeliest(overall), {key: likeliest(worth[key]) for key, _ in often.most_common(wordings)})


def majority(labels: Iterable[str]) -> str:
    """The most frequent label, of equals the first that occurs; empty without labels."""
    return next((label for label, _ in Counter(labels).most_common(1)), "")
