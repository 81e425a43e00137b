"""Read a table of samples: JSONL, JSON, CSV, TSV or Parquet, by the file's ending. A new format is one function here.

A bad row is reported with its place, and the rest is read on, so that a user sees every bad row at once. A row's place is its
line, `t.jsonl:12`, counted from 1. Where rows have no line of their own (a JSON list, Parquet), it is their number as Python and
jq count, from 0: `t.json[3]`, or `t.json:annotations[3]` of a list in an object.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlatrain.data.checks import Problems

Row = tuple[str, dict[str, Any]]  # place in the file, as `:12` or `[3]`; column -> value

# Keys under which a JSON object may hold its list of samples, in order of preference.
LISTS = ("annotations", "data", "samples", "questions", "images")
BLANK = re.compile(r"[ \t\r\n]*")
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass
class Table:
    """Rows of a data file.

    Attributes:
        name: what to call it in messages: the path as the user wrote it.
        columns: every column that occurs, in order of first appearance.
        rows: place and record of each row.
        delimited: whether it is CSV or TSV, which have no lists: a list is written in a cell as a text.
    """

    name: str
    columns: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    delimited: bool = False


def read_table(path: str, problems: Problems, option: str = "") -> Table | None:
    """Read a data file.

    Args:
        path: the file; its ending tells the format.
        problems: where to report what is wrong with it.
        option: the configuration key that named it, for messages (`data.train`).

    Returns:
        The table with every row that could be read, or None if the file as a whole could not be.
    """
    where = f"{option}={path}" if option else path
    file = Path(path).expanduser()
    if file.is_dir():
        problems.add(
            "data files",
            f"{where}: is a folder; name a file in it, or for a folder in the hub's layout set "
            f"data=hub data.path={path}",
        )
        return None
    if not file.exists():
        problems.add("data files", f"{where}: no such file{_nearby(file)}")
        return None
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        problems.add("data files", f"{where}: unknown ending {file.suffix!r}; it must be one of {', '.join(READERS)}")
        return None
    table = Table(path, delimited=reader is _read_delimited)
    before = len(problems)
    try:
        table.rows = list(reader(file, table, problems))
    except OSError as error:
        problems.add("data files", f"{where}: cannot be read ({error.strerror or error})")
        return None
    if not table.rows and len(problems) == before:
        problems.add("empty files", f"{where}: no samples in this file")
    return table if table.rows else None


def _read_jsonl(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    for line, text in _lines(file, table.name, problems):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if not table.columns and text.lstrip().startswith("["):
                problems.add("bad lines", f"{table.name}:{line}: starts with '[': a JSON list; name the file .json")
                return
            problems.add("bad lines", f"{table.name}:{line}: not JSON: {error.msg} at column {error.colno}")
            continue
        except RecursionError:
            problems.add("bad lines", f"{table.name}:{line}: not JSON that can be read: nested too deep")
            continue
        yield from _record(value, f":{line}", table, problems)


def _read_json(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(file, table.name, problems))
    start = _skip(text, 0)
    if start == len(text):
        return
    if _is_lines(text):
        yield from _read_jsonl(file, table, problems)
        return
    images: dict[Any, Any] = {}
    try:
        if text[start] == "[":
            key, found = "", _items(text, start)
        elif text[start] == "{":
            key, found, images = _lists_of_object(text, start)
        else:
            raise json.JSONDecodeError("Expecting a list or an object", text, start)
        for number, value in enumerate(found):
            if isinstance(value, dict) and "image" not in value and value.get("image_id") in images:
                value["image"] = images[value["image_id"]]
            yield from _record(value, f"{key and ':'}{key}[{number}]", table, problems)
    except _NoListError as error:
        problems.add(
            "bad files",
            f"{table.name}: an object without a list of samples; the keys looked for are "
            f"{', '.join(LISTS)}, those there are {', '.join(error.keys) or 'none'}",
        )
    except json.JSONDecodeError as error:
        problems.add("bad lines", f"{table.name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        problems.add("bad files", f"{table.name}: not JSON that can be read: nested too deep")


class _NoListError(Exception):
    def __init__(self, keys: list[str]) -> None:
        super().__init__(keys)
        self.keys = keys


def _items(text: str, start: int) -> Iterator[Any]:
    """The items of the JSON list at `start`."""
    decoder = json.JSONDecoder()
    index = _skip(text, start + 1)
    if text[index : index + 1] == "]":
        _end(text, index + 1) if start == _skip(text, 0) else None
        return
    while True:
        value, index = decoder.raw_decode(text, index)
        yield value
        index = _skip(text, index)
        mark = text[index : index + 1]
        if mark == "]":
            break
        if mark != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, index)
        index = _skip(text, index + 1)
    if start == _skip(text, 0):
        _end(text, index + 1)


def _lists_of_object(text: str, start: int) -> tuple[str, Iterator[Any], dict[Any, Any]]:
    """The key and the items of an object's list of samples, and COCO's image names by id where it has those."""
    decoder = json.JSONDecoder()
    index = _skip(text, start + 1)
    values: dict[str, Any] = {}
    starts: dict[str, int] = {}
    while text[index : index + 1] != "}":
        key, index = decoder.raw_decode(text, index)
        index = _skip(text, index)
        if not isinstance(key, str) or text[index : index + 1] != ":":
            raise json.JSONDecodeError("Expecting a key and ':'", text, index)
        index = _skip(text, index + 1)
        starts[key] = index
        values[key], index = decoder.raw_decode(text, index)
        index = _skip(text, index)
        mark = text[index : index + 1]
        if mark not in (",", "}") or not mark:
            raise json.JSONDecodeError("Expecting ',' or '}'", text, index)
        index = _skip(text, index + 1) if mark == "," else index
    chosen = next((key for key in LISTS if isinstance(values.get(key), list)), None)
    if chosen is None:
        raise _NoListError(list(values))
    _end(text, index + 1)
    images = {}
    if chosen != "images" and isinstance(values.get("images"), list):
        images = {image.get("id"): image.get("file_name") for image in values["images"] if isinstance(image, dict)}
    return chosen, _items(text, starts[chosen]), images


def _is_lines(text: str) -> bool:
    """Whether this is JSON lines, often found under the ending .json: each of the first two lines is an object."""
    lines = [match.group() for match in islice(re.finditer(r"[^\r\n]*\S[^\r\n]*", text), 2)]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)
    except (json.JSONDecodeError, RecursionError):
        return False


def _skip(text: str, index: int) -> int:
    match = BLANK.match(text, index)
    assert match is not None
    return match.end()


def _end(text: str, index: int) -> None:
    index = _skip(text, index)
    if index < len(text):
        raise json.JSONDecodeError("Extra data", text, index)


def _record(value: Any, place: str, table: Table, problems: Problems) -> Iterator[Row]:
    if not isinstance(value, dict):
        problems.add("bad lines", f"{table.name}{place}: expected an object {{...}}, found {type(value).__name__}")
        return
    if not table.columns or value.keys() - set(table.columns):
        table.columns += [key for key in value if key not in table.columns]
    yield place, value


def _read_delimited(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    lines = (text for _, text in _lines(file, table.name, problems))
    first = next(lines, "")
    delimiter = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
    if delimiter == "," and "," not in first and ";" in first:  # what spreadsheets write where "," is the decimal mark
        delimiter = ";"

    def chain() -> Iterator[str]:
        yield first
        yield from lines

    reader = csv.reader(chain(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = f"{error}; a cell with quotes or line breaks must be quoted, its quotes doubled"
            if "unexpected end" in str(error) or "field limit" in str(error):
                hint = "a quote that opens here is never closed"
            problems.add("bad lines", f"{table.name}:{line}: not {file.suffix.lower()[1:].upper()}: {hint}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            table.columns = [name for name in dict.fromkeys(header) if name]
            for name in table.columns:
                if header.count(name) > 1:
                    problems.add("bad lines", f"{table.name}:{line}: column '{name}' occurs {header.count(name)} times")
            continue
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(header):
            problems.add("bad lines", f"{table.name}:{line}: {len(cells)} cells, where the header has {len(header)}")
            continue
        yield f":{line}", {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _read_parquet(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        problems.add("data files", f"{table.name}: reading Parquet needs pyarrow: pip install pyarrow")
        return
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            table.columns = list(parquet.schema_arrow.names)
            batches = parquet.iter_batches(batch_size=1024)
            records = (record for batch in batches for record in batch.to_pylist())
            yield from ((f"[{number}]", record) for number, record in enumerate(records))
    except (pyarrow.ArrowException, OSError) as error:
        problems.add("bad files", f"{table.name}: not Parquet that can be read: {str(error).splitlines()[0]}")


def _lines(file: Path, name: str, problems: Problems) -> Iterator[tuple[int, str]]:
    """The lines of a text file, each with its number and its line end. UTF-8, or UTF-16/32 with a byte order mark."""
    with open(file, "rb") as probe:
        head = probe.read(4)
    encoding = next((encoding for mark, encoding in BOMS if head.startswith(mark)), "utf-8")
    # newline="": a CSV cell keeps its line breaks. Undecodable bytes become lone surrogates, told apart below.
    errors = "surrogateescape" if "8" in encoding else "replace"
    with open(file, encoding=encoding, errors=errors, newline="") as stream:
        for number, text in enumerate(stream, 1):
            if not text.isascii():
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError as error:
                    problems.add(
                        "bad lines",
                        f"{name}:{number}: not UTF-8 (at character {error.start + 1}): save the file as UTF-8",
                    )
                    text = text.encode("utf-8", "replace").decode()  # read on: the other columns may be wrong too
            yield number, text


def _nearby(file: Path) -> str:
    """Where to look, for a file that is not there: the data files beside it."""
    if not file.parent.is_dir():
        return f" (nor a folder {file.parent})"
    found = sorted(entry.name for entry in file.parent.iterdir() if entry.suffix.lower() in READERS)
    return f"; the data files in that folder are {', '.join(found[:5])}" if found else ""


READERS: dict[str, Callable[[Path, Table, Problems], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".tab": _read_delimited,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}
