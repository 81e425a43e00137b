"""One adapted model, called by several threads at once: each call is as it is alone.

Two threads go through the model layer by layer, in step: what one leaves for its next layer is there when the other comes to its.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.table import randomise
from tests.injection.test_context import TEXTS, images_and_captions
from tests.injection.test_rows import two_adapters
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.injection.attach import attach
from vlatrain.injection.context import context_of, exported, for_task, provide, recomputed, setting

PATIENCE = 30  # seconds


@contextmanager
def in_step(model: nn.Module, layers: list[nn.Module]) -> Iterator[None]:
    """Let two threads enter and leave every layer at the same time."""
    meeting = threading.Barrier(2)
    alone = threading.get_ident()

    def wait(*_: Any) -> None:
        if threading.get_ident() != alone:
            meeting.wait(PATIENCE)

    handles = [
        register(wait)
        for layer in layers
        for register in (layer.register_forward_pre_hook, layer.register_forward_hook)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_two_threads(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> list[Any]:
    """What both come to, each in a thread; an error in its place."""
    found: list[Any] = [None, None]

    def run(place: int, call: Callable[[], Tensor]) -> None:
        try:
            found[place] = call()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=one) for one in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def layers_of(backbone: Any) -> list[nn.Module]:
    towers = [backbone.config.towers[name] for name in backbone.config.tasks[backbone.task].towers]
    return [layer for tower in towers for layer in backbone.model.get_submodule(tower.layers)]


@pytest.mark.parametrize("design", ["bottleneck", "parallel", "cross_modal", "routing", "prompt", "ladder", "lst"])
def test_two_calls_at_once_are_as_one_after_the_other(design: str) -> None:
    config = small_config("blip")
    backbone = load(config, "vqa", texts=TEXTS)
    model: Any = attach(backbone.model, adapter_config(design), sites(config, "vqa", ["*"]))
    randomise(model)
    model.eval()
    pixels, text = images_and_captions(backbone)
    given = [
        {"pixel_values": pixels[rows], "input_ids": text.ids[rows], "attention_mask": text.mask[rows]}
        for rows in (slice(0, 3), slice(2, 4))  # of other numbers of rows, too
    ]

    def loss(number: int) -> Tensor:
        with torch.no_grad():
            out: Tensor = model(**given[number], labels=given[number]["input_ids"]).loss
        return out

    expected = [loss(0), loss(1)]
    assert not torch.equal(*expected)
    with in_step(model, layers_of(backbone)):
        found = by_two_threads(lambda: loss(0), lambda: loss(1))
    for own, wanted in zip(found, expected, strict=True):
        assert isinstance(own, Tensor), own
        torch.testing.assert_close(own, wanted)


def test_rows_and_states_that_one_thread_names_are_not_anothers() -> None:
    backbone, model = two_adapters("blip", "vqa")
    samples = make_samples()[:4]
    text = backbone.text([sample.question for sample in samples], 40)
    pixels = backbone.pixels([sample.image.load() for sample in samples])
    given = {"pixel_values": pixels, "input_ids": text.ids, "attention_mask": text.mask, "labels": text.ids}

    def states(names: list[str] | None) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(**given, **({"adapter_names": names} if names else {})).last_hidden_state
        return found

    names = ["default", "other", "__base__", "other"]
    expected = [states(names), states(None)]
    with in_step(model, layers_of(backbone)):
        found = by_two_threads(lambda: states(names), lambda: states(None))
    for own, wanted in zip(found, expected, strict=True):
        assert isinstance(own, Tensor), own
        torch.testing.assert_close(own, wanted)


def test_what_a_thread_sets_is_seen_by_no_other() -> None:
    model = nn.Linear(2, 2)
    with for_task(model, "vqa"), provide(model, "text", torch.zeros(1, 3, 2)), setting(model, dropped=2):
        context = context_of(model)
        found = by_two_threads(lambda: context.call.task, lambda: (context.call.handed, context.without))  # type: ignore
        assert found == ["", ({}, 0)]
        assert context.call.task == "vqa"
        assert context.without == 2
        assert copy.deepcopy(context).call.task == "vqa"
    assert not exported(model)


def test_a_backward_pass_in_another_thread_recomputes_what_the_call_was() -> None:
    """As autograd's threads of a GPU do: they have no context of whoever called."""
    model = nn.Linear(2, 3)
    seen: list[Any] = []

    def run(states: Tensor) -> Tensor:
        context = context_of(model)
        seen.append((context.call.task, context.call.handed["text"][0].sum().item(), threading.get_ident()))
        out: Tensor = model(states) * context.call.handed["text"][0].sum()
        return out

    states = torch.ones(1, 2, requires_grad=True)
    with for_task(model, "vqa"), provide(model, "text", torch.full((1, 3, 2), 0.5)):
        loss = checkpoint(run, states, use_reentrant=False, context_fn=recomputed(model)).sum()
    with for_task(model, "captioning"):
        by_two_threads(lambda: loss.backward(), lambda: torch.zeros(()))
        assert context_of(model).call.task == "captioning"
    (task, total, here), (again, same, there) = seen
    assert (task, total) == (again, same) == ("vqa", 3.0)
    assert here != there
    assert states.grad is not None
