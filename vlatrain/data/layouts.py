"""How public data sets lay out their samples in a JSON object. A layout is recognised by its shape; a new one is one function and a
line in `LAYOUTS`. Its rows have the field names of the tasks beside the names of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlatrain.config.data import SPLIT_VALUES
from vlatrain.data.boxes import Boxes
from vlatrain.data.cells import clipped, listed
from vlatrain.data.checks import Problems
from vlatrain.data.finder import ID_COLUMNS, Finder
from vlatrain.data.tables import Row, Table

LISTS = ("annotations", "data", "samples", "questions", "images")  # keys under which an object may hold its samples
SPLITS = tuple(value for values in SPLIT_VALUES.values() for value in values)

ANSWERS = "VQA v2's annotations"

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        name: what it is called in messages.
        matches: whether an object has its shape.
        rows: the samples in such an object.
        unanswered: whether an object of this layout has questions alone.
    """

    name: str
    matches: Callable[[Document], bool]
    rows: Callable[[Document, Finder], Iterator[Row]]
    unanswered: Callable[[Document], bool] = lambda value: False


def arrange(value: Any, table: Table, finder: Finder, problems: Problems) -> None:
    """Put the samples in a JSON value into a table: the items of a list, or an object's, by its layout.

    Args:
        value: what a JSON file holds.
        table: where they go.
        finder: finds images that are not named by their path.
        problems: where to report what is no sample, and an object that has no layout or several.
    """
    if isinstance(value, list):
        for number, item in enumerate(value):
            table.add(item, f"[{number}]", problems)
        return
    if not isinstance(value, dict):
        problems.add("bad files", f"{table.name}: expected a list or an object, found {clipped(json.dumps(value))}")
        return
    matching = [layout for layout in LAYOUTS if layout.matches(value)]
    if len(matching) > 1:
        problems.add("bad files", ambiguous(table.name, [layout.name for layout in matching]))
    elif matching:
        (layout,) = matching
        table.layout, table.unanswered = layout.name, layout.unanswered(value)
        table.images = str(value.get("data_subtype") or "")
        _check_items(value, table, problems)
        table.extend(layout.rows(value, finder))
    else:
        _add_list(value, table, problems)


def _check_items(value: Document, table: Table, problems: Problems) -> None:
    """Report items of lists of samples that are no objects, which no layout has rows for."""
    for key in value:
        items = value[key] if key in LISTS or key.lower() in SPLITS else ()
        for number, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, dict):
                found = type(item).__name__
                problems.add("bad lines", f"{table.name}:{key}[{number}]: expected an object {{...}}, found {found}")


def ambiguous(name: str, layouts: list[str]) -> str:
    """That several layouts match."""
    return f"{name}: could be read as {' and as '.join(layouts)}: put what is not meant elsewhere, or write a JSONL file of samples"


def _add_list(value: Document, table: Table, problems: Problems) -> None:
    """Add the one list of samples in an object without a layout of its own."""
    lists = [key for key in LISTS if isinstance(value.get(key), list)]
    filled = [key for key in lists if value[key]]
    if len(filled) > 1:
        problems.add("bad files", ambiguous(table.name, [f"the list under '{key}'" for key in filled]))
    elif filled:
        for number, item in enumerate(value[filled[0]]):
            table.add(item, f":{filled[0]}[{number}]", problems)
    elif not lists:
        keys = [key for key in value if isinstance(value[key], list) and value[key]]
        hint = f"; write the list under '{keys[0]}' to a file of its own" if len(keys) == 1 else ""
        problems.add(
            "bad files",
            f"{table.name}: an object without a list of samples; the keys looked for are {', '.join(LISTS)}, those there are "
            f"{listed(list(value)) or 'none'}{hint}",
        )


def first(value: Document, key: str) -> Mapping[str, Any]:
    """The first item of a list of objects under a key; an empty object if there is no such list."""
    items = value.get(key)
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def _objects(value: Document, key: str) -> Iterator[Row]:
    for number, item in enumerate(value[key]):
        if isinstance(item, dict):
            yield f":{key}[{number}]", item


def is_karpathy(value: Document) -> bool:
    """Whether images hold their captions as sentences, each with its split."""
    image = first(value, "images")
    return {"filename", "sentences"} <= image.keys() and "questions" not in value


def karpathy(value: Document, finder: Finder) -> Iterator[Row]:
    """Karpathy's split of Flickr8k, Flickr30k or COCO: the captions of an image are the `raw` of its sentences."""
    for place, image in _objects(value, "images"):
        path = str(image["filename"])
        below = "/".join(filter(None, (str(image.get("filepath") or ""), path)))  # COCO's are in a folder for each part
        captions = [sentence.get("raw") for sentence in image["sentences"] if isinstance(sentence, dict)]
        yield place, {**image, "image": below if below != path and finder.has(below) else path, "captions": captions}


def is_coco(value: Document) -> bool:
    """Whether annotations name their images by ids that other objects give paths to."""
    images, annotations = first(value, "images"), first(value, "annotations")
    named = {"id", "file_name"} <= images.keys() and "image_id" in annotations and "questions" not in value
    return named and not is_instances(value)


def coco(value: Document, finder: Finder) -> Iterator[Row]:
    """COCO's captions, and whatever else names its images so: each annotation is a row."""
    names = {image.get("id"): image.get("file_name") for image in value["images"] if isinstance(image, dict)}
    for place, annotation in _objects(value, "annotations"):
        yield place, {"image": names.get(annotation.get("image_id")), **annotation}


def is_instances(value: Document) -> bool:
    """Whether annotations are boxes of images that are named by ids."""
    images, annotations = first(value, "images"), first(value, "annotations")
    return (
        {"id", "file_name"} <= images.keys()
        and {"image_id", "bbox"} <= annotations.keys()
        and "caption" not in annotations
    )


def instances(value: Document, finder: Finder) -> Iterator[Row]:
    """COCO's instances: a row for each image and category, with the boxes of its annotations; crowds are left out. RefCOCO's
    expressions, as MDETR has them, are captions of images, each of which is there once for each."""
    images = {image.get("id"): image for image in value["images"] if isinstance(image, dict)}
    kinds = (
        {kind.get("id"): kind.get("name") for _, kind in _objects(value, "categories")} if "categories" in value else {}
    )
    rows: dict[tuple[Any, Any], Row] = {}
    for place, annotation in _objects(value, "annotations"):
        image = images.get(annotation.get("image_id"), {})
        said = image.get("caption") or kinds.get(annotation.get("category_id"))
        if annotation.get("iscrowd"):
            continue
        wide, high = image.get("width"), image.get("height")
        size = (wide, high) if isinstance(wide, int) and isinstance(high, int) else None
        found = {"image": image.get("file_name"), "question": said, "label": said, "boxes": Boxes([], "xywh", size)}
        known = rows.setdefault((annotation.get("image_id"), said), (place, found))[1]
        known["boxes"] = replace(known["boxes"], values=[*known["boxes"].values, annotation.get("bbox")])
    yield from rows.values()


def is_questions(value: Document) -> bool:
    """Whether questions have ids, and name their images by theirs."""
    return {"question_id", "image_id", "question"} <= first(value, "questions").keys()


def questions(value: Document, finder: Finder) -> Iterator[Row]:
    """VQA v2's questions: the image is called after its id; the answers are in the object too, or in a file of their own."""
    answers = {item["question_id"]: item for _, item in _objects(value, "annotations")} if answered(value) else {}
    for place, question in _objects(value, "questions"):
        image = question.get("image") or finder.by_id(question["image_id"], str(value.get("data_subtype") or ""))[0]
        yield (
            place,
            {**answers.get(question["question_id"], {}), "id": question["question_id"], **question, "image": image},
        )


def answered(value: Document) -> bool:
    """Whether the answers to VQA's questions are in the same object."""
    return "question_id" in first(value, "annotations")


def is_answers(value: Document) -> bool:
    """Whether there are answers that name their questions by ids, and no questions."""
    return answered(value) and "question" not in first(value, "annotations") and "questions" not in value


def answers(value: Document, finder: Finder) -> Iterator[Row]:
    """VQA v2's annotations: the ten answers to each question."""
    return _objects(value, "annotations")


def is_keyed(value: Document) -> bool:
    """Whether all that there is are objects."""
    return bool(value) and all(isinstance(item, dict) for item in value.values())


def keyed(value: Document, finder: Finder) -> Iterator[Row]:
    """Samples by their ids, as GQA and many others have them."""
    for key, item in value.items():
        yield f"[{json.dumps(clipped(key), ensure_ascii=False)}]", {"id": key, **item}


def is_by_split(value: Document) -> bool:
    """Whether all that there is are lists under the names of splits."""
    return bool(value) and all(key.lower() in SPLITS and isinstance(value[key], list) for key in value)


def by_split(value: Document, finder: Finder) -> Iterator[Row]:
    """A list of samples for each split."""
    for split in value:
        for place, item in _objects(value, split):
            yield place, {"split": split, **item}


LAYOUTS = (
    Layout("Karpathy's splits", is_karpathy, karpathy),
    Layout("COCO's images and annotations", is_coco, coco),
    Layout("COCO's instances", is_instances, instances),
    Layout("VQA v2's questions", is_questions, questions, lambda value: not answered(value)),
    Layout(ANSWERS, is_answers, answers),
    Layout("samples by id", is_keyed, keyed),
    Layout("a list for each split", is_by_split, by_split),
)


def add_answers(table: Table, annotations: Table, problems: Problems) -> None:
    """Give the questions of a table the answers that a file of annotations has for them, by `question_id`.

    Args:
        table: the questions.
        annotations: rows with `question_id` and what is to be added.
        problems: where to report what cannot be joined.
    """
    for one in (table, annotations):
        if "question_id" not in one.columns:
            problems.add(
                "annotations",
                f"{one.name}: no column 'question_id', by which questions and annotations are joined; the columns are "
                f"{listed(one.columns)}",
            )
            return
    by_id = {record.get("question_id"): record for _, record in annotations.rows}
    missing = [(place, record["question_id"]) for place, record in table.rows if record.get("question_id") not in by_id]
    if missing:
        place, identifier = missing[0]
        more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        problems.add(
            "annotations",
            f"{table.name}{place}: question {clipped(identifier)} has no annotation in {annotations.name}{more}",
        )
        return
    rows = [(place, {**by_id[record["question_id"]], **record}) for place, record in table.rows]
    table.rows, table.columns, table.unanswered = [], [], False
    table.extend(rows)


def name_images(table: Table, finder: Finder) -> str:
    """Give rows that have an id of an image in place of its path the image that is called after it, if there are such images.

    Returns:
        What to say of it; empty: it is nothing new.
    """
    column = next((name for name in ID_COLUMNS if name in table.columns), None)
    if column is None or {"image", "images"} & set(table.columns):
        return ""
    named = [finder.by_id(record.get(column), table.images) for _, record in table.rows]
    if not any(there for _, there in named):
        return ""
    ending = next(path.rpartition(".")[2] for path, there in named if there)
    rows = [
        (place, {**record, "image": path if there else f"{record.get(column)}.{ending}"})
        for (place, record), (path, there) in zip(table.rows, named, strict=True)
    ]
    table.rows = []
    table.extend(rows)
    return f"images called after '{column}', such as {clipped(rows[0][1]['image'])}"
