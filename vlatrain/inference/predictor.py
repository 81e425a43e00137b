"""Asking a trained model: answers, captions, and search in either direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatrain.config import TrainConfig
from vlatrain.data.sample import Picture, Sample
from vlatrain.injection.context import for_task
from vlatrain.metrics.retrieval import similarity, top_k
from vlatrain.tasks import Batch
from vlatrain.tasks.base import Collate, move
from vlatrain.tasks.captioning import Captioning
from vlatrain.tasks.classification import Classification
from vlatrain.tasks.instruct import Instruct
from vlatrain.tasks.joint import Joint
from vlatrain.tasks.matching import Matching
from vlatrain.tasks.retrieval import Retrieval
from vlatrain.tasks.vqa import Vqa
from vlatrain.training.caching import keep_prefix
from vlatrain.training.display import SILENT
from vlatrain.training.precision import autocast, choose_device, choose_precision
from vlatrain.training.setup import finished


@dataclass(frozen=True)
class Hit:
    """One answer, caption or search result.

    Attributes:
        text: the answer, the class, the caption, the reply, the text found, or the name of the image found.
        score: probability (answers, classes; see `Vqa.answer` for several beams), cosine similarity in [-1, 1] or matching log-odds
            (search); None for captions and replies.
    """

    text: str
    score: float | None


class Predictor:
    """A finished run, ready to be asked.

    Args:
        config: the run's configuration.
        run: the run folder.
        part: of a joint run, the part that is asked.

    Raises:
        UserError: the weights or the adapter cannot be had, or the device or precision.
    """

    def __init__(self, config: TrainConfig, run: Path, part: str = "") -> None:
        self.device = choose_device(config.trainer.device)
        self.precision = choose_precision(config.trainer.precision, self.device)
        task = finished(config, run, self.device, self.precision).task
        self.config = config
        self.task, self.part = task.parts[part] if isinstance(task, Joint) else task, part
        self.batch_size = config.trainer.eval_batch_size or config.trainer.batch_size

    def recall(self, samples: Sequence[Sample]) -> None:
        """Use what is kept of samples on disk."""
        keep_prefix(self.task.backbone, self.config, {"asked": samples}, {}, self.precision, SILENT)

    def ask(self, samples: Sequence[Sample], alternatives: int = 1) -> Iterator[list[Hit]]:
        """For each sample the best answers, classes, captions or replies, best first, as they come."""
        collate, answer = self._asking()
        for batch in self._batches(samples, collate):
            with self._computing():
                found = answer(batch, alternatives)
            yield from ([Hit(*_scored(one)) for one in best] for best in found)

    def find_images(self, text: str, images: Sequence[Picture], names: Sequence[str], k: int) -> list[Hit]:
        """The k images that fit a text best."""
        with self._computing():
            return self._find_images(text, images, names, k)

    def find_texts(self, image: Picture, texts: Sequence[str], k: int) -> list[Hit]:
        """The k texts that fit an image best."""
        with self._computing():
            return self._find_texts(image, texts, k)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.no_grad(), autocast(self.device, self.precision), for_task(self.task.backbone.model, self.part):
            yield

    def _asking(self) -> tuple[Collate, Callable[[Batch, int], list[list[Any]]]]:
        """What makes a batch of samples to ask about, and what answers it: texts, or texts with scores."""
        task = self.task
        if isinstance(task, Vqa):
            return task.questions, task.answer
        if isinstance(task, Classification):
            return task.images, task.classify
        if isinstance(task, Instruct):
            return task.asked, task.reply
        assert isinstance(task, Captioning), "retrieval is searched, not asked"
        return task.images, task.caption

    def _find_images(self, text: str, images: Sequence[Picture], names: Sequence[str], k: int) -> list[Hit]:
        task = self._retrieval()
        samples = [_sample(picture) for picture in images]
        if isinstance(task, Matching):
            asked = task.in_parts([text])
            found = [task.scores(batch["inputs"], asked)[:, 0] for batch in self._batches(samples, task.images)]
            return _best(names, torch.cat(found), k)
        features = torch.cat(
            [task.embedder.image_features(batch["inputs"])[0] for batch in self._batches(samples, task.images)]
        )
        query = task.embedder.text_features(self._text([text]))
        best = top_k(query, features, k)[1][0].tolist()
        scores = similarity(query, features[best])[0].tolist()
        if task.config.rerank and task.embedder.matches:
            batches = self._batches([samples[i] for i in best], task.images)
            states = (task.embedder.image_features(batch["inputs"])[1] for batch in batches)
            scores = [
                score for part in states for score in task.match_scores(part, self._text([text] * len(part))).tolist()
            ]
        return _ranked([names[i] for i in best], scores)

    def _find_texts(self, image: Picture, texts: Sequence[str], k: int) -> list[Hit]:
        task = self._retrieval()
        if isinstance(task, Matching):
            batch = next(self._batches([_sample(image)], task.images))
            return _best(texts, task.scores(batch["inputs"], task.in_parts(texts))[0], k)
        feature, states = task.embedder.image_features(next(self._batches([_sample(image)], task.images))["inputs"])
        features = torch.cat(
            [
                task.embedder.text_features(self._text(texts[start : start + self.batch_size]))
                for start in range(0, len(texts), self.batch_size)
            ]
        )
        best = top_k(feature, features, k)[1][0].tolist()
        scores = similarity(feature, features[best])[0].tolist()
        if task.config.rerank and task.embedder.matches:
            scores = task.match_scores(states.expand(len(best), -1, -1), self._text([texts[i] for i in best])).tolist()
        return _ranked([texts[i] for i in best], scores)

    def _retrieval(self) -> Retrieval:
        assert isinstance(self.task, Retrieval)
        return self.task

    def _text(self, texts: Sequence[str]) -> Any:
        return self.task.backbone.text(texts, self.task.longest("text")).to(self.device)

    def _batches(self, samples: Sequence[Sample], collate: Collate) -> Iterator[Batch]:
        for start in range(0, len(samples), self.batch_size):
            yield move(collate(samples[start : start + self.batch_size]), self.device)


def _scored(answer: str | tuple[str, float]) -> tuple[str, float | None]:
    return (answer, None) if isinstance(answer, str) else answer


def _sample(image: Picture) -> Sample:
    return Sample(id="", image=image)


def _best(texts: Sequence[str], scores: Tensor, k: int) -> list[Hit]:
    """The k texts with the highest scores."""
    values, places = scores.topk(min(k, len(texts)))
    return [Hit(texts[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]


def _ranked(texts: Sequence[str], scores: Sequence[float]) -> list[Hit]:
    hits = [Hit(text, score) for text, score in zip(texts, scores, strict=True)]
    return sorted(hits, key=lambda hit: -(hit.score or 0.0))
