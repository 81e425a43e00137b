"""The primary configurations, one per verb: the groups put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from vlatrain.config.adapter import AdapterConfig
from vlatrain.config.data import DataConfig
from vlatrain.config.limits import AT_LEAST_ONE, NOT_NEGATIVE, Choice
from vlatrain.config.logger import LoggerConfig
from vlatrain.config.methods import patterns
from vlatrain.config.model import ModelConfig, ModelTaskConfig
from vlatrain.config.optim import OptimConfig
from vlatrain.config.sweep import SweepConfig
from vlatrain.config.task import TaskConfig
from vlatrain.config.trainer import TrainerConfig


@dataclass
class RunConfig:
    """The run folder.

    Attributes:
        name: name of the run; null: a timestamp and a short id.
        dir: the folder; by default `outputs/<task>/<model>/<name>`.
        report: `auto` writes `report.html` at the end, if the extra `report` is installed; `off` does not.
    """

    name: str | None = None
    dir: str | None = None
    report: Annotated[str, Choice("auto", "off")] = "auto"


@dataclass
class TrainConfig:
    """`vlatrain [train]`, `vlatrain inspect` and `vlatrain check`: everything that defines a training.

    Attributes:
        task: the task.
        model: the frozen backbone.
        adapter: the method: what is trained.
        data: the samples.
        optim: the optimiser.
        trainer: the loop.
        logger: where metrics go.
        run: the run folder.
        sweep: of a sweep, what its jobs have in common.
        seed: seed of initialisation, order and dropout.
        resume: `auto` continues the run folder where it stopped, if it was begun; `no` refuses a folder that was.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: Annotated[int, NOT_NEGATIVE] = 0
    resume: Annotated[str, Choice("auto", "no")] = "no"

    @property
    def points(self) -> list[str]:
        """The point patterns in force: the adapter's (of all its components), else the task's."""
        return patterns(self.adapter, self.task.points)

    @property
    def served(self) -> ModelTaskConfig:
        """What serves the task in the backbone; the schema's defaults where nothing is said."""
        tasks = self.model.tasks
        return tasks.get(self.task.name) or tasks.get(self.task.spec.served_as) or ModelTaskConfig()


@dataclass
class CheckConfig(TrainConfig):
    """`vlatrain check`: look at the data of a training.

    Attributes:
        strict: whether warnings fail, too.
        output: file for the report as JSON; null: only the terminal.
    """

    strict: bool = False
    output: str | None = None


@dataclass
class EvalConfig(TrainConfig):
    """`vlatrain eval`: score a finished run again. The groups are the run's own; overrides change them.

    Attributes:
        source: the run folder (`run=FOLDER` on the command line).
        split: eval or test.
        output: folder of the results; null: `<run>/evaluations/<split>`, with a number behind it from the second on.
    """

    source: str = ""
    split: Annotated[str, Choice("eval", "test")] = "eval"
    output: str | None = None


@dataclass
class PredictConfig(TrainConfig):
    """`vlatrain predict`: ask the trained model. The groups are the run's own; overrides change them.

    Attributes:
        source: the run folder (`run=FOLDER` on the command line).
        subtask: joint training: name of the subtask that is asked; null: the only one that the query fits.
        image: an image, or a folder of images.
        images: several images that one question is about, in order.
        question: VQA: the question. Instruction following: what the user says. Grounding: the expression.
        text: retrieval: a text query over `image=FOLDER`.
        texts: retrieval: a list of texts, or a text file with one a line, for `image=FILE`.
        input: a file of samples (the formats of `data=files`).
        output: JSONL file of the results; null: only the terminal.
        draw: grounding: a folder for the images with their boxes drawn; null: nothing is drawn.
        top_k: number of answers, classes or hits shown for each query; of generated answers at most `task.decode.num_beams`.
    """

    source: str = ""
    subtask: str | None = None
    image: str | None = None
    images: list[str] = field(default_factory=list)
    question: str | None = None
    text: str | None = None
    texts: list[str] = field(default_factory=list)
    input: str | None = None
    output: str | None = None
    draw: str | None = None
    top_k: Annotated[int, AT_LEAST_ONE] = 5

    @property
    def asks_nothing(self) -> bool:
        """Whether there is no query: in a terminal, it is typed."""
        queries = (self.image, self.images, self.input, self.question, self.text, self.texts, self.output, self.draw)
        return not any(queries)


@dataclass
class MergeConfig(TrainConfig):
    """`vlatrain merge`: combine finished runs. The groups are the first run's own; overrides change them.

    Attributes:
        source: the first of the sources.
        sources: the run folders (`run=FOLDER` on the command line for a single one).
        weights: a factor for each source; empty: the mean.
        keep: of a fusion, how many of its sources are kept, the most used ones; null: it is no pruning.
        output: folder of the result; must not be there yet, or be empty.
    """

    source: str = ""
    sources: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    keep: Annotated[int | None, AT_LEAST_ONE] = None
    output: str = ""


@dataclass
class ExportConfig(TrainConfig):
    """`vlatrain export`: hand on what a run has trained, with a model card. The groups are the run's own.

    Attributes:
        source: the run folder (`run=FOLDER` on the command line), or `hub:OWNER/NAME`.
        to: a folder, new or empty; or `hub:OWNER/NAME`, a repository of the hub, which is made if it is not there.
        form: `adapter`: the adapter with what eval and predict need, for `run=`; `merged`: a whole checkpoint with the adapter
            in its weights, where that is exact; `peft-lora`: a LoRA that needs PEFT and transformers alone.
        license: the licence that it is given on under, by the hub's name for it; null: what is known of it.
        private: of a new repository, whether only its owner sees it.
    """

    source: str = ""
    to: str = ""
    form: Annotated[str, Choice("adapter", "merged", "peft-lora")] = "adapter"
    license: str | None = None
    private: bool = False


_TRAINING, _SCORING, _ASKING = ("train",), ("train", "eval"), ("train", "eval", "predict")

#: By key, with all below it, the verbs that read it; of several entries the longest counts. What is not here (`model`, `seed`, a
#: verb's own keys) all read. `inspect` and `check` take what train takes (`AS_TRAIN`).
READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adapter", "optim", "run", "resume", "sweep.prune"), _TRAINING),
    "sweep": ("train", "eval"),
    **dict.fromkeys(("task", "data", "trainer", "logger", "adapter.drop_layers", "adapter.sources"), _ASKING),
    **dict.fromkeys(("data.train", "data.eval", "data.test", "data.path", "data.subset", "data.streaming"), _SCORING),
    **dict.fromkeys(("data.annotations", "data.eval_annotations", "data.test_annotations", "data.revision"), _SCORING),
    **dict.fromkeys(("data.split", "data.columns.split", "data.skip_broken", "data.text_only"), _SCORING),
    **dict.fromkeys(
        ("data.train_size", "data.eval_size", "data.eval_fraction", "data.stratify", "data.seed", "trainer.workers"),
        _SCORING,
    ),
    **dict.fromkeys(("data.groups", "data.save_images", "data.images"), _SCORING),
    **dict.fromkeys(("logger.artifact",), _TRAINING),
    **dict.fromkeys(("data.shots", "data.balance"), _TRAINING),
    **dict.fromkeys(("data.crop", "data.flip", "data.views", "task.sampling", "task.sampling_temperature"), _TRAINING),
    **dict.fromkeys(("task.points", "task.matching", "task.negatives", "task.negatives_per_step"), _TRAINING),
    **dict.fromkeys(("trainer.epochs", "trainer.max_steps", "trainer.accumulate", "trainer.patience"), _TRAINING),
    **dict.fromkeys(("trainer.gradient_checkpointing", "trainer.compile", "trainer.keep"), _TRAINING),
    **dict.fromkeys(("trainer.eval_loss", "trainer.eval_frozen"), _TRAINING),
    **dict.fromkeys(("trainer.eval_every", "trainer.eval_share", "trainer.save_every", "trainer.log_every"), _TRAINING),
}


AS_TRAIN = ("inspect", "check")


def readers(key: str) -> tuple[str, ...]:
    """The verbs that read a key, by `READ_BY`; `inspect` and `check` are not named, as they take what train takes."""
    entry = max((known for known in READ_BY if key == known or key.startswith(f"{known}.")), key=len, default="")
    return READ_BY.get(entry, ("train", "eval", "predict", "merge", "export"))
