"""What a cell with boxes may hold, in which form; and rows of which each has one box of an image.

A sample's boxes are left, top, right, bottom in shares of the upright image, and so the same at any size. A form says how a cell
has them: by its edges or by its corner and sides, in pixels, in shares (0 to 1) of the image or of the square that it is padded to,
or in thousandths (0 to 1000). Pixels are those of the upright image; where a source says the image's width and height, and these
are those of an image that lies on its side, they are those of the image as it lies (annotation tools that pass over EXIF), and the
box is turned with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlatrain.config.data import ColumnsConfig
from vlatrain.data.cells import CellError, clipped, kind, parse_list, text
from vlatrain.data.tables import Row, Table

Box = tuple[float, float, float, float]
SLACK = 1.0  # pixels that a box may lie outside of the image: some tools count edges from 1, and round
SHOWN = 3  # decimals of numbers in messages


def _sides(box: Box) -> Box:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _around(box: Box) -> Box:
    return box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2


FORMS: dict[str, tuple[Callable[[Box], Box], float]] = {
    "xyxy": (lambda box: box, 0.0),
    "xywh": (_sides, 0.0),
    "xyxy_normalised": (lambda box: box, 1.0),
    "xywh_normalised": (_sides, 1.0),
    "cxcywh_normalised": (_around, 1.0),
    "xyxy_padded": (lambda box: box, 1.0),
    "xyxy_1000": (lambda box: box, 1000.0),
}
"""By form, a box by its edges, and what the image's sides are in its unit; 0: pixels. YOLO's text files have `cxcywh_normalised`,
LLaVA's conversations `xyxy_padded`: the image lies in the middle of a square as wide as its longer side."""
ROUNDED = 0.005  # of the square: what two decimals leave out


@dataclass(frozen=True)
class Boxes:
    """A cell whose form its source tells.

    Attributes:
        values: the boxes.
        form: one of `FORMS`.
        size: width and height of the image, as the source has them; None: it does not say.
        known: whether the source has this form and no other.
        places: where each stands, if not where the row does.
    """

    values: Sequence[Any]
    form: str
    size: tuple[int, int] | None = None
    known: bool = True
    places: Sequence[str] = ()


def read_boxes(value: Any, form: str) -> Boxes:
    """A cell as boxes, each of four numbers: one, a list of them, or what a layout made. A text may hold a list in any format.

    Raises:
        CellError: it is none of these.
    """
    if isinstance(value, Boxes):
        return replace(value, values=[_four(one) for one in value.values])
    if isinstance(value, str):
        value = parse_list(value)
    if value is None or value == "":
        return Boxes([], form, known=False)
    if not isinstance(value, list | tuple):
        raise CellError(f"expected a box of four numbers, or a list of such, found {kind(value)}")
    single = bool(value) and not isinstance(value[0], list | tuple | Mapping)
    return Boxes([_four(one) for one in ([value] if single else value)], form, known=False)


def _four(value: Any) -> Box:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise CellError(f"a box has four numbers, found {clipped(value)}")
    try:
        left, top, right, bottom = (float(edge) for edge in value)
    except (TypeError, ValueError):
        raise CellError(f"a box has four numbers, found {clipped(value)}") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise CellError(f"a box of numbers that are not finite: {clipped(value)}")
    return left, top, right, bottom


def in_shares(boxes: Boxes, size: tuple[int, int], orientation: int = 1) -> tuple[Box, ...]:
    """Boxes in shares of an image, by their edges.

    Args:
        boxes: what `read_boxes` returned.
        size: width and height in pixels of the upright image.
        orientation: EXIF's, of the image as it is stored.

    Raises:
        CellError: a box is empty, has its edges the wrong way round, or lies outside of the image.
    """
    edges, unit = FORMS[boxes.form]
    lying = orientation > 4 and boxes.size == (size[1], size[0]) and size[0] != size[1]
    width, height = boxes.size if lying and boxes.size else size
    across, down = (unit, unit) if unit else (float(width), float(height))
    before = above = 0.0
    slack = (SLACK / width, SLACK / height)
    if boxes.form == "xyxy_padded":
        side = max(width, height)
        before, above = (side - width) // 2 / side, (side - height) // 2 / side
        across, down = width / side, height / side
        slack = (slack[0] + ROUNDED / across, slack[1] + ROUNDED / down)
    found = []
    for number, value in enumerate(boxes.values):
        left, top, right, bottom = edges(value)
        said = f"{clipped([round(edge, SHOWN) for edge in value])}, read as {boxes.form}"
        said += f" (at {boxes.places[number]})" if boxes.places else ""
        if right < left or bottom < top:
            other = "; these look like corner and sides: data.boxes=xywh" if boxes.form == "xyxy" else ""
            raise CellError(
                f"a box whose right edge is left of its left one, or its bottom above its top: {said}{other}"
            )
        if right == left or bottom == top:
            raise CellError(f"an empty box: {said}")
        box = (left - before) / across, (top - above) / down, (right - before) / across, (bottom - above) / down
        inside: Box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], 1.0), min(box[3], 1.0))
        beyond = min(box[0] + slack[0], box[1] + slack[1]) < 0 or box[2] > 1 + slack[0] or box[3] > 1 + slack[1]
        if beyond or inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise CellError(f"a box outside of the image, which is {width} x {height} pixels: {said}")
        found.append(TURNS[orientation](*inside) if lying else inside)
    return tuple(found)


TURNS: dict[int, Callable[[float, float, float, float], Box]] = {
    5: lambda left, top, right, bottom: (top, left, bottom, right),  # rows are columns
    6: lambda left, top, right, bottom: (1 - bottom, left, 1 - top, right),  # lies on its left side
    7: lambda left, top, right, bottom: (1 - bottom, 1 - right, 1 - top, 1 - left),
    8: lambda left, top, right, bottom: (top, 1 - right, bottom, 1 - left),
}
"""By EXIF's orientation, where it turns an image on its side, a box of the image as it is stored turned with it, in shares."""


class Suspicion:
    """Whether boxes are in another form than they are read as, by all of them together.

    Args:
        form: the form that they are read as.
    """

    def __init__(self, form: str) -> None:
        self.form, self.number, self.outside, self.most, self.first = form, 0, 0, 0.0, ""

    def look(self, boxes: Boxes, size: tuple[int, int], source: str) -> None:
        """Look at the boxes of a row, and at the size of its image."""
        if boxes.known or not boxes.values:
            return
        self.first = self.first or source
        self.number += len(boxes.values)
        self.most = max(self.most, *(max(box) for box in boxes.values))
        self.outside += sum(box[2] > size[0] + SLACK or box[3] > size[1] + SLACK for box in boxes.values)

    def said(self) -> str:
        """What to say of them; empty: nothing."""
        edges, _, unit = self.form.partition("_")
        if not self.number:
            return ""
        if not unit and self.most <= 1:
            return f"all {self.number:,} boxes lie in 0..1 and are read as pixels: data.boxes={edges}_normalised takes shares"
        if not unit and 2 * self.outside > self.number and self.most <= 1000 and edges == "xyxy":
            return f"most boxes reach beyond their images, and all lie in 0..1000: data.boxes={edges}_1000 takes thousandths"
        if unit in ("normalised", "padded") and self.most > 1 + SLACK:
            return f"boxes have numbers up to {self.most:g} and are read as shares of the image: data.boxes={edges} takes pixels"
        return ""


@dataclass(frozen=True)
class Edges:
    """Columns that have a box's numbers one by one.

    Attributes:
        names: the four columns, in lower case, in the order of the form.
        form: one of `FORMS`.
    """

    names: tuple[str, str, str, str]
    form: str


EDGES = (
    Edges(("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    Edges(("x_min", "y_min", "x_max", "y_max"), "xyxy"),
    Edges(("x1", "y1", "x2", "y2"), "xyxy"),
    Edges(("left", "top", "right", "bottom"), "xyxy"),
    Edges(("bbox_x", "bbox_y", "bbox_width", "bbox_height"), "xywh"),
)
IMAGE = ("image", "filename", "file_name", "image_path", "image_name", "path", "img")
NAME = ("question", "expression", "label", "class", "class_name", "cell_type", "category", "name")
"""Columns of such rows with the image, and with what a box is of; the first of each that is there."""


def gather(table: Table, columns: ColumnsConfig, form: str) -> str:
    """Make one row of all rows of an image and a class whose boxes stand in columns of their own, as in CSV.

    Args:
        table: the rows; changed in place.
        columns: the user's column map.
        form: what `data.boxes` says: whether the numbers are pixels.

    Returns:
        What to say of it; empty: there are no such columns.
    """
    plain = {name.strip().lower(): name for name in reversed(table.columns)}
    edges = next((one for one in EDGES if all(name in plain for name in one.names)), None)
    if edges is None or columns.boxes or {"box", "boxes", "bbox"} & set(table.columns):
        return ""
    image = columns.image or next((plain[name] for name in IMAGE if name in plain), "")
    named = columns.question or next((plain[name] for name in NAME if name in plain), "")
    if image not in table.columns or named not in table.columns:
        return ""
    unit = form.partition("_")[2]
    form = f"{edges.form}_{unit}" if f"{edges.form}_{unit}" in FORMS else edges.form
    names = [plain[name] for name in edges.names]
    rows: dict[tuple[str, str], Row] = {}
    count = len(table.rows)
    for place, record in table.rows:
        numbers = [record.get(name) for name in names]
        rest = {name: value for name, value in record.items() if name not in names}
        key = str(rest.get(image)), str(rest.get(named))
        known = rows.setdefault(key, (place, {**rest, "boxes": Boxes([], form, known=False)}))[1]
        if any(number not in (None, "") for number in numbers):  # a row without numbers: there is none of the class
            own = known["boxes"]
            known["boxes"] = replace(own, values=[*own.values, numbers], places=[*own.places, place])
    table.rows, table.columns, table.delimited = [], [], False
    table.extend(
        (place, {**record, "image": record[image], "question": text(record[named])}) for place, record in rows.values()
    )
    return f"{count:,} rows of boxes as {len(rows):,} of an image and '{named}' each"
