"""Instruction following: conversations about an image, of which the replies are learned (Liu et al., "Visual Instruction Tuning",
NeurIPS 2023, section 4.2).

The loss is on the tokens of all replies and on the end token of each; what the user says is read and not learned. Deviation: the
loss is the mean over conversations of the mean over their tokens, as in the other tasks, so that long replies do not outweigh short
ones; LLaVA's is the mean over all tokens of a batch.

In evaluation the last reply of a conversation is generated, with the turns before it as they are in the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from vlatrain.backbones.base import Backbone, Converser, Generator, Inputs, Text, blank_text
from vlatrain.backbones.writing import Written, write
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.images import is_shown
from vlatrain.data.lazy import column
from vlatrain.data.sample import Sample, Turn
from vlatrain.metrics import instruct as metric
from vlatrain.metrics.baselines import Constants, best_constants
from vlatrain.metrics.bootstrap import mean
from vlatrain.metrics.vqa import normalise
from vlatrain.tasks.base import (
    Asking,
    Batches,
    Evaluation,
    ImageBatch,
    Task,
    as_written,
    following_losses,
    sequence_losses,
)
from vlatrain.tasks.lengths import AS_WRITTEN, Use, reference_use
from vlatrain.tasks.looks import conversing
from vlatrain.tasks.sample_checks import images_named
from vlatrain.tasks.yardsticks import Baseline, Yardsticks, question_lengths


class InstructBatch(ImageBatch):
    """Conversations.

    Attributes:
        places: (B, n) of the tokens before those that are learned: the only ones that need logits.
        target: (B, n) the tokens behind them; the mask is 0 where a conversation has fewer.
    """

    places: Tensor
    target: Text


class Instruct(Task):
    """Instruction following on a `Converser` backbone.

    Raises:
        UserError: the backbone is none.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone)
        if not isinstance(backbone, Converser):
            raise UserError(
                f"model.family={backbone.config.family}: holds no conversations, so task={config.name} cannot use it"
            )
        self.converser: Converser = backbone
        self.generator = cast(Generator, backbone)  # of which it needs context and generation alone

    @property
    def generates(self) -> bool:
        """Always."""
        return True

    def uses(self) -> list[Use]:
        """Conversations that are learned, what is before their last replies, and these, to be written."""
        backbone = self.backbone
        replies = reference_use(
            "replies", lambda one: [turn.reply for turn in one.turns[-1:] if turn.reply], backbone, normalise
        )
        return [
            Use("conversations", "conversation", lambda one: [one.turns], conversing(backbone), "train"),
            Use("prompts", "prompt", lambda one: [one.turns], conversing(backbone, given=True), "asked"),
            replies,
        ]

    def asked(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images, and the conversations up to the last reply."""
        seen, images, conversations, hidden = self._about(samples)
        with images_named(self.backbone, samples, images):
            inputs = self.converser.prompts(images, conversations, self.longest("prompt"), **hidden)
        return {"ids": [sample.id for sample in samples], "inputs": {**inputs, **seen}}

    def collate(self, samples: Sequence[Sample]) -> InstructBatch:
        """Images and whole conversations."""
        seen, images, conversations, hidden = self._about(samples)
        with images_named(self.backbone, samples, images):
            inputs, text = self.converser.conversations(images, conversations, self.longest("conversation"), **hidden)
        places, target = learned_places(text)
        return {
            "ids": [sample.id for sample in samples],
            "inputs": {**inputs, **seen},
            "places": places,
            "target": target,
        }

    def loss(self, batch: InstructBatch) -> Tensor:
        """Mean over the conversations of the mean over the tokens of their replies."""
        return sequence_losses(self._token_losses(batch), batch["target"].mask).mean()

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """The longest conversations, with as many learned tokens as the one that has most."""
        return self.loss(self._blank(batch_size, device))

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Losses of whole conversations, and the beginning of replies to as much."""
        batch = self._blank(batch_size, device)
        self._token_losses(batch)
        self.begin_on_meta(self.generator.context(batch["inputs"]))

    def asking(self) -> Asking:
        """Conversations up to the last reply, and their replies."""
        return self.asked, self.reply

    def reply(self, batch: ImageBatch, alternatives: int = 1) -> list[list[Written]]:
        """For each conversation the best replies, best first."""
        context = self.generator.context(batch["inputs"])
        texts = write(self.generator, context, self.config.decode, alternatives=alternatives)
        return [texts[start : start + alternatives] for start in range(0, len(texts), alternatives)]

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Exact match and ROUGE-L of the last replies, perplexity of all of them; see `vlatrain.metrics.instruct`."""
        replies = [Written(*best[0]) for replied in batches(samples, self.asked, self.reply) for best in replied]
        references = [sample.turns[-1].reply for sample in samples]
        texts = [reply.text for reply in replies]
        found = metric.score(texts, references)
        scores = {"rouge_l": found.rouge_l, "exact_match": found.exact_match}
        statistics = {"rouge_l": mean(found.per_sample), "exact_match": mean(found.exact_per_sample)}
        back = [text for (text,) in as_written(self.backbone, [[reference] for reference in references])]
        if self.metric.endswith(AS_WRITTEN) or [*map(normalise, back)] != [*map(normalise, references)]:
            again = metric.score(texts, back)
            scores |= {f"rouge_l{AS_WRITTEN}": again.rouge_l, f"exact_match{AS_WRITTEN}": again.exact_match}
            statistics |= {
                f"rouge_l{AS_WRITTEN}": mean(again.per_sample),
                f"exact_match{AS_WRITTEN}": mean(again.exact_per_sample),
            }
        settings: dict[str, Any] = {"score": "ROUGE-L", "decode": vars(self.config.decode)}
        loss, tokens = self._losses(samples, batches)
        if tokens:
            scores["perplexity"] = metric.perplexity(loss, tokens)
        else:
            settings["skipped"] = {
                "perplexity": f"no reply begins within {self.longest('conversation')} tokens (task.max_length)"
            }
        predictions: list[dict[str, Any]] = [
            {
                "id": sample.id,
                "question": sample.turns[-1].user,
                "turn": len(sample.turns),
                **({"history": [[turn.user, turn.reply] for turn in sample.turns[:-1]]} if sample.turns[:-1] else {}),
                **reply.record,
                "references": [reference],
                "score": score,
            }
            for sample, reply, reference, score in zip(samples, replies, references, found.per_sample, strict=True)
        ]
        lengths = question_lengths([sample.turns[-1].user for sample in samples])
        return Evaluation(
            scores,
            settings,
            predictions,
            statistics,
            [len(samples)],
            self.groupings(samples, ["rouge_l", "exact_match"], question_words=lengths),
        )

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The most frequent last reply, and the most frequent one to each wording of what the user says before it."""
        last = (turns[-1] for turns in column(train, "turns") if turns)
        return asdict(best_constants(((turn.user, {turn.reply: 1.0}) for turn in last if turn.reply), normalise))

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """Constant replies."""
        known, last = Constants(**constants), [sample.turns[-1] for sample in samples]
        if not known.by_wording:
            return Yardsticks()
        references = [turn.reply for turn in last]
        back = [text for (text,) in as_written(self.backbone, [[reference] for reference in references])]

        def baseline(replies: Sequence[str], says: str) -> Baseline:
            found = metric.score(replies, references)
            scores = {"rouge_l": found.rouge_l, "exact_match": found.exact_match}
            if back != references:
                written = [text for (text,) in as_written(self.backbone, [[reply] for reply in replies])]
                again = metric.score(written, back)
                scores |= {f"rouge_l{AS_WRITTEN}": again.rouge_l, f"exact_match{AS_WRITTEN}": again.exact_match}
            return Baseline(scores, says)

        says = f"the most frequent reply to each of {len(known.by_wording):,} wordings, else {known.overall!r}"
        return Yardsticks(
            {
                "most_frequent_reply": baseline([known.overall] * len(last), f"always {known.overall!r}"),
                "most_frequent_reply_by_question": baseline([known.answer(turn.user) for turn in last], says),
            }
        )

    def _about(
        self, samples: Sequence[Sample]
    ) -> tuple[Inputs, list[Any] | None, list[tuple[Turn, ...]], dict[str, Any]]:
        """What is kept of the samples' images, or else these; the conversations; and where some are of text alone, as `shown`
        for each whether it is about its image; where some are about several images that are kept, as `counts` how many."""
        cache, conversations = self.backbone.cache, [sample.turns for sample in samples]
        shown = [is_shown(sample.image) for sample in samples]
        hidden: dict[str, Any] = {} if all(shown) else {"shown": shown}
        if cache and (prefix := cache.read(samples, asked=False)):
            several = (
                {"counts": [len(sample.pictures) for sample in samples]} if any(one.more for one in samples) else {}
            )
            return {"prefix": prefix}, None, conversations, {**hidden, **several}
        return {}, self.backbone.load_all(samples), conversations, hidden

    def _blank(self, batch_size: int, device: torch.device | str) -> InstructBatch:
        inputs = self.backbone.blank(batch_size, device, self.lengths["conversations"])
        target = blank_text(batch_size, self.lengths["replies"], device)
        return {"ids": [], "inputs": inputs, "places": torch.zeros_like(target.ids), "target": target}

    def _token_losses(self, batch: InstructBatch) -> Tensor:
        """Losses (B, n) of the learned tokens."""
        logits = self.converser.conversation_logits(batch["inputs"], batch["places"])
        return following_losses(logits, batch["target"])

    def _losses(self, samples: Sequence[Sample], batches: Batches) -> tuple[float, float]:
        """Summed loss of all learned tokens, and their number."""

        def summed(batch: InstructBatch) -> Tensor:
            return torch.stack([self._token_losses(batch).sum(), batch["target"].mask.sum()]).double().cpu()

        total = torch.zeros(2, dtype=torch.double)
        for found in batches(samples, self.collate, summed):
            total += found
        return total[0].item(), total[1].item()


def learned_places(text: Text) -> tuple[Tensor, Text]:
    """Of conversations (B, L), whose mask is 1 for tokens that are learned, the places (B, n) before these, and these tokens."""
    learned, following = text.mask[:, 1:], text.ids[:, 1:]
    most = int(learned.sum(dim=1).max())
    places = learned.argsort(dim=1, descending=True, stable=True)[:, :most]
    return places, Text(following.gather(1, places), learned.gather(1, places))
