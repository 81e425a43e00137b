"""How samples lie in a folder. A layout is recognised by its shape; a new one is one function and a line in `LAYOUTS`.

Image paths are below the folder. Masks beside images (`7_mask.png` beside `7.jpg`, or the same names in a folder `GT`) are no
samples: they are left out, and told.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from vlatrain.data.boxes import Boxes
from vlatrain.data.cells import clipped, json_of, listed
from vlatrain.data.checks import Problems
from vlatrain.data.finder import is_image
from vlatrain.data.layouts import SPLITS, ambiguous
from vlatrain.data.tables import Row, Table

log = logging.getLogger("vlatrain")

MASK = re.compile(r"(.+)[_-](?:mask|masks|gt|groundtruth|seg|segmentation)", re.IGNORECASE)  # names of files
MASKS = (
    "mask",
    "masks",
    "gt",
    "groundtruth",
    "ground_truth",
    "annotation",
    "annotations",
    "segmentation",
)  # and of folders
IMAGES = ("image", "images", "img", "imgs", "jpegimages")  # folders beside them
ANNOTATIONS = "Annotations"  # the folder of Pascal VOC's
FEWEST = 2  # JSON files that make a folder of samples; a single one beside images describes the whole


@dataclass
class Folder:
    """What is in a folder.

    Attributes:
        path: the folder.
        images: the images, with their folders below it, sorted; without masks.
        masks: the images that are left out.
        texts: the other files directly in it.
        folders: the folders directly in it.
    """

    path: Path
    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def ending(self, ending: str) -> list[str]:
        """The files directly in it with an ending."""
        return [name for name in self.texts if name.lower().endswith(ending)]

    @property
    def direct(self) -> dict[str, str]:
        """The images directly in it, by their names without ending."""
        return {os.path.splitext(name)[0]: name for name in reversed(self.images) if os.sep not in name}


def read_folder(path: Path, table: Table, problems: Problems) -> None:
    """Put the samples in a folder into a table, by its layout.

    Args:
        path: the folder.
        table: where they go.
        problems: where to report a folder that has no layout or several.
    """
    folder = _listed(path)
    matching = [layout for layout in LAYOUTS if layout.matches(folder)]
    if len(matching) > 1:
        problems.add("bad files", ambiguous(table.name, [layout.name for layout in matching]))
    elif matching:
        (layout,) = matching
        table.layout = layout.name
        try:
            table.extend(layout.rows(folder, table, problems))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.add("bad files", f"{table.name}: read as {layout.name}, and cannot be: {clipped(error)}")
        if folder.masks:
            number, first = f"{len(folder.masks):,}", folder.masks[0]
            log.info("%s: %s masks beside images are left out, such as %s", path, number, first)
    else:
        hub = any(name.startswith("metadata.") for name in folder.texts) or folder.ending(".parquet")
        data = [name for ending in (".jsonl", ".json", ".csv", ".tsv", ".txt") for name in folder.ending(ending)]
        hint = f"name a file in it ({listed(data, 3)})" if data else "name a file of samples"
        problems.add(
            "data files",
            f"{table.name}: a folder without a layout of samples ({', '.join(layout.name for layout in LAYOUTS)}): "
            + (f"it has the hub's, set data=hub data.path={table.name}" if hub else hint),
        )  # fmt: skip


def read_masked(path: Path, table: Table, problems: Problems) -> None:
    """Put images with masks into a table: a mask is called like its image, with `_mask` or the like behind its name, or in a folder
    `masks` or the like beside that of the images. Folders of splits are read as such.

    Args:
        path: the folder.
        table: where they go.
        problems: where to report images without masks, and masks without images.
    """
    folder, table.layout = _listed(path), "images with masks"
    images: dict[tuple[str, ...], str] = {}
    masks: dict[tuple[str, ...], str] = {}
    for name in sorted([*folder.images, *folder.masks]):
        *above, stem = os.path.splitext(name)[0].split(os.sep)
        named = MASK.fullmatch(stem)
        places = [part for part in above if part.lower() not in (*MASKS, *IMAGES)]
        masked = bool(named) or any(part.lower() in MASKS for part in above)
        (masks if masked else images)[(*places, named[1] if named else stem)] = name
    slash = "" if table.name.endswith(os.sep) else os.sep
    split = all(len(key) > 1 and key[0].lower() in SPLITS for key in images)
    for key in masks.keys() - images.keys():
        problems.add(
            "masks without images", f"{table.name}{slash}{masks[key]}: a mask, and there is no image of its name"
        )
    rows = []
    for key, image in images.items():
        if key not in masks:
            problems.add("images without masks", f"{table.name}{slash}{image}: there is no mask of its name")
            continue
        rows.append((f"{slash}{image}", {"image": image, "mask": masks[key], **({"split": key[0]} if split else {})}))
    table.extend(rows)


@dataclass(frozen=True)
class FolderLayout:
    """A layout.

    Attributes:
        name: what it is called in messages.
        matches: whether a folder has its shape.
        rows: the samples in such a folder.
    """

    name: str
    matches: Callable[[Folder], bool]
    rows: Callable[[Folder, Table, Problems], Iterator[Row]]


def _listed(path: Path) -> Folder:
    folder = Folder(path)
    images: list[str] = []
    for above, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(above, path)
        if below == ".":
            folder.folders = list(folders)
            folder.texts = sorted(name for name in names if not is_image(name) and not name.startswith("."))
        shown = (name for name in names if is_image(name) and not name.startswith("."))
        images += [name if below == "." else os.path.join(below, name) for name in shown]
    images.sort()
    stems = {os.path.splitext(name)[0] for name in images}
    for name in images:
        (folder.masks if _is_mask(name, stems) else folder.images).append(name)
    return folder


def _is_mask(name: str, stems: set[str]) -> bool:
    """Whether an image is the mask of another one."""
    stem = os.path.splitext(name)[0]
    named = MASK.fullmatch(stem)
    if named and named[1] in stems:
        return True
    *above, _ = stem.split(os.sep)
    return any(folder.lower() in MASKS for folder in above[1:])  # the first is a class, whatever it is called


def is_saved(folder: Folder) -> bool:
    """Whether `datasets` saved a data set there, or several by split."""
    return "state.json" in folder.texts or "dataset_dict.json" in folder.texts


def saved(folder: Folder, table: Table, problems: Problems) -> Iterator[Row]:
    """What `save_to_disk` of `datasets` writes: Arrow files, named in `state.json`; a folder of them for each split."""
    from vlatrain.data.arrow import arrow_rows

    if "state.json" in folder.texts:
        state = json.loads((folder.path / "state.json").read_text(encoding="utf-8"))
        files = [folder.path / one["filename"] for one in state["_data_files"]]
        yield from arrow_rows(files, table, problems)
        return
    for split in json.loads((folder.path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]:
        inside = Folder(folder.path / split, texts=["state.json"])
        yield from ((f":{split}{place}", {"split": split, **row}) for place, row in saved(inside, table, problems))


def is_each(folder: Folder) -> bool:
    """Whether there are several JSON files that are not those of a saved data set."""
    return len(folder.ending(".json")) >= FEWEST and not is_saved(folder)


def each(folder: Folder, table: Table, problems: Problems) -> Iterator[Row]:
    """A JSON file for each sample; where it names no image, the image of the same name beside it."""
    beside = folder.direct
    for name in folder.ending(".json"):
        place = f"{'' if table.name.endswith(os.sep) else os.sep}{name}"
        try:
            value = json_of((folder.path / name).read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            problems.add("bad lines", f"{table.name}{place}: not JSON: {error}")
            continue
        if not isinstance(value, dict):
            problems.add("bad lines", f"{table.name}{place}: expected an object {{...}}, found {type(value).__name__}")
            continue
        stem = name[: -len(".json")]
        yield place, value if "image" in value or stem not in beside else {"image": beside[stem], **value}


def is_captioned(folder: Folder) -> bool:
    """Whether each image directly in it has a text of the same name beside it."""
    texts = {name[: -len(".txt")] for name in folder.ending(".txt")}
    return bool(folder.direct) and folder.direct.keys() <= texts


def captioned(folder: Folder, table: Table, problems: Problems) -> Iterator[Row]:
    """A text beside each image: each of its lines is a caption."""
    for stem, image in sorted(folder.direct.items()):
        place = f"{'' if table.name.endswith(os.sep) else os.sep}{stem}.txt"
        try:
            text = (folder.path / f"{stem}.txt").read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            problems.add("bad lines", f"{table.name}{place}: not UTF-8: save the file as UTF-8")
            continue
        yield place, {"image": image, "captions": [line.strip() for line in text.splitlines() if line.strip()]}


def is_by_class(folder: Folder) -> bool:
    """Whether images are in folders. A single one beside JSON files has the images of these."""
    classes = {name.split(os.sep)[0] for name in folder.images if os.sep in name}
    return len(classes) > is_each(folder) and not is_saved(folder) and not is_voc(folder)


def by_class(folder: Folder, table: Table, problems: Problems) -> Iterator[Row]:
    """A folder for each class, with images at any depth; or a folder for each split, with those of its classes."""
    inside = [name for name in folder.images if os.sep in name]
    above = {name.split(os.sep)[0] for name in inside}
    split = all(name.lower() in SPLITS for name in above) and all(name.count(os.sep) > 1 for name in inside)
    if beside := len(folder.images) - len(inside):
        log.info("%s: %s images in no class folder are left out", folder.path, f"{beside:,}")
    for name in inside:
        first, second, *_ = name.split(os.sep)
        labels = {"split": first, "label": second} if split else {"label": first}
        yield f"{'' if table.name.endswith(os.sep) else os.sep}{name}", {"image": name, **labels}


def is_voc(folder: Folder) -> bool:
    """Whether there are annotations in XML, as of Pascal VOC."""
    return ANNOTATIONS in folder.folders and any((folder.path / ANNOTATIONS).glob("*.xml"))


def voc(folder: Folder, table: Table, problems: Problems) -> Iterator[Row]:
    """Pascal VOC's annotations, and labelImg's: a row for each image and class, with its boxes. Images are in `JPEGImages`, or
    wherever below one of the name is; lists in `ImageSets/Main` tell the splits."""
    images = {os.path.splitext(os.path.basename(name))[0]: name for name in reversed(folder.images)}
    splits: dict[str, str] = {}
    for name in SPLITS:
        file = folder.path / "ImageSets" / "Main" / f"{name}.txt"
        splits |= (
            {line.strip(): name for line in file.read_text().split("\n") if line.strip()} if file.is_file() else {}
        )
    for file in sorted((folder.path / ANNOTATIONS).glob("*.xml")):
        place = f"{'' if table.name.endswith(os.sep) else os.sep}{ANNOTATIONS}/{file.name}"
        try:
            root = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            problems.add("bad lines", f"{table.name}{place}: not XML: {error}")
            continue
        sides = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
        size = (int(sides[0]), int(sides[1])) if all(side.isdecimal() for side in sides) else None
        boxes: dict[str, list[list[str | None]]] = {}
        for thing in root.iter("object"):
            edges = [thing.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            boxes.setdefault(thing.findtext("name", "").strip(), []).append(edges)
        split = {"split": splits.get(file.stem, "")} if splits else {}
        image = images.get(file.stem, root.findtext("filename", f"{file.stem}.jpg"))
        for name, own in boxes.items():
            row = {"image": image, "question": name, "label": name, "boxes": Boxes(own, "xyxy", size)}
            yield f"{place}#{name}", {**row, **split}


LAYOUTS = (
    FolderLayout("class folders", is_by_class, by_class),
    FolderLayout("a JSON file for each sample", is_each, each),
    FolderLayout("a text beside each image", is_captioned, captioned),
    FolderLayout("a data set saved by save_to_disk", is_saved, saved),
    FolderLayout("Pascal VOC's annotations", is_voc, voc),
)
