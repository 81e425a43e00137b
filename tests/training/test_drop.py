"""AdapterDrop in training: the loop's side is that a step is drawn for as a whole, the evaluations are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.commands import command, tiny_run
from tests.training.conftest import SmallTask, make_config, make_model
from vlatrain.injection.context import context_of
from vlatrain.injection.drop import drawn
from vlatrain.training.loop import Loop
from vlatrain.verbs import train as training


class Told(SmallTask):
    """Tells what it is asked, in the order of the calls."""

    events: list[Any]

    def loss(self, batch: Any) -> Any:
        self.events.append("loss")
        return super().loss(batch)

    def evaluate(self, samples: Any, batches: Any) -> Any:
        self.events.append("evaluate")
        return super().evaluate(samples, batches)


def test_a_step_is_within_with_all_its_passes_and_an_evaluation_is_not(small: SimpleNamespace) -> None:
    model = make_model()
    task = Told(model)
    task.events = []

    @contextmanager
    def within(step: int) -> Iterator[None]:
        task.events.append(step)
        yield
        task.events.append("end")

    config = make_config(max_steps=2, accumulate=2, eval_every=1)
    small.loop(config=config, model=model, task=task, within=within).run()
    step = ["loss", "loss", "end", "evaluate"]
    assert task.events == [0, *step, 1, *step]


def test_layers_are_drawn_in_steps_and_not_in_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"loss": [], "evaluate": []}

    class Watched(Loop):
        def __init__(self, config: Any, task: Any, trained: Any, *args: Any, **kwargs: Any) -> None:
            for name in seen:
                monkeypatch.setattr(task, name, self.watch(name, getattr(task, name), trained.model))
            super().__init__(config, task, trained, *args, **kwargs)

        def watch(self, name: str, call: Any, model: Any) -> Any:
            def watched(*args: Any) -> Any:
                seen[name].append(context_of(model).without)
                return call(*args)

            return watched

    monkeypatch.setattr(training, "Loop", Watched)
    settings = [
        "model=tiny_clip", "adapter.points=['*']", "adapter.drop_random=3", "adapter.drop_layers=1", "seed=5",
        "trainer.max_steps=8", "data.train_size=12", "trainer.batch_size=4", "trainer.eval_every=4",
        "trainer.eval_loss=false",  # it is a loss too
    ]  # fmt: skip
    tiny_run(tmp_path / "run", "retrieval", *settings)
    assert seen["loss"] == [drawn(3, 5, step) for step in range(8)]
    assert len(set(seen["loss"])) > 2
    assert set(seen["evaluate"]) == {1}, "as configured"


@pytest.mark.slow
def test_a_run_with_draws_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = [
        "model=tiny_clip", "adapter.points=['*']", "adapter.drop_random=3", "adapter.dropout=0.2", "trainer.max_steps=6",
        "trainer.save_every=2", "trainer.keep=9", "resume=auto",
    ]  # fmt: skip
    whole = tiny_run(tmp_path / "whole", "retrieval", *settings)
    broken = tmp_path / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", broken)
    shutil.copytree(whole / "checkpoints" / "step_2", broken / "checkpoints" / "step_2")
    tiny_run(broken, "retrieval", *settings)
    assert json.loads((broken / "metrics.json").read_text())["training"]["resumed_from"] == 2
    one, two = (folder / "adapter" / "adapter_model.safetensors" for folder in (whole, broken))
    assert one.read_bytes() == two.read_bytes()


def test_it_is_refused_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("adapter.drop_layers=99", "adapter.points=['*']") == 2
    assert "adapter.drop_layers=99: no tower with adapters has more than" in capsys.readouterr().err
