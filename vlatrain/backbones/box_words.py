"""How models write boxes: as each family was trained to, and in plain digits where it was not. By `model.box_words`:

- `florence2`: the expression, and `<loc_X>` for left, top, right and bottom, in 1,000 bins (Xiao et al., CVPR 2024, section 4.1;
  rounded as in transformers' `Florence2PostProcessor`);
- `paligemma`: `<locY><locX><locY><locX> NAME`, top, left, bottom and right in 1,024 bins, several parted by ` ; ` (Beyer et al.,
  arXiv:2407.07726, section 3.2; the prompt is that of its model card);
- `qwen2_5_vl`: JSON with `bbox_2d` in pixels of the image as its processor makes it (Bai et al., arXiv:2502.13923, section 2.1, and
  the spatial cookbook of its repository);
- `qwen3_vl`: the same in thousandths of the image (README and cookbooks of its repository, 2025);
- `locations`: the same places in 64 bins, as `<loc_8><loc_19><loc_28><loc_38>`, by words that train (`location_words`), for models
  that have none;
- `digits`: left, top, right and bottom in hundredths, `12 30 45 60`, several parted by ` ; `: for these any tokenizer has words.

A box that is read has its edges in the middle of their bins, and so within one of those of the box that was written. Formats are
from their descriptions; no published weights were at hand to compare with (2026-11).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

BINS = 64  # words for places that are new to a model
Box = tuple[float, float, float, float]
Size = tuple[int, int]
LOCATION = re.compile(r"<loc_?\d+>")
_FLORENCE = re.compile(r"((?:<loc_\d+>\s*){4,})")
_NUMBER = re.compile(r"\d+")
_JSON = re.compile(r"bbox\s*_\s*2d\W+(\d+)\D+(\d+)\D+(\d+)\D+(\d+)")
_PALIGEMMA = re.compile(r"((?:<loc\d{4}>\s*){4})")
_DIGITS = re.compile(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s*$")


@dataclass(frozen=True)
class BoxWords:
    """A format. Boxes are left, top, right, bottom in shares of the image.

    Attributes:
        bins: of both sides, by the width and height of the image as the model takes it.
        numbers: of a text, the numbers of its boxes in the order of the format.
        text: boxes' bins, left, top, right, bottom, and the expression as a text.
        swapped: whether y comes before x.
    """

    bins: Callable[[Size], Size]
    numbers: Callable[[str], list[list[int]]]
    text: Callable[[Sequence[Sequence[int]], str], str]
    swapped: bool = False

    def write(self, boxes: Sequence[Box], size: Size, expression: str) -> str:
        """Boxes of an image of a size as a text; empty: there are none."""
        most = self.bins(size)
        return self.text(
            [[min(int(share * most[axis % 2]), most[axis % 2] - 1) for axis, share in enumerate(box)] for box in boxes],
            expression,
        )

    def read(self, text: str, size: Size) -> list[Box]:
        """The boxes in a text; none: there is none that can be read."""
        most = self.bins(size)
        found: list[Box] = []
        for numbers in self.numbers(text):
            order = (1, 0, 3, 2) if self.swapped else (0, 1, 2, 3)
            left, top, right, bottom = (min((numbers[k] + 0.5) / most[axis % 2], 1.0) for axis, k in enumerate(order))
            if left <= right and top <= bottom:
                found.append((left, top, right, bottom))
        return found


def _groups(pattern: re.Pattern[str], text: str) -> list[list[int]]:
    numbers = [[int(number) for number in _NUMBER.findall(found[1])] for found in pattern.finditer(text)]
    return [own[start : start + 4] for own in numbers for start in range(0, len(own) - 3, 4)]


def _florence(boxes: Sequence[Sequence[int]], expression: str) -> str:
    return expression + "".join(f"<loc_{edge}>" for box in boxes for edge in box)


def _paligemma(boxes: Sequence[Sequence[int]], expression: str) -> str:
    tokens = ["".join(f"<loc{box[axis]:04d}>" for axis in (1, 0, 3, 2)) for box in boxes]
    return " ; ".join(f"{own} {expression}" for own in tokens)


def _json(boxes: Sequence[Sequence[int]], expression: str) -> str:
    rows = [json.dumps({"bbox_2d": list(box), "label": expression}, ensure_ascii=False) for box in boxes]
    return "```json\n[" + ",\n".join(rows) + "]\n```"


def _in_json(text: str) -> list[list[int]]:
    return [[int(number) for number in found] for found in _JSON.findall(text)]


def _locations(boxes: Sequence[Sequence[int]], expression: str) -> str:
    return "".join(f"<loc_{edge}>" for box in boxes for edge in box)


def _digits(boxes: Sequence[Sequence[int]], expression: str) -> str:
    return " ; ".join(" ".join(map(str, box)) for box in boxes)


def _in_digits(text: str) -> list[list[int]]:
    return [[int(number) for number in found.groups()] for part in text.split(";") if (found := _DIGITS.match(part))]


FORMATS: dict[str, BoxWords] = {
    "florence2": BoxWords(lambda size: (1000, 1000), lambda text: _groups(_FLORENCE, text), _florence),
    "paligemma": BoxWords(lambda size: (1024, 1024), lambda text: _groups(_PALIGEMMA, text), _paligemma, swapped=True),
    "qwen2_5_vl": BoxWords(lambda size: size, _in_json, _json),
    "qwen3_vl": BoxWords(lambda size: (1000, 1000), _in_json, _json),
    "locations": BoxWords(lambda size: (BINS, BINS), lambda text: _groups(_FLORENCE, text), _locations),
    "digits": BoxWords(lambda size: (100, 100), _in_digits, _digits),
}


def size_taken(image_processor: Any, size: Size) -> Size:
    """Width and height of an image of a size as an image processor of Qwen's makes it; of others the same."""
    patch, merged = (getattr(image_processor, name, None) for name in ("patch_size", "merge_size"))
    if not isinstance(patch, int) or not isinstance(merged, int):
        return size
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    bounds = dict(image_processor.size)
    height, width = smart_resize(
        size[1], size[0], patch * merged, min_pixels=bounds["shortest_edge"], max_pixels=bounds["longest_edge"]
    )
    return width, height
