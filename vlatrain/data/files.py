"""Read a table of samples: JSONL, JSON, CSV, TSV, text, Parquet or Arrow, by the file's ending. A new format is one function here.

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
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from vlatrain.config.checks import data_files
from vlatrain.data.arrow import arrow_rows
from vlatrain.data.cells import clipped, json_of
from vlatrain.data.checks import Problems
from vlatrain.data.finder import Finder
from vlatrain.data.folders import read_folder, read_masked
from vlatrain.data.layouts import arrange
from vlatrain.data.tables import Row, Table

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LONGEST_CELL = 2**31 - 1  # characters: an image as base64 text has millions, and csv takes 131,072 unless told


def read_table(
    path: str, problems: Problems, option: str = "", finder: Finder | None = None, masked: bool = False
) -> Table | None:
    """Read a data file, or the samples in a folder.

    Args:
        path: the file; its ending tells the format.
        problems: where to report what is wrong with it.
        option: the configuration key that named it, for messages (`data.train`).
        finder: finds images that are not named by their path; by default below the file's folder.
        masked: whether the samples in a folder are images with masks.

    Returns:
        The table with every row that could be read, or None if the file as a whole could not be.
    """
    where = f"{option}={path}" if option else path
    file = Path(path).expanduser()
    if fault := data_files.fault(path):
        problems.add("data files", f"{where}: {fault}")
        return None
    reader = (read_masked if masked else read_folder) if file.is_dir() else READERS[file.suffix.lower()]
    table = Table(path, delimited=reader is _read_delimited)
    before = len(problems)
    try:
        if reader is _read_json:
            _read_json(file, table, problems, finder or Finder(file.parent))
        else:
            reader(file, table, problems)
    except OSError as error:
        problems.add("data files", f"{where}: cannot be read ({error.strerror or error})")
        return None
    if not table.rows and len(problems) == before:
        problems.add("empty files", f"{where}: no samples in this {'folder' if file.is_dir() else 'file'}")
    return table if table.rows else None


def _read_jsonl(file: Path, table: Table, problems: Problems) -> None:
    for line, text in _lines(file, table.name, problems):
        if not text.strip():
            continue
        try:
            value = json_of(text)
        except json.JSONDecodeError as error:
            problems.add("bad lines", f"{table.name}:{line}: not JSON: {error.msg} at column {error.colno}")
            continue
        except RecursionError:
            problems.add("bad lines", f"{table.name}:{line}: not JSON that can be read: nested too deep")
            continue
        table.add(value, f":{line}", problems)


def _read_json(file: Path, table: Table, problems: Problems, finder: Finder) -> None:
    text = "".join(line for _, line in _lines(file, table.name, problems))
    if not text.strip():
        return
    if _is_lines(text):
        _read_jsonl(file, table, problems)
        return
    try:
        value = json_of(text)
    except json.JSONDecodeError as error:
        problems.add("bad lines", f"{table.name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        problems.add("bad files", f"{table.name}: not JSON that can be read: nested too deep")
    else:
        arrange(value, table, finder, problems)


def _is_lines(text: str) -> bool:
    """Whether this is JSON lines, often found under the ending .json: each of the first two lines is an object."""
    lines = [match.group() for match in islice(re.finditer(r"[^\r\n]*\S[^\r\n]*", text), 2)]
    try:
        return len(lines) == 2 and all(isinstance(json_of(line), dict) for line in lines)
    except (json.JSONDecodeError, RecursionError):
        return False


@contextmanager
def _long_cells() -> Iterator[None]:
    """While inside, cells may be as long as an image."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_delimited(file: Path, table: Table, problems: Problems) -> None:
    with _long_cells():
        table.extend(_delimited_rows(file, table, problems))


def _delimited_rows(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    lines = (text for _, text in _lines(file, table.name, problems))
    first = next(lines, "")
    if NUMBERED.fullmatch(first.strip()):
        yield from _numbered_rows(file, table, problems)
        return
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
                    problems.add(
                        "bad lines", f"{table.name}:{line}: column '{clipped(name)}' occurs {header.count(name)} times"
                    )
            continue
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(header):
            problems.add("bad lines", f"{table.name}:{line}: {len(cells)} cells, where the header has {len(header)}")
            continue
        yield f":{line}", {name: cell for name, cell in zip(header, cells, strict=True) if name}


HEADED = re.compile(r"\s*image(?:_name)?\s*[,\t]\s*captions?\s*")  # Flickr8k's captions.txt
NUMBERED = re.compile(r"\s*image(?:_name)?\s*\|\s*comment_number\s*\|\s*comment\s*")  # Flickr30k's results.csv
TOKEN = re.compile(r"([^\t]+)#(\d+)\t(.*)")  # Flickr8k.token.txt, results_20130124.token
TEXTS = "a header image,caption or image| comment_number| comment, or lines of NAME.jpg#0, a tab and a caption"


def _read_text(file: Path, table: Table, problems: Problems) -> None:
    """Captions as Flickr8k and Flickr30k have them in text files."""
    first = next((text.strip() for _, text in _lines(file, table.name, Problems()) if text.strip()), "")
    if HEADED.fullmatch(first):
        table.layout = "Flickr8k's captions"
        table.extend(_headed_rows(file, table, problems))
    elif NUMBERED.fullmatch(first):
        table.extend(_numbered_rows(file, table, problems))
    elif TOKEN.fullmatch(first):
        table.layout = "Flickr's captions by image#number"
        table.extend(_token_rows(file, table, problems))
    elif first:
        problems.add(
            "bad files",
            f"{table.name}:1: not one of the tables that a text file may hold ({TEXTS}): {clipped(first)}; name a table of other "
            "columns .csv or .tsv",
        )


def _headed_rows(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    """Image and caption, parted by the first comma or tab: captions have commas of their own, quoted or not."""
    lines = ((number, text.strip()) for number, text in _lines(file, table.name, problems))
    _, header = next((number, text) for number, text in lines if text)
    mark = "\t" if "\t" in header else ","
    for number, text in lines:
        image, found, caption = text.partition(mark)
        caption = caption.strip()
        if len(caption) > 1 and caption[0] == caption[-1] == '"':
            caption = caption[1:-1].replace('""', '"')
        if text and not found:
            problems.add("bad lines", f"{table.name}:{number}: no {mark!r} after the image")
        elif text:
            yield f":{number}", {"image": image.strip(), "caption": caption}


def _numbered_rows(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    """Image, number and caption, parted by bars; the set has a line whose second bar is missing."""
    table.layout = "Flickr30k's comments"
    for number, text in islice(_lines(file, table.name, problems), 1, None):
        image, _, rest = text.strip().partition("|")
        caption = re.match(r"\s*(\d+)\s*\|?\s*(.*)", rest)
        if caption:
            yield f":{number}", {"image": image.strip(), "comment_number": caption[1], "caption": caption[2].strip()}
        elif text.strip():
            problems.add("bad lines", f"{table.name}:{number}: not image| comment_number| comment")


def _token_rows(file: Path, table: Table, problems: Problems) -> Iterator[Row]:
    for number, text in _lines(file, table.name, problems):
        row = TOKEN.fullmatch(text.strip())
        if row:
            yield f":{number}", {"image": row[1], "caption": row[3].strip()}
        elif text.strip():
            problems.add("bad lines", f"{table.name}:{number}: not NAME.jpg#0, a tab and a caption")


def _read_arrow(file: Path, table: Table, problems: Problems) -> None:
    table.extend(arrow_rows([file], table, problems))


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


READERS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(data_files.JSON_LINES, _read_jsonl),
    **dict.fromkeys(data_files.JSON, _read_json),
    **dict.fromkeys(data_files.DELIMITED, _read_delimited),
    **dict.fromkeys(data_files.TEXT, _read_text),
    **dict.fromkeys((*data_files.PARQUET, *data_files.ARROW), _read_arrow),
}
