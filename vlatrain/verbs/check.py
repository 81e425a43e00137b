"""`vlatrain check`: look at the data of a training before it is trained on; loads no weights."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatrain.config import CheckConfig, UserError
from vlatrain.config.files import write_json
from vlatrain.config.joint import subtasks
from vlatrain.config.methods import ROUTER
from vlatrain.reporting.console import Console, RichConsole, collected, logged
from vlatrain.reporting.data_lookup import look_up
from vlatrain.reporting.data_tables import show_report

if TYPE_CHECKING:
    from vlatrain.data.sample import Sample

log = logging.getLogger("vlatrain")


def check(config: CheckConfig, console: RichConsole | None = None) -> dict[str, Any]:
    """Print the data report of a training: what its data is like, and everything that the training would warn of.

    Args:
        config: the training's configuration, with `strict` and `output`.
        console: where to print; None: standard output.

    Returns:
        The report, see `vlatrain.reporting.data_report`.

    Raises:
        UserError: the data, or the tokenizer, cannot be used; or there are warnings, and they are to fail (`strict`).
    """
    if config.adapter.name == ROUTER:
        raise UserError("vlatrain check: adapter=router has the data of its runs; check that as it was for them")
    with logged(Console(), warnings=False):
        if known := look_up(config):
            report, said = known
            for level, message in said:
                log.log(level, "%s", message)
        else:
            report, said = _looked(config)
    problems = report.pop("problems", [])
    warned = dict.fromkeys(message for level, message in said if level >= logging.WARNING)
    report["warnings"] = [*({"kind": "data", "message": message} for message in warned), *report["warnings"]]
    show_report(report, console or RichConsole(file=sys.stdout))
    if config.output:
        write_json(Path(config.output).expanduser(), report)
    if problems:
        raise UserError(problems)
    if config.strict and report["warnings"]:
        count = len(report["warnings"])
        raise UserError(f"strict=true: {count} warning{'s' if count > 1 else ''}")
    return report


def _looked(config: CheckConfig) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """The report, and what was logged when the samples were read. A report that is kept needs none of what is imported here."""
    from vlatrain.data.stored import without_collector
    from vlatrain.data.subtasks import load_run
    from vlatrain.reporting.data_report import report_of

    tests = any(subtask.data.test for subtask in subtasks(config).values())
    with without_collector():
        with collected(logging.INFO) as said:
            samples = load_run(config, ["train", "eval", "test"] if tests else ["train", "eval"])
        return report_of(config, samples, lambda: _texts(config, samples), said=said), said


def _texts(config: CheckConfig, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """What the backbone's tokenizer and image processor make of the samples, as before a training."""
    from vlatrain.backbones.loading import load_without_weights
    from vlatrain.data.lazy import by_subtask, joined
    from vlatrain.data.sample import texts_of
    from vlatrain.reporting.data_report import TEXTS
    from vlatrain.tasks import build, prepare, subtasks_of
    from vlatrain.tasks.lengths import check_lengths
    from vlatrain.tasks.sample_checks import check_samples
    from vlatrain.tasks.text_facts import text_facts
    from vlatrain.training.setup import with_lengths

    train, problems = samples["train"], []
    try:
        backbone = load_without_weights(config.model, config.task.name, texts_of(train))
    except UserError as error:  # the rest is shown all the same
        return {"texts": {}, "warnings": [], "problems": error.problems}
    try:
        check_samples(backbone, joined(samples.values()))
    except UserError as error:  # lengths cannot be counted beside an image that the processor refuses
        return {"texts": {}, "warnings": [], "problems": error.problems}
    with collected() as said:
        task = with_lengths(build(prepare(config.task, backbone, train), backbone, train), samples)
        tasks = subtasks_of(task)
        try:
            check_lengths(tasks, samples)
        except UserError as error:
            problems += error.problems
    facts = {}
    for name, own in tasks.items():
        facts[name] = text_facts(own, by_subtask(samples, name))
    warnings = [{"kind": TEXTS, "message": message} for message in dict.fromkeys(message for _, message in said)]
    return {"texts": facts, "warnings": warnings, "problems": problems}
