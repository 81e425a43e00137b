"""Multiple choice: of the options of each question the likeliest is picked, by its text or by its letter.

By text, an option is as likely as the model is to write it, as answers of a list are ranked (Li et al., BLIP, 2022, section 4.4);
or, of a model that classifies, as likely as it takes that answer of its list to be.
By letter, the question shows each option behind its letter, and the model learns, and is asked for, a letter alone (Lu et al.,
ScienceQA, NeurIPS 2022; Liu et al., LLaVA-1.5, CVPR 2024). What is shown stands in another order whenever it is trained on
(`vlatrain.data.choices`), lest places be learned.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlatrain.config import UserError
from vlatrain.config.wording import BY_LETTER, LETTERS
from vlatrain.data.choices import without_options
from vlatrain.data.sample import Sample
from vlatrain.metrics import structured
from vlatrain.metrics.baselines import Constants
from vlatrain.metrics.vqa import normalise
from vlatrain.tasks.base import Batches, Evaluation, ImageBatch
from vlatrain.tasks.lengths import Use, question_use
from vlatrain.tasks.looks import writing
from vlatrain.tasks.vqa import Vqa, VqaBatch
from vlatrain.tasks.vqa_classifier import Answering
from vlatrain.tasks.yardsticks import Baseline, Yardsticks

log = logging.getLogger("vlatrain")

SHOWN = 3  # options that a message names
MANY = 8  # options that memory is reckoned with


class ChoiceBatch(VqaBatch, total=False):
    """Questions with options.

    Attributes:
        options: of each question the texts that may be chosen, and those that the model scores for them.
    """

    options: list[tuple[tuple[str, ...], tuple[str, ...]]]


class WithOptions(Vqa):
    """What all multiple choice has in common: questions with options, and what choosing scores."""

    @property
    def generates(self) -> bool:
        """Never."""
        return False

    def alike(self, key: str) -> tuple[list[str], bool]:
        """Options are those of a question, and not of all."""
        return [], False

    def questions(self, samples: Sequence[Sample]) -> ChoiceBatch:
        """Images, questions and their options.

        Raises:
            UserError: a question has none.
        """
        if bare := next((sample for sample in samples if not sample.options), None):
            raise UserError(
                f"{bare.source or bare.id}: has no options, and task.answers={self.config.answers} chooses among them: ask with "
                "input=FILE, whose rows have some"
            )
        options = [(sample.options, self._written(sample)) for sample in samples]
        return {**super().questions(samples), "options": options}

    def _written(self, sample: Sample) -> tuple[str, ...]:
        """What stands for each option of a sample."""
        return sample.options

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Accuracy: the share of questions of which an answer is chosen."""
        found = super().evaluate(samples, batches)
        found.settings |= {"accuracy": "multiple_choice", "ceiling": self.attainable(samples)}
        for record, sample in zip(found.predictions, samples, strict=True):
            record["options"] = list(sample.options)
        return found

    def attainable(self, samples: Sequence[Sample]) -> float:
        """The most that choosing can score on samples, percent."""
        return 100.0

    def _accuracies(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        return structured.per_sample(structured.CHOICE, texts, references)

    def wording_of(self, sample: Sample) -> str:
        """The question without its options."""
        return without_options(sample, self.config.wording)

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The answers that are right most often, always and by wording, where they are among the options."""
        return super().constants([replace(sample, question=self.wording_of(sample)) for sample in train])

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """Chance, and the option that is most often right by the training data."""
        chance = sum(100 * len({*one.options} & {*one.answers}) / len(one.options) for one in samples) / len(samples)
        baselines = {"chance": Baseline({"accuracy": chance}, "any of a question's options")}
        if (known := Constants(**constants)).by_wording:
            references = [list(one.answers) for one in samples]
            answers = [known.answer(self.wording_of(one)) for one in samples]
            usual = self._accuracies(answers, references)
            says = f"the best answer to each of {len(known.by_wording):,} wordings, else {known.overall!r}"
            scored = {"accuracy": sum(usual) / len(usual)}
            baselines["most_frequent_answer_by_question"] = Baseline(scored, says)
        return Yardsticks(baselines, {"accuracy": self.attainable(samples)})


class Choosing(WithOptions):
    """Multiple choice on a `Generator` backbone."""

    def uses(self) -> list[Use]:
        """Questions, what is learned, and what stands for each option."""
        look = writing(self.backbone)
        return [
            question_use(self.backbone),
            Use("answers", "target", lambda one: self._learned(one).answers, look, "train"),
            Use("options", "target", self._written, look),
        ]

    def collate(self, samples: Sequence[Sample]) -> VqaBatch:
        """Images and questions, and what is learned: the text, or the letter, of the answer."""
        return super().collate([self._learned(sample) for sample in samples])

    def _learned(self, sample: Sample) -> Sample:
        """A sample with what is to be written as its answers."""
        if self.config.answers != BY_LETTER:
            return sample
        right = tuple(LETTERS[place] for place, option in enumerate(sample.options) if option in sample.answers)
        return replace(sample, answers=right, weights=())

    def _written(self, sample: Sample) -> tuple[str, ...]:
        """What the model writes for each option of a sample."""
        return tuple(LETTERS[: len(sample.options)]) if self.config.answers == BY_LETTER else sample.options

    def answer(self, batch: ImageBatch, alternatives: int = 1) -> list[list[tuple[str, float]]]:
        """For each question its likeliest options, with probabilities that add up to 1 over all of them, best first."""
        context = self.generator.context(batch["inputs"])
        found = []
        for row, (options, written) in enumerate(batch["options"]):  # type: ignore[typeddict-item]
            asked = self._select_rows(context, torch.tensor([row]))
            shares = self._log_probs(asked, written, self.generator.candidate_logits)[0].softmax(dim=0)
            top = shares.topk(min(alternatives, len(options)))
            found.append([(options[place], share) for share, place in zip(*map(Tensor.tolist, top), strict=True)])
        return found

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """The options of a question."""
        context = self.generator.context(self.backbone.blank(batch_size, device, self.lengths["questions"]))
        place = torch.zeros(MANY, dtype=torch.long, device=device)
        self.scored_on_meta(context, place, self.lengths.get("options", self.lengths["answers"]))


class ChoosingClasses(WithOptions, Answering):
    """Multiple choice on an `Answerer` backbone: the likeliest of those of a question's options that are in its list."""

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are found."""
        return {**super().decoding, "answers": self.config.answers}

    def answer(self, batch: ImageBatch, alternatives: int = 1) -> list[list[tuple[str, float]]]:
        """For each question its likeliest options that are in the list, each with its own probability, best first; an empty text
        where none is."""
        shares = self.answerer.answer_logits(batch["inputs"]).sigmoid().tolist()
        found = []
        for own, (options, _) in zip(shares, batch["options"], strict=True):  # type: ignore[typeddict-item]
            known = [(option, own[self.place[form]]) for option in options if (form := normalise(option)) in self.place]
            found.append(sorted(known, key=lambda one: -one[1])[:alternatives] or [("", 0.0)])
        return found

    def attainable(self, samples: Sequence[Sample]) -> float:
        """The share of questions of which a right option is in the list."""
        can = [any(normalise(one) in self.place for one in {*sample.options} & {*sample.answers}) for sample in samples]
        return 100 * sum(can) / len(can)

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Accuracy; what cannot be chosen is told, and is counted wrong."""
        found = super().evaluate(samples, batches)
        options = Counter(option for sample in samples for option in sample.options)
        unknown = [option for option, _ in options.most_common() if normalise(option) not in self.place]
        found.settings["options_not_listed"] = len(unknown)
        if unknown:
            log.warning(
                "%s of %s options are not in the list of answers that the model chooses from, and are never chosen (%s); accuracy "
                "cannot exceed %.1f here: set task.answer_list, or train on data with them",
                len(unknown), len(options), ", ".join(map(repr, unknown[:SHOWN])), found.settings["ceiling"],
            )  # fmt: skip
        return found
