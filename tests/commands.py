"""Composing whole configurations in tests, as the command line does."""

from __future__ import annotations

import json
from pathlib import Path

from vlatrain.cli.main import main

SMALL_BLIP = (  # sizes of a BLIP with random weights
    "model.config.vision_config={hidden_size: 48, intermediate_size: 80, num_hidden_layers: 3, num_attention_heads: 3}",
    "model.config.text_config={hidden_size: 32, intermediate_size: 112, num_hidden_layers: 2, num_attention_heads: 4}",
    "model.config.vision_config.image_size=64",
    "model.config.text_config.encoder_hidden_size=48",
)


def command(*words: str) -> int:
    """Run a command line in this process.

    Returns:
        Its exit status.
    """
    return main(list(words))


def tiny_run(folder: Path, task: str, *overrides: str) -> Path:
    """Train a moment on built-in data.

    Returns:
        The run folder.
    """
    sizes = (
        "data.train_size=24",
        "data.eval_size=10",
        "trainer.max_steps=3",
        "trainer.batch_size=8",
        "trainer.threads=1",
    )
    assert command(f"task={task}", f"run.dir={folder}", *sizes, *overrides) == 0
    return folder


def asked(output: Path, *words: str) -> list[dict]:
    """Predict.

    Returns:
        The records of its output file.
    """
    assert command("predict", *words, f"output={output}") == 0
    return [json.loads(line) for line in output.read_text().splitlines()]
