from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.numerics import assert_close
from tests.training.conftest import SmallTask, load_adapter, make_config, make_model, make_samples, same
from vlatrain.config import UserError
from vlatrain.tasks.base import Evaluation
from vlatrain.training.checkpoints import Saved
from vlatrain.training.modes import FrozenWeightsMoved, fingerprint, trainable
from vlatrain.training.resume import CONTENT


class Records:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.records: list[Mapping[str, Any]] = []

    def begin(self, step: int) -> None:
        self.begun.append(step)

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(json.loads(json.dumps(record)))

    def steps(self, key: str) -> list[int]:
        return [record["step"] for record in self.records if key in record]


class Scripted(SmallTask):
    """Its evaluations are given; what was trained at each is remembered."""

    def __init__(self, model: Any, scores: list[float]) -> None:
        super().__init__(model)
        self.scores = list(scores)
        self.weights: list[dict[str, torch.Tensor]] = []

    def evaluate(self, samples: Any, batches: Any) -> Evaluation:
        self.weights.append({name: p.detach().clone() for name, p in trainable(self.model).items()})
        return Evaluation({"accuracy": self.scores.pop(0)}, {}, [])


def scripted(small: SimpleNamespace, scores: list[float], **trainer: Any) -> tuple[Any, Scripted]:
    model = make_model()
    task = Scripted(model, scores)
    return small.loop(config=make_config(**trainer), model=model, task=task), task


def test_it_learns(small: SimpleNamespace) -> None:
    sink = Records()
    config = make_config(epochs=20, batch_size=16, eval_every=500, save_every=500)
    config.optim.lr = 0.05
    result = small.loop(config=config, train=make_samples(160), eval=make_samples(60, 1000), sinks=[sink]).run()
    losses = [record["loss"] for record in sink.records if "loss" in record]
    print(sum(losses[-20:]), sum(losses[:20]), result.evaluation.metrics)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert result.evaluation is not None
    assert result.evaluation.metrics["accuracy"] > 75
    assert (result.steps, result.epochs, result.samples) == (200, 20.0, 3200)
    assert result.samples_per_s > 0
    assert result.peak_mb > 10


@pytest.mark.parametrize(
    ("settings", "evaluated", "saved", "steps"),
    [
        ({}, [6, 12, 18], [6, 12, 18], 18),  # 22 samples in batches of 4: 6 steps an epoch
        ({"max_steps": 8}, [6, 8], [6, 8], 8),
        ({"epochs": 1, "eval_every": 2, "save_every": 5}, [2, 4, 6], [2, 4, 5, 6], 6),  # scores rise: each is a best
        ({"epochs": 1, "accumulate": 3}, [2], [2], 2),
        ({"max_steps": 0}, [0], [], 0),
    ],
)
def test_when_it_evaluates_and_saves(
    small: SimpleNamespace, settings: dict[str, Any], evaluated: list[int], saved: list[int], steps: int
) -> None:
    sink = Records()
    loop, _ = scripted(small, [10.0, 20.0, 30.0], keep=9, **settings)
    loop.sinks = [sink]
    assert loop.run().steps == steps
    assert sink.steps("eval/accuracy") == evaluated
    assert sorted(loop.checkpointer.checkpoints.steps()) == saved
    assert sink.begun == [0]


def test_the_best_weights_are_kept_and_given_back(small: SimpleNamespace) -> None:
    loop, task = scripted(small, [10.0, 50.0, 40.0, 30.0], epochs=4, keep=0)
    result = loop.run()
    assert result.best_step == 12
    assert result.evaluation is not None
    assert result.evaluation.metrics == {"accuracy": 50.0}
    assert same(load_adapter(small.folder / "run"), task.weights[1])
    assert same({name: p.detach() for name, p in loop.parameters.items()}, task.weights[1])
    assert sorted(loop.checkpointer.checkpoints.steps()) == [12, 24]


def test_patience(small: SimpleNamespace) -> None:
    loop, _ = scripted(small, [10.0, 30.0, 30.0, 20.0, 99.0], epochs=9, patience=2)
    result = loop.run()
    assert (result.steps, result.best_step, result.stopped_early) == (24, 12, True)


def test_without_evaluation_samples_the_last_weights_are_the_best(small: SimpleNamespace) -> None:
    result = small.loop(eval=[]).run()
    assert (result.best_step, result.evaluation) == (18, None)


def test_with_nothing_to_train_it_only_evaluates(small: SimpleNamespace) -> None:
    model = make_model().requires_grad_(False)
    result = small.loop(model=model, task=SmallTask(model), save_adapter=None).run()
    assert result.steps == 0
    assert result.evaluation is not None
    assert not (small.folder / "run" / "adapter").exists()
    small.loop(name="fixed", model=model, task=SmallTask(model)).run()
    assert (small.folder / "fixed" / "adapter").is_dir(), "an adapter that nothing trains is written all the same"


def test_what_a_record_says(small: SimpleNamespace) -> None:
    sink = Records()
    small.loop(config=make_config(epochs=1, log_every=4), sinks=[sink]).run()
    assert sink.steps("loss") == [4, 6], "every 4 steps, and the last"
    record = sink.records[0]
    assert set(record) == {"step", "epoch", "loss", "lr", "grad_norm", "samples_per_s", "peak_mb", "seconds"}
    assert record["epoch"] == round(4 / 6, 4)
    assert list(record["lr"]) == ["adapter"]


def test_frozen_weights_and_buffers_stay_and_trained_ones_move(small: SimpleNamespace) -> None:
    loop = small.loop()
    before = fingerprint(loop.model)
    started = {name: parameter.detach().clone() for name, parameter in loop.parameters.items()}
    assert loop.run().frozen_hash == before == fingerprint(loop.model)
    assert not any(torch.equal(started[name], parameter) for name, parameter in loop.parameters.items())


def test_a_frozen_weight_that_moves_is_an_error(small: SimpleNamespace) -> None:
    loop = small.loop()

    class Meddling(SmallTask):
        def loss(self, batch: Any) -> torch.Tensor:
            with torch.no_grad():
                loop.model.embed.bias += 1e-3
            return super().loss(batch)

    loop.task = Meddling(loop.model)
    with pytest.raises(FrozenWeightsMoved, match=r"1 frozen weights or buffers changed in training: embed\.bias"):
        loop.run()
    assert (loop.folder / "adapter").is_dir(), "what was trained is saved first"


def trained(small: SimpleNamespace, name: str, **settings: Any) -> dict[str, torch.Tensor]:
    config = make_config(**settings.pop("trainer", {}))
    loop = small.loop(name, config=config, **settings)
    for layer in loop.model.layers:
        layer.adapter.dropout.p = settings.get("dropout", 0.0)
    loop.task.noise = 0.0
    loop.run()
    return load_adapter(small.folder / name)


def test_accumulation_equals_a_large_batch_also_at_the_end_of_an_epoch(small: SimpleNamespace) -> None:
    large = trained(small, "large", trainer={"batch_size": 8}, eval=[])
    small_ones = trained(small, "small", trainer={"batch_size": 2, "accumulate": 4}, eval=[])
    assert_close(small_ones, large)  # 22 samples: the last step of an epoch has 6, in three passes


def test_workers_and_evaluations_change_nothing(small: SimpleNamespace) -> None:
    def run(name: str, **trainer: Any) -> dict[str, torch.Tensor]:
        loop = small.loop(name, config=make_config(epochs=1, **trainer), eval=make_samples(10, 100))
        loop.run()
        return loop.checkpointer.checkpoints.load(6).tensors["trainable"]

    alone = run("alone")
    assert same(alone, run("workers", workers=2))
    assert same(alone, run("often", eval_every=1, keep=9))


def test_seeds_differ_in_order_and_dropout(small: SimpleNamespace) -> None:
    def first(name: str, seed: int) -> tuple[list[str], dict[str, torch.Tensor]]:
        config = make_config(epochs=1)
        config.seed = seed
        loop = small.loop(name, config=config, eval=[])
        loop.run()
        return loop.task.seen[0], load_adapter(small.folder / name)

    one, again, other = first("one", 1), first("again", 1), first("other", 2)
    assert one[0] == again[0] != other[0]
    assert same(one[1], again[1])
    assert not same(one[1], other[1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_samples(
    small: SimpleNamespace, accumulate: int, caplog: pytest.LogCaptureFixture
) -> None:
    loop = small.loop(config=make_config(batch_size=2, accumulate=accumulate, epochs=1))
    loop.task.poison = "s7"
    with pytest.raises(UserError) as caught:
        loop.run()
    batch = next(ids for ids in loop.task.seen if "s7" in ids)
    assert f"the loss is not finite (nan), with the samples {', '.join(batch)}." in str(caught.value)
    assert f"step {loop.progress.step + 1}:" in str(caught.value)
    assert all(torch.isfinite(parameter).all() for parameter in loop.parameters.values())


def test_a_gradient_that_is_not_finite_stops_too(small: SimpleNamespace) -> None:
    loop = small.loop()
    loop.model.layers[0].adapter.up.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"step 1: the gradient is not finite .* with the samples s\d+, s\d+"):
        loop.run()
    assert all(torch.isfinite(parameter).all() for parameter in loop.parameters.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_while_loading_comes_out_as_it_is(small: SimpleNamespace, workers: int) -> None:
    loop = small.loop(config=make_config(workers=workers))
    collate = loop.task.collate

    def failing(samples: Any) -> Any:
        if any(sample.id == "s7" for sample in samples):
            raise UserError("train.jsonl:8: image is unreadable")
        return collate(samples)

    loop.task.collate = failing
    with pytest.raises(UserError, match=r"^train.jsonl:8: image is unreadable$"):
        loop.run()


def test_a_begun_run_is_not_overwritten(small: SimpleNamespace) -> None:
    config = make_config(epochs=1)
    small.loop(config=config).run()
    config.resume = "no"
    with pytest.raises(UserError, match=r"holds a begun run.*resume=auto"):
        small.loop(config=config).run()


OTHERS = {
    "seed": lambda config: setattr(config, "seed", 9),
    "samples per step": lambda config: setattr(config.trainer, "batch_size", 3),
    "steps": lambda config: setattr(config.trainer, "max_steps", 5),
}


@pytest.mark.parametrize("what", [*OTHERS, "training samples", "frozen weights"])
def test_a_checkpoint_of_another_training_is_refused(small: SimpleNamespace, what: str) -> None:
    small.loop(config=make_config(epochs=1)).run()
    config, settings = make_config(epochs=1), {}
    if what == "training samples":
        settings["train"] = make_samples(22, first=1)
    elif what == "frozen weights":
        model = make_model()
        model.embed.bias.data += 1
        settings |= {"model": model, "task": SmallTask(model)}
    else:
        OTHERS[what](config)
    with pytest.raises(UserError, match=f"is of another training .*{what}: .* there, .* now"):
        small.loop(config=config, **settings).run()


@pytest.mark.parametrize("what", ["a text", "an image", "the order"])
def test_samples_that_say_or_show_something_else_are_told_though_their_ids_are_the_same(
    small: SimpleNamespace, what: str
) -> None:
    small.loop(config=make_config(epochs=1)).run()
    train = make_samples(22)
    if what == "a text":
        train[3] = replace(train[3], answers=("corrected",))
    elif what == "an image":
        train[3] = replace(train[3], image=train[4].image)
    else:
        train[3], train[4] = replace(train[4], id=train[3].id), replace(train[3], id=train[4].id)
    with pytest.raises(
        UserError, match=r"is of another training \(texts or images of the training samples, or their order: "
    ):
        small.loop(config=make_config(epochs=1), train=train).run()


def test_a_checkpoint_of_before_says_nothing_of_contents(small: SimpleNamespace) -> None:
    small.loop(config=make_config(epochs=1)).run()
    loop = small.loop(config=make_config(epochs=1))
    state = loop.checkpointer.checkpoints.load(6).state
    del state["identity"][CONTENT]
    loop.checkpointer._refuse_other(Saved(6, state, {}))
    state["identity"]["seed"] = 9
    with pytest.raises(UserError, match="seed: 9 there"):
        loop.checkpointer._refuse_other(Saved(6, state, {}))


@pytest.mark.parametrize("interrupted", [False, True], ids=["finished", "stopped"])
def test_more_steps_continue_as_if_they_had_always_been_planned(
    small: SimpleNamespace, interrupted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def config(epochs: int) -> Any:
        made = make_config(epochs=epochs)
        made.optim.schedule, made.optim.warmup = "constant", 0
        return made

    whole = small.loop("whole", config=config(3)).run()
    first = small.loop(config=config(1))
    if interrupted:  # a kill after the checkpoint of the last step
        first._finish = lambda: None
    first.run()
    with caplog.at_level(logging.INFO, "vlatrain"):
        more = small.loop(config=config(3)).run()
    assert "There were to be 6 steps: the learning rate goes on as in a training of 18" in caplog.text
    assert (more.resumed_from, more.steps, more.best_step) == (6, 18, whole.best_step)
    assert same(load_adapter(small.folder / "run"), load_adapter(small.folder / "whole"))


def test_a_finished_run_is_finished_again_at_once(small: SimpleNamespace) -> None:
    first = small.loop().run()
    adapter = load_adapter(small.folder / "run")
    loop = small.loop()
    again = loop.run()
    assert not loop.task.seen
    assert (again.steps, again.best_step, again.resumed_from) == (18, first.best_step, 18)
    assert again.evaluation == first.evaluation
    assert same(load_adapter(small.folder / "run"), adapter)


def test_a_damaged_checkpoint_is_told_and_the_one_before_continues(
    small: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    small.loop().run()
    adapter = load_adapter(small.folder / "run")
    folder = small.folder / "run" / "checkpoints"
    (folder / "step_18" / "trainable.safetensors").write_bytes(b"nonsense")
    with caplog.at_level(logging.INFO, "vlatrain"):
        result = small.loop().run()
    assert result.resumed_from == 12
    assert "step_18 is damaged" in caplog.text
    assert "going back to the checkpoint of step 12" in caplog.text
    assert same(load_adapter(small.folder / "run"), adapter)
    for state in folder.glob("step_*/state.json"):
        state.unlink()
    with caplog.at_level(logging.INFO, "vlatrain"):
        assert small.loop().run().resumed_from is None
    assert "starting anew" in caplog.text
    assert same(load_adapter(small.folder / "run"), adapter)


def test_full_fine_tuning_resumes_with_its_buffers(small: SimpleNamespace, tmp_path: Path) -> None:
    def run(name: str) -> dict[str, torch.Tensor]:
        model = make_model(full=True)
        small.loop(name, model=model, task=SmallTask(model), layers=[], eval=[]).run()
        return {key: value.clone() for key, value in model.state_dict().items()}

    whole = run("whole")
    assert not torch.equal(whole["layers.0.norm.running_mean"], make_model().layers[0].norm.running_mean)
    folder = small.folder / "whole" / "checkpoints"
    (folder / "step_18" / "manifest.json").unlink()
    assert same(run("whole"), whole)
