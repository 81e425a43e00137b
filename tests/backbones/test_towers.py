"""A vision tower's images have the size that its image processor makes, in a composite and alone, before and after it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.backbones.composites import small
from tests.conftest import adapter_config, small_config
from vlatrain.backbones.loading import family_of, load, load_without_weights, meta_model
from vlatrain.config import ModelConfig, TaskConfig, TrainConfig, TrainerConfig
from vlatrain.verbs.inspect import count

SIDE, MOST = 32, 48  # what the image processor makes, and what the positions in the settings are for


def described(kind: str) -> tuple[ModelConfig, str]:
    """A small DINOv2 alone or in a composite, whose description says another size than its settings."""
    config, task = (
        (small("dinov2", "gpt2"), "captioning") if kind == "joined" else (small_config("dinov2"), "classification")
    )
    config.config["vision_config"] = {**config.config["vision_config"], "image_size": MOST, "patch_size": 8}
    config.submodels["vision"].image_size = SIDE
    return config, task


@pytest.mark.parametrize("kind", [pytest.param("joined", marks=pytest.mark.slow), "alone"])
def test_images_are_as_the_processor_makes_them(kind: str, tmp_path: Path) -> None:
    config, task = described(kind)
    made = load(config, task, texts=["a cat"])
    assert made.blank(1, "cpu")["pixels"].shape[2:] == (SIDE, SIDE)
    for name in ("vision", *(["language"] if kind == "joined" else [])):
        made.model.get_submodule(name).save_pretrained(str(tmp_path / name))
        processor = made.image_processor if name == "vision" else made.tokenizer
        processor.save_pretrained(str(tmp_path / name))
        config.submodels[name].checkpoint = str(tmp_path / name)
    config.random_init, config.submodels["vision"].image_size = False, None  # what the checkpoint's processor makes
    on_meta = family_of(config)(config, task, meta_model(config, task), None, "")
    for backbone in (load(config, task), load_without_weights(config, task), on_meta):
        assert backbone.model.config.vision_config.image_size == MOST
        assert backbone.blank(1, "meta")["pixels"].shape[2:] == (SIDE, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joined", "alone"])
def test_memory_is_that_of_the_processors_size(kind: str) -> None:
    config, task = described(kind)

    def peak(side: int | None) -> int:
        config.submodels["vision"].image_size = side
        trainer = TrainerConfig(batch_size=64, accumulate=1)
        method = adapter_config("bottleneck", dim=4)
        points = ["vision"]
        return count(
            TrainConfig(task=TaskConfig(name=task, points=points), model=config, adapter=method, trainer=trainer)
        ).memory.peak

    assert peak(SIDE) < peak(None) == peak(MOST)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["gpt2", "llama"])
def test_a_tokenizer_without_padding_pads_with_the_end(language: str, tmp_path: Path) -> None:
    """Masked, it is no matter which token stands there: rows of a batch are as alone."""
    config = small("clip", language)
    made = load(config, "vqa", texts=["is it red?", "what colour is the picture?"])
    made.tokenizer.pad_token = None
    made.model.language.config.pad_token_id = None
    for name, processor in (("vision", made.image_processor), ("language", made.tokenizer)):
        made.model.get_submodule(name).save_pretrained(str(tmp_path / name))
        processor.save_pretrained(str(tmp_path / name))
        config.submodels[name].checkpoint = str(tmp_path / name)
    (tmp_path / "language" / "generation_config.json").unlink()
    config.random_init = False
    backbone = load(config, "vqa")
    assert backbone.tokenizer.pad_token is None
    questions = ["is it red?", "what colour is the picture?"]
    pixels = torch.randn(2, *backbone.blank(1, "cpu")["pixels"].shape[1:])

    def logits(rows: list[int]) -> torch.Tensor:
        inputs = backbone.given(len(rows), [questions[row] for row in rows], 16)
        inputs["pixels"] = pixels[rows]
        target, _ = backbone.target(["red" for _ in rows], 8)
        return backbone.logits(backbone.context(inputs), target)

    with torch.no_grad():
        together = logits([0, 1])
        for row in (0, 1):
            torch.testing.assert_close(together[row], logits([row])[0], rtol=1e-4, atol=1e-5)
