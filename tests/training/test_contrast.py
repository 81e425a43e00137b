"""Contrast over micro-batches and processes: loss and gradients are those of one pass with all samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.conftest import adapter_config, make_samples, small_config
from tests.gpu_free.families import with_dropout
from tests.gpu_free.ranks import ranks
from tests.numerics import assert_close
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import OptimConfig, TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.injection.attach import attach, group_of
from vlatrain.metrics.retrieval import similarity
from vlatrain.tasks import build, retrieval
from vlatrain.tasks.retrieval import Retrieval
from vlatrain.training.contrast import Contrast, passes_together
from vlatrain.training.loop import Loop, Trained
from vlatrain.training.lowering import Lowering
from vlatrain.training.modes import moving_buffers, train_mode, trainable
from vlatrain.training.shapes import Alive

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]


def samples() -> list[Sample]:
    """One or two captions each, of unlike lengths; a caption of the first image is one of the last one's, too."""
    made = [replace(one, captions=one.captions[: 1 + place % 2]) for place, one in enumerate(make_samples())]
    made[2] = replace(made[2], captions=("a green picture number 0 and no more of it",))
    made[7] = replace(made[7], captions=(made[0].captions[0], *made[7].captions))
    return made


SAMPLES = samples()
CUTS = ((0, 3), (3, 4), (4, 8))  # micro-batches of three, one and four


WIDER = 4
TEXT_TOWER = {"blip": "text_encoder", "blip2_itm": "qformer"}


def made(name: str = "clip", matching: bool = False, method: str = "bottleneck", dropout: float = 0.0) -> Retrieval:
    """Retrieval on a small backbone with adapters of random weights; scale and bias of the loss train along."""
    backbone: Backbone = load(small_config(name), "retrieval", texts=TEXTS)
    for parameter in backbone.model.parameters():
        if parameter.dim() > 1:  # else all images look alike to random weights, and differences drown in roundings
            parameter.data *= WIDER
    adapter = adapter_config(method, dim=4) if method != "full" else adapter_config("full")
    model = attach(backbone.model, adapter, sites(backbone.config, "retrieval", ["*"]))
    generator = torch.Generator().manual_seed(5)
    for key, parameter in model.named_parameters():
        if key.rpartition(".")[2] in ("logit_scale", "logit_bias"):
            parameter.requires_grad_(True).data.fill_(1.5 if "scale" in key else -1.0)
        elif parameter.requires_grad and method != "full":
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    if dropout:
        with_dropout(model, dropout)
    train_mode(model)
    task = build(TaskConfig(name="retrieval", matching=matching), backbone)
    assert isinstance(task, Retrieval)
    return task


def group_of_batches(task: Retrieval) -> list[tuple[Any, float]]:
    return [(task.collate(SAMPLES[low:high]), (high - low) / len(SAMPLES)) for low, high in CUTS]


def contrast(
    task: Retrieval, computing: Callable[[], AbstractContextManager[Any]] = nullcontext, accelerator: Any = None
) -> Contrast:
    moving = moving_buffers(task.backbone.model)
    return Contrast(task, accelerator or Accelerator(cpu=True), computing, moving)


def gradients(task: Retrieval, work: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What `work` returns, and the gradients that it adds."""
    parameters = trainable(task.backbone.model)
    for parameter in parameters.values():
        parameter.grad = None
    loss = work().detach()
    return loss, {name: own.grad for name, own in parameters.items() if own.grad is not None}


def whole(task: Retrieval) -> Tensor:
    loss = task.loss(task.collate(SAMPLES))
    loss.backward()
    return loss


@pytest.mark.parametrize("name", ["clip", "siglip", "blip", "blip2_itm"])
def test_micro_batches_equal_one_pass(name: str) -> None:
    """By softmax and by sigmoid, with several vectors an image; where there is a scale and a bias, theirs too."""
    task = made(name)
    loss, expected = gradients(task, lambda: whole(task))
    found_loss, found = gradients(task, lambda: contrast(task)(group_of_batches(task)))
    assert found.keys() == expected.keys()
    assert {key.partition(".")[0] for key in found} >= {"vision_model", TEXT_TOWER.get(name, "text_model")}
    assert ("logit_scale" in " ".join(found)) == (name in ("clip", "siglip"))
    assert ("logit_bias" in " ".join(found)) == (name == "siglip")
    assert_close(found_loss, loss)
    assert_close(found, expected)
    separate = sum((task.loss(batch).detach() * weight for batch, weight in group_of_batches(task)), torch.zeros(()))
    assert abs(float(separate - loss)) > 0.05, "passes of their own have other negatives"


@pytest.mark.parametrize("matching", [False, True])
def test_dropout_drops_the_same_when_a_micro_batch_is_encoded_again(
    matching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as with all graphs at once. Matching has its pairs from each micro-batch alone."""
    task = made("blip", matching=matching, dropout=0.3 if not matching else 0.0)
    monkeypatch.setattr(retrieval, "drawn", lambda odds: odds.argmax(dim=1))

    def at_once() -> Tensor:
        torch.manual_seed(7)
        images, texts, ids, groups, matched = [], [], [], [], torch.zeros(())
        for batch, weight in group_of_batches(task):
            image, text, states = task.embed(batch)
            found = task.matching_loss(batch, similarity(text, image).detach(), states)
            assert (found is None) == (not matching or len(image) == 1)
            matched = matched if found is None else matched + found * weight
            groups.append(batch["group_index"] + sum(map(len, images)))
            images.append(image)
            texts.append(text)
            ids += [tuple(row[row != 0].tolist()) for row in batch["text"].ids]
        numbers = torch.tensor([[ids.index(one)] for one in ids])
        cosine = similarity(torch.cat(texts), torch.cat(images))
        loss = task.contrast(cosine, numbers, torch.cat(groups)) + matched
        loss.backward()
        return loss

    def by_parts(seed: int = 7) -> Tensor:
        torch.manual_seed(seed)
        return contrast(task)(group_of_batches(task))

    loss, expected = gradients(task, at_once)
    found_loss, found = gradients(task, by_parts)
    assert_close(found_loss, loss)
    assert_close(found, expected)
    if not matching:
        assert abs(float(gradients(task, lambda: by_parts(8))[0] - loss)) > 1e-3, "it does drop"


def test_under_autocast_gradients_reach_what_trains() -> None:
    """Casts that were made without a graph are not used with one."""
    task = made()

    def computing() -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        stack.enter_context(Lowering(task.backbone.model))
        return stack

    def once() -> Tensor:
        with computing():
            loss = task.loss(task.collate(SAMPLES))
        loss.backward()
        return loss

    loss, expected = gradients(task, once)
    found_loss, found = gradients(task, lambda: contrast(task, computing)(group_of_batches(task)))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found_loss, loss, rtol=0.02, atol=0.02)
    flat, wanted = (torch.cat([one[key].flatten() for key in expected]) for one in (found, expected))
    assert torch.nn.functional.cosine_similarity(flat, wanted, dim=0) > 0.99


def test_a_loss_scale_is_in_every_gradient_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "drawn", lambda odds: odds.argmax(dim=1))
    task = made("blip", matching=True)
    scaler = SimpleNamespace(scale=lambda value: value * 1024)
    scaled = SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        num_processes=1,
        scaler=scaler,
        backward=lambda loss: scaler.scale(loss).backward(),
    )
    loss, expected = gradients(task, lambda: contrast(task)(group_of_batches(task)))
    found_loss, found = gradients(task, lambda: contrast(task, accelerator=scaled)(group_of_batches(task)))
    assert torch.equal(loss, found_loss)
    assert_close({key: value / 1024 for key, value in found.items()}, expected)


def test_statistics_move_once_a_micro_batch() -> None:
    task = made("align", method="full")
    counts = {key: one for key, one in moving_buffers(task.backbone.model).items() if "num_batches" in key}
    assert counts
    contrast(task)(group_of_batches(task))
    assert {int(one) for one in counts.values()} == {len(CUTS)}


def test_memory_is_that_of_a_micro_batch() -> None:
    task = made()
    group = [(task.collate([sample]), 1 / 8) for sample in SAMPLES]
    peaks = []
    for work in (lambda: whole(task), lambda: contrast(task)(group)):
        with Alive() as alive:
            gradients(task, work)
        peaks.append(alive.peak)
    assert peaks[1] < peaks[0] / 3, peaks


def train(folder: Path, trainer: dict[str, int], negatives: int | None, dropout: float = 0.0) -> list[Any]:
    """Losses, and the trained numbers, of five steps over eleven samples: the last of an epoch has three."""
    torch.manual_seed(0)
    task = made(dropout=dropout)
    task.config.negatives_per_step = negatives
    losses: list[float] = []
    sink = SimpleNamespace(begin=lambda _: None, close=lambda: None, write=lambda one: losses.append(one["loss"]))
    config = TrainConfig(
        task=task.config,
        model=task.backbone.config,
        trainer=TrainerConfig(max_steps=5, log_every=1, save_every=2, keep=9, device="cpu", **trainer),  # type: ignore[arg-type]
        optim=OptimConfig(lr=0.001, warmup=0),
        resume="auto",
    )
    more = [replace(one, id=f"{one.id}-again", captions=(f"{one.captions[0]} again",)) for one in SAMPLES[:3]]
    model = task.backbone.model
    loop = Loop(config, task, Trained(model, group_of), [*SAMPLES, *more], [], folder, sinks=[sink])  # type: ignore[list-item]
    loop.run()
    return [losses, {name: own.tolist() for name, own in trainable(model).items()}]


def close(one: list[Any], other: list[Any]) -> None:
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), rtol=1e-4, atol=1e-5)
    for name, values in one[1].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(other[1][name]), rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return train(tmp_path_factory.mktemp("whole") / "run", {"batch_size": 8}, None)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_training_is_the_same_however_a_step_is_cut(processes: int, one_pass: list[Any], tmp_path: Path) -> None:
    """Steps of eight, by one process or several; of the three samples at the end, one may have none of its own."""
    close(train(tmp_path / "one", {"batch_size": 8}, 8), one_pass)
    close(train(tmp_path / "cut", {"batch_size": 2, "accumulate": 4}, 8), one_pass)
    size = {"batch_size": 1, "accumulate": 8 // processes}
    found = ranks(lambda rank: train(tmp_path / "both", size, 8), tmp_path, count=processes)
    assert all(one == found[0] for one in found)
    close(found[0], one_pass)


@pytest.mark.slow
def test_several_contrasts_a_step(one_pass: list[Any], tmp_path: Path) -> None:
    two = train(tmp_path / "two", {"batch_size": 4, "accumulate": 2}, None)
    close(train(tmp_path / "cut", {"batch_size": 2, "accumulate": 4}, 4), two)
    assert abs(two[0][0] - one_pass[0][0]) > 0.05


def test_a_training_with_dropout_continues_bit_for_bit(tmp_path: Path) -> None:
    size = {"batch_size": 2, "accumulate": 4}
    expected = train(tmp_path / "run", size, 8, dropout=0.2)
    for step in (4, 5):
        shutil.rmtree(tmp_path / f"run/checkpoints/step_{step}")
    losses, weights = train(tmp_path / "run", size, 8, dropout=0.2)
    assert [losses, weights] == [expected[0][2:], expected[1]]


@pytest.mark.parametrize(
    ("accumulate", "processes", "negatives", "passes", "step"),
    [
        (2, 1, 256, "32 samples of a pass (trainer.batch_size=32)", "64 of a step (x trainer.accumulate=2): trainer.accumulate=8"),
        (2, 1, 16, "32 samples of a pass (trainer.batch_size=32)", "64 of a step (x trainer.accumulate=2)"),
        (3, 2, 128, "64 samples of a pass (trainer.batch_size=32 x 2 processes)",
         "192 of a step (x trainer.accumulate=3): trainer.accumulate=2"),
    ],
)  # fmt: skip
def test_a_number_that_steps_do_not_come_to_is_refused(
    accumulate: int, processes: int, negatives: int, passes: str, step: str
) -> None:
    task = TaskConfig("retrieval", negatives_per_step=negatives)
    config = TrainConfig(task=task, trainer=TrainerConfig(batch_size=32, accumulate=accumulate))
    with pytest.raises(UserError) as refused:
        passes_together(config, processes)
    told = f"task.negatives_per_step={negatives}: must be a multiple of the {passes}, and divide the {step}"
    assert refused.value.problems == [told]


def test_passes_that_come_to_it() -> None:
    config = TrainConfig(trainer=TrainerConfig(batch_size=8, accumulate=6))
    assert passes_together(config, 2) == 1
    config.task.negatives_per_step = 48
    assert [passes_together(config, processes) for processes in (1, 2, 3)] == [6, 3, 2]


def test_a_task_without_features_is_refused() -> None:
    backbone = load(small_config("vilt"), "retrieval", texts=TEXTS)
    task = build(TaskConfig(name="retrieval"), backbone)
    with pytest.raises(UserError, match=r"task\.negatives_per_step: task=retrieval contrasts no features"):
        Contrast(task, Accelerator(cpu=True), nullcontext, {})


def test_a_micro_batch_that_is_another_process_s_adds_nothing() -> None:
    task = made()
    first, second, third = group_of_batches(task)
    expected = gradients(task, lambda: contrast(task)([first, third]))
    found = gradients(task, lambda: contrast(task)([first, (second[0], 0.0), third]))
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())
