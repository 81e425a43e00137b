"""Rows of the designs that read the other modality: states that a layer is called with, and states that a tower is handed."""

from __future__ import annotations

from tests.injection.table import WIDTH, Row, each, method
from vlatrain.adapters import CrossModal, Routing

NONE = "gets no states of another modality"
NO_QUESTION = {("blip", "captioning"): NONE, ("blip", "retrieval"): NONE, ("clip", "retrieval"): NONE}
IMAGE = ["vision.*.*"]  # reads the question, in VQA
TEXT = ["{text,fusion,decoder}.*.*"]  # reads the image: BLIP's in its own layers' call, CLIP's is handed it
CROSS, ROUTED = CrossModal.count(WIDTH, 4), Routing.count(WIDTH, 4)

ROWS: dict[str, Row] = {
    "cross_modal": Row(method("cross_modal", dim=4), each(CROSS), points=TEXT),
    "cross_modal, parallel, two heads": Row(
        method("cross_modal", dim=4, options={"placement": "parallel", "latent_heads": 2}), each(CROSS), points=TEXT
    ),
    "cross_modal, image reads question": Row(
        method("cross_modal", dim=4), each(CROSS), points=IMAGE, unfit=NO_QUESTION
    ),
    "routing": Row(method("routing", dim=4), each(ROUTED), points=TEXT),
    "routing, attend": Row(method("routing", dim=4, options={"function": "attend"}), each(ROUTED), points=TEXT),
    "routing, image reads question": Row(method("routing", dim=4), each(ROUTED), points=IMAGE, unfit=NO_QUESTION),
}
