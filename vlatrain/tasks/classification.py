"""Classification: which of a list of classes an image belongs to.

A backbone with images and texts in one space (`Embedder`) compares the image's features with those of each class, which are the
mean over texts such as "a photo of a {}." (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, sections 3.1.2 and 3.1.4: prompt engineering, and ensembling in the space of features). Untrained this is zero-shot
classification; in training the cross-entropy over all classes is learned, in both towers if adapters are in both.

A backbone that writes (`Generator`) is asked a question and ranks the classes as answers to it; it learns to answer with the class.

Deviation: an underscore in a class's name is read as a blank, as names of folders have it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vlatrain.backbones.base import Backbone, Embedder, Generator, blank_text
from vlatrain.config import TaskConfig, UserError
from vlatrain.data.lazy import column, select
from vlatrain.data.sample import Sample
from vlatrain.injection.context import context_of
from vlatrain.metrics import classification as metric
from vlatrain.metrics.baselines import majority
from vlatrain.metrics.retrieval import similarity
from vlatrain.tasks.base import Asking, Batch, Batches, Evaluation, ImageBatch, Task, similarity_scale
from vlatrain.tasks.lengths import Use, alike
from vlatrain.tasks.looks import reading, tokens_of, written_tokens
from vlatrain.tasks.vqa import Vqa, VqaBatch
from vlatrain.tasks.yardsticks import Baseline, Yardsticks

TEXTS = 256  # texts that are encoded at a time
SHOWN = 20  # classes whose probabilities are written for each sample
Over = Callable[[Callable[[Sequence[str]], Tensor], Sequence[Sequence[str]]], Iterable[Tensor]]
UNKNOWN = 10  # classes that a rehearsal takes there to be, where the data has not been read


class ClassBatch(ImageBatch):
    """Images and their classes.

    Attributes:
        label: (B,) the classes' places.
    """

    label: Tensor


class Classification(Task):
    """Classification on any backbone.

    Args:
        config: its settings.
        backbone: the backbone.
        train: the training samples: where the classes come from if none are configured.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        if not config.classes:
            config = replace(config, classes=sorted(set(column(train, "label"))))
        super().__init__(config, backbone)
        self.place = {name: place for place, name in enumerate(config.classes)}

    @abstractmethod
    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """What `scores` takes: `ids` and `inputs`."""

    @abstractmethod
    def known(self, over: Over = map) -> Any:
        """What `scores` needs of the classes, whatever the images; `over` goes through the work, as `Batches.map` does."""

    @abstractmethod
    def scores(self, batch: ImageBatch, known: Any) -> Tensor:
        """Of each image (B, C) the logarithms of the classes' probabilities, but for a number that is the same for all of them."""

    def asking(self) -> Asking:
        """Images, and their classes."""
        return self.images, self.classify

    def classify(self, batch: ImageBatch, alternatives: int = 1) -> list[list[tuple[str, float]]]:
        """For each image the likeliest classes with their probabilities, best first."""
        return self._best(self._probabilities(batch, self.known()), alternatives)

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Accuracy, macro-F1 and AUROC; see `vlatrain.metrics.classification`."""
        known = self.known(batches.map)
        found = batches(samples, self.images, lambda batch: self._probabilities(batch, known))
        probabilities = torch.cat([*found])
        labels = [self.place[sample.label] for sample in samples]
        scores, skipped = metric.score(probabilities.numpy(), labels, self.config.classes)
        predictions: list[dict[str, Any]] = [
            {
                "id": sample.id,
                "prediction": best[0][0],
                "probability": best[0][1],
                "references": [sample.label],
                "score": float(best[0][0] == sample.label) * 100,
                "probabilities": dict(best),
            }
            for sample, best in zip(samples, self._best(probabilities, SHOWN), strict=True)
        ]
        settings: dict[str, Any] = {"classes": len(self.config.classes), **self._settings()}
        return Evaluation(
            scores,
            {**settings, "skipped": skipped} if skipped else settings,
            predictions,
            metric.statistics(probabilities.numpy(), labels),
            [len(samples)],
            self.groupings(samples, ["accuracy"], **{"class": [sample.label for sample in samples]}),
        )

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """The most frequent class."""
        return {"label": majority(column(train, "label"))}

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """The most frequent class, always."""
        label = constants.get("label", "")
        if label not in self.place:
            return Yardsticks()
        always = np.zeros((len(samples), len(self.place)))
        always[:, self.place[label]] = 1
        scores, _ = metric.score(always, [self.place[sample.label] for sample in samples], self.config.classes)
        return Yardsticks({"majority_class": Baseline(scores, f"always {label!r}")})

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What the scores depend on."""

    def _probabilities(self, batch: ImageBatch, known: Any) -> Tensor:
        """(B, C) on the CPU, in fp64: no two classes become equally likely by rounding."""
        return self.scores(batch, known).cpu().double().softmax(dim=1)

    def _best(self, probabilities: Tensor, alternatives: int) -> list[list[tuple[str, float]]]:
        top = probabilities.topk(min(alternatives, len(self.config.classes)), dim=1)
        return [
            [(self.config.classes[place], value) for place, value in zip(places, values, strict=True)]
            for places, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]


class ByFeatures(Classification):
    """Classification on an `Embedder` backbone."""

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone, train)
        self.embedder = cast(Embedder, backbone)
        self._kept: Tensor | None = None

    def uses(self) -> list[Use]:
        """The longest text of each sample's class."""
        template = max(self.config.templates, key=len)
        return [
            Use(
                "prompts",
                "text",
                lambda one: [prompt(template, one.label)] if one.label else [],
                reading(self.backbone),
            )
        ]

    def alike(self, key: str) -> tuple[list[str], bool]:
        """Classes whose shortest texts are the same tokens."""
        template, classes = min(self.config.templates, key=len), self.config.classes
        tokens = tokens_of(self.backbone, [prompt(template, name) for name in classes], self.longest("text"))
        return alike(classes, tokens, f"{key}classes", self.backbone)

    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images."""
        return {"ids": [sample.id for sample in samples], "inputs": self.inputs(samples)}

    def collate(self, samples: Sequence[Sample]) -> ClassBatch:
        """Images and their classes."""
        return {**self.images(samples), "label": torch.tensor([self.place[sample.label] for sample in samples])}

    def loss(self, batch: ClassBatch) -> Tensor:
        """Cross-entropy over the classes."""
        return cross_entropy(self.scores(batch, self.known()), batch["label"])

    def known(self, over: Over = map) -> Tensor:
        """Unit features (C, D) of the classes. Computed once, unless something that trains can change them."""
        if self._kept is not None:
            return self._kept
        texts = [prompt(template, name) for name in self.config.classes for template in self.config.templates]

        def features_of(some: Sequence[str]) -> Tensor:
            text = self.backbone.text(some, self.longest("text"))
            return self.embedder.text_features(text.to(self.backbone.device))

        chunks = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
        features = self._averaged(torch.cat([*over(features_of, chunks)]))
        if self._settled(features):
            self._kept = features
        return features

    def scores(self, batch: ImageBatch, known: Tensor) -> Tensor:
        """Scaled cosine similarities (B, C)."""
        cosine = similarity(self.embedder.image_features(batch["inputs"])[0], known)
        return cosine * similarity_scale(self.config, self.backbone)

    def pairs(self, batch: ClassBatch) -> tuple[Tensor, Tensor]:
        """Features (B, D) of a training batch's images, and of each what makes its class's score greater by one and changes no
        other, if added to features: what a cache of samples is filled with (a one-hot label, seen through the classes)."""
        one_hot = torch.linalg.pinv(self.known()).T  # (C, D); times the classes' features (D, C) it is the unit matrix
        return self.embedder.image_features(batch["inputs"])[0], one_hot[batch["label"]]

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """A few classes, where they are not known yet."""
        texts = (len(self.config.classes) or UNKNOWN) * len(self.config.templates)
        prompts = blank_text(texts, self.backbone.padded_to(self.lengths["prompts"]), device)
        known = self._averaged(self.embedder.text_features(prompts))
        logits = self.scores({"ids": range(batch_size), "inputs": self.backbone.blank(batch_size, device)}, known)
        return cross_entropy(logits, torch.zeros(batch_size, dtype=torch.long, device=device))

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Images, and once so many texts of the classes."""
        texts = min(TEXTS, (len(self.config.classes) or UNKNOWN) * len(self.config.templates))
        self.embedder.text_features(blank_text(texts, self.backbone.padded_to(self.lengths["prompts"]), device))
        self.embedder.image_features(self.backbone.blank(batch_size, device))

    def _settings(self) -> dict[str, Any]:
        return {"templates": self.config.templates}

    def _averaged(self, features: Tensor) -> Tensor:
        """Unit features (C * templates, D) of all texts as those (C, D) of the classes."""
        by_class = features.view(-1, len(self.config.templates), features.shape[1])  # (C, templates, D)
        return normalize(by_class.mean(dim=1), dim=-1)

    def _settled(self, features: Tensor) -> bool:
        """Whether the features are the same in every step to come."""
        if not any(parameter.requires_grad for parameter in self.backbone.model.parameters()):
            return True
        # without gradients, or in a step that goes without some of the adapters, they do not tell
        return torch.is_grad_enabled() and not features.requires_grad and not context_of(self.backbone.model).without


class ByWords(Classification):
    """Classification on a `Generator` backbone: the answer to a question, of a list.

    A class's score is its log-probability as an answer; see `vlatrain.tasks.vqa`.
    """

    def __init__(self, config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> None:
        super().__init__(config, backbone, train)
        self.vqa = Vqa(replace(self.config, answers="rank", answer_list=self.config.classes), backbone)

    def uses(self) -> list[Use]:
        """The question, and classes as answers to it."""

        def answered(use: Use) -> Use:
            return replace(use, of=lambda one: use.of(self._asked([one])[0]) if one.label else [])

        return [answered(use) for use in self.vqa.uses()]

    def alike(self, key: str) -> tuple[list[str], bool]:
        """Classes that are the same tokens as answers."""
        tokens = written_tokens(self.backbone, self.config.classes, self.longest("target"))
        return alike(self.config.classes, tokens, f"{key}classes", self.backbone)

    def images(self, samples: Sequence[Sample]) -> ImageBatch:
        """Images and the question."""
        return self.vqa.questions(self._asked(samples))

    def collate(self, samples: Sequence[Sample]) -> VqaBatch:
        """Images, the question, and the class as its answer."""
        return self.vqa.collate(self._asked(samples))

    def loss(self, batch: VqaBatch) -> Tensor:
        """That of answering with the class."""
        return self.vqa.loss(batch)

    def known(self, over: Over = map) -> None:
        """Nothing: the classes are read with the image in view."""

    def scores(self, batch: ImageBatch, known: None) -> Tensor:
        """Log-probabilities (B, C) of the classes' names."""
        return self.vqa.rank(batch)

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As of answers."""
        self.vqa.lengths = self.lengths
        return self.vqa.loss_on_meta(batch_size, device)

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """As of answers."""
        self.vqa.lengths = self.lengths
        self.vqa.evaluate_on_meta(batch_size, device)

    def _settings(self) -> dict[str, Any]:
        return {"question": self.config.question}

    def _asked(self, samples: Sequence[Sample]) -> list[Sample]:
        return [replace(sample, question=self.config.question, answers=(sample.label,)) for sample in samples]


class BaseToNew(Task):
    """Classification that learns one half of the classes and is scored on both, each among its own classes.

    The protocol of Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (CVPR 2022, arXiv:2203.05557), section
    4.1, for how far what was learned carries over: accuracy on the base half and on the new one, and their harmonic mean. The first
    half is the larger one where their number is odd, as there. Deviation: the classes are in the order of the alphabet, or in that
    in which `task.classes` lists them, where the paper's are in the order of the data set's numbers.

    Args:
        whole: the task with all classes. Prediction chooses among all of them.

    Raises:
        UserError: fewer than four classes, of which no half is a choice.
    """

    def __init__(self, whole: Classification) -> None:
        super().__init__(whole.config, whole.backbone)
        classes = whole.config.classes
        if 0 < len(classes) < 4:
            raise UserError(f"task.base_to_new=true: {len(classes)} classes; each half needs two, so four or more")
        half = -(-len(classes) // 2)
        plain = replace(whole.config, base_to_new=False)
        self.whole = whole
        self.base, self.new = (
            _classification_on(replace(plain, classes=own), whole.backbone) for own in (classes[:half], classes[half:])
        )

    def learned(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those of the base half."""
        return select(samples, [n for n, label in enumerate(column(samples, "label")) if label in self.base.place])

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """A batch of samples of the base half."""
        return self.base.collate(samples)

    def loss(self, batch: Any) -> Tensor:
        """That over the base half."""
        return self.base.loss(batch)

    def pairs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Those of the base half, see `ByFeatures`."""
        return cast(ByFeatures, self.base).pairs(batch)

    def uses(self) -> list[Use]:
        """Those of all classes."""
        return self.whole.uses()

    def alike(self, key: str) -> tuple[list[str], bool]:
        """Those of all classes."""
        return self.whole.alike(key)

    def asking(self) -> Asking:
        """Images, and which of all classes they are of."""
        return self.whole.asking()

    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Each half among its own classes: the scores of the base half under their names, `new_accuracy`, and `harmonic_mean`.

        Raises:
            UserError: there are no samples of one of the halves.
        """
        found = {}
        for name, half in (("base", self.base), ("new", self.new)):
            own = [sample for sample in samples if sample.label in half.place]
            if not own:
                raise UserError(
                    f"task.base_to_new=true: no sample to evaluate is of the {name} classes ({', '.join(half.place)})"
                )
            found[name] = half.evaluate(own, batches)
        base, new = found["base"], found["new"]
        one, two = base.metrics["accuracy"], new.metrics["accuracy"]
        mean = 2 * one * two / (one + two) if one + two else 0.0
        settings = {"base": [*self.base.place], "new": [*self.new.place], **base.settings}
        predictions = [{"half": name, **record} for name, half in found.items() for record in half.predictions]
        return Evaluation({**base.metrics, "new_accuracy": two, "harmonic_mean": mean}, settings, predictions)

    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """As over the base half."""
        self.base.lengths = self.lengths
        return self.base.loss_on_meta(batch_size, device)

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """As of the base half, which is no smaller."""
        self.base.lengths = self.lengths
        self.base.evaluate_on_meta(batch_size, device)


def prompt(template: str, name: str) -> str:
    """A text that a class is compared by."""
    return template.replace("{}", name.replace("_", " "))


def classification_on(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Task:
    """Classification in the way that suits the backbone: by features, where it has them."""
    whole = _classification_on(config, backbone, train)
    return BaseToNew(whole) if config.base_to_new else whole


def _classification_on(config: TaskConfig, backbone: Backbone, train: Sequence[Sample] = ()) -> Classification:
    described = backbone.config.tasks[backbone.task].features
    by_features = isinstance(backbone, Embedder) and (described or not isinstance(backbone, Generator))
    return (ByFeatures if by_features else ByWords)(config, backbone, train)
