"""The search for a text: no text begins in the middle of a word, and the search is the same however many texts are asked for."""

from __future__ import annotations

import pytest
import torch

from tests.backbones import chatting
from tests.conftest import make_samples, small_config
from vlatrain.backbones.loading import load
from vlatrain.backbones.search import WordStart, generate_settings, word_start
from vlatrain.config import DecodeConfig


def test_pieces_wait_for_a_word() -> None:
    pieces, words = torch.tensor([3, 4]), torch.tensor([1, 2])  # 0 is special, 5 is behind the tokenizer's vocabulary
    start = WordStart(pieces, words)
    given = torch.tensor([[2, 1], [2, 1]])
    scores = torch.zeros(2, 6)
    expected = torch.tensor([[0, 0, 0, -torch.inf, -torch.inf, 0]])
    assert torch.equal(start(given, scores), expected.expand(2, -1)), "what is given is no word of the text"
    behind = torch.cat([given, torch.tensor([[0], [2]])], dim=1)
    assert torch.equal(start(behind, scores), torch.cat([expected, torch.zeros(1, 6)])), "nor is a special token"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["blip", "llava", "blip2_opt"])
def test_no_text_begins_in_the_middle_of_a_word(name: str, beams: int) -> None:
    """Of a model that wants pieces, and words only where it must."""
    backbone = load(small_config(name), "vqa", texts=chatting.TEXTS)
    found = word_start(backbone.tokenizer)
    assert found is not None
    head = next(module for path, module in backbone.model.named_modules() if path.endswith(("lm_head", "predictions")))
    wanted = torch.zeros(400).index_fill(0, found[0], 50.0).index_fill(0, found[1], 25.0)
    head.register_forward_hook(lambda module, inputs, logits: logits + wanted)
    images, questions = zip(*[(sample.image.load(), sample.question) for sample in make_samples()[:2]], strict=True)
    with torch.no_grad():
        context = backbone.context(backbone.inputs(images, questions, 16))  # type: ignore[attr-defined]
        decode = DecodeConfig(num_beams=beams, max_new_tokens=4, min_new_tokens=4)
        texts = backbone.generate(context, decode, alternatives=beams)  # type: ignore[attr-defined]
    assert len(texts) == 2 * beams
    for text in texts:
        assert text
        assert not text.startswith("##")


def test_the_search_has_the_beams_of_its_settings() -> None:
    one, three = (generate_settings(DecodeConfig(num_beams=3), count, None) for count in (1, 3))
    assert one | {"num_return_sequences": 3} == three
    assert three["num_beams"] == 3
    with pytest.raises(ValueError, match="alternatives=2: a search with num_beams=1 finds no more"):
        generate_settings(DecodeConfig(num_beams=1), 2, None)
