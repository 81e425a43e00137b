"""Composing whole configurations in tests, as the command line does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.backbones.small import SETTINGS
from vlatrain.cli.main import main

SMALL_BLIP = (  # sizes of a BLIP with random weights
    "model.config.vision_config={hidden_size: 48, intermediate_size: 80, num_hidden_layers: 3, num_attention_heads: 3}",
    "model.config.text_config={hidden_size: 32, intermediate_size: 112, num_hidden_layers: 2, num_attention_heads: 4}",
    "model.config.vision_config.image_size=64",
    "model.config.text_config.encoder_hidden_size=48",
)
MOMENT = (  # two steps, each told
    "data.train_size=8",
    "data.eval_size=2",
    "trainer.max_steps=2",
    "trainer.batch_size=2",
    "trainer.accumulate=1",
    "trainer.log_every=1",
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


def small_model(conf: Path, name: str, **config: Any) -> tuple[str, ...]:
    """Describe a small backbone with random weights in a folder for `--config-dir`.

    Args:
        conf: the folder.
        name: the backbone whose architecture it is; VISION+LANGUAGE for a composite.
        config: what differs from its settings in `SETTINGS`.

    Returns:
        The words of a command line that take it.
    """
    vision, _, language = name.partition("+")
    base: list[Any] = [name]
    if language:
        from tests.backbones.composites import LANGUAGE, VISION  # imports torch

        base = ["composite", {"override vision": vision}, {"override language": language}]
        settings = {"vision_config": VISION[vision], "text_config": LANGUAGE[language]}
    else:
        settings = SETTINGS[name]
    own = {
        "defaults": [*base, "_self_"],
        "name": f"small_{name}",
        "random_init": True,
        "config": {**settings, **config},
    }
    (conf / "model").mkdir(parents=True, exist_ok=True)
    (conf / "model" / f"small_{name}.yaml").write_text(json.dumps(own), encoding="utf-8")  # JSON is YAML
    return ("--config-dir", str(conf), f"model=small_{name}")


def losses_of(run: Path) -> list[float]:
    """The losses that a run has logged, in the order of its steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def asked(output: Path, *words: str) -> list[dict]:
    """Predict.

    Returns:
        The records of its output file.
    """
    assert command("predict", *words, f"output={output}") == 0
    return [json.loads(line) for line in output.read_text().splitlines()]
