"""Runs in bf16 on the CPU, through the command line: the types of mixed precision without a GPU, every task on every family."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backbones.composites import described
from tests.backbones.small import LLAMA, VISION
from tests.commands import MOMENT, asked, command, losses_of, small_model, tiny_run
from tests.conftest import model_config
from tests.gpu_free.families import BY_FAMILY
from vlatrain.backbones import processors
from vlatrain.backbones.loading import FAMILIES
from vlatrain.config import ModelConfig
from vlatrain.data.shapes import build

MANY = {  # 24 x 24 = 576 tokens an image, as in LLaVA 1.5, of which a count in bf16 makes 574
    "vision_config": {**VISION, "image_size": 48, "patch_size": 2, "hidden_size": 24, "num_hidden_layers": 2},
    "text_config": {**LLAMA, "max_position_embeddings": 1024},
}
WRITTEN = ("vqa", "captioning", "instruct")
QUESTIONS = {
    "vqa": ("question='what is it?'",),
    "instruct": ("question='what is it?'",),
    "retrieval": ("texts=[a ring,a house]",),
    "joint": ("subtask=vqa", "question='what is it?'"),
}


def full_size(name: str) -> ModelConfig:
    """The description of a backbone, or of a composite VISION+LANGUAGE."""
    vision, _, language = name.partition("+")
    return described(vision, language) if language else model_config(name)


def cells() -> Iterator[tuple[str, str]]:
    """Each family's backbone with each task that it serves."""
    for name in BY_FAMILY:
        yield from ((name, task) for task in full_size(name).tasks)


@pytest.mark.parametrize(("name", "task"), [*cells()])
def test_a_task_is_trained_scored_again_and_asked(name: str, task: str, tmp_path: Path) -> None:
    words = small_model(tmp_path / "conf", name, **(MANY if name == "llava" else {}))
    own = ("trainer.precision=bf16", "trainer.cache=memory", *MOMENT)
    if task in WRITTEN and name != "vilt":  # which chooses
        own += ("task.decode.max_new_tokens=4",)
    run = tiny_run(tmp_path / "run", task, *words, *own)
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert all(map(math.isfinite, losses_of(run)))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["machine"]["precision"] == "bf16"

    assert command("eval", f"run={run}") == 0
    again = json.loads((run / "evaluations" / "eval" / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(metrics["metrics"])

    picture = build("retrieval", "test", 1, 0)[0].image.load()
    picture.save(tmp_path / "asked.png")
    query = (f"image={tmp_path / 'asked.png'}", *QUESTIONS.get(task, ()))
    (record,) = asked(tmp_path / "answers.jsonl", f"run={run}", *query)
    if task == "retrieval":
        assert {hit["text"] for hit in record["hits"]} == {"a ring", "a house"}
    else:
        assert isinstance(record["prediction"], str)
    if name == "llava":
        ids = processors.read(str(run / "processor"))(images=picture, text="<image>")["input_ids"]
        assert len(ids[0]) >= 576


def test_every_family_is_among_them() -> None:
    apart = {"clip", "vision_tower"}  # an older name of dual encoders; and what has not been tried in bf16
    assert {full_size(name).family for name in BY_FAMILY} == FAMILIES.keys() - apart
