"""From a configuration to samples, a backbone with its adapters, and a task: what training, evaluation and prediction share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from peft import PeftModel
from torch import nn

from vlatrain.adapters.coop import Coop
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import has_trained_head, sites
from vlatrain.backbones.fetching import pinned
from vlatrain.backbones.head_checks import ill_headed
from vlatrain.backbones.loading import fetch_settings, load
from vlatrain.backbones.quantise import layers_of, size_of, trained_biases
from vlatrain.backbones.reuse import separate
from vlatrain.config import AdapterConfig, TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.config.files import replace_folder, write_manifest
from vlatrain.data.lazy import Images, by_subtask, joined, most_images
from vlatrain.data.sample import Sample, texts_of
from vlatrain.injection.attach import attach, restore
from vlatrain.injection.mixed import Mixed
from vlatrain.injection.trunk import bare
from vlatrain.runs import RunFolder
from vlatrain.tasks import Evaluation, Task, build, prepare, subtasks_of
from vlatrain.tasks.lengths import check_lengths, settled
from vlatrain.tasks.sample_checks import check_samples
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import Display
from vlatrain.training.fitting import fitted
from vlatrain.training.journal import Journal
from vlatrain.training.lowering import lower_for_good
from vlatrain.training.modes import cast_trunk, keep_from_overflow
from vlatrain.training.precision import (
    DTYPES,
    autocast,
    choose_device,
    choose_precision,
    own,
    refuse_without_effect,
    set_torch,
)
from vlatrain.training.processes import count
from vlatrain.training.sharding import shard
from vlatrain.training.stopwatch import Stopwatch
from vlatrain.training.workers import choose_workers

log = logging.getLogger("vlatrain")


@dataclass
class TrainingSetup:
    """Everything a run works with.

    Attributes:
        config: the configuration, with what it left open: the answers to choose from, the classes, the samples of a pass.
        backbone: the frozen backbone, adapters in it.
        model: the same model as the method returns it (a `PeftModel` for adapters): what is trained and saved.
        task: the task on the backbone.
        predicted_peak: bytes that a training is predicted to take at its peak; None: nothing depended on it.
    """

    config: TrainConfig
    backbone: Backbone
    model: nn.Module
    task: Task
    predicted_peak: int | None = None

    @property
    def layers(self) -> list[nn.Module]:
        """Every layer of every tower."""
        return layers_of(self.backbone.model, self.backbone.config, self.backbone.task)

    @property
    def is_adapter(self) -> bool:
        """Whether what is trained is saved as a PEFT adapter: not so for full fine-tuning, nor for none."""
        return isinstance(self.model, (PeftModel, Mixed))

    def parameters(self, trainable: bool = False) -> int:
        """Number of parameters, shared ones once; of those that train only, if asked."""
        return sum(size_of(p) for p in self.model.parameters() if p.requires_grad or not trainable)


def new_setup(config: TrainConfig, samples: Mapping[str, Sequence[Sample]], run: Path | None = None) -> TrainingSetup:
    """A backbone with new adapters, for training.

    Args:
        config: the configuration.
        samples: by split; a random backbone's tokenizer and an answer list are made from `train`.
        run: a run folder whose processor is used where there is one (resuming).

    Raises:
        UserError: the weights cannot be had, the points select nothing, the texts leave nothing to learn, or biases of packed
            layers are to train.
    """
    train = samples["train"]
    sites(config.model, config.task.name, config.points)  # what selects nothing is refused before anything is read
    device = choose_device(config.trainer.device)
    precision = choose_precision(config.trainer.precision, device)
    refuse_without_effect(config.trainer, device, precision)
    if config.adapter.name == "none" and has_trained_head(config.model, config.task.name) is None:
        fetch_settings(config.model, config.task.name)
        if wrong := [*ill_headed(config)]:
            raise UserError(wrong)
    backbone = load(
        config.model,
        config.task.name,
        texts=texts_of(train),
        seed=config.seed,
        run=run,
        device=own(device),
        dtype=_trunk_type(config, device, precision),
    )
    config = replace(config, model=pinned(config.model, config.task.name))
    where = sites(config.model, config.task.name, config.points)  # of the checkpoint, which may only now be here
    if config.data.scale_jpegs:
        backbone.scale_jpegs()
    # images that the processor refuses are told before any is processed to see how many tokens it comes to
    check_samples(backbone, joined(samples.values()))
    task = with_lengths(build(prepare(config.task, backbone, train), backbone, train), samples)
    config = replace(config, task=task.config)
    check_lengths(subtasks_of(task), samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the same adapters at the start, in every process and in every run of this seed
        method = _sized(config.adapter, len(task.learned(train)))
        model = attach(backbone.model, method, where, [*config.task.subtasks])
    for module in model.modules():
        if isinstance(module, Coop):
            module.begin_at(_specials_in_front(backbone))
    separate(parameter for parameter in model.parameters() if parameter.requires_grad)
    if config.model.quantize and (names := [bare(name) for name in trained_biases(model)]):
        raise UserError(
            f"model.quantize={config.model.quantize}: {len(names)} biases of packed layers cannot train: "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; "
            "leave biases out of adapter.trunk and adapter.options.bias, use adapter=bitfit, which adds vectors of its own, "
            "or set model.quantize=null"
        )
    trainer, peak = fitted(config, backbone, model, task, train, device, precision)
    trainer = replace(trainer, workers=choose_workers(trainer, task, train, trainer.samples_per_pass, device))
    return TrainingSetup(replace(config, trainer=trainer), backbone, model, task, peak)


def _sized(method: AdapterConfig, samples: int) -> AdapterConfig:
    """A method that keeps training samples with the number of them: all, where it names none or more than there are."""
    if "samples" not in method.options or "classes" not in method.needs:
        return method
    return replace(method, options={**method.options, "samples": min(method.options["samples"] or samples, samples)})


def _specials_in_front(backbone: Backbone) -> int:
    """How many special tokens stand in front of a text's first word."""
    special = set(backbone.tokenizer.all_special_ids)
    ids: list[int] = backbone.tokenizer("a")["input_ids"]
    return next((place for place, token in enumerate(ids) if token not in special), 0)


def load_setup(
    config: TrainConfig,
    run: Path,
    device: torch.device,
    precision: str,
    samples: Mapping[str, Sequence[Sample]] = MappingProxyType({}),
    shared: bool = True,
) -> TrainingSetup:
    """A backbone with a finished run's adapters, for inference.

    Args:
        config: the run's configuration.
        run: the run folder.
        device: where it goes.
        precision: what `choose_precision` returned; on a GPU the frozen trunk is cast to it, as in training.
        samples: by split, what it is to be scored on.
        shared: whether all processes compute the same samples together, so that they can hold the weights together
            (`trainer.shard`).

    Raises:
        UserError: the weights or the adapter cannot be had, or nothing is left of the samples' texts.
    """
    set_torch(config.trainer)
    dtype = _trunk_type(config, device, precision)
    backbone = load(config.model, config.task.name, seed=config.seed, run=run, device=device, dtype=dtype)
    if config.data.scale_jpegs:
        backbone.scale_jpegs()
    task = build(prepare(config.task, backbone), backbone)
    check_samples(backbone, joined(samples.values()))
    check_lengths(subtasks_of(task), samples)
    if precision == "fp16":
        keep_from_overflow(backbone.model)
    if device.type != "cpu" and dtype != torch.float32:
        cast_trunk(backbone.model, dtype, config.trainer.low_norms)  # before the adapter is there, which stays in fp32
    where = sites(config.model, config.task.name, config.points)
    model = restore(backbone.model, config.adapter, RunFolder(run).adapter, where)
    model.requires_grad_(False).eval()
    setup = TrainingSetup(config, backbone, model, task)
    if config.trainer.shard and shared and count() > 1:
        shard(model, setup.layers, device)
    else:
        model.to(device)
    if precision != "fp32":
        lower_for_good(model, DTYPES[precision])
    return setup


def _trunk_type(config: TrainConfig, device: torch.device, precision: str) -> torch.dtype:
    """The type that frozen weights are held in: fp32 on a CPU, where packed ones are unpacked into what is computed in."""
    lower = (device.type != "cpu" or config.model.quantize) and config.adapter.name != "full"
    return DTYPES[precision] if lower else torch.float32


def with_lengths(task: Task, samples: Mapping[str, Sequence[Sample]]) -> Task:
    """A task with numbers for the lengths that are `auto`."""
    every = joined(samples.values())
    task.backbone.measure(Images(every), most_images(every))
    known: dict[str, TaskConfig] = {}
    for name, subtask in subtasks_of(task).items():
        known[name] = found = settled(subtask, by_subtask(samples, name))
        key, new = f"task.subtasks.{name}." if name else "task.", found.decode.max_new_tokens
        written = f", {key}decode.max_new_tokens={new}" if new != "auto" else ""
        log.info("Lengths: %smax_length=%s%s", key, found.max_length, written)
    config = replace(task.config, subtasks=known) if task.config.subtasks else known[""]
    return build(config, task.backbone, samples["train"])


def scored(
    setup: TrainingSetup,
    samples: Sequence[Sample],
    config: TrainerConfig,
    device: torch.device,
    precision: str,
    display: Display,
    watch: Stopwatch | None = None,
    journal: Journal | None = None,
) -> Evaluation:
    """Predict and score samples with a model in eval mode, in the precision of its training; processes share the work."""
    size = config.samples_per_evaluation_pass
    batches = SharedBatches(device, size, config.loaders, display, journal=journal)
    with torch.no_grad(), autocast(device, precision):
        return setup.task.evaluate(samples, watch.timed(batches) if watch else batches)


def keep_processor(setup: TrainingSetup, run: Path) -> None:
    """Keep a random backbone's processor in the run: nothing else could bring its tokenizer back."""
    if setup.backbone.config.random_init:

        def write_processor(folder: Path) -> None:
            setup.backbone.processor.save_pretrained(str(folder))
            write_manifest(folder)

        replace_folder(RunFolder(run).processor, write_processor)
