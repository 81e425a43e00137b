from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.commands import command, tiny_run
from tests.conftest import adapter_config, make_samples, model_config
from tests.numerics import assert_close
from vlatrain.adapters.tip_adapter import TipAdapter
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig
from vlatrain.training.display import SILENT
from vlatrain.training.sample_cache import build_sample_cache, drawn
from vlatrain.training.setup import new_setup

SIZE = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tip"
    return tiny_run(folder, "retrieval", "model=tiny_clip", "adapter=tip_adapter", "adapter.options.alpha=5.0")


def tip(**options: float) -> TrainConfig:
    return TrainConfig(
        task=TaskConfig(name="retrieval", points=["*"]),
        model=model_config("tiny_clip"),
        adapter=adapter_config("tip_adapter", options={"size": SIZE, **options}),
        trainer=TrainerConfig(batch_size=1, device="cpu"),
    )


def test_the_cache_holds_the_frozen_models_features_of_the_samples_drawn() -> None:
    config, samples = tip(), make_samples()
    setup = new_setup(config, {"train": samples})
    build_sample_cache(setup, samples, config, SILENT)
    (unit,) = (module for module in setup.model.modules() if isinstance(module, TipAdapter))
    frozen = load(config.model, "retrieval")
    for number, sample in enumerate(drawn(samples, SIZE, config.seed)):
        with torch.no_grad():
            key = frozen.image_features(frozen.inputs([sample.image.load()]))[0][0]  # type: ignore[attr-defined]
            value = frozen.text_features(frozen.text(sample.captions, 40))[0]  # type: ignore[attr-defined]
        assert_close(unit.keys[number], key, frozen.model)
        assert_close(unit.values[number], value, frozen.model)


def test_what_is_kept_has_the_precision_of_what_is_compared_with_it() -> None:
    config, samples = tip(), make_samples()
    config = replace(config, trainer=replace(config.trainer, precision="bf16"))
    setup = new_setup(config, {"train": samples})
    build_sample_cache(setup, samples, config, SILENT)
    (unit,) = (module for module in setup.model.modules() if isinstance(module, TipAdapter))
    frozen = load(config.model, "retrieval")
    chosen = drawn(samples, SIZE, config.seed)
    with torch.no_grad():
        inputs = frozen.inputs([sample.image.load() for sample in chosen])
        exact = frozen.image_features(inputs)[0]  # type: ignore[attr-defined]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = frozen.image_features(inputs)[0].float()  # type: ignore[attr-defined]
    assert (unit.keys - exact).abs().max() > 2 * (unit.keys - rounded).abs().max()
    assert unit.keys.dtype == torch.float32


def test_draws_are_seeded_and_fewer_samples_serve_several_times() -> None:
    samples = [replace(sample, label="") for sample in make_samples()]
    one, again, other = (drawn(samples, 8, seed) for seed in (0, 0, 1))
    assert one == again != other
    assert {sample.id for sample in one} == {sample.id for sample in samples}
    twice = drawn(samples, 16, 0)
    assert set(Counter(sample.id for sample in twice).values()) == {2}
    assert len({caption for sample in twice for caption in sample.captions}) == 16, "each time another caption"


def test_a_cache_of_classes_holds_as_many_of_each() -> None:
    some = make_samples()  # two of each of four colours
    uneven = [*some, *(replace(some[0], id=f"more {number}") for number in range(30))]
    chosen = drawn(uneven, 12, 0)
    assert set(Counter(sample.label for sample in chosen).values()) == {3}
    assert max(Counter(sample.id for sample in chosen if sample.label != some[0].label).values()) == 2
    assert set(Counter(sample.label for sample in drawn(uneven, 10, 1)).values()) == {2, 3}


@pytest.mark.slow  # that it is saved and loads is in the table of methods
def test_nothing_trains_and_yet_it_is_saved_and_loads_everywhere(run: Path, tmp_path: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["parameters"]["trainable"] == 0
    assert metrics["training"]["steps"] == 0
    stored = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in stored} == {"keys", "values"}
    assert all(tensor.shape == (512, 192) and bool(tensor.any()) for tensor in stored.values())
    assert command("eval", f"run={run}", f"output={tmp_path / 'eval'}") == 0
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"] == metrics["metrics"]
    frozen = tiny_run(tmp_path / "none", "retrieval", "model=tiny_clip", "adapter=none")
    assert json.loads((frozen / "metrics.json").read_text())["metrics"] != metrics["metrics"]
    backbone = load(model_config("tiny_clip"), "retrieval")
    model = PeftModel.from_pretrained(backbone.model, str(run / "adapter"))
    (unit,) = (module for module in model.modules() if isinstance(module, TipAdapter))
    assert torch.equal(unit.keys, next(tensor for key, tensor in stored.items() if key.endswith("keys")))


@pytest.mark.slow
def test_the_keys_train_from_the_cache(run: Path, tmp_path: Path) -> None:
    trained = tiny_run(
        tmp_path / "f", "retrieval", "model=tiny_clip", "adapter=tip_adapter_f", "adapter.options.alpha=5.0"
    )
    before, after = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, trained))
    assert before.keys() == after.keys()
    for key in before:
        moved = not torch.equal(before[key], after[key])
        assert moved == key.endswith("keys"), key
        torch.testing.assert_close(before[key], after[key], atol=0.02, rtol=0)


@pytest.mark.slow
def test_inspect_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", "task=retrieval", "model=clip", "adapter=tip_adapter_f") == 0
    assert "262,144" in capsys.readouterr().out
    assert command("inspect", "task=retrieval", "model=clip", "adapter=clip_adapter", "adapter.dim=128") == 0
    assert "131,072" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["clip_adapter", "tip_adapter", "tip_adapter_f"])
def test_tasks_without_features_are_refused_by_name(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("task=vqa", f"adapter={method}") == 2
    assert "works on the features of image and text" in capsys.readouterr().err
    assert command("task=retrieval", f"adapter={method}", "adapter.heads=true") == 2
    assert "adapter.heads=true" in capsys.readouterr().err
    assert command("task=retrieval", f"adapter={method}", "adapter.drop_layers=1") == 2
    assert "has no adapters that some layers could go without" in capsys.readouterr().err
