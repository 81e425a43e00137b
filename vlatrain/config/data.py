"""Configuration of the data: where samples come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from vlatrain.config.limits import AREA, AT_LEAST_ONE, DROP_RATE, NOT_NEGATIVE, POSITIVE, PROBABILITY, SPLIT, Choice

SPLIT_VALUES = {
    "train": ("train", "training", "restval"),
    "eval": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
"""By split, what a column that tells splits apart usually says. Karpathy's split of COCO adds `restval` to its training set."""


BOX_FORMS = (
    "xyxy", "xywh", "xyxy_normalised", "xywh_normalised", "cxcywh_normalised", "xyxy_padded", "xyxy_1000",
)  # fmt: skip
"""How boxes may be written, see `vlatrain.data.boxes`."""


@dataclass
class ColumnsConfig:
    """Which column of the user's data holds what. Null means: the column of that name, where there is one. `a.b` is the `b` in the
    objects of column `a`.

    Attributes:
        id: column of the sample's id; absent: the row's place, as `t.jsonl:12` or `t.json[3]`.
        image: image path relative to `data.root`, or an image, or a list of them; null looks for `image`, then `images`.
        question: question.
        options: the options of a question, a list of texts, for `task.answers=options` and `letter`, and `{options}` in
            `task.prompt`; null looks for `options`, `choices`, `multiple_choices`, then for columns `A`, `B`, ...
        answers: one answer, a list of answers, or a list of objects with `answer` (and optionally `weight`); null looks for
            `answer`, then `answers`.
        weights: weights of the answers.
        captions: one caption or a list; null looks for `caption`, then `captions`.
        label: name of the class.
        mask: path relative to `data.root`, or an image, whose pixels are the numbers of their classes; null looks for `mask`.
        boxes: one box or a list, as `data.boxes` says; null looks for `box`, `boxes`, then `bbox`.
        conversations: a list of messages, LLaVA's or chat messages; null looks for `conversations`, then `messages`.
        split: the split that a row belongs to, see `SplitConfig`; empty: no column says it.
    """

    id: str | None = None
    image: str | None = None
    question: str | None = None
    options: str | None = None
    answers: str | None = None
    weights: str | None = None
    captions: str | None = None
    label: str | None = None
    mask: str | None = None
    boxes: str | None = None
    conversations: str | None = None
    split: str | None = None


@dataclass
class SplitConfig:
    """Which values of the split column make which split. Null means: the usual names, see `SPLIT_VALUES`.

    Attributes:
        train: of the rows of `data.train`, those to train on.
        eval: of the rows of `data.eval`, or where that is null of `data.train`, those to evaluate on during training.
        test: of the rows of `data.test`, or where that is null of `data.train`, those of the final test.
    """

    train: list[str] | None = None
    eval: list[str] | None = None
    test: list[str] | None = None


@dataclass
class DataConfig:
    """A source of samples.

    Attributes:
        name: shapes (built in), files (the user's own) or hub (`datasets.load_dataset`).
        train: files: path of the training file or folder. hub: name of the training split.
        eval: the same for evaluation during training; null takes what the split column of `train` marks as such, else splits
            `eval_fraction` off the training data, seeded.
        test: the same for the final test; null: none.
        annotations: files: the answers to the questions of `train`, where they have a file of their own (VQA v2).
        eval_annotations: the same for `eval`.
        test_annotations: the same for `test`.
        split: what the split column says.
        root: image root; null: the folder of the data file.
        columns: column map.
        boxes: how boxes are written: by edges (xyxy) or corner and sides (xywh) in pixels of the upright image; the same in shares
            of its size (xyxy_normalised, xywh_normalised), or centre and sides (cxcywh_normalised); edges in shares of the
            square that the image is padded to (xyxy_padded), or in thousandths (xyxy_1000). Layouts that say it themselves are read
            as they say.
        skip_broken: the greatest share of a split's samples that is left out where their images are missing or cannot be read.
        max_megapixels: images of more are refused before they are decoded.
        text_only: what becomes of conversations without an image: train (as text), drop (left out) or refuse.
        max_images: the most images of a sample, of tasks and models that take several: a row with more is refused.
        pairs: shapes: ask about two pictures, each of which says nothing of the answer without the other.
        train_size: number of generated samples (shapes), else a cap on the training samples; null: all.
        eval_size: the same for evaluation and test.
        eval_fraction: share of the training data split off for evaluation where `eval` is null. Samples that share an image stay
            together.
        stratify: whether hold-outs and caps of samples with classes are drawn class by class, so that each keeps its share.
        shots: so many training samples of each class, drawn with this seed and the run's `seed`; fewer are among more. null: all.
        balance: `classes` repeats training samples until every class has as many as the largest; `none` takes each once.
        seed: seed of generation and splitting.
        crop: least share of a training image's area that a random crop leaves; 1: no cropping.
        flip: probability of mirroring a training image.
        scale_jpegs: decode large JPEGs at a fraction of their size, with at least twice the pixels a side that the model takes;
            faster, and slightly other pixels. Not for models that take an image's own size.
        images: shown, or blank: a grey one in place of each, so that only texts are learned from, or asked with.
        views: crops and flips are drawn from so many fixed views of each image; 0: anew each time.
        path: hub: data set name or local folder.
        subset: hub: configuration name of the data set.
        revision: hub: a branch, a tag or a commit; null: the main branch.
        streaming: hub: stream instead of downloading everything (needs `train_size` and `eval_size`).
        groups: columns by whose values scores are given, too: of evaluated data.
        save_images: write evaluated images that are no files of their own into the run folder, for `predictions.jsonl` to name.
        subtasks: joint training: what differs for a subtask, by its name: `{vqa: {train: a.jsonl}}`.
    """

    name: Annotated[str, Choice("shapes", "files", "hub")] = "shapes"
    train: str | None = None
    eval: str | None = None
    test: str | None = None
    annotations: str | None = None
    eval_annotations: str | None = None
    test_annotations: str | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    root: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    boxes: Annotated[str, Choice(*BOX_FORMS)] = "xyxy"
    skip_broken: Annotated[float, DROP_RATE] = 0.0
    max_megapixels: Annotated[float, POSITIVE] = 64.0
    text_only: Annotated[str, Choice("train", "drop", "refuse")] = "train"
    max_images: Annotated[int, AT_LEAST_ONE] = 8
    pairs: bool = False
    train_size: Annotated[int | None, AT_LEAST_ONE] = None
    eval_size: Annotated[int | None, AT_LEAST_ONE] = None
    eval_fraction: Annotated[float, SPLIT] = 0.1
    stratify: bool = True
    shots: Annotated[int | None, AT_LEAST_ONE] = None
    balance: Annotated[str, Choice("none", "classes")] = "none"
    seed: Annotated[int, NOT_NEGATIVE] = 0
    crop: Annotated[float, AREA] = 1.0
    flip: Annotated[float, PROBABILITY] = 0.0
    views: Annotated[int, NOT_NEGATIVE] = 0
    scale_jpegs: bool = True
    images: Annotated[str, Choice("shown", "blank")] = "shown"
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    streaming: bool = False
    groups: list[str] = field(default_factory=list)
    save_images: bool = False
    subtasks: dict[str, Any] = field(default_factory=dict)
