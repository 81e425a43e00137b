"""From what the configuration names to samples: which file or folder is read for which split, each once, and by which layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlatrain.config.data import DataConfig
from vlatrain.config.spec import TaskSpec
from vlatrain.config.wording import Wording
from vlatrain.data.boxes import gather
from vlatrain.data.checks import Problems
from vlatrain.data.columns import PLAIN, Column, absent_column, check_groups, find_columns, said_of
from vlatrain.data.files import read_table
from vlatrain.data.finder import Finder
from vlatrain.data.layouts import ANSWERS, add_answers, name_images
from vlatrain.data.rows import Builder, build
from vlatrain.data.splits import SplitRows, rows_by_split
from vlatrain.data.tables import Row, Table

log = logging.getLogger("vlatrain")

SEEN = 1000  # rows from which it is seen what a column holds


@dataclass
class Files:
    """The files of a source, each read once, however many splits are in it.

    Args:
        config: `data=files`.
        spec: the task's description.
        problems: where to report what is wrong with them.
        labelled: whether the references must be there; without, every row is asked about, whatever its split.
        splits_off: whether samples of train are to be split off for evaluation.
        wording: how questions are made.
    """

    config: DataConfig
    spec: TaskSpec
    problems: Problems
    labelled: bool = True
    splits_off: bool = False
    wording: Wording = PLAIN
    _tables: dict[tuple[str, str], Table | None] = field(default_factory=dict)
    _columns: dict[int, dict[str, Column] | None] = field(default_factory=dict)  # by table, which `_tables` holds
    _splits: dict[int, SplitRows | None] = field(default_factory=dict)
    _builders: dict[tuple[int, str], Builder | None] = field(default_factory=dict)

    def split(self, split: str) -> Builder | None:
        """The samples of a split in the file that is named for it: of one with a split column those of the split, else all.

        Returns:
            The builder with them; None if there is none, or the file could not be read.
        """
        named: str = getattr(self.config, split)
        table = self._table(named, split)
        if table is not None and (split != "train" or self.splits_off):
            check_groups(table.columns, self.config.groups, named, self.problems)
        marked = self._marked(table)
        if table is None or marked is None:
            return self._built(table, "")
        rows = marked.of(split, f"data.{split}={named}", self.problems)
        return self._built(table, "" if len(rows) == len(table.rows) else split, rows)  # all of them are built once

    def marked(self, split: str) -> Builder | None:
        """The samples that the split column of the training file gives to another split; None if it gives none."""
        assert self.config.train is not None
        table = self._table(self.config.train, "train")
        marked = self._marked(table)
        rows = marked.rows[split] if marked else []
        if rows and table is not None:
            check_groups(table.columns, self.config.groups, self.config.train, self.problems)
        return self._built(table, split, rows) if rows else None

    def all(self, path: str, option: str) -> Builder | None:
        """All rows of a file."""
        return self._built(self._read(path, option, None, option), "")

    def _table(self, path: str, split: str) -> Table | None:
        annotations = "annotations" if split == "train" else f"{split}_annotations"
        return self._read(path, f"data.{split}", getattr(self.config, annotations), f"data.{annotations}")

    def _read(self, path: str, option: str, annotations: str | None, answers: str) -> Table | None:
        key = path, annotations or ""
        if key not in self._tables:
            self._tables[key] = self._arranged(path, option, annotations, answers)
        return self._tables[key]

    def _arranged(self, path: str, option: str, annotations: str | None, answers: str) -> Table | None:
        """A file's table, joined with its annotations, its images found; what it was recognised as is said."""
        finder = Finder(_root(self.config, path))
        table = read_table(path, self.problems, option, finder, "mask" in self.spec.fields and self.labelled)
        joined = read_table(annotations, self.problems, answers) if annotations else None
        if table is None or (annotations and joined is None):
            return None
        before = len(self.problems)
        if joined is not None:
            add_answers(table, joined, self.problems)
        elif self.labelled and "answers" in self.spec.fields and (table.unanswered or table.layout == ANSWERS):
            said = f"set {answers}=FILE, the annotations with their answers"
            if table.layout == ANSWERS:
                said = f"set {option}=FILE to the questions, and {answers}={path}"
            self.problems.add("annotations", f"{option}={path}: read as {table.layout}: {said}")
        if len(self.problems) > before:
            return None
        told = [table.layout, f"joined with {annotations}" if joined else "", name_images(table, finder)]
        if "boxes" in self.spec.fields:
            told.append(gather(table, self.config.columns, self.config.boxes))
        if said := "; ".join(filter(None, told)):
            log.info("%s: %s", path, said)
        return table

    def _marked(self, table: Table | None) -> SplitRows | None:
        """The rows of a table by split, if it has a split column."""
        if table is None or not self.labelled:
            return None
        if id(table) not in self._splits:
            self._splits[id(table)] = rows_by_split(table, self.config.columns, self.config.split, self.problems)
        return self._splits[id(table)]

    def _built(self, table: Table | None, split: str, chosen: Sequence[Row] | None = None) -> Builder | None:
        if table is None or (chosen is not None and not chosen):
            return None
        key = id(table), split
        if key not in self._builders:
            columns = self._find_columns(table)
            builder = columns and self._builder(table, columns)
            self._builders[key] = build(builder, table.rows if chosen is None else chosen) if builder else None
        return self._builders[key]

    def _find_columns(self, table: Table) -> dict[str, Column] | None:
        if id(table) not in self._columns:
            seen = [record for _, record in table.rows[:SEEN]]
            columns = find_columns(
                table.columns,
                self.config.columns,
                self.spec,
                table.name,
                self.problems,
                self.labelled,
                seen,
                self.wording,
            )
            self._columns[id(table)] = columns
            for said in said_of(columns or {}):
                log.info("%s: %s", table.name, said)
        return self._columns[id(table)]

    def _builder(self, table: Table, columns: Mapping[str, Column]) -> Builder:
        absent = "" if "image" in columns else absent_column("image", self.config.columns, table.columns, table.name)
        return Builder(
            columns,
            self.spec,
            table.name,
            str(_root(self.config, table.name)),
            self.problems,
            self.labelled,
            table.delimited,
            self.config.text_only if self.labelled else "train",
            absent,
            self.config.boxes,
            self.config.groups if self.labelled else (),
            self.config.max_images,
            self.wording,
        )


def _root(config: DataConfig, path: str) -> Path:
    """The folder that image paths of a file start from: that of the configuration, else the folder itself, or the file's."""
    if config.root:
        return Path(config.root).expanduser()
    file = Path(path).expanduser()
    return file if file.is_dir() else file.parent
