"""What the data tests share: tiny images, and the same records in every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlatrain.config import ColumnsConfig, DataConfig, TaskConfig, UserError
from vlatrain.data import Sample, load

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")


def pixels_of(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours of an RGB image, row by row."""
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def write_images(folder: Path, count: int) -> list[str]:
    """Distinct PNG images 0.png, 1.png, ...; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index}.png" for index in range(count)]
    for index, name in enumerate(names):
        Image.new("RGB", (4, 4), (index % 256, index // 256, 9)).save(folder / name)
    return names


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Records in the format of the path's ending. Lists become JSON in a cell where a format has no lists."""
    kind = path.suffix[1:]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(
                {key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in record.items()}
                for record in records
            )
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def files(train: Path | str, **settings: Any) -> DataConfig:
    """`data=files data.train=...` with a column map as `columns={...}`."""
    settings["columns"] = ColumnsConfig(**settings.get("columns", {}))
    return DataConfig(name="files", train=str(train), **{"eval_fraction": 0.0, **settings})


def load_train(config: DataConfig, task: str = "vqa", **options: Any) -> list[Sample]:
    """The training split alone."""
    return load(config, TaskConfig(task), ["train"], **options)["train"]


def problems_of(config: DataConfig, task: str = "vqa", splits: Sequence[str] = ("train",), **options: Any) -> list[str]:
    """What `load` reports."""
    with pytest.raises(UserError) as caught:
        load(config, TaskConfig(task), splits, **options)
    return caught.value.problems
