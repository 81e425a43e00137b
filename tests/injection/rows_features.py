"""Rows of what goes on the features of image and text."""

from __future__ import annotations

from tests.injection.table import Row, method

FEATURES = 20  # their width in the small backbones
UNFIT = {("blip", task): "works on the features of image and text" for task in ("vqa", "captioning")}

ROWS: dict[str, Row] = {
    "clip_adapter": Row(method("clip_adapter", dim=4), lambda where: 2 * FEATURES * 4, unfit=UNFIT),
    "clip_adapter, both": Row(
        method("clip_adapter", dim=4, bias=True, options={"features": ["image", "text"], "ratio": 0.5}),
        lambda where: 2 * (2 * FEATURES * 4 + FEATURES + 4),
        unfit=UNFIT,
    ),
    "tip_adapter": Row(
        method("tip_adapter", options={"size": 6}),
        lambda where: 0,
        unfit=UNFIT,
        cannot={"train": "free of training: the cache is filled, and stays"},
    ),
    "tip_adapter_f": Row(method("tip_adapter_f", options={"size": 6}), lambda where: 6 * FEATURES, unfit=UNFIT),
}
