"""The model card of what was trained: what it is, what it scores, how to load it. Its metadata are the hub's own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlatrain.backbones.describe import ASSETS, checkpoints_of, is_plain
from vlatrain.config import TrainConfig, hub
from vlatrain.config.files import write_file
from vlatrain.config.joint import scores as score_specs
from vlatrain.config.joint import subtasks
from vlatrain.config.methods import ROUTER, components
from vlatrain.injection.sources import TRUNK
from vlatrain.reporting.scores import shown_score
from vlatrain.reporting.snippets import PHOTO, backbone, by_peft, checkpoint, loading, words_of_backbone
from vlatrain.reporting.summary import asking
from vlatrain.runs import hub_name
from vlatrain.runs.baselines import beside_baseline

LICENSE = "apache-2.0"  # of what is shipped
UNKNOWN = "unknown"  # a licence by the hub's list: whoever trains says under which one it is given on
ADAPTER, MERGED, PEFT_LORA = FORMS = ("adapter", "merged", "peft-lora")

INTRODUCTION = {
    ADAPTER: "An adapter for a frozen {model}",
    MERGED: "A {model} with an adapter in its weights",
    PEFT_LORA: "A LoRA of PEFT's for a frozen {model}",
}
ROUTING = "A router, which picks for each sample the run that answers it, each an adapter for a frozen {model}"
CHOICES = (
    "It picks among {runs}: the sample's own run for {accuracy:.2f} % of the evaluation data, which scores {of_oracle:.2f} % of "
    "what that run always would. The runs must be as they were; of each, `router.json` has a hash.\n"
)
COMPONENTS = (
    "It has {components}, each in a folder of its own, and each an adapter by itself, which `PeftModel.from_pretrained` loads "
    "from there.\n"
)
COMPONENT = (
    "# The component {component} ({design}) of an adapter for {task} on {model}\n\n"
    "It was trained together with the other components; `../README.md` says how to load them all.\n"
)


@dataclass(frozen=True)
class Place:
    """Where what a card describes is to be had.

    Attributes:
        run: what `vlatrain.load` and `run=` take: a folder, or `hub:OWNER/NAME`.
        folder: where the adapter's files are, or the checkpoint's: a folder, or `hub:OWNER/NAME`.
    """

    run: str
    folder: str


def write_card(
    folder: Path,
    config: TrainConfig,
    metrics: Mapping[str, Any],
    place: Place,
    form: str = ADAPTER,
    license: str | None = None,
) -> None:
    """Write `README.md` into a folder, in place of a generic one; into those of components, too.

    Args:
        folder: the folder with the adapter or the checkpoint.
        config: the run's configuration.
        metrics: the content of its `metrics.json`; of a merged run there is none.
        place: where it will be.
        form: one of `FORMS`.
        license: under which licence it is given on; None: that of the shipped, if nothing else went into it.
    """
    routed = config.adapter.name == ROUTER
    tasks = f"{', '.join(config.task.subtasks)}" if routed else config.task.name
    title = f"{config.adapter.name} for {tasks} on {config.model.name}"
    license = license or _license(config)
    data = _metadata(config, metrics, title, form, license)
    named = components(config.adapter) if config.adapter.components and form == ADAPTER else {}
    text = "\n".join(_sections(folder, config, metrics, place, form, title, license, named))
    write_file(folder / "README.md", str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")))
    for name, component in named.items():
        about = {"design": component.name, "task": config.task.name, "model": config.model.name}
        own = ModelCardData(base_model=data.base_model, library_name="peft", license=data.license, tags=data.tags)
        write_file(
            folder / name / "README.md", f"---\n{own.to_yaml()}\n---\n\n{COMPONENT.format(component=name, **about)}"
        )


def hub_bases(config: TrainConfig) -> list[str]:
    """The names on the hub of what the backbone is made of; none where some of it is not from there."""
    names = _checkpoints(config)
    remote = [name for name in names if re.fullmatch(hub.NAME, name) and not Path(name).is_dir()]
    return remote if len(remote) == len(names) else []


def _checkpoints(config: TrainConfig) -> list[str]:
    """Folders and names on the hub of what the backbone is made of; of a router, for the tasks of its runs."""
    if config.model.random_init:
        return []
    routed = config.adapter.name == ROUTER
    tasks = [one.task.name for one in subtasks(config).values()] if routed else [config.task.name]
    return [*dict.fromkeys(name for task in tasks for name in checkpoints_of(config.model, task).values())]


def _metadata(config: TrainConfig, metrics: Mapping[str, Any], title: str, form: str, license: str) -> ModelCardData:
    bases, pipeline = hub_bases(config), config.task.spec.pipeline or None
    datasets = {one.data.path for one in subtasks(config).values() if one.data.name == "hub" and one.data.path}
    relation: dict[str, Any] = {"base_model_relation": "finetune" if form == MERGED else "adapter"} if bases else {}
    is_full = config.adapter.name == "full" and form == ADAPTER
    return ModelCardData(
        base_model=(bases[0] if len(bases) == 1 else bases) or None,
        datasets=sorted(path for path in datasets if not Path(path).is_dir()) or None,
        eval_results=list(_results(config, metrics)) or None,
        library_name="transformers" if form == MERGED else "vlatrain" if is_full else "peft",
        license=license,
        model_name=title,
        pipeline_tag=pipeline,
        tags=["vlatrain", config.task.name, config.adapter.name],
        **relation,
    )


def _license(config: TrainConfig) -> str:
    shipped = all(Path(name).is_relative_to(ASSETS) for name in _checkpoints(config))
    generated = all(one.data.name == "shapes" for one in subtasks(config).values())
    return LICENSE if shipped and generated else UNKNOWN


def _results(config: TrainConfig, metrics: Mapping[str, Any]) -> Iterator[EvalResult]:
    """The figures of each split, for the hub's `model-index`."""
    named = sorted({one.data.path or one.data.name for one in subtasks(config).values()})
    for split, record in _splits(metrics).items():
        for name, value in record["metrics"].items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield EvalResult(
                    task_type=config.task.spec.pipeline or "other",
                    dataset_type=named[0],
                    dataset_name=", ".join(Path(one).name for one in named),
                    dataset_split=split,
                    metric_type=name,
                    metric_name=name,
                    metric_value=round(float(value), 4),
                )


def _splits(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    known = {"eval": metrics, "test": metrics.get("test") or {}}
    return {split: record for split, record in known.items() if record.get("metrics")}


def _sections(
    folder: Path,
    config: TrainConfig,
    metrics: Mapping[str, Any],
    place: Place,
    form: str,
    title: str,
    license: str,
    named: Mapping[str, Any],
) -> Iterator[str]:
    yield f"# {title}\n"
    introduction = ROUTING if config.adapter.name == ROUTER else INTRODUCTION[form]
    yield introduction.format(model=config.model.name) + f", made by vlatrain {_facts(config, metrics)}.\n"
    yield from _scores(config, metrics)
    if "router" in metrics:
        yield CHOICES.format(runs=", ".join(f"`{name}`" for name in metrics["router"]["sources"]), **metrics["router"])
    yield "## Load it\n"
    if form == ADAPTER:
        yield _code(loading(config, place.run))
        asked = ", ".join(f"`{command}`" for command in asking(config, place.run))
        yield f"`{PHOTO}` is yours. From a terminal: {asked}.\n"
    elif form == MERGED:
        if is_plain(config):
            yield "Nothing but transformers is needed:\n"
            yield _code(checkpoint(config, hub_name(place.folder) or place.folder))
        else:
            yield _code(backbone(config, place.folder))
        words = " ".join(words_of_backbone(config, place.folder))
        yield f"In vlatrain it is a backbone, which `vlatrain {words}` scores.\n"
    trunk = (folder / TRUNK).is_file()
    if form != MERGED and (code := by_peft(config, place.folder, trunk, ours=form == ADAPTER)):
        if form == ADAPTER:
            yield "Into transformers' own model by PEFT:\n"
        yield _code(code)
    if named:
        yield COMPONENTS.format(
            components=" and ".join(f"{component.name} as `{name}`" for name, component in named.items())
        )
    if license == UNKNOWN:
        yield "Its licence is not said: that of the backbone, of the data, and what whoever gives it on has decided apply.\n"


def _facts(config: TrainConfig, metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "from finished runs"
    data = ", ".join(sorted({one.data.name for one in subtasks(config).values()}))
    epochs = (metrics.get("training") or {}).get("epochs")
    return (
        "{version}: {trainable:,} parameters ({percent:.2f} % of {total:,}) have trained (`adapter={design}`), {epochs}on "
        "`data={data}`, seed {seed}; the backbone is {backbone}"
    ).format(
        version=metrics["versions"]["vlatrain"],
        design=config.adapter.name,
        data=data,
        seed=config.seed,
        epochs="" if epochs is None else f"{epochs:.4g} epochs ",
        backbone=metrics["backbone"],
        **metrics["parameters"],
    )


def _scores(config: TrainConfig, metrics: Mapping[str, Any]) -> Iterator[str]:
    """A table of the figures, each with what it is compared with."""
    splits = _splits(metrics)
    if not splits:
        return
    known = score_specs(config.task)
    yield "| metric | split | value | best baseline |\n|---|---|---|---|"
    for split, record in splits.items():
        for name, value in record["metrics"].items():
            beaten = beside_baseline(record, name, known[name].higher_is_better if name in known else True)
            base = f"{shown_score(config, name, beaten.value)} ({beaten.name})" if beaten else ""
            yield f"| {name} | {split} | {shown_score(config, name, value)} | {base} |"
    yield ""


def _code(lines: str) -> str:
    return f"```python\n{lines}\n```\n"
