"""Rows of the designs that read the other modality: states that a layer is called with, and states that a tower is handed."""

from __future__ import annotations

from tests.injection.table import Row, each, method
from vlatrain.adapters import CrossModal, Routing

NONE = "gets no states of another modality"
NO_QUESTION = {("blip", "captioning"): NONE, ("blip", "retrieval"): NONE, ("clip", "retrieval"): NONE}
IMAGE = ["vision.*.*"]  # reads the question, in VQA
TEXT = ["{text,fusion,decoder}.*.*"]  # reads the image: BLIP's in its own layers' call, CLIP's is handed it
CROSS, ROUTED = (
    each(lambda at, design=design: design.count(at.width, 4, other_width=at.other_width))
    for design in (CrossModal, Routing)
)

ROWS: dict[str, Row] = {
    "cross_modal": Row(method("cross_modal", dim=4), CROSS, points=TEXT),
    "cross_modal, parallel, two heads": Row(
        method("cross_modal", dim=4, options={"placement": "parallel", "latent_heads": 2}), CROSS, points=TEXT
    ),
    "cross_modal, image reads question": Row(method("cross_modal", dim=4), CROSS, points=IMAGE, unfit=NO_QUESTION),
    "routing": Row(method("routing", dim=4), ROUTED, points=TEXT),
    "routing, attend": Row(method("routing", dim=4, options={"function": "attend"}), ROUTED, points=TEXT),
    "routing, image reads question": Row(method("routing", dim=4), ROUTED, points=IMAGE, unfit=NO_QUESTION),
}
