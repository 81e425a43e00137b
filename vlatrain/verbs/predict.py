"""`vlatrain predict`: answers, captions, and search in either direction, for one image, a folder, or a file of samples; results in
the terminal and as JSONL. `Predictor` is what answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vlatrain.config import PredictConfig, TaskConfig, TrainConfig, UserError
from vlatrain.config.checks import queries
from vlatrain.config.files import write_lines
from vlatrain.config.joint import asked, subtasks
from vlatrain.config.methods import ROUTER
from vlatrain.config.printable import printable
from vlatrain.config.spec import TEXT
from vlatrain.data import load_inputs, picture_files
from vlatrain.data.cells import MOST
from vlatrain.data.checks import Problems, check_pictures
from vlatrain.data.choices import asked as worded
from vlatrain.data.features import Given, check_shown, picture_of
from vlatrain.data.images import allow
from vlatrain.data.sample import Picture, Sample, Turn
from vlatrain.injection.context import for_task
from vlatrain.reporting.boxes import Drawings
from vlatrain.reporting.console import Console as Messages
from vlatrain.reporting.console import RichConsole as Console
from vlatrain.reporting.console import logged, print_sentence
from vlatrain.reporting.fitted import fitted, shortened
from vlatrain.reporting.trackers import Outcome, add_to_run, tables_of
from vlatrain.tasks import subtasks_of
from vlatrain.tasks.base import Answer, ImageBatch
from vlatrain.tasks.lengths import check_lengths
from vlatrain.tasks.sample_checks import check_samples
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import SILENT
from vlatrain.training.journal import BEGUN_ANEW, ENDING, Journal, identity, stopped
from vlatrain.training.out_of_memory import naming_room
from vlatrain.training.precision import autocast, choose_device, choose_precision, join_processes, own
from vlatrain.training.prefix_cache.compute import cache_prefix
from vlatrain.training.processes import rank, together
from vlatrain.training.setup import load_setup
from vlatrain.training.signals import ending, named
from vlatrain.verbs.hits import Asked, Hit, hits_of
from vlatrain.verbs.routed import RoutedPredictor, row_config

log = logging.getLogger("vlatrain")


class Predictor:
    """A finished run, ready to be asked.

    Args:
        config: the run's configuration.
        run: the run folder.
        subtask: name of the subtask that is asked, in a joint run.
        shared: whether all processes, where there are several, ask the same, and share the work.
        journal: keeps what is found, batch by batch; None: it is not kept.

    Raises:
        UserError: the weights or the adapter cannot be had, or the device or precision.
    """

    def __init__(
        self, config: TrainConfig, run: Path, subtask: str = "", shared: bool = False, journal: Journal | None = None
    ) -> None:
        allow(config.data.max_megapixels)
        self.device = own(choose_device(config.trainer.device))
        self.precision = choose_precision(config.trainer.precision, self.device)
        task = load_setup(config, run, self.device, self.precision, shared=shared).task
        self.config = config
        self.task, self.subtask = subtasks_of(task)[subtask], subtask
        size = config.trainer.eval_batch_size or config.trainer.samples_per_pass
        self.batches = SharedBatches(self.device, size, local=not shared, journal=journal)

    def predict(
        self,
        images: Given | Sequence[Given],
        question: str | Sequence[str] | None = None,
        text: str | None = None,
        texts: Sequence[str] | None = None,
        top_k: int = 1,
    ) -> list[Hit] | list[list[Hit]]:
        """Ask about images: what a run's task answers of them, or how texts and images fit together.

        Args:
            images: an image or several: PIL images, encoded bytes, or paths.
            question: of a task that is asked questions, one for all images, or one for each.
            text: of a task that matches texts, what the images are searched for.
            texts: of such a task, what is ranked for each image; of questions with options, these.
            top_k: the most answers, classes or hits.

        Returns:
            Of one image its hits, best first; of several a list of them. Of `text`, the images by their numbers, or by their paths.

        Raises:
            UserError: what is asked does not fit the task, or an image cannot be read.
        """
        spec = self.task.config.spec
        if problems := queries.unasked(self.task.config, question is not None, text is not None, texts is not None):
            raise UserError(problems)
        given = Asked.of(images, question)
        samples = [
            _sample(self.task.config, *one, self.subtask, texts or ())
            for one in zip(given.names, given.pictures, given.questions, strict=True)
        ]
        check_samples(self.task.backbone, samples)
        if text is not None:
            return self.find_images(text, given.pictures, given.names, top_k)
        if texts is not None and spec.query == TEXT:
            ranked = list(self.find_texts(given.pictures, list(texts), top_k))
        else:
            ranked = list(self.ask(samples, top_k if spec.alternatives else 1))
        return ranked if given.several else ranked[0]

    def load_cached(self, samples: Sequence[Sample]) -> None:
        """Use what is kept of samples on disk."""
        cache_prefix(self.task.backbone, self.config, {"asked": samples}, {}, self.precision, SILENT)

    def ask(self, samples: Sequence[Sample], alternatives: int = 1) -> Iterator[list[Hit]]:
        """For each sample the best answers, classes, captions or replies, best first, as they come."""
        collate, answer = self.task.asking()

        def answered(batch: ImageBatch) -> Sequence[Sequence[Answer]]:
            with self._computing():  # and not around what is yielded, which is the caller's
                return answer(batch, alternatives)

        for found in self.batches(samples, collate, answered):
            yield from (hits_of(best) for best in found)

    def find_images(self, text: str, images: Sequence[Picture], names: Sequence[str], k: int) -> list[Hit]:
        """The k images that fit a text best."""
        with self._computing():
            best = self.task.best_images(text, [Sample(id="", image=picture) for picture in images], self.batches, k)
        return [Hit(names[place], score) for place, score in best]

    def find_texts(self, images: Sequence[Picture], texts: Sequence[str], k: int) -> Iterator[list[Hit]]:
        """For each image the k texts that fit it best, as they come."""
        samples = [Sample(id="", image=picture) for picture in images]
        ranked = self.task.best_texts(samples, texts, self.batches, k)
        while True:
            with self._computing():  # and not while the caller has its turn
                best = next(ranked, None)
            if best is None:
                return
            yield [Hit(texts[place], score) for place, score in best]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.no_grad(), autocast(self.device, self.precision), for_task(self.task.backbone.model, self.subtask):
            yield


SHOWN = 50  # queries shown in the terminal; a JSONL file gets all


def predict(config: PredictConfig, console: Console | None = None) -> list[dict[str, Any]]:
    """Answer the queries of a configuration and show the results. Processes share the work; the first one shows it.

    Args:
        config: the run's configuration with the queries.
        console: where to print.

    Returns:
        A record for each query: what was asked, and its hits, best first.

    Raises:
        UserError: queries that do not fit the task, or files that cannot be read; all of them at once.
    """
    try:
        with ending(*named(config.trainer.signal)):
            join_processes(config.trainer)
            quiet = rank() > 0
            messages = logged(Messages(quiet=quiet), level=logging.WARNING)  # of how it loads, nothing need be said
            with together(), naming_room(config), messages:
                return _predict(config, console or Console(quiet=quiet))
    except KeyboardInterrupt as error:  # before there was anything to keep
        raise stopped(error, BEGUN_ANEW) from error


def _predict(config: PredictConfig, console: Console) -> list[dict[str, Any]]:
    if config.adapter.name == ROUTER:
        return _predict_routed(config, console)
    subtask, whole = asked(config), config
    config = subtasks(config)[subtask]  # of a joint run, the configuration of the subtask that is asked
    if queries.is_conversation(config):
        from vlatrain.verbs.conversation import Conversation  # which asks a `Predictor`

        Conversation(config, Predictor(whole, Path(config.source), subtask), console).run()
        return []
    samples = _samples(config)  # before the weights: a missing file must not wait
    samples = [replace(one, subtask=subtask) for one in samples]
    searches = config.task.spec.query == TEXT
    texts = ([config.text] if config.text else _texts(config)) if searches else []
    with _journal(whole, samples, texts, console) as journal:
        predictor = Predictor(whole, Path(config.source), subtask, shared=True, journal=journal)
        return _answered(config, predictor, samples, texts, console)


def _answered(
    config: PredictConfig, predictor: Predictor, samples: list[Sample], texts: list[str], console: Console
) -> list[dict[str, Any]]:
    subtask, searches = predictor.subtask, config.task.spec.query == TEXT
    check_samples(predictor.task.backbone, samples)
    asked_about = [replace(one, id=text, captions=(text,)) for one in samples[:1] for text in texts] or samples
    check_lengths({subtask: predictor.task}, {"asked": asked_about})
    if not searches:
        predictor.load_cached(samples)
    answers = (_search if searches else _ask)(config, predictor, samples)
    return _show(config, console, answers, samples, _fewer(config, predictor))


def _predict_routed(config: PredictConfig, console: Console) -> list[dict[str, Any]]:
    """The same of a router: each record says under `routed` which run has answered."""
    samples = _samples(row_config(config))
    with _journal(config, samples, [], console) as journal:
        predictor = RoutedPredictor(config, Path(config.source))
        check_samples(predictor.router.reader.backbone, samples)
        hits = predictor.ask(samples, config.top_k, journal)
        answers = _recorded(config, samples, ((found, {"routed": name}) for name, found in hits))
        return _show(config, console, answers, samples)


@contextmanager
def _journal(
    config: PredictConfig, samples: list[Sample], texts: list[str], console: Console
) -> Iterator[Journal | None]:
    """Keep what is found beside the output file, where there is one, until all of it is written there."""
    if not config.output:
        yield None
        return
    place = Path(f"{config.output}{ENDING}")
    key = identity("predict", config, Path(config.source), samples, texts) if rank() == 0 else ""
    with Journal(place if rank() == 0 else None, key) as journal:
        if journal.described:
            print_sentence(journal.described, console, "dim")
        yield journal


def _show(
    config: PredictConfig, console: Console, answers: Iterator[dict[str, Any]], samples: list[Sample], note: str = ""
) -> list[dict[str, Any]]:
    """Show records as they come, and write and log them where that is asked for."""
    total = 1 if config.text else len(samples)
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predicting", total=total)
        records = []
        for record in answers:
            records.append(record)
            progress.advance(bar)
    console.print(_table(records[:SHOWN], console))
    if config.draw:
        console.print(Text.assemble("Boxes drawn in ", (config.draw, "bold")), soft_wrap=True)
    if note:
        print_sentence(note, console, "dim")
    if config.output:
        if rank() == 0:
            write_lines(Path(config.output), records)
        console.print(Text.assemble(f"{len(records)} predictions in ", (config.output, "bold")), soft_wrap=True)
    elif len(records) > SHOWN:
        print_sentence(f"... {len(records) - SHOWN} more; output=FILE.jsonl writes them all", console, "dim")
    if rank() == 0:
        add_to_run(config, Path(config.source), lambda: _outcome(config, records, samples))
    return records


def _outcome(config: PredictConfig, records: list[dict[str, Any]], samples: list[Sample]) -> Outcome:
    """What trackers are given of predictions."""
    title = "predictions/asked"
    return Outcome({}, tables_of(config.logger, {title: records}, {title: samples}))


def _samples(config: PredictConfig) -> list[Sample]:
    """The images asked about, each with its question if the task needs one."""
    if config.input:
        samples = load_inputs(config.input, config.data, config.task)
        check_shown(config.model, samples)
        return samples
    image = Path(config.image or "").expanduser()
    paths = [Path(path).expanduser() for path in config.images] or (picture_files(image) if image.is_dir() else [image])
    pictures = [picture_of(str(path)) for path in paths]
    faults = Problems()
    check_pictures([(picture, "") for picture in pictures], faults)
    faults.raise_if_any()
    options = [] if config.task.spec.query == TEXT else _texts(config)
    samples = [_sample(config.task, str(one.path), one, config.question, options=options) for one in pictures]
    if config.images:
        name = ", ".join(sample.id for sample in samples)
        samples = [replace(samples[0], id=name, more=tuple(pictures[1:]))]
    check_shown(config.model, samples)
    return samples


def _sample(
    task: TaskConfig, name: str, picture: Picture, question: str | None, subtask: str = "", options: Sequence[str] = ()
) -> Sample:
    """An image that is asked about."""
    said: dict[str, Any] = {}
    if question:
        if len(question) > MOST:
            log.warning("question: %s characters, cut to %s before it is read", f"{len(question):,}", f"{MOST:,}")
            question = question[:MOST]
        speaks = "conversations" in task.spec.given
        said = {"turns": (Turn(question),)} if speaks else {"question": worded(question, options, task.wording)}
        said |= {"options": tuple(options)}
    return Sample(id=name, image=picture, subtask=subtask, **said)


def _ask(config: PredictConfig, predictor: Predictor, samples: list[Sample]) -> Iterator[dict[str, Any]]:
    hits = predictor.ask(samples, config.top_k if config.task.spec.alternatives else 1)
    yield from _recorded(config, samples, ((found, {}) for found in hits))


def _recorded(
    config: PredictConfig, samples: list[Sample], answered: Iterator[tuple[list[Hit], dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The record of each sample, with its hits and what else there is to say; boxes are drawn where that is asked for."""
    drawings = Drawings(Path(config.draw)) if config.draw and rank() == 0 else None
    for sample, (found, more) in zip(samples, answered, strict=True):
        question = sample.turns[-1].user if sample.turns else sample.question
        asked = {"question": question} if question else {}
        shown: dict[str, Any] = {"mask": found[0].mask} if found and found[0].mask else {}
        if drawings is not None:
            boxes = [(hit.box, hit.score or 0.0) for hit in found if hit.box]
            shown["drawn"] = drawings.add(f"{sample.id} {question}", sample.image.load(), boxes)
        yield {
            "id": sample.id,
            **asked,
            "prediction": found[0].text if found else "",
            "hits": _plain(found),
            **shown,
            **more,
        }


def _fewer(config: PredictConfig, predictor: Predictor) -> str:
    """Why there may be fewer answers than asked for, if so: they come from the search of the run's evaluation, as it is."""
    beams, subtask = config.task.decode.num_beams, predictor.subtask
    if not (config.task.spec.alternatives and predictor.task.generates) or config.top_k <= beams:
        return ""
    key = f"task.subtasks.{subtask}.decode.num_beams" if subtask else "task.decode.num_beams"
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
    ranked = predictor.find_texts([sample.image for sample in samples], _texts(config), config.top_k)
    for sample, found in zip(samples, ranked, strict=True):
        yield {"id": sample.id, "prediction": found[0].text, "hits": _plain(found)}


def _texts(config: PredictConfig) -> list[str]:
    """The texts themselves, or the lines of a file that is named instead."""
    if len(config.texts) == 1 and Path(config.texts[0]).is_file():
        lines = Path(config.texts[0]).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return config.texts


def _plain(hits: list[Hit]) -> list[dict[str, Any]]:
    return [{"text": hit.text, "score": hit.score} | ({"box": hit.box} if hit.box else {}) for hit in hits]


NOTHING = {"text": "(nothing)", "score": None}  # several boxes were asked for, and none is sure enough


def _table(records: list[dict[str, Any]], console: Console) -> Table:
    """The queries with what was found: paths that are too long are shortened to their ends, by which they differ."""
    most = max(24, console.width // 2 - 4)
    columns: dict[str, list[str | Text]] = {"asked": [], "found": [], "score": [], "run": []}
    for record in records:
        asked = [str(record[key]) for key in ("id", "question", "text") if key in record]
        asked[:1] = [shortened(name, most) for name in asked[:1]] if "id" in record else asked[:1]
        for position, hit in enumerate(record["hits"] or [NOTHING]):
            name = shortened(hit["text"], most) if "text" in record else hit["text"]  # a search finds images
            columns["asked"].append(Text(printable("" if position else " · ".join(asked))))
            columns["found"].append(Text(printable(name)))
            columns["score"].append("" if hit["score"] is None else f"{hit['score']:.3f}")
            columns["run"].append(Text("" if position else str(record.get("routed", ""))))
    return fitted(columns, console, ("run",), ("asked", "found"), ("score",))
