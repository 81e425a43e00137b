"""What stands in for later releases of transformers. `make test-versions` runs every other test with the oldest one."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

from tests.backbones.chatting import QUESTIONS, REPLIES, images, shared
from tests.backbones.composites import described
from vlatrain.backbones import describe, older
from vlatrain.config import DecodeConfig


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])  # of images as they are, and as so many patches of each
def test_states_in_the_place_of_pixels_are_states_handed_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = shared(name)
    context = backbone.context(backbone.inputs(images(), QUESTIONS))
    target, _ = backbone.target(REPLIES, 20)
    beams = DecodeConfig(num_beams=3, max_new_tokens=5)
    with torch.no_grad():
        wanted = backbone.logits(context, target), backbone.generate(context, beams)
        monkeypatch.setattr(older, "GIVEN", "an argument that no model has")
        torch.testing.assert_close(backbone.logits(context, target), wanted[0])
        assert backbone.generate(context, beams) == wanted[1]
    assert "get_image_features" not in vars(backbone.model.base_model)


def test_states_of_all_images_together_are_divided_by_their_places() -> None:
    ids = torch.tensor([[7, 7, 7, 7, 1], [2, 7, 7, 1, 2]])
    states = torch.randn(6, 3)
    wanted = [states[:4], states[4:]]
    for together in (states, states.view(3, 2, 3), wanted):  # all tokens', tiles of two tokens, and rows already
        rows = older.in_rows(together, ids, 7)
        assert all(torch.equal(row, other) for row, other in zip(rows, wanted, strict=True))
    blank = older.in_rows(states.to("meta"), ids.to("meta"), 7)
    assert [len(row) for row in blank] == [3, 3]


@pytest.mark.parametrize(("release", "path"), [("5.22.2", "attention.output.dense"), ("5.23.0", "attention.o_proj")])
def test_a_module_is_called_as_in_the_release_that_is_installed(
    release: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "_installed", lambda: Version(release))
    (place,) = describe.sites(described("dinov2", "t5"), "vqa", ["vision.3.attn"]).places.values()
    assert place.output == place.modules["out"] == f"vision.encoder.layer.3.{path}"
    assert place.modules["norm"] == "vision.encoder.layer.3.norm1"
