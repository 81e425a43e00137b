from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.reporting.pages.folders import HOSTILE
from vlatrain.reporting.pages import figures

TOWERS = {
    "vision": {"layers": 3, "sites": ["attn"], "trainable": {"0.attn": 1200}},
    "text": {"layers": 2, "sites": ["ffn"], "trainable": {}},
}
POINTS = {"loss": [(1, 2.0), (2, 1.0)], "$x$": [(1, float("nan")), (2, 3.0)]}
DRAWN = {
    "curves": lambda: figures.curves(HOSTILE, POINTS, {"baseline": 1.5}, "%"),
    "scatter": lambda: figures.scatter(
        HOSTILE, [("#1", 1, 2), ("$#2$", 100, 3)], ("cost", "score"), [0], logarithmic=True
    ),
    "numbers": lambda: figures.strip(HOSTILE, [("1", 1.0), ("64", 2.0), ("64", 3.0)], ("dim", "score")),
    "names": lambda: figures.strip(HOSTILE, [("lora", 1.0), ("$full$", 2.0)], ("adapter", "score")),
    "towers": lambda: figures.towers(TOWERS),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_of_the_page_s_own_colours_and_well_formed(name: str) -> None:
    drawn = str(DRAWN[name]())
    root = ElementTree.fromstring(drawn)
    assert root.get("role") == "img"
    assert root.get("aria-label") == (HOSTILE if name != "towers" else "Trainable parameters by tower, layer and site")
    assert "var(--s0)" in drawn
    assert "var(--ink)" in drawn
    assert not re.search(r"#(?:0[1-6]|a0)\w{4}", drawn.replace("#000000", ""))
    assert "<script" not in drawn
    assert "http" not in drawn
    assert "mathdefault" not in drawn
    assert "width" not in root.attrib


def test_texts_stay_texts() -> None:
    assert ">$#2$<" in str(DRAWN["scatter"]())
    assert ">vision.attn<" in str(DRAWN["towers"]())
    assert ">1.2k<" in str(DRAWN["towers"]())


def test_nothing_to_draw_is_nothing() -> None:
    assert not figures.curves("x", {"a": []})
    assert not figures.towers({})
