"""Visual question answering: an answer is generated freely, or the likeliest of a given list is picked.

Ranking scores every answer of the list by its log-probability under the decoder (Li et al., BLIP, 2022, section 4.4).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from torch import Tensor

from vlatrain.backbones.base import Backbone, Context, Generator, Text, blank_text
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.lazy import column
from vlatrain.data.sample import Sample
from vlatrain.metrics import structured
from vlatrain.metrics import vqa as metric
from vlatrain.metrics.baselines import Constants, best_constants
from vlatrain.metrics.bootstrap import mean
from vlatrain.tasks.base import (
    Asking,
    Batches,
    Evaluation,
    ImageBatch,
    Task,
    as_written,
    group_index_of,
    mean_per_owner,
    sequence_losses,
    token_losses,
)
from vlatrain.tasks.lengths import AS_WRITTEN, Use, alike, question_use, reference_use
from vlatrain.tasks.looks import writing, written_tokens
from vlatrain.tasks.yardsticks import Baseline, Yardsticks, question_lengths

log = logging.getLogger("vlatrain")


class VqaBatch(ImageBatch, total=False):
    """Questions and answers: of a model that writes, what is learned; of one that chooses, what is right.

    Attributes:
        answer: (N, L) the answers.
        given: number of their leading tokens that are not learned.
        weights: (N,) the answers' weights.
        group_index: (N,) the answers' samples.
        targets: (B, answers) how right each answer of the list is, 0 to 1.
    """

    answer: Text
    given: int
    weights: Tensor
    group_index: Tensor
    targets: Tensor


class Vqa(Task):
    """VQA on a `Generator` backbone.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples: where the answer list comes from if `answers=rank` and none is configured.

    Raises:
        UserError: the backbone does not answer in the way that the class takes.
    """

    takes: type = Generator

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        if not isinstance(backbone, self.takes):
            raise UserError(f"model.family={backbone.config.family}: gives no answers that task={config.name} can take")
        if config.answers == "rank" and not config.answer_list:
            seen = Counter(answer for answers in column(train, "answers") for answer in answers)
            config = replace(config, answer_list=[answer for answer, _ in seen.most_common()])
        super().__init__(config, backbone)
        self.generator = cast(Generator, backbone)

    @property
    def generates(self) -> bool:
        """Whether answers are written freely."""
        return self.config.answers == "generate"

    def uses(self) -> list[Use]:
        """Questions, and answers: learned, and to be written."""
        learned = Use("answers", "target", lambda one: one.answers, writing(self.backbone), "train")
        written = reference_use("answers", lambda one: one.answers, self.backbone, metric.normalise, whole=True)
        return [question_use(self.backbone), learned, *([written] if self.generates else [])]

    def alike(self, key: str) -> tuple[list[str], bool]:
        """Of ranked answers, those that are the same tokens."""
        if self.generates:
            return [], False
        answers = self.config.answer_list
        tokens = written_tokens(self.backbone, answers, self.longest("target"))
        return alike(answers, tokens, f"{key}answer_list", self.backbone)

    def questions(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images and questions."""
        return {"ids": [sample.id for sample in samples], "inputs": self.inputs(samples, asked=True)}

    def collate(self, samples: Sequence[Sample]) -> VqaBatch:
        """Images, questions, and every distinct answer with its weight, each sample's answers one after the other."""
        answers = [_weighted(sample) for sample in samples]
        texts = [text for weighted in answers for text in weighted]
        target, given = self.generator.target(texts, self.longest("target"))
        return {
            **self.questions(samples),
            "answer": target,
            "given": given,
            "weights": torch.tensor([weight for weighted in answers for weight in weighted.values()]),
            "group_index": group_index_of([len(weighted) for weighted in answers]),
        }

    def loss(self, batch: VqaBatch) -> Tensor:
        """Mean over the samples of the weighted mean over their answers of the answers' losses."""
        context = self.generator.context(batch["inputs"])
        logits = self.generator.logits(self.backbone.select_rows(context, batch["group_index"]), batch["answer"])
        losses = sequence_losses(*token_losses(logits, batch["answer"], batch["given"]))
        return mean_per_owner(losses, batch["weights"], batch["group_index"], len(batch["ids"])).mean()

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As many answers a question as `lengths` says."""
        each = self.lengths["texts"]
        return self.loss(
            {
                "ids": range(batch_size),
                "inputs": self.backbone.blank(batch_size, device, self.lengths["questions"]),
                "answer": blank_text(each * batch_size, self.lengths["answers"], device),
                "given": 1,
                "weights": torch.ones(each * batch_size, device=device),
                "group_index": torch.arange(batch_size, device=device).repeat_interleave(each),
            }
        )

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Answers that are scored: those of the list of a question, or those that were written to all of them."""
        context = self.generator.context(self.backbone.blank(batch_size, device, self.lengths["questions"]))
        count = len(self.config.answer_list) if self.config.answers == "rank" else 0
        if count:
            place = torch.zeros(count, dtype=torch.long, device=device)
        else:
            self.begin_on_meta(context)
            place = torch.arange(batch_size, device=device).repeat_interleave(self.config.decode.num_beams)
        self.scored_on_meta(context, place, self.lengths["answers"])

    def scored_on_meta(self, context: Context, place: Tensor, length: int) -> None:
        """Score texts of so many tokens about some rows of a context, (N,)."""
        target = blank_text(len(place), length, place.device)
        token_losses(self.generator.logits(self.backbone.select_rows(context, place), target), target, 1)

    def asking(self) -> Asking:
        """Questions, and their answers."""
        return self.questions, self.answer

    def answer(self, batch: ImageBatch, alternatives: int = 1) -> list[list[tuple[str, float]]]:
        """For each question the best answers with their probabilities, best first.

        The first is the same however many are asked for. Ranked answers have probabilities that add up to 1 over the list. A
        generated answer has that of its tokens; of several, as many at most as the search has beams, the probability to the power
        1 / length^length_penalty, which is what a search with beams orders by.
        """
        if self.config.answers == "rank":
            return self._likeliest(self.rank(batch).softmax(dim=1), alternatives)
        count, beams = len(batch["ids"]), self.config.decode.num_beams
        context = self.generator.context(batch["inputs"])
        texts = self.generator.generate(context, self.config.decode, alternatives=beams)
        scores = self._beam_scores(self._select_rows(context, group_index_of([beams] * count)), texts).tolist()
        found = []
        for start in range(0, len(texts), beams):
            best: dict[str, float] = {}  # two ways to write a text are one answer
            for place in sorted(range(start, start + beams), key=lambda place: -scores[place]):
                best.setdefault(texts[place], scores[place])
            found.append([*best.items()][:alternatives])
        return found

    def rank(self, batch: ImageBatch) -> Tensor:
        """Log-probabilities (B, answers) of every answer of the list."""
        context, answers = self.generator.context(batch["inputs"]), self.config.answer_list
        per_question = []
        for row in range(len(batch["ids"])):  # one question at a time: its states times the answers is the batch
            asked = self._select_rows(context, torch.tensor([row]))
            per_question.append(self._log_probs(asked, answers, self.generator.candidate_logits)[0])
        return torch.stack(per_question)

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """VQA accuracy; see `vlatrain.metrics.vqa` for its variants."""
        found = [best[0] for answered in batches(samples, self.questions, self.answer) for best in answered]
        texts, references = [text for text, _ in found], [sample.answers for sample in samples]
        scores = metric.score(texts, references)
        if scores.ceiling < 90 and not self.measure:
            log.warning(
                "VQA accuracy cannot exceed %.1f here: it counts an answer fully where 3 annotators gave it",
                scores.ceiling,
            )
        settings = {
            "accuracy": scores.variant,
            "ceiling": scores.ceiling,
            "decode": self.decoding,
        }
        scored = {"accuracy": self._accuracies(texts, references), **self._measured(texts, references)}
        if self.generates:
            back = as_written(self.backbone, references)
            lost = sum(metric.lost(can, sample.answers) for can, sample in zip(back, samples, strict=True))
            if lost or self.metric.endswith(AS_WRITTEN):
                again = {"accuracy": metric.score(texts, back).per_sample, **self._measured(texts, back)}
                scored |= {f"{name}{AS_WRITTEN}": values for name, values in again.items()}
                settings["ceiling_as_written"] = scores.ceiling - lost / len(samples)
        headline = scored[self.measure or "accuracy"]
        predictions: list[dict[str, Any]] = [
            {
                "id": sample.id,
                "question": sample.question,
                "prediction": text,
                "probability": probability,
                "references": list(sample.answers),
                "score": score,
            }
            for sample, (text, probability), score in zip(samples, found, headline, strict=True)
        ]
        lengths = question_lengths([sample.question for sample in samples])
        return Evaluation(
            {name: sum(values) / len(values) for name, values in scored.items()},
            settings,
            predictions,
            {name: mean(values) for name, values in scored.items()},
            [len(samples)],
            self.groupings(samples, [self.measure or "accuracy"], question_words=lengths),
        )

    @property
    def measure(self) -> str:
        """The measure of `vlatrain.metrics.structured` that the headline score is of; empty: it is VQA accuracy."""
        name = self.metric.removesuffix(AS_WRITTEN)
        return name if name in structured.MEASURES else ""

    def _accuracies(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """What each answer scores, percent."""
        return metric.score(texts, references).per_sample

    def _measured(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
        """What each answer scores by the measure, where there is one."""
        return {self.measure: structured.per_sample(self.measure, texts, references)} if self.measure else {}

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The answers that score most where they are given to every question, and to each one of the same wording."""
        both = zip(column(train, "question"), column(train, "answers"), strict=True)
        # by a measure, the best reference counts: each scores all there is
        worth = (lambda answers: dict.fromkeys(answers, 1.0)) if self.measure else metric.worth
        asked = ((question, worth(answers)) for question, answers in both)
        return asdict(best_constants(asked, metric.normalise))

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """Constant answers, and what the annotators' agreement lets anyone score."""
        known, references = Constants(**constants), [list(sample.answers) for sample in samples]
        best = metric.ceiling(references)
        if not known.by_wording:
            return Yardsticks(ceilings={"accuracy": best})
        back = as_written(self.backbone, references) if self.generates else references

        def means(answers: Sequence[str], own: Sequence[Sequence[str]], end: str = "") -> dict[str, float]:
            found = {"accuracy": metric.score(answers, own).per_sample, **self._measured(answers, own)}
            return {f"{name}{end}": sum(values) / len(values) for name, values in found.items()}

        def baseline(answers: Sequence[str], says: str) -> Baseline:
            scores = means(answers, references)
            if back != references:
                written = [text for (text,) in as_written(self.backbone, [[answer] for answer in answers])]
                scores |= means(written, back, AS_WRITTEN)
            return Baseline(scores, says)

        says = f"the best answer to each of {len(known.by_wording):,} wordings, else {known.overall!r}"
        return Yardsticks(
            {
                "most_frequent_answer": baseline([known.overall] * len(samples), f"always {known.overall!r}"),
                "most_frequent_answer_by_question": baseline([known.answer(one.question) for one in samples], says),
            },
            {"accuracy": best},
        )

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are found."""
        return {"answers": self.config.answers, **vars(self.config.decode)}

    def _select_rows(self, context: Context, group_index: Tensor) -> Context:
        return self.backbone.select_rows(context, group_index.to(self.backbone.device))

    def _likeliest(self, probabilities: Tensor, alternatives: int) -> list[list[tuple[str, float]]]:
        answers = self.config.answer_list
        top = probabilities.topk(min(alternatives, len(answers)), dim=1)
        return [
            [(answers[index], value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def _beam_scores(self, context: Context, texts: Sequence[str]) -> Tensor:
        """What generated texts (N,) are ordered by, 0 to 1."""
        log_probs, lengths = self._log_probs(context, texts, self.generator.logits)
        decode = self.config.decode
        return (log_probs / lengths ** (decode.length_penalty if decode.num_beams > 1 else 0)).exp()

    def _log_probs(
        self, context: Context, texts: Sequence[str], logits: Callable[[Context, Text], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N,) of whole texts, and their lengths (N,) in tokens, the end token included."""
        target, given = self.generator.target(texts, self.longest("target"))
        target = target.to(self.backbone.device)
        losses, learned = token_losses(logits(context, target), target, given)
        return -losses.sum(dim=1), learned.sum(dim=1)


def _weighted(sample: Sample) -> dict[str, float]:
    """Weight of each distinct answer: the given ones added up, else how often it occurs, as a share."""
    weights = sample.weights or (1.0 / len(sample.answers),) * len(sample.answers)
    total: dict[str, float] = {}
    for text, weight in zip(sample.answers, weights, strict=True):
        total[text] = total.get(text, 0.0) + weight
    return total
