"""A batch whose rows have adapters of their own: names that do not fit the call are refused, in PEFT's words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import GenerationConfig

from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.table import randomise
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.injection.attach import attach, mixed_rows
from vlatrain.injection.context import context_of

NAMES = ["default", "other", "__base__", "other"]
LENGTH = r"Length of `adapter_names` should be the same as the number of inputs, but got {} and 4 respectively"


def two_adapters(family: str, task: str, **options: Any) -> tuple[Any, Any]:
    """A small backbone, and its model with two adapters of random values."""
    config = small_config(family)
    samples = make_samples()[:4]
    backbone = load(config, task, texts=[text for s in samples for text in (s.question, *s.answers, *s.captions)])
    model: Any = attach(backbone.model, adapter_config("bottleneck", dim=4, **options), sites(config, task, ["*"]))
    randomise(model)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("other")
    randomise(model, seed=6)
    model.set_adapter("default")
    return backbone, model.eval()


@pytest.fixture(scope="module")
def blip() -> tuple[Any, dict[str, Tensor]]:
    """A model that answers, and what it is called with: four images and questions."""
    backbone, model = two_adapters("blip", "vqa")
    samples = make_samples()[:4]
    text = backbone.text([sample.question for sample in samples], 40)
    pixels = backbone.pixels([sample.image.load() for sample in samples])
    return model, {"pixel_values": pixels, "input_ids": text.ids, "attention_mask": text.mask}


def scored(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**given, labels=given["input_ids"], **options).last_hidden_state


def written(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model.generate(**given, max_new_tokens=3, min_new_tokens=3, **options)


CALLS: list[Any] = [
    scored,
    written,
    lambda *args, **options: written(*args, num_beams=2, **options),
    lambda *args, **options: written(*args, generation_config=GenerationConfig(num_beams=2), **options),
]
calls = pytest.mark.parametrize("call", CALLS, ids=["forward", "greedy", "beams", "configured beams"])


@calls
def test_each_row_is_as_with_its_adapter_alone(call: Callable[..., Tensor], blip: Any) -> None:
    model, given = blip
    mixed = call(model, given, adapter_names=NAMES)
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = call(model, given)
    model.set_adapter("default")
    with model.disable_adapter():
        alone["__base__"] = call(model, given)
    assert not torch.equal(alone["default"], alone["other"])
    torch.testing.assert_close(mixed, torch.stack([alone[name][row] for row, name in enumerate(NAMES)]))


@calls
def test_an_unknown_name_is_refused(call: Callable[..., Tensor], blip: Any) -> None:
    with pytest.raises(
        ValueError, match=r"non-existing adapter\(s\): nope, vqa; there are default, other, and __base__"
    ):
        call(*blip, adapter_names=["default", "nope", "vqa", "nope"])


@calls
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_another_number_of_names_than_rows_is_refused(call: Callable[..., Tensor], count: int, blip: Any) -> None:
    """Two names for four rows were once taken for two beams of two rows."""
    with pytest.raises(ValueError, match=LENGTH.format(count)):
        call(*blip, adapter_names=(NAMES * 2)[:count])
    assert context_of(blip[0]).call.rows is None


def test_images_alone_have_rows_too() -> None:
    backbone, model = two_adapters("blip", "captioning")
    given = {"pixel_values": backbone.pixels([sample.image.load() for sample in make_samples()[:4]])}
    assert len(written(model, given, num_beams=2, adapter_names=NAMES)) == 4
    with pytest.raises(ValueError, match=LENGTH.format(2)):
        written(model, given, num_beams=2, adapter_names=NAMES[:2])


def test_towers_with_other_rows_than_the_names_are_refused() -> None:
    """Four images and two texts: of which row is the second name?"""
    backbone, model = two_adapters("clip", "retrieval")
    samples = make_samples()[:4]
    text = backbone.text([sample.captions[0] for sample in samples], 40)
    pixels = backbone.pixels([sample.image.load() for sample in samples])
    with torch.no_grad():
        model(pixel_values=pixels, input_ids=text.ids, adapter_names=NAMES)
        with pytest.raises(ValueError, match="vision: adapters are named for 2 rows, but the batch has 4"):
            model(pixel_values=pixels, input_ids=text.ids[:2], adapter_names=NAMES[:2])


def test_calls_to_come_may_have_any_multiple(blip: Any) -> None:
    """A task scores several candidates for each row."""
    model, given = blip
    twice = {name: value.repeat_interleave(2, dim=0) for name, value in given.items()}
    with mixed_rows(model, NAMES):
        found = scored(model, twice)
    torch.testing.assert_close(found, scored(model, twice, adapter_names=[n for n in NAMES for _ in range(2)]))
    with pytest.raises(ValueError, match="non-existing"), mixed_rows(model, ["nope"]):
        pass


def test_trained_heads_are_each_rows_own() -> None:
    _, model = two_adapters("blip", "retrieval", heads=True)
    head = next(module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))
    own = {"__base__": head.original_module, **head.modules_to_save}
    states = torch.randn(8, head.original_module.in_features)
    with torch.no_grad(), model._enable_peft_forward_hooks(adapter_names=NAMES):
        found, twice = head(states[:4]), head(states)
    expected = [own[name](states[row]) for row, name in enumerate(NAMES)]
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(twice[::2], torch.stack([own[n](states[2 * row]) for row, n in enumerate(NAMES)]))
    torch.testing.assert_close(head(states), own["default"](states))
