"""`predictions.jsonl`: each evaluated sample with its image, what was predicted, the references, and the data's other columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from vlatrain.config import TrainConfig, UserError
from vlatrain.config.files import replace_file, write_lines
from vlatrain.config.joint import subtasks
from vlatrain.data.images import is_shown
from vlatrain.data.sample import Sample
from vlatrain.runs import RunFolder
from vlatrain.tasks import Evaluation

LONGEST = 80  # characters of a sample's id in the name of its image


def write_predictions(
    files: RunFolder, split: str, evaluation: Evaluation, samples: Sequence[Sample], config: TrainConfig
) -> None:
    """Write an evaluation's predictions.

    Args:
        files: the folder of the run, or of the evaluation.
        split: the split, for the file's name.
        evaluation: what was predicted.
        samples: the samples that it is of.
        config: the run's; `data.save_images`, of a subtask its own, says whether images that are no files (generated, in Parquet,
            of the hub) are written into the folder too.

    Raises:
        UserError: something cannot be written.
    """
    saving = {name for name, subtask in subtasks(config).items() if subtask.data.save_images}
    saved = _save_images(files.images, [sample for sample in samples if sample.subtask in saving])
    write_lines(files.predictions(split), _records(evaluation, samples, saved))


def _records(
    evaluation: Evaluation, samples: Sequence[Sample], saved: dict[str, list[str | None]]
) -> Iterator[dict[str, Any]]:
    known = {sample.id: sample for sample in samples}
    for record in evaluation.predictions:
        sample = known.get(record.get("id", ""))
        if sample is None:
            yield record
            continue
        own = saved.get(sample.id, [None] * len(sample.pictures))
        paths = [getattr(one, "path", None) or path for one, path in zip(sample.pictures, own, strict=True)]
        shown = {"images": paths} if sample.more else {"image": paths[0]}
        columns = {"columns": dict(sample.extra)} if sample.extra else {}
        yield {"id": sample.id, **shown, **record, **columns}


def _save_images(folder: Path, samples: Sequence[Sample]) -> dict[str, list[str | None]]:
    """Write the images that are no files; by the sample's id, for each of its images the path from the run folder, if it is one of
    these."""
    saved: dict[str, list[str | None]] = {}
    names: set[str] = set()
    for place, sample in enumerate(samples):
        if all(getattr(one, "path", None) or not is_shown(one) for one in sample.pictures):
            continue
        name = re.sub(r"[^\w.-]+", "_", sample.id)[:LONGEST]
        name = f"{name}-{place}" if name in names else name
        names.add(name)
        saved[sample.id] = []
        for number, picture in enumerate(sample.pictures, 1):
            if getattr(picture, "path", None):
                saved[sample.id].append(None)
                continue
            path = folder / (f"{name}_{number}.png" if sample.more else f"{name}.png")
            try:
                data = BytesIO()
                picture.load().save(data, "PNG")
                replace_file(path, data.getvalue())
            except OSError as error:
                raise UserError(f"data.save_images: {path} could not be written ({error.strerror or error})") from error
            saved[sample.id].append(f"{folder.name}/{path.name}")
    return saved
