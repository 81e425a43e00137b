"""How sure a model was of what it has written: against transformers' own account of the same search, in each family."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones import chatting
from tests.backbones.composites import QUESTIONS, images, loaded
from tests.conftest import make_samples, small_config
from vlatrain.backbones import writing
from vlatrain.backbones.loading import load
from vlatrain.config import DecodeConfig

COMPOSITES = {"gpt2": ("clip", "gpt2"), "bart": ("clip", "bart")}
QUICK, SLOW = ("blip", "llava", "blip2_t5"), ("qwen2_5_vl", "blip2_opt", "florence2", *COMPOSITES)


def asked(name: str) -> tuple[Any, Any]:
    """A backbone, and inputs of a few rows."""
    if name in COMPOSITES:
        backbone = loaded(*COMPOSITES[name])
        return backbone, backbone.inputs(images(backbone), QUESTIONS, 40)
    if name == "blip":
        backbone = load(small_config(name), "vqa", texts=chatting.TEXTS)
        for parameter in backbone.model.parameters():
            parameter.data.mul_(3 if parameter.ndim > 1 else 1)
        seen, questions = zip(*[(one.image.load(), one.question) for one in make_samples()[:3]], strict=True)
        return backbone, backbone.inputs(seen, questions, 16)
    backbone = chatting.shared(name)
    return backbone, backbone.inputs(chatting.images(), chatting.QUESTIONS, 40)


def ends_of(backbone: Any) -> list[int]:
    """The tokens that end a text."""
    if hasattr(backbone, "_end"):
        return [backbone._end]
    writer = backbone.language if hasattr(backbone, "language") else backbone.writer
    known = writer.generation_config.eos_token_id
    return known if isinstance(known, list) else [known]


@contextmanager
def ending(backbone: Any, ends: list[int]) -> Iterator[list[int]]:
    """Some texts come to their end early: its token is about as likely as the likeliest. A list with an entry for each pass."""
    heads = ("lm_head", "predictions")
    (head,) = {module for path, module in backbone.model.named_modules() if path.endswith(heads)}

    passes: list[int] = []

    def shifted(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        passes.append(1)
        best = logits.max(dim=-1, keepdim=True).values
        return logits.index_copy(-1, torch.tensor(ends[:1]), best + (20 * best).sin() / 2)

    hook = head.register_forward_hook(shifted)
    yield passes
    hook.remove()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_probabilities_are_those_of_the_search(name: str, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those with the texts are the texts without. Some end early, and some never."""
    backbone, inputs = asked(name)
    ends = ends_of(backbone)
    expected: list[tuple[list[int], float]] = []

    def both(writer: Any, inputs: Any, settings: Any) -> Any:
        reference = writer.generate(
            **copy.deepcopy(inputs), **settings, return_dict_in_generate=True, output_scores=True
        )
        indices = {"beam_indices": reference.beam_indices} if beams > 1 else {}
        tokens = writer.compute_transition_scores(
            reference.sequences, reference.scores, **indices, normalize_logits=True
        )
        before = len(passes)
        new, probabilities = real(writer, inputs, settings)
        assert len(passes) == 2 * before, "no pass more"
        assert torch.equal(new, reference.sequences[:, reference.sequences.shape[1] - new.shape[1] :])
        for row, own in zip(new.tolist(), tokens, strict=True):
            closed = [place + 1 for place, token in enumerate(row) if token in ends]
            length = min([*closed, len(row)])
            expected.append((row[:length], own[:length].mean().exp().item()))
        return new, probabilities

    real = writing.generate
    monkeypatch.setattr(writing, "generate", both)
    decode = DecodeConfig(num_beams=beams, max_new_tokens=5, min_new_tokens=0)
    with torch.no_grad(), ending(backbone, ends) as passes:
        found = writing.write(backbone, backbone.context(inputs), decode, alternatives=beams)
        monkeypatch.undo()
        assert backbone.generate(backbone.context(inputs), decode, alternatives=beams) == [one.text for one in found]
    assert [one.probability for one in found] == pytest.approx([mean for _, mean in expected], abs=1e-5)
    assert min(len(row) for row, _ in expected) < 5, "none has come to its end early"
