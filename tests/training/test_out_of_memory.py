"""A device without room is one line: what was at work, what it took, and what would fit, which does."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.commands import command
from vlatrain.config import TrainConfig, UserError
from vlatrain.tasks.vqa import Vqa
from vlatrain.training import out_of_memory

WORDS = ("data.train_size=24", "data.eval_size=8", "trainer.max_steps=2", "trainer.threads=1", "trainer.cache=off")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has room for four samples of a training pass and eight of an evaluation, and says so."""
    loss, answer = Vqa.loss, Vqa.answer

    def limited(self: Vqa, batch: Any) -> Any:
        if batch["answer"].ids.device.type != "meta" and len(batch["ids"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, batch)

    def answering(self: Vqa, batch: Any, *more: Any) -> Any:
        if len(batch["ids"]) > 8:
            raise RuntimeError("MPS backend out of memory")
        return answer(self, batch, *more)

    monkeypatch.setattr(Vqa, "loss", limited)
    monkeypatch.setattr(Vqa, "answer", answering)
    monkeypatch.setattr(out_of_memory, "room_on", lambda device: 0.655e9)


@pytest.mark.slow  # each prediction takes a moment
def test_what_would_fit_fits(limit: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*WORDS, f"run.dir={tmp_path / 'run'}")
    assert command(*words, "trainer.batch_size=16") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"out of memory on cpu, in step 1 of 2, with 16 samples a pass: peak [\d.]+ GB, predicted [\d.]+ GB", err
    )
    assert "Nothing was changed. By prediction these have room: trainer.batch_size=" in err
    named = re.findall(r"trainer\.batch_size=(\d+) trainer\.accumulate=(\d+)", err)
    assert named
    assert all(int(size) * int(passes) == 16 for size, passes in named)
    assert command(*words, "trainer.batch_size=4", "trainer.accumulate=4") == 0


@pytest.mark.slow
def test_in_an_evaluation_it_is_said_too(limit: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*WORDS, f"run.dir={tmp_path / 'run'}", "trainer.batch_size=4", "data.eval_size=16")
    assert command(*words, "trainer.eval_batch_size=16") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "out of memory on cpu, in an evaluation, with 16 samples a pass" in err
    assert "have room: trainer.eval_batch_size=8" in err
    assert command(*words, "resume=auto") == 0
    assert command("eval", f"run={tmp_path / 'run'}", "trainer.eval_batch_size=16", f"output={tmp_path / 'e'}") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "with 16 samples a pass" in err
    assert "Less is taken with trainer.eval_batch_size=8; trainer.eval_batch_size=4; model.quantize=8" in err


SIZES = {  # what a pass is predicted to take, in GB, by samples, whether layers are computed again, and bits
    (16, False, None): 10, (8, False, None): 6, (16, True, None): 3, (16, False, 8): 9, (4, False, None): 4,
    (2, False, None): 3, (1, False, None): 2, (1, True, None): 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (12, "trainer.batch_size=8 trainer.accumulate=4 (7.2 GB); trainer.gradient_checkpointing=true (3.6 GB); model.quantize=8"),
        (8, "trainer.batch_size=8 trainer.accumulate=4 (6.0 GB); trainer.gradient_checkpointing=true (3.0 GB); "
            "trainer.batch_size=4 trainer.accumulate=8 (4.0 GB)"),
        (2.5, "trainer.batch_size=1 trainer.accumulate=32 (2.0 GB); trainer.batch_size=1 trainer.accumulate=32 "
              "trainer.gradient_checkpointing=true (1.0 GB)"),
        (0.5, "nothing tried has room; trainer.batch_size=1 trainer.accumulate=32 trainer.gradient_checkpointing=true takes least"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "kind", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory")]
)
def test_what_is_named_has_room(kind: RuntimeError, room: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was predicted to fit and did not is off by as much for the others."""

    def predicted(config: TrainConfig, *given: Any, **more: Any) -> SimpleNamespace:
        trainer = config.trainer
        size = SIZES[trainer.samples_per_pass, trainer.gradient_checkpointing, config.model.quantize]
        return SimpleNamespace(peak=size * 1e9)

    monkeypatch.setattr(out_of_memory, "room_on", lambda device: room * 1e9)
    monkeypatch.setattr(out_of_memory, "on_meta", lambda *_: ())
    monkeypatch.setattr(out_of_memory, "lengths_of", lambda *_: {})
    monkeypatch.setattr(out_of_memory, "predicted", predicted)
    config, setup = TrainConfig(), SimpleNamespace(backbone=None, model=None, task=None)
    config.trainer.batch_size, config.trainer.accumulate = 16, 2
    given: Any = (config, setup, [], torch.device("cpu"), "fp32", lambda: "in step 3 of 9")
    said_first = "out of memory on cpu, in step 3 of 9, with 16 samples a pass"
    with pytest.raises(UserError, match=said_first) as error, out_of_memory.described(*given):
        raise kind
    assert said in str(error.value)
    assert "predicted 10.0 GB" in str(error.value)


def test_another_error_stays_what_it_is() -> None:
    given: Any = (TrainConfig(), None, [], torch.device("cpu"), "fp32", lambda: "")
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), out_of_memory.described(*given):
        raise RuntimeError("shapes differ")
