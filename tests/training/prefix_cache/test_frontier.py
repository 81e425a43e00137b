"""The frontier follows what trains, along the flow of data, and says what pins it."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import adapter_config, small_config
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import AdapterConfig, TaskConfig
from vlatrain.injection.attach import attach
from vlatrain.tasks import build
from vlatrain.training.prefix_cache.frontier import frontiers

VISION, FUSION, DECODER = "vision", "fusion", "decoder"


def found(name: str, task: str, method: AdapterConfig, points: list[str]) -> dict[str, tuple[int, bool]]:
    """By tower, how many of its layers (the image's three, the text's two) are kept, and whether it is frozen as a whole."""
    backbone = load(small_config(name), task, texts=["a red circle"])
    attach(backbone.model, method, sites(backbone.config, task, points))
    return {
        tower: (frontier.boundary.layers if frontier.boundary else 0, frontier.whole)
        for tower, frontier in frontiers(backbone.model, backbone.config, task).items()
    }


@pytest.mark.parametrize("method", ["bottleneck", "lora", "bitfit", "cross_modal", "prompt"])
@pytest.mark.parametrize(
    ("task", "points", "expected"),
    [
        ("vqa", ["decoder"], {VISION: (3, True), FUSION: (2, True)}),
        ("vqa", ["fusion.1.*"], {VISION: (3, True), FUSION: (1, False)}),
        ("vqa", ["fusion"], {VISION: (3, True), FUSION: (0, False)}),
        ("vqa", ["vision.1.ffn"], {VISION: (1, False), FUSION: (0, False)}),
        ("captioning", ["decoder"], {VISION: (3, True)}),
        ("captioning", ["vision.1.*", "decoder"], {VISION: (1, False)}),
        ("retrieval", ["fusion"], {VISION: (3, True)}),
        ("retrieval", ["vision.last1.*", "fusion"], {VISION: (2, False)}),
    ],
)
def test_blip(task: str, points: list[str], expected: dict, method: str) -> None:
    if method == "cross_modal" and "vision" in points[0] and task != "vqa":
        pytest.skip("nothing to read there")
    if method == "cross_modal" and task == "captioning" and len(points) == 2:
        pytest.skip("nothing to read in the image tower")
    assert (
        found("blip", task, adapter_config(method, dim=4) if method != "bitfit" else adapter_config(method), points)
        == expected
    )


def test_clip() -> None:
    assert found("clip", "retrieval", adapter_config("bottleneck", dim=4), ["*.last1.*"])[VISION] == (2, False)
    assert found("clip", "retrieval", adapter_config("bottleneck", dim=4), ["text"])[VISION] == (3, True)


def test_a_ladder_leaves_every_layer_frozen() -> None:
    backbone = load(small_config("clip"), "retrieval", texts=["a red circle"])
    attach(
        backbone.model, adapter_config("ladder", options={"reduction": 4}), sites(backbone.config, "retrieval", ["end"])
    )
    frontier = frontiers(backbone.model, backbone.config, "retrieval")[VISION]
    assert frontier.boundary
    assert frontier.boundary.taps == (0, 1, 2)
    assert not frontier.whole


def test_what_trains_before_the_layers_pins_everything() -> None:
    backbone = load(small_config("blip"), "captioning", texts=["a red circle"])
    backbone.model.vision_model.embeddings.class_embedding.requires_grad_(True)
    (frontier,) = frontiers(backbone.model, backbone.config, "captioning").values()
    assert frontier.boundary is None
    assert frontier.pinned == "vision_model.embeddings.class_embedding"


def test_a_head_that_trains_pins_nothing_and_a_pin_has_a_name() -> None:
    backbone = load(small_config("clip"), "retrieval", texts=["a red circle"])
    where = sites(backbone.config, "retrieval", ["vision.1.attn"])
    attach(backbone.model, adapter_config("bottleneck", dim=4, heads=True), where)
    frontier = frontiers(backbone.model, backbone.config, "retrieval")[VISION]
    assert frontier.boundary
    assert frontier.boundary.layers == 1
    assert frontier.pinned.startswith("vision.1: self_attn.out_proj.adapter")


@pytest.mark.parametrize(
    ("name", "task", "points"),
    [
        ("blip", "vqa", ["decoder"]),
        ("blip", "vqa", ["fusion.1.*"]),
        ("blip", "captioning", ["vision.1.*", "decoder"]),
        ("clip", "retrieval", ["*.last1.*"]),
    ],
)
def test_nothing_before_it_builds_a_graph(name: str, task: str, points: list[str]) -> None:
    backbone = load(small_config(name), task, texts=["a red circle"])
    attach(backbone.model, adapter_config("bottleneck", dim=4), sites(backbone.config, task, points))
    built: dict[str, set[bool]] = {}
    for tower in backbone.config.tasks[task].towers:
        layers = backbone.model.get_submodule(backbone.config.towers[tower].layers)
        for number, layer in enumerate(layers.children()):
            key = f"{tower}.{number}"
            layer.register_forward_hook(
                lambda _module, _inputs, out, key=key: built.setdefault(key, set()).add(
                    any(state.requires_grad for state in ([out] if torch.is_tensor(out) else out) if state is not None)
                )
            )
    build(TaskConfig(name=task), backbone).loss_on_meta(2, "cpu")
    for tower, frontier in frontiers(backbone.model, backbone.config, task).items():
        kept = frontier.boundary.layers if frontier.boundary else 0
        for number in range(3 if tower == VISION else 2):
            assert built[f"{tower}.{number}"] == {number >= kept}, (tower, number)
