"""A checkpoint that is stored in 16 bit is never held in fp32 as a whole: its peak, counted in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.composites import small
from tests.conftest import small_config
from vlatrain.backbones.loading import load, write
from vlatrain.config import ModelConfig

pytestmark = pytest.mark.slow
SIZES = {"n_embd": 1024, "n_head": 16, "n_inner": 4096, "n_layer": 8, "vocab_size": 400}  # 101 million weights
WIDE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 8, "intermediate_size": 4096}
MEASURE = """
import pickle, sys, torch
from pathlib import Path
from vlatrain.backbones.loading import load
from vlatrain.training.modes import cast_trunk

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1e3

config, task, dtype = pickle.loads(Path(sys.argv[1]).read_bytes())
torch.ones(8, 8) @ torch.ones(8, 8)
if config.quantize:
    import bitsandbytes
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
backbone = load(config, task, dtype=dtype)
if dtype != torch.float32 and not config.quantize:
    cast_trunk(backbone.model, dtype)
print(status("VmHWM") - before)
"""


def composite(folder: Path, dtype: torch.dtype) -> tuple[ModelConfig, str]:
    """Submodels with checkpoints of their own; the language model is large."""
    config = small("clip", "gpt2")
    config.config["text_config"] = {**config.config["text_config"], **SIZES}
    made = load(config, "captioning", texts=["a cat"])
    made.model.to(dtype)
    for name, processor in (("vision", made.image_processor), ("language", made.tokenizer)):
        made.model.get_submodule(name).save_pretrained(str(folder / name))
        processor.save_pretrained(str(folder / name))
        config.submodels[name].checkpoint = str(folder / name)
    return config, "captioning"


def whole(name: str, task: str) -> Any:
    """A backbone whose vision tower is large."""

    def make(folder: Path, dtype: torch.dtype) -> tuple[ModelConfig, str]:
        config = small_config(name)
        config.config["vision_config"] = {**config.config["vision_config"], **WIDE}
        made = load(config, task, texts=["a cat"])
        made.model.to(dtype)
        write(made, made.model, folder)
        config.checkpoint = str(folder)
        return config, task

    return make


MAKERS = {"composite": composite, "clip": whole("clip", "retrieval"), "vit": whole("vit", "classification")}


@pytest.mark.parametrize(
    ("made", "stored", "quantize"),
    [
        ("composite", torch.float16, None),
        ("composite", torch.bfloat16, 8),
        ("clip", torch.bfloat16, None),
        ("vit", torch.float16, 8),
    ],
)
def test_it_is_never_held_in_fp32(made: str, stored: torch.dtype, quantize: int | None, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    config, task = MAKERS[made](folder, stored)
    config.random_init, config.quantize = False, quantize
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    assert size > 150
    about = tmp_path / "about"
    about.write_bytes(pickle.dumps((config, task, torch.bfloat16)))
    told = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # what is let go is given back
    words = [sys.executable, "-c", MEASURE, str(about)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=told)
    peak = float(done.stdout.split()[-1])
    print(f"{made}, {stored}, quantize={quantize}: {size:.0f} MB in the file, {peak:.0f} MB at most")
    # the file's pages and, where it is cast or packed, that: in fp32 it would be twice the file beside these
    assert peak < 2.2 * size
