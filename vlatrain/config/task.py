"""Configuration of the task: what is asked of the model, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from vlatrain.config.limits import AT_LEAST_ONE, FINITE, NOT_NEGATIVE, POSITIVE, PROBABILITY, Choice, OrAuto
from vlatrain.config.spec import TaskSpec, shipped_spec
from vlatrain.config.wording import BY_LETTER, BY_TEXT, Wording

UNSEEN = 20  # tokens that texts are generated of at most, where no data has said how long they get


@dataclass
class DecodeConfig:
    """How text is generated in evaluation and prediction.

    Attributes:
        num_beams: beams of the search; 1 is greedy.
        max_new_tokens: longest generated text, in tokens; auto: what the longest of the data's targets takes, see
            `vlatrain.tasks.lengths`.
        min_new_tokens: shortest generated text, in tokens.
        length_penalty: exponent of the length in the beam score (beams only).
    """

    num_beams: Annotated[int, AT_LEAST_ONE] = 1
    max_new_tokens: Annotated[int | str, OrAuto(AT_LEAST_ONE)] = "auto"
    min_new_tokens: Annotated[int, NOT_NEGATIVE] = 0
    length_penalty: Annotated[float, FINITE] = 1.0

    @property
    def most_new(self) -> int:
        """`max_new_tokens`, or what it is taken for as long as the data has not been seen."""
        return self.max_new_tokens if isinstance(self.max_new_tokens, int) else max(UNSEEN, self.min_new_tokens)


@dataclass
class TaskConfig:
    """A task, its default injection points, and its settings.

    Attributes:
        name: one of `conf/task/`, joint for several of them in one run, or a task of one's own (`vlatrain/tasks/README.md`).
        points: default injection points of the task, as patterns; `adapter.points` overrides them.
        rate: the task's learning rate as a factor on `model.adapter_lr`, where what it trains in the backbone learns slower than
            its own new head does, which has `model.adapter_lr`; of a joint task the least of its subtasks'.
        metric: the metric that selects the best checkpoint (higher is better).
        answers: VQA: `generate` writes an answer freely; `rank` picks the likeliest of `answer_list`; of questions with options of
            their own, `options` picks the likeliest, and `letter` the likeliest of their letters, which `prompt` must show.
        answer_list: VQA with `answers=rank`, and on a backbone that answers by choice (ViLT): the candidate answers; empty takes
            those of the checkpoint, if it has a list and the training data fits it, else every answer of the training data.
        prompt: captioning: text that every caption starts with; it is given, not learned. VQA: the question as it is asked, with
            columns in braces: `{question} Options: {options}`; empty: the question as it is.
        classes: classification: the classes; empty takes those of the training data, sorted. segmentation: their names by their
            numbers in the masks, from 0; empty takes the numbers themselves.
        templates: classification: the texts that a class is compared by, `{}` in place of its name; the features of several are
            averaged.
        base_to_new: classification: learn the first half of the classes in alphabetical order (of those listed, in their order),
            and score each half among its own classes: `accuracy` of the base half, `new_accuracy`, and their `harmonic_mean`.
        question: classification by a model that writes: what it is asked, to rank the classes as answers.
        ignore: segmentation: the number of pixels in masks that are neither learned nor scored.
        java_metrics: captioning: also METEOR and SPICE (need Java and `vlatrain[captions]`; a minute for some thousand captions).
        temperature: retrieval, classification: temperature of the softmax over similarities; null uses the backbone's own.
        matching: retrieval: also train image-text matching with hard negatives, where the backbone has a head for it or
            adapters that read the other modality (CLIP's text tower).
        rerank: retrieval: the best k by similarity are ranked again by matching; 0 leaves that out.
        negatives: retrieval by matching alone (ViLT): wrong texts that each image, and wrong images that each text, is compared
            with in a step; as many as the batch has, if that is fewer.
        negatives_per_step: retrieval by features: so many samples of a step are contrasted with each other, whatever a pass holds
            and however many processes there are; null: those of a pass of a process.
        several: grounding: whether an expression names several things of a class, or none, and average precision is scored.
        threshold: grounding with `several`: the least score of boxes that a prediction shows.
        max_length: longest question, answer, caption or conversation, in tokens; longer ones are cut, and so are those for which
            the model has no positions. auto: the least that cuts nothing of the data, but for texts of more than four times the
            99th percentile.
        decode: generation settings.
        subtasks: joint: tasks under names that the user chooses; see `vlatrain.config.joint`.
        sampling: joint: how often each subtask's samples come in training: proportional (each once an epoch), balanced (as many of
            each subtask) or temperature.
        sampling_temperature: joint with `sampling=temperature`: shares go with size^(1 / T); 1 is proportional.
        spec: what the task is; no option. Where nothing is said, that of the shipped task of the name.
    """

    name: str = "vqa"
    points: list[str] = field(default_factory=list)
    rate: Annotated[float, POSITIVE] = 1.0
    metric: str = "accuracy"
    answers: Annotated[str, Choice("generate", "rank", BY_TEXT, BY_LETTER)] = "generate"
    answer_list: list[str] = field(default_factory=list)
    prompt: str = ""
    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    base_to_new: bool = False
    question: str = "what is in the picture?"
    ignore: Annotated[int, NOT_NEGATIVE] = 255
    java_metrics: bool = False
    temperature: Annotated[float | None, POSITIVE] = None
    matching: bool = True
    rerank: Annotated[int, NOT_NEGATIVE] = 0
    negatives: Annotated[int, AT_LEAST_ONE] = 15
    negatives_per_step: Annotated[int | None, AT_LEAST_ONE] = None
    several: bool = False
    threshold: Annotated[float, PROBABILITY] = 0.3
    max_length: Annotated[int | str, OrAuto(AT_LEAST_ONE)] = "auto"
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    subtasks: dict[str, Any] = field(default_factory=dict)
    sampling: Annotated[str, Choice("proportional", "balanced", "temperature")] = "proportional"
    sampling_temperature: Annotated[float, AT_LEAST_ONE] = 2.0
    spec: TaskSpec = field(default_factory=TaskSpec)

    @property
    def wording(self) -> Wording:
        """How its questions are made, if it is one that answers them."""
        return Wording(self.prompt, self.answers) if "answers" in self.spec.fields else Wording()

    @property
    def begins_with(self) -> str:
        """What every text that it writes begins with."""
        return "" if "answers" in self.spec.fields else self.prompt

    def most(self, room: int) -> int:
        """The most tokens that a text is cut to, of so many that there is room for: all, as long as no data has been seen."""
        return max(1, min(self.max_length, room) if isinstance(self.max_length, int) else room)

    def __post_init__(self) -> None:
        if self.spec == TaskSpec():
            self.spec = shipped_spec(self.name)
