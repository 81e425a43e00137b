"""What a task is: how samples become a batch, a batch a loss, and a data set predictions and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlatrain.backbones.base import Backbone, Context, Embedder, Generator, Inputs, Text, blank_text
from vlatrain.backbones.keys_values import kept_in_search
from vlatrain.backbones.writing import Written
from vlatrain.config import TaskConfig
from vlatrain.data.sample import Sample
from vlatrain.metrics.bootstrap import Statistic
from vlatrain.tasks.lengths import Use
from vlatrain.tasks.sample_checks import images_named
from vlatrain.tasks.yardsticks import Grouping, Yardsticks


class Batch(TypedDict):
    """What a task makes of samples. Each task has a class of its own, with what it learns from.

    Attributes:
        ids: of the samples.
    """

    ids: Sequence[str | int]


class ImageBatch(Batch):
    """What is asked about images.

    Attributes:
        inputs: what the model is given of the samples.
    """

    inputs: Inputs


Made = TypeVar("Made", bound=Batch)
Item = TypeVar("Item")
Result = TypeVar("Result")
Collate = Callable[[Sequence[Sample]], Made]


class Batches(Protocol):
    """Computes something for each batch of samples. Where there are several processes, each computes a share, and all have the
    results of all: numbers, strings, tensors, and tuples, lists and dictionaries of these. So an `evaluate` needs to know of no
    other process, if whatever it does for a result depends on nothing that it did for another one."""

    def __call__(
        self, samples: Sequence[Item], collate: Callable[[Sequence[Item]], Made], compute: Callable[[Made], Result]
    ) -> Iterator[Result]:
        """What `compute` returns of each batch that `collate` makes of the samples, on the model's device, in order."""
        ...

    def map(self, compute: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What `compute` returns of each item, in order: for work that needs no sample."""
        ...


class Found(NamedTuple):
    """Where something is.

    Attributes:
        text: the box as text.
        score: how sure it is, 0 to 1.
        box: left, top, right, bottom in pixels of the upright image; None: the text is none.
    """

    text: str
    score: float
    box: tuple[float, float, float, float] | None

    @classmethod
    def of(cls, box: tuple[float, float, float, float], score: float) -> Found:
        """A box with its text."""
        return cls(", ".join(f"{edge:.1f}" for edge in box), score, box)


Answer = str | tuple[str, float] | tuple[str, float, str] | Written | Found
"""A text, a text with its score and perhaps the mask that shows where, a text that was written, or a box."""
Asking = tuple[Collate[ImageBatch], Callable[[ImageBatch, int], Sequence[Sequence[Answer]]]]
"""What makes a batch of samples that are asked about, and what gives the best answers to each, so many at most, best first."""

TYPICAL: Mapping[str, int] = {
    # tokens of a text, with the special ones, by the name of its `Use`; of all replies of a conversation; learned texts of a sample
    "questions": 16,
    "answers": 4,
    "captions": 20,
    "prompts": 10,
    "conversations": 64,
    "replies": 32,
    "texts": 1,
}


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: scores in percent, by name.
        settings: metric variants and decode settings.
        predictions: one record a sample, or several, JSON values: id, prediction, reference, score, ...
        statistics: by name, the scores that can be had of some of the samples: for intervals, and for groups of samples.
        strata: numbers of samples that the statistics are of, one for each set whose samples are drawn by themselves.
        groupings: by name, the samples of the statistics in groups.
        loss: the task's loss on the samples; None where it was not computed.
    """

    metrics: dict[str, float]
    settings: dict[str, Any]
    predictions: list[dict[str, Any]]
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    strata: Sequence[int] = ()
    groupings: Mapping[str, Grouping] = field(default_factory=dict)
    loss: float | None = None


class Task(ABC):
    """A task on a backbone.

    Args:
        config: its settings.
        backbone: the model with its tokenizer and image processor, adapters already put in.

    Attributes:
        metric: name of the headline metric; higher is better.
        in_batch_negatives: whether the samples of a pass are each other's negatives.
        lengths: tokens of the longest texts, as `TYPICAL` has them, which `loss_on_meta` and `evaluate_on_meta` go by.
    """

    lengths: Mapping[str, int] = TYPICAL
    in_batch_negatives: ClassVar[bool] = False

    def __init__(self, config: TaskConfig, backbone: Backbone) -> None:
        self.config, self.backbone = config, backbone
        self.metric = config.metric

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.config.name

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as a training batch: CPU tensors, and `ids`. Runs in data-loading workers."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Loss of a batch that its own `collate` made: a scalar, the mean over its samples."""

    @abstractmethod
    def evaluate(self, samples: Sequence[Sample], batches: Batches) -> Evaluation:
        """Predict and score samples."""

    def constants(self, train: Sequence[Sample]) -> dict[str, Any]:
        """What a prediction without a look at the images is by the training samples, as JSON values: the run keeps them."""
        return {}

    def yardsticks(self, samples: Sequence[Sample], constants: Mapping[str, Any]) -> Yardsticks:
        """What scores on samples are compared with, whatever the model: by default nothing.

        Args:
            samples: what is scored.
            constants: what `constants` returned.
        """
        return Yardsticks()

    def groupings(
        self, samples: Sequence[Sample], metrics: Sequence[str], **more: Sequence[str]
    ) -> dict[str, Grouping]:
        """The samples in groups: by the columns that `data.groups` names, and by what the task knows.

        Args:
            samples: what is scored.
            metrics: the scores that are given for each group.
            more: by name, of each sample the name of its group.
        """
        columns = dict.fromkeys(name for sample in samples for name in sample.groups)
        values = [dict(sample.extra) for sample in samples] if columns else []
        found = {name: [str(value.get(name, "")) for value in values] for name in columns}
        return {name: Grouping(values, metrics) for name, values in {**more, **found}.items()}

    @abstractmethod
    def loss_on_meta(self, batch_size: int, device: torch.device | str) -> Tensor:
        """A loss from inputs that have only shapes, texts of `lengths`: for estimating memory on the meta device."""

    def evaluate_on_meta(self, batch_size: int, device: torch.device | str) -> None:
        """Compute what is largest in a pass of an evaluation, from such inputs: by default what a pass of training computes."""
        self.loss_on_meta(batch_size, device)

    def begin_on_meta(self, context: Context) -> None:
        """Begin to write texts from a context, with room for all that a search keeps until its last token."""
        writer, decode = cast(Generator, self.backbone), self.config.decode
        some = next(iter(context.values()))
        kept = kept_in_search(self.backbone, context, decode.num_beams, decode.most_new)
        room = some.new_empty(kept, dtype=torch.float)
        place = torch.arange(len(some), device=some.device).repeat_interleave(decode.num_beams)
        begun = blank_text(len(place), 1, some.device)
        logits = writer.logits(self.backbone.select_rows(context, place), begun)
        logits.float().log_softmax(dim=-1).flatten(1).topk(2)
        del room

    @property
    def generates(self) -> bool:
        """Whether the model writes freely, up to `task.decode.max_new_tokens`."""
        return False

    @property
    def contrasts(self) -> bool:
        """Whether it learns by contrast of features, so that `task.negatives_per_step` applies (`vlatrain.training.contrast`)."""
        return False

    def asking(self) -> Asking:
        """How it is asked about samples in prediction."""
        raise NotImplementedError(f"task={self.name} is not asked about samples")

    def best_images(self, text: str, samples: Sequence[Sample], batches: Batches, k: int) -> list[tuple[int, float]]:
        """The places of the k samples whose images fit a text best, with their scores, best first."""
        raise NotImplementedError(f"task={self.name} matches no texts with images")

    def best_texts(
        self, samples: Sequence[Sample], texts: Sequence[str], batches: Batches, k: int
    ) -> Iterator[list[tuple[int, float]]]:
        """For each sample the places of the k texts that fit its image best, with their scores, best first."""
        raise NotImplementedError(f"task={self.name} matches no texts with images")

    def learned(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those of the training samples that are learned from: by default all."""
        return samples

    def uses(self) -> list[Use]:
        """The kinds of text that it reads and learns, for `vlatrain.tasks.lengths`."""
        return []

    def alike(self, key: str) -> tuple[list[str], bool]:
        """What there is to say of choices that the model cannot tell apart, and whether it can tell none from another.

        Args:
            key: what the keys of the task begin with.
        """
        return [], False

    def longest(self, kind: str) -> int:
        """The most tokens that a kind of text is cut to, see `Backbone.longest`."""
        return self.backbone.longest(self.config, kind)

    def inputs(self, samples: Sequence[Sample], asked: bool = False) -> Inputs:
        """The samples' images, which it loads, and their questions if asked for, as the model wants them."""
        questions = [sample.question for sample in samples] if asked else None
        cache, length = self.backbone.cache, self.longest("question")
        if cache:
            found = self.backbone.given([len(sample.pictures) for sample in samples], questions, length)
            if prefix := cache.read(samples, asked, found["question"].ids.shape[1] if "question" in found else None):
                return {**found, "prefix": prefix}
        images = self.backbone.load_all(samples)
        with images_named(self.backbone, samples, images):
            return self.backbone.inputs(images, questions, length)


def move(value: Any, device: torch.device | str) -> Any:
    """A batch, or anything in one, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Text):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    return value


def as_written(backbone: Backbone, references: Sequence[Sequence[str]]) -> list[list[str]]:
    """References as they come back from a model that writes them token for token: not all tokenizers give a text back."""
    texts = list(dict.fromkeys(text for own in references for text in own))
    back = dict(zip(texts, backbone.as_written(texts), strict=True))
    return [[back[text] for text in own] for own in references]


def similarity_scale(config: TaskConfig, backbone: Backbone) -> Tensor:
    """Factor on cosine similarities in a softmax, a scalar: the configured temperature's, else the `Embedder`'s own; fp32."""
    if config.temperature is None:
        return cast(Embedder, backbone).logit_scale()
    return torch.full((), 1 / config.temperature, device=backbone.device)


def token_losses(logits: Tensor, target: Text, given: int) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each learned token.

    Args:
        logits: (N, L, vocabulary) next-token logits.
        target: (N, L) tokens.
        given: number of leading tokens that are given (start token and prompt), not learned.

    Returns:
        Losses (N, L - 1), zero where nothing is learned, and the mask (N, L - 1) of learned tokens.
    """
    learned = target.mask[:, 1:].clone()
    learned[:, : given - 1] = 0
    return following_losses(logits[:, :-1], Text(target.ids[:, 1:], learned)), learned


def following_losses(logits: Tensor, following: Text) -> Tensor:
    """Negative log-likelihood (N, L) of the tokens that follow logits (N, L, vocabulary), zero where their mask is."""
    # (N, L, vocabulary) -> (N * L, vocabulary), so that the softmax is over what lies side by side
    scores = logits.flatten(0, 1).float()
    losses = cross_entropy(scores, following.ids.flatten(), reduction="none").view_as(following.ids)
    return losses * following.mask


def sequence_losses(losses: Tensor, learned: Tensor) -> Tensor:
    """Loss (N,) of each text, of those (N, L) of its tokens: the mean over the learned ones, so that long texts do not outweigh
    short ones."""
    return losses.sum(dim=1) / learned.sum(dim=1).clamp(min=1)


def group_index_of(counts: Sequence[int]) -> Tensor:
    """For groups of `counts[i]` rows laid one after the other, the group of each row: (sum,)."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def mean_per_owner(values: Tensor, weights: Tensor, group_index: Tensor, groups: int) -> Tensor:
    """Weighted mean (groups,) of values (N,) by their group_index (N,)."""
    total = values.new_zeros(groups).index_add(0, group_index, values * weights)
    return total / weights.new_zeros(groups).index_add(0, group_index, weights)
