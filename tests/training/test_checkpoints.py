from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.disk import room
from vlatrain.config import UserError
from vlatrain.training.checkpoints import Checkpoints
from vlatrain.training.resume import Checkpointer


def save(checkpoints: Checkpoints, step: int, best: int | None = None, size: int = 4) -> None:
    checkpoints.save(step, {"trainable": {"w": torch.full((size,), float(step))}}, {"note": step}, best)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.latest() == (None, [])
    tensors = {"trainable": {"a.b": torch.randn(3)}, "optimizer": {"a.b/step": torch.tensor(2.0)}, "buffers": {}}
    checkpoints.save(7, tensors, {"loss": 0.1 + 0.2}, best=None)
    saved, problems = Checkpoints(tmp_path / "c").latest()
    assert saved is not None
    assert (saved.step, saved.state, problems) == (7, {"loss": 0.1 + 0.2, "best_step": None}, [])
    assert torch.equal(saved.tensors["trainable"]["a.b"], tensors["trainable"]["a.b"])
    assert saved.tensors["optimizer"]["a.b/step"].shape == ()
    assert saved.tensors["buffers"] == {}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"weight": torch.ones(1)}, "1 of 2 tensors missing .bias."),
        (
            {"weight": torch.ones(1), "bias": torch.ones(1)},
            "2 of 2 tensors of another shape .weight 1 instead of 2x3, bias",
        ),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "up": torch.ones(1)}, "1 tensor without a place .up."),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], told: str) -> None:
    """Torch would copy one number into a whole matrix."""
    checkpoints, model = Checkpoints(tmp_path), torch.nn.Linear(3, 2)
    before = model.weight.clone()
    checkpoints.save(1, {"trainable": tensors, "buffers": {}}, {})
    checkpointer = Checkpointer(
        checkpoints, Accelerator(cpu=True), model, dict(model.named_parameters()), None, {}, config=""
    )
    with pytest.raises(UserError, match=rf"step_1/trainable.safetensors does not fit the model: .*{told}"):
        checkpointer._load_weights(checkpoints.load(1))
    assert torch.equal(model.weight, before)


def test_nothing_in_a_checkpoint_can_execute(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1, best=1)
    found = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["best.json", "last.json", "manifest.json", "state.json", "trainable.safetensors"]
    assert json.loads((tmp_path / "last.json").read_text()) == {"step": 1, "folder": "step_1"}


@pytest.mark.parametrize(
    ("keep", "bests", "expected"),
    [
        (0, [None, None, None], [3]),
        (1, [None, None, None], [2, 3]),
        (0, [1, 1, 1], [1, 3]),
        (1, [1, 1, 3], [1, 2, 3]),  # 2 is kept to fall back to, so its best is kept too
        (5, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_the_last_the_best_and_some_before_are_kept(
    tmp_path: Path, keep: int, bests: list[int | None], expected: list[int]
) -> None:
    for step, best in enumerate(bests, start=1):
        save(Checkpoints(tmp_path, keep), step, best)  # a fresh object each, as after a resume
    assert sorted(Checkpoints(tmp_path).steps()) == expected
    assert not list(tmp_path.glob("*.tmp"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: flip(folder / "trainable.safetensors"),
    "a short file": lambda folder: (folder / "state.json").write_text("{"),
    "a missing file": lambda folder: (folder / "trainable.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen_told_and_gone_behind(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(tmp_path / "step_2")
    saved, problems = Checkpoints(tmp_path).latest()
    assert saved is not None
    assert saved.step == 1
    assert len(problems) == 1
    assert "step_2 is damaged" in problems[0]
    save(checkpoints, 2)  # done again, it takes the damaged one's place
    assert Checkpoints(tmp_path).latest()[1] == []


def test_unfinished_ones_do_not_count_and_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "step_2").rename(tmp_path / "step_2.tmp")
    saved, problems = Checkpoints(tmp_path).latest()
    assert saved is not None
    assert (saved.step, problems) == (1, [])
    assert not (tmp_path / "step_2.tmp").exists()


def test_a_full_disk_is_told_with_what_to_do_and_harms_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    with room(10_000), pytest.raises(UserError) as caught:
        save(checkpoints, 2, size=100_000)
    message = str(caught.value)
    assert "step 2 could not be written" in message
    assert "the one of step 1 is whole" in message
    assert "resume=auto" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "step_1"]
    saved, _ = checkpoints.latest()
    assert saved is not None
    assert saved.step == 1
