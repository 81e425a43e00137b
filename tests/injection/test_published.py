"""The published sizes of adapters in BART base and T5 base, each built on the meta device (Sung et al., VL-Adapter, CVPR 2022; LST,
NeurIPS 2022). The whole tables, with everything else that a composite has, are scripts/audit.py's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import adapter_config
from tests.injection.language import full_size, trainable, where
from vlatrain.injection.attach import attach

NORMS, BIASES = 49_152, 125_952  # of BART
TASKS = ["vqa", "gqa", "nlvr2", "captioning"]
MULTIPLE = {"by_task": True}
PHM = {"projection": "phm", "terms": 2, "rank": 0}
HYPER = {"task_embedding": 512, "hidden": 128, "projected": 8, "per_site": True}
QV = {"roles": ["query", "value"]}

FIGURES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "single adapter": ("bart", "bottleneck", {"dim": 96, "trunk": ["norms"]}, 30 * 148_320 + NORMS),
    "multiple adapters": ("bart", "bottleneck", {"dim": 96, **MULTIPLE}, 17_798_400),
    "half-shared, up": (
        "bart", "bottleneck", {"dim": 96, **MULTIPLE, "share": {"what": "up", "over": ["task"]}}, 30 * (4 * 73_824 + 74_496),
    ),
    "half-shared, down": (
        "bart", "bottleneck", {"dim": 96, **MULTIPLE, "share": {"what": "down", "over": ["task"]}}, 30 * (4 * 74_496 + 73_824),
    ),
    "hyperformer": ("bart", "hyperformer", {"dim": 96, **MULTIPLE, "options": HYPER}, 8_579_088 - 1_582_848 - NORMS),
    "single compacter": ("bart", "bottleneck", {"dim": 96, "options": PHM}, 30 * 74_608),
    "multiple compacter": ("bart", "bottleneck", {"dim": 96, **MULTIPLE, "options": PHM}, 4 * 30 * 74_608),
    "single LoRA": ("bart", "lora", {"dim": 128, "targets": ["query", "value"], "trunk": ["biases"]}, 7_077_888 + BIASES),
    "single LoRA of our own": ("bart", "task_lora", {"dim": 128, "options": QV}, 7_077_888),
    "multiple LoRA": ("bart", "task_lora", {"dim": 128, **MULTIPLE, "options": QV}, 28_311_552),
    "T5, single adapter": ("t5", "bottleneck", {"dim": 192}, 60 * 295_872),
    "T5, LoRA": ("t5", "lora", {"dim": 150, "targets": ["query", "value"]}, 16_588_800),
    "T5, ladder": ("t5", "lst", {}, 16_386_072),
    "T5, BitFit": ("t5", "bitfit", {"options": {"keys": True, "outside": True}}, 282_496),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_is_as_published(name: str) -> None:
    language, method, options, expected = FIGURES[name]
    config = adapter_config(method, **options)
    tasks = TASKS if config.by_task else []
    assert trainable(attach(full_size(language), config, where(language), tasks)) == expected
