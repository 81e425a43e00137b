"""Vision towers alone: features as transformers computes them, heads that know classes, and runs with any method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPVisionModel, Dinov2Model

from tests.commands import command, tiny_run
from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.numerics import assert_close
from vlatrain.backbones.base import Classifier
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import ASSETS, has_trained_head
from vlatrain.backbones.families.vision_tower import VisionTower
from vlatrain.backbones.loading import load, write
from vlatrain.config import TaskConfig, TrainConfig, UserError
from vlatrain.data.shapes import build

TOWERS = ("dinov2", "dinov3", "vit", "clip_vision", "siglip_vision", "convnext")
LEADING = {"dinov2": 1, "dinov3": 3, "vit": 1, "clip_vision": 1, "siglip_vision": 0, "convnext": 0}
METHODS = {
    "bottleneck": ["adapter.points=[vision.last1.*]"], "parallel": ["adapter.points=[vision.last2.ffn]"], "lora": [], "bitfit": [],
    "full": [], "linear_probe": [], "knn": ["adapter.options.k=3"], "prompt": [], "ladder": ["adapter.points=[vision]"],
}  # fmt: skip


def tower(name: str, side: int | None = None, **options: Any) -> VisionTower:
    config = small_config(name)
    config.options |= options
    config.submodels["vision"].image_size = side
    backbone = load(config, "classification")
    assert isinstance(backbone, VisionTower)
    assert isinstance(backbone, Classifier)
    for parameter in backbone.model.vision.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)  # lest all images look alike
    return backbone


def by_hand(backbone: VisionTower, pixels: Tensor, pool: str) -> Tensor:
    """Features by transformers' own forward pass, and the words of the option."""
    found = backbone.model.vision(pixel_values=pixels)
    if pool == "own":
        return found.pooler_output
    states = found.last_hidden_state
    if states.dim() == 4:
        states = backbone.model.vision.layernorm(states.flatten(2).transpose(1, 2))
    if isinstance(backbone.model.vision, CLIPVisionModel):
        states = backbone.model.vision.post_layernorm(states)
    patches = states[:, LEADING[backbone.config.name] :]
    if pool == "attention":
        scores = patches @ backbone.model.head.query.weight.T  # (B, P, heads)
        size = patches.shape[-1] // scores.shape[-1]
        heads = [
            torch.einsum("bp,bpd->bd", scores[..., head].softmax(dim=1), patches[..., head * size : (head + 1) * size])
            for head in range(scores.shape[-1])
        ]
        return torch.cat(heads, dim=-1)
    first, mean = states[:, 0], patches.sum(dim=1) / patches.shape[1]
    return {"class": first, "mean": mean, "both": torch.cat([first, mean], dim=-1)}[pool]


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_transformers(name: str) -> None:
    for pool in small_config(name).options["pools"]:
        backbone = tower(name, pool=pool)
        if pool == "attention":
            torch.nn.init.normal_(backbone.model.head.query.weight)
        inputs = backbone.inputs([sample.image.load() for sample in make_samples()[:3]])
        with torch.no_grad():
            features = backbone.image_features(inputs)
            assert_close(features, by_hand(backbone, inputs["pixels"], pool), backbone.model)
            assert not backbone.class_logits(inputs).any(), "a new head takes all classes alike"
        assert features.shape[1] == backbone.model.head.linear.in_features
        assert not torch.allclose(features[0], features[2], atol=1e-4), "and yet images differ"


def test_a_head_keeps_what_it_knows_of_a_class() -> None:
    backbone = tower("vit")
    backbone.take_classes(["cat", "dog"])
    linear = backbone.model.head.linear
    with torch.no_grad():
        linear.weight.copy_(torch.arange(2.0)[:, None] + 1)
        linear.bias.copy_(torch.tensor([5.0, 7.0]))
    backbone.take_classes(["bird", "dog", "cat"])
    assert backbone.classes == ["bird", "dog", "cat"]
    assert backbone.model.head.linear.weight[:, 0].tolist() == [0, 2, 1]
    assert backbone.model.head.linear.bias.tolist() == [0, 7, 5]


def test_a_tower_of_a_folder_is_read_with_the_size_of_its_processor(tmp_path: Path) -> None:
    made = tower("dinov2", 40)
    assert made.model.config.vision_config.image_size == 56, "its positions are for larger images"
    made.model.vision.save_pretrained(tmp_path)
    made.processor.save_pretrained(str(tmp_path))
    config = small_config("dinov2")
    config.random_init, config.checkpoint = False, str(tmp_path)
    read = load(config, "classification")
    assert isinstance(read, VisionTower)
    assert read.image_shape == read.blank(1, "cpu")["pixels"].shape[2:] == (40, 40)
    images = [make_samples()[0].image.load()]
    plain = Dinov2Model.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        states = plain(pixel_values=read.inputs(images)["pixels"]).last_hidden_state
        both = torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=-1)  # DINOv2's default
        assert_close(read.image_features(read.inputs(images)), both, plain)
    config.submodels["vision"].architecture = "ViTModel"
    with pytest.raises(UserError, match=r"is a dinov2 model, and ViTModel reads vit models"):
        load(config, "classification")


def test_the_tiny_one_is_the_image_tower_of_tiny_clip() -> None:
    read = load(model_config("tiny_vit"), "classification")
    assert isinstance(read, VisionTower)
    clip = CLIPModel.from_pretrained(ASSETS / "tiny_clip", dtype=torch.float32).eval()
    images = read.inputs([make_samples()[0].image.load()])
    with torch.no_grad():
        assert_close(read.image_features(images), clip.vision_model(images["pixels"]).pooler_output, clip)


@pytest.mark.parametrize(
    ("model", "adapter", "options", "told"),
    [
        ("vit", "bottleneck", {"pool": "own"}, "model.options.pool=own: model=vit has class, mean, both, attention"),
        ("siglip_vision", "lora", {"pool": "class"}, "model.options.pool=class: model=siglip_vision has mean, attention, own"),
        ("dinov2", "none", {}, "adapter=none: the head of model=dinov2 is new"),
        ("dinov2", "cross_modal", {}, "adapter=cross_modal: model=dinov2 gets no states of another modality"),
        ("dinov2", "clip_adapter", {}, "adapter=clip_adapter: works on the features of image and text"),
        ("dinov2", "tip_adapter", {}, "adapter=tip_adapter: works on the features of image and text"),
        ("dinov2", "coop", {}, "adapter=coop"),
        ("clip", "linear_probe", {}, "adapter=linear_probe: model=clip has no head of its own"),
        ("clip", "knn", {}, "adapter=knn: task=classification on model=clip has no head"),
        ("tiny_vit", "linear_probe", {}, ""),
        ("convnext", "knn", {}, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(model: str, adapter: str, options: dict[str, Any], told: str) -> None:
    config = TrainConfig(
        task=TaskConfig(name="classification", points=["*"]), model=model_config(model), adapter=adapter_config(adapter)
    )
    config.model.options |= options
    found = incompatibilities(config)
    assert (found[0].startswith(told)) if told else found == []


def test_whether_a_checkpoint_of_the_hub_has_a_head_is_seen_when_it_is_here() -> None:
    config = TrainConfig(
        task=TaskConfig(name="classification", points=["*"]),
        model=model_config("dinov2"),
        adapter=adapter_config("none"),
    )
    config.model.checkpoint = "me/merged"
    assert has_trained_head(config.model, "classification") is None
    assert incompatibilities(config) == []


def scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_scored_again_and_goes_on(method: str, tmp_path: Path) -> None:
    """With the prefix kept and not, from the last step and from a step before it: to the same bits."""
    words = ["model=tiny_vit", f"adapter={method}", *METHODS[method], "trainer.threads=1"]
    run = tiny_run(tmp_path / "run", "classification", *words, "trainer.cache=off", "trainer.save_every=1")
    kept = tiny_run(tmp_path / "kept", "classification", *words, "trainer.cache=memory")
    assert (run / "predictions.jsonl").read_text() == (kept / "predictions.jsonl").read_text()
    if method != "full":
        wholly = method in ("linear_probe", "knn")
        towers = json.loads((kept / "metrics.json").read_text())["cache"].get("towers")
        assert towers == ["vision.0-3"] if wholly else towers != ["vision.0-3"]
    if method != "knn":
        adapters = [sorted((one / "adapter").glob("*.safetensors")) for one in (run, kept)]
        assert [[file.read_bytes() for file in files] for files in adapters[:1]] == [
            [file.read_bytes() for file in files] for files in adapters[1:]
        ]
    assert command("eval", f"run={run}", f"output={tmp_path / 'again'}") == 0
    assert (run / "predictions.jsonl").read_text() == (tmp_path / "again" / "predictions.jsonl").read_text()
    picture, output = tmp_path / "asked.png", tmp_path / "answers.jsonl"
    build("classification", "test", 1, 0)[0].image.load().save(picture)
    assert command("predict", f"run={run}", f"image={picture}", f"output={output}") == 0
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert abs(sum(hit["score"] for hit in record["hits"]) - 1) < 0.5


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = ["model=tiny_vit", "adapter=linear_probe", "trainer.threads=1", "trainer.save_every=1", "trainer.keep=9"]
    whole = tiny_run(tmp_path / "whole", "classification", *words)
    part = tiny_run(tmp_path / "part", "classification", *words)
    steps = sorted((part / "checkpoints").glob("step_*"), key=lambda one: int(one.name.partition("_")[2]))
    for step in steps[1:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    (part / "metrics.json").unlink()
    again = tiny_run(tmp_path / "part", "classification", *words, "resume=auto")
    assert json.loads((again / "metrics.json").read_text())["training"]["resumed_from"] is not None
    trained = [(one / "adapter" / "trunk.safetensors").read_bytes() for one in (whole, again)]
    assert trained[0] == trained[1]


@pytest.mark.slow
def test_the_head_goes_into_a_checkpoint_that_needs_no_training(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "classification", "model=tiny_vit", "adapter=lora")
    whole = tmp_path / "whole"
    assert command("export", f"run={run}", "form=merged", f"to={whole}") == 0
    assert command(
        "task=classification", "model=tiny_vit", f"model.checkpoint={whole}", "adapter=none", f"run.dir={tmp_path / 'none'}",
        "data.train_size=24", "data.eval_size=10", "trainer.device=cpu",
    ) == 0  # fmt: skip
    assert scores(tmp_path / "none") == pytest.approx(scores(run), abs=1e-3)


@pytest.mark.slow
def test_a_saved_tower_with_its_head_is_the_same(tmp_path: Path) -> None:
    backbone = tower("convnext")
    backbone.take_classes(["a", "b", "c"])
    torch.nn.init.normal_(backbone.model.head.linear.weight)
    write(backbone, backbone.model, tmp_path)
    config = small_config("convnext")
    config.random_init, config.checkpoint = False, str(tmp_path)
    read = load(config, "classification")
    assert isinstance(read, VisionTower)
    assert read.classes == ["a", "b", "c"]
    images = backbone.inputs([make_samples()[0].image.load()])
    with torch.no_grad():
        assert torch.equal(read.class_logits(images), backbone.class_logits(images))


@pytest.mark.slow
def test_neighbours_vote_as_by_brute_force(tmp_path: Path) -> None:
    words = ["model=tiny_vit", "adapter=knn", "adapter.options.k=3", "data.seed=5"]
    run = tiny_run(tmp_path / "run", "classification", *words)
    backbone = load(model_config("tiny_vit"), "classification")
    assert isinstance(backbone, VisionTower)
    train, test = (build("classification", split, size, 5) for split, size in (("train", 24), ("eval", 10)))
    with torch.no_grad():
        keys, asked = (
            normalize(backbone.image_features(backbone.inputs([s.image.load() for s in some])), dim=-1)
            for some in (train, test)
        )
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for record, query in zip(records, asked, strict=True):
        nearest = sorted(zip((keys @ query).tolist(), (s.label for s in train), strict=True), reverse=True)[:3]
        votes: dict[str, float] = {}
        for likeness, label in nearest:
            votes[label] = votes.get(label, 0) + float(torch.tensor(likeness / 0.07).exp())
        for label, vote in votes.items():
            assert record["probabilities"][label] == pytest.approx(vote / sum(votes.values()), rel=1e-3)
