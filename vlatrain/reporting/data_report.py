"""The data report: facts of the samples of a run, of their texts in the backbone's tokens, and what is likely wrong with them.

It is kept on disk by all that it depends on: the samples, the state of their image files, task, backbone and its tokenizer. What is
said of the same data a second time needs neither torch nor a tokenizer. Its form is that of `data.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlatrain import __version__
from vlatrain.backbones.describe import SHIPPED
from vlatrain.config import TrainConfig
from vlatrain.config.checks.serving import serving
from vlatrain.config.files import state_of
from vlatrain.config.joint import subtasks
from vlatrain.config.memo import keep_result, key_of, load_result
from vlatrain.data.facts import facts_of
from vlatrain.data.images import FilePicture, identity
from vlatrain.data.lazy import Lazy, by_subtask, pictures
from vlatrain.data.sample import Picture, Sample, fingerprint
from vlatrain.reporting.data_lookup import FORM, key_of_files, tokenizer_files

TEXTS = "texts"  # the kind of warnings that the checks of lengths give, too
DECODED, PATIENCE = 4, 0.2  # images of each split, and seconds, that the short form before a training costs at most
SCENES = (
    "{of} of the {looked} images of data.{split} that were decoded look like photographs, and model={model} has seen nothing but "
    "generated scenes of coloured shapes, 64 x 64 pixels; for photographs take model={others}"
)
OTHERS = 4  # backbones that are named as able to do the task
Texts = Callable[[], Mapping[str, Any]]


def report_of(
    config: TrainConfig,
    samples: Mapping[str, Sequence[Sample]],
    texts: Texts,
    brief: bool = False,
    said: Sequence[tuple[int, str]] | None = None,
) -> dict[str, Any]:
    """The data report of a run.

    Args:
        config: the run's configuration.
        samples: by split.
        texts: called unless it is kept: `texts` (by subtask and split, see `vlatrain.tasks.text_facts`), `warnings`, and
            `problems`, with which nothing is kept.
        brief: for a training, which is to begin soon: few images are decoded. A whole report that is kept is taken instead.
        said: what was logged when the samples were read, level and message: `look_up` then finds the report by the data files.

    Returns:
        `subtasks`: by name (empty: not a joint task) `splits` with facts of samples, images, classes, answers, captions and
        texts; `warnings`: each with `kind` and `message`; `problems`.
    """
    data = _key_of_data(samples)
    about = key_of(
        FORM, __version__, data, asdict(config.task), asdict(config.model), config.data.name, tokenizer_files(config)
    )
    for key in (f"{about}", f"{about}-brief")[: 1 + brief]:
        if report := load_result(key):
            if said is not None:
                _remember(config, samples, about, said)
            return dict(report)
    report = {"subtasks": {}, "warnings": []}
    for name in subtasks(config):
        facts = _facts(key_of(FORM, __version__, data, name), by_subtask(samples, name), brief)
        report["subtasks"][name] = {"splits": facts["splits"]}
        subtask = f"subtask {name}: " if name else ""
        if config.data.name != "shapes":  # what is generated is as it is
            report["warnings"] += [{**one, "message": subtask + one["message"]} for one in facts["warnings"]]
    report["warnings"] += _of_another_world(config, report["subtasks"])
    found = texts()
    for name, by_split in found["texts"].items():
        for split, rows in by_split.items():
            report["subtasks"][name]["splits"][split]["texts"] = rows
    report["warnings"] += found["warnings"]
    report["problems"] = list(found["problems"])
    if not report["problems"]:
        keep_result(f"{about}-brief" if brief else about, report)
        if said is not None:
            _remember(config, samples, about, said)
    return report


def _remember(
    config: TrainConfig, samples: Mapping[str, Sequence[Sample]], about: str, said: Sequence[tuple[int, str]]
) -> None:
    """Keep by the state of the data files under what their report is kept."""
    if key := key_of_files(config):
        files = {one.path for given in samples.values() for one in pictures(given) if isinstance(one, FilePicture)}
        images = [[path, *(state_of(path) or [])] for path in sorted(files)]
        keep_result(key, {"about": about, "images": images, "said": [list(one) for one in said]})


def _facts(key: str, samples: Mapping[str, Sequence[Sample]], brief: bool) -> dict[str, Any]:
    """The facts that need no backbone, which those of other tasks and backbones on the same data share."""
    for known in (key, f"{key}-brief")[: 1 + brief]:
        if facts := load_result(known):
            return dict(facts)
    facts = facts_of(samples, DECODED, PATIENCE) if brief else facts_of(samples)
    keep_result(f"{key}-brief" if brief else key, facts)
    return facts


def _key_of_data(samples: Mapping[str, Sequence[Sample]]) -> str:
    """A hash of samples and of the state of their image files."""
    held = [given for given in samples.values() if not isinstance(given, Lazy)]
    stamps = sorted({_stamp(picture) for given in held for picture in pictures(given)}, key=str)
    mapped = [given.stamp for given in samples.values() if isinstance(given, Lazy)]  # with the state of their images
    return key_of({split: fingerprint(given) for split, given in samples.items()}, stamps, *mapped)


def _stamp(picture: Picture) -> Hashable:
    if not isinstance(picture, FilePicture):
        return identity(picture)
    return picture.path, *(state_of(picture.path) or ())


def _of_another_world(config: TrainConfig, reports: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of photographs before a backbone that has seen drawings only: a line, once."""
    served = config.model.tasks.get(config.task.name)
    names = [served.checkpoint if served else "", *(one.checkpoint for one in config.model.submodels.values())]
    shipped = any(str(name).startswith(SHIPPED) for name in names) and not config.model.checkpoint
    for report in reports.values() if shipped and not config.model.random_init else ():
        for split, facts in report["splits"].items():
            images = facts["images"]
            if 2 * images.get("photographs", 0) > images.get("decoded", 0):
                able = serving(config.task.spec.served_as or config.task.name)
                others = [name for name in able if not name.startswith("tiny")][:OTHERS]
                said = SCENES.format(
                    of=images["photographs"],
                    looked=images["decoded"],
                    split=split,
                    model=config.model.name,
                    others=" or ".join([", ".join(others[:-1]), *others[-1:]] if others[1:] else others),
                )
                return [{"kind": "photographs", "message": said}]
    return []
