"""`vlatrain predict`: one image, a folder, or a file of samples; results in the terminal and as JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vlatrain.config import PredictConfig, UserError
from vlatrain.config.joint import ASKED, asked, parts
from vlatrain.data import load_inputs, picture_files
from vlatrain.data.checks import Problems, check_pictures
from vlatrain.data.features import check_shown, picture_of
from vlatrain.data.sample import Sample, Turn
from vlatrain.inference.predictor import Hit, Predictor
from vlatrain.tasks.lengths import check_lengths
from vlatrain.tasks.sample_checks import check_samples
from vlatrain.tasks.vqa import Vqa

SHOWN = 50  # queries shown in the terminal; a JSONL file gets all
CHOOSING = ("vqa", "classification")  # tasks with more than one answer, each with its probability


def predict(config: PredictConfig, console: Console | None = None) -> list[dict[str, Any]]:
    """Answer the queries of a configuration and show the results.

    Args:
        config: the run's configuration with the queries.
        console: where to print.

    Returns:
        A record for each query: what was asked, and its hits, best first.

    Raises:
        UserError: queries that do not fit the task, or files that cannot be read; all of them at once.
    """
    console = console or Console()
    part, whole = asked(config), config
    config = parts(config)[part]  # of a joint run, what concerns the part that is asked
    samples = _samples(config)  # before the weights: a missing file must not wait for them
    predictor = Predictor(whole, Path(config.source), part)
    check_samples(predictor.task.backbone, samples)
    texts = [config.text] if config.text else _texts(config)
    asked_about = [replace(one, id=text, captions=(text,)) for one in samples[:1] for text in texts] or samples
    check_lengths({"": predictor.task}, {"asked": asked_about})
    if config.task.name != "retrieval":
        predictor.recall(samples)
    answer = _search if config.task.name == "retrieval" else _ask
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("predicting", total=1 if config.text else len(samples))
        records = []
        for record in answer(config, predictor, samples):
            records.append(record)
            progress.advance(bar)
    console.print(_table(records[:SHOWN]))
    if fewer := _fewer(config, predictor):
        console.print(fewer, style="dim")
    if config.output:
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        output.write_text("".join(lines), encoding="utf-8")
        console.print(f"{len(records)} predictions in [bold]{output}[/]")
    elif len(records) > SHOWN:
        console.print(f"... {len(records) - SHOWN} more; output=FILE.jsonl writes them all", style="dim")
    return records


def _samples(config: PredictConfig) -> list[Sample]:
    """The images asked about, each with its question if the task needs one."""
    problems = _misfits(config)
    if problems:
        raise UserError(problems)
    if config.input:
        samples = load_inputs(config.input, config.data, config.task.name)
        check_shown(config.model, samples)
        return samples
    assert config.image is not None
    image = Path(config.image).expanduser()
    if not image.exists():
        raise UserError(f"image={config.image}: no such file or folder")
    pictures = [picture_of(str(path)) for path in (picture_files(image) if image.is_dir() else [image])]
    faults = Problems()
    check_pictures([(picture, "") for picture in pictures], faults)
    faults.raise_if_any()
    said: dict[str, Any] = {}
    if config.question:
        said = {"turns": (Turn(config.question),)} if config.task.name == "instruct" else {"question": config.question}
    samples = [Sample(id=str(picture.path), image=picture, **said) for picture in pictures]
    check_shown(config.model, samples)
    return samples


def _misfits(config: PredictConfig) -> list[str]:
    """What is wrong with the queries for this task."""
    task, problems = config.task.name, []
    if bool(config.image) == bool(config.input):
        problems.append("set either image=FILE (or a folder of images) or input=FILE of samples, and not both")
    if task in ASKED and config.image and not config.question:
        problems.append('this run answers questions: set question="..."')
    if task not in ASKED and config.question:
        problems.append(f"question= is for {' and '.join(f'task={name}' for name in ASKED)}; this run's task is {task}")
    if task == "retrieval" and bool(config.text) == bool(config.texts):
        problems.append(
            'this run matches images and texts: set text="..." to search the images, or texts=[...] (or a file with '
            "one a line) to rank texts for each image"
        )
    if task != "retrieval" and (config.text or config.texts):
        problems.append(f"text= and texts= are for task=retrieval; this run's task is {task}")
    if config.top_k < 1:
        problems.append(f"top_k={config.top_k}: must be 1 or more")
    return problems


def _ask(config: PredictConfig, predictor: Predictor, samples: list[Sample]) -> Iterator[dict[str, Any]]:
    hits = predictor.ask(samples, config.top_k if config.task.name in CHOOSING else 1)
    for sample, found in zip(samples, hits, strict=True):
        question = sample.turns[-1].user if sample.turns else sample.question
        asked = {"question": question} if question else {}
        yield {"id": sample.id, **asked, "prediction": found[0].text, "hits": _plain(found)}


def _fewer(config: PredictConfig, predictor: Predictor) -> str:
    """Why there may be fewer answers than asked for, if so: they come from the search of the run's evaluation, as it is."""
    beams, part = config.task.decode.num_beams, predictor.part
    generates = isinstance(predictor.task, Vqa) and predictor.task.decoding["answers"] == "generate"
    if not generates or config.top_k <= beams:
        return ""
    key = f"task.parts.{part}.decode.num_beams" if part else "task.decode.num_beams"
    return (
        f"{'One answer' if beams == 1 else f'At most {beams} answers'} each, as {key}={beams}, the run's own unless set here; "
        f"{key}={config.top_k} searches for more, and may find another best one"
    )


def _search(config: PredictConfig, predictor: Predictor, samples: list[Sample]) -> Iterator[dict[str, Any]]:
    if config.text:
        names = [sample.id for sample in samples]
        found = predictor.find_images(config.text, [sample.image for sample in samples], names, config.top_k)
        yield {"text": config.text, "prediction": found[0].text, "hits": _plain(found)}
        return
    texts = _texts(config)
    for sample in samples:
        found = predictor.find_texts(sample.image, texts, config.top_k)
        yield {"id": sample.id, "prediction": found[0].text, "hits": _plain(found)}


def _texts(config: PredictConfig) -> list[str]:
    """The texts themselves, or the lines of a file that is named instead."""
    if len(config.texts) == 1 and Path(config.texts[0]).is_file():
        lines = Path(config.texts[0]).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return config.texts


def _plain(hits: list[Hit]) -> list[dict[str, Any]]:
    return [asdict(hit) for hit in hits]


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table("asked", "found", "score")
    for record in records:
        asked = " · ".join(str(record[key]) for key in ("id", "question", "text") if key in record)
        for position, hit in enumerate(record["hits"]):
            score = "" if hit["score"] is None else f"{hit['score']:.3f}"
            table.add_row("" if position else asked, hit["text"], score)
    return table
