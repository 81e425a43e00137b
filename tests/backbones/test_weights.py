"""Each thing that can be wrong with a checkpoint is one line, and nothing that it lacks is replaced in silence."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backbones.chatting import make
from tests.backbones.composites import loaded
from tests.backbones.composites import small as described
from tests.conftest import model_config, small_config
from tests.loopback import copy
from vlatrain.backbones.describe import ASSETS, sites
from vlatrain.backbones.families.composite import Composite
from vlatrain.backbones.loading import load, meta_model, write
from vlatrain.config import ModelConfig, UserError

WEIGHTS, SETTINGS, IMAGES = "model.safetensors", "config.json", "processor_config.json"
Case = tuple[ModelConfig, str]  # a description, with a checkpoint that something is wrong with, and a task


def changed(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Change a checkpoint's weights."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(dict(change(tensors)), folder / WEIGHTS, {"format": "pt"})


def without(*patterns: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    def change(tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
        kept = {key: value for key, value in tensors.items() if not any(re.search(own, key) for own in patterns)}
        assert len(kept) < len(tensors)
        return kept

    return change


def edited(file: Path, edit: Callable[[Any], None]) -> None:
    """Change a file of settings."""
    settings = json.loads(file.read_text())
    edit(settings)
    file.write_text(json.dumps(settings))


def clip(folder: Path) -> Case:
    """The shipped CLIP."""
    copy(ASSETS / "tiny_clip", folder)
    return model_config("tiny_clip", checkpoint=str(folder)), "retrieval"


def small(name: str, task: str, folder: Path, tower: str = "") -> Case:
    """A checkpoint of a small backbone; `tower`: of this part of it alone."""
    backbone = load(small_config(name), task, texts=["a cat and a dog"])
    write(backbone, backbone.model.get_submodule(tower) if tower else backbone.model, folder)  # type: ignore[arg-type]
    config = small_config(name)
    config.random_init, config.checkpoint = False, str(folder)
    return config, task


def joined(vision: str, language: str, folder: Path) -> Case:
    """Checkpoints of both submodels of a small composite, in `vision` and `language` below the folder."""
    backbone = loaded(vision, language)
    assert isinstance(backbone, Composite)
    for name, processor in (("vision", backbone.image_processor), ("language", backbone.tokenizer)):
        backbone.model.get_submodule(name).save_pretrained(str(folder / name))
        processor.save_pretrained(str(folder / name))
        backbone.config.submodels[name].checkpoint = str(folder / name)
    backbone.config.random_init = False
    return backbone.config, "vqa"


def lacks_twelve(folder: Path) -> Case:
    case = clip(folder)
    changed(folder, without(r"vision_model\.encoder\.layers\.[12]\.(mlp|layer_norm1)"))
    return case


def lacks_one_of_a_submodel(folder: Path) -> Case:
    case = joined("dinov2", "gpt2", folder)
    changed(folder / "language", without(r"h\.1\.mlp\.c_fc\.bias"))
    return case


def lacks_one_of_a_tower(folder: Path) -> Case:
    case = small("dinov2", "classification", folder, "vision")
    changed(folder, without(r"layer\.1\.norm1\.weight"))
    return case


def lacks_half_the_head(folder: Path) -> Case:
    case = small("clip", "grounding", folder)
    changed(folder, without(r"box_head\.layers\.1"))
    return case


def has_more(folder: Path) -> Case:
    case = clip(folder)
    changed(folder, lambda tensors: {**tensors, "text_model.classifier.bias": torch.ones(3)})
    return case


def has_another_shape(folder: Path) -> Case:
    case = clip(folder)
    changed(folder, lambda tensors: {**tensors, "visual_projection.weight": torch.ones(5, 192)})
    return case


def has_another_vocabulary(folder: Path) -> Case:
    case = joined("clip", "llama", folder)
    changed(folder / "language", lambda tensors: {**tensors, "model.embed_tokens.weight": torch.ones(399, 72)})
    return case


def is_a_blip(folder: Path) -> Case:
    copy(ASSETS / "tiny_blip", folder)
    return model_config("tiny_clip", checkpoint=str(folder)), "retrieval"


def is_a_submodel_of_another_kind(folder: Path) -> Case:
    case = joined("clip", "gpt2", folder)
    case[0].submodels["language"].checkpoint = case[0].submodels["vision"].checkpoint
    return case


def is_a_tower_of_another_kind(folder: Path) -> Case:
    copy(ASSETS / "tiny_clip", folder)
    return model_config("dinov2", checkpoint=str(folder)), "classification"


def has_images_of_another_size(folder: Path) -> Case:
    case = small("vit", "classification", folder, "vision")
    edited(folder / "preprocessor_config.json", lambda settings: settings.update(size={"height": 48, "width": 48}))
    return case


def has_no_padding(folder: Path) -> Case:
    case = clip(folder)
    edited(folder / "tokenizer_config.json", lambda settings: settings.update(pad_token=None))
    return case


def has_no_end(folder: Path) -> Case:
    case = joined("clip", "gpt2", folder)
    edited(folder / "language" / SETTINGS, lambda settings: settings.update(eos_token_id=None))
    return case


def is_for_tensorflow(folder: Path) -> Case:
    case = clip(folder)
    (folder / WEIGHTS).rename(folder / "tf_model.h5")
    return case


def is_a_gguf(folder: Path) -> Case:
    case = joined("clip", "gpt2", folder)
    (folder / "language" / WEIGHTS).rename(folder / "language" / "model-q4.gguf")
    return case


def is_cut_short(folder: Path) -> Case:
    case = small("vit", "classification", folder, "vision")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    return case


def is_a_pointer(folder: Path) -> Case:
    case = clip(folder)
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    return case


def cells(rows: list[tuple[Callable[[Path], Case], str]]) -> list[Any]:
    """Those of a table; all but two of each kind are slow."""
    quick = (has_another_shape, is_a_pointer, has_more)
    return [pytest.param(*row, id=row[0].__name__, marks=() if row[0] in quick else pytest.mark.slow) for row in rows]


REFUSED: list[tuple[Callable[[Path], Case], str]] = [
    (
        lacks_twelve,
        r"model\.checkpoint=\S+ lacks 12 of the weights of CLIPModel: (vision_model\.encoder\.layers\.\d\.\S+, ){10}\.\.\.: it is "
        r"no checkpoint for it",
    ),
    (
        lacks_one_of_a_submodel,
        r"model\.submodels\.language\.checkpoint=\S+ lacks 1 of the weights of GPT2LMHeadModel: \S+h\.1\.mlp\.c_fc\.bias: .*",
    ),
    (lacks_one_of_a_tower, r"model\.checkpoint=\S+ lacks 1 of the weights of Dinov2Model: encoder\.layer\.1\.norm1\.weight: .*"),
    (
        lacks_half_the_head,
        r"model\.checkpoint=\S+: its head for boxes lacks 12 of 38 tensors, or .*: box_head\.layers\.1\.\S+, .*\.\.\.: .*",
    ),
    (
        has_another_shape,
        r"model\.checkpoint=\S+ has 1 of the weights of CLIPModel in another shape: visual_projection\.weight 5x192 instead of "
        r"\d+x192: its config\.json is not of these weights, or it is a checkpoint of another model",
    ),
    (
        has_another_vocabulary,
        r"model\.submodels\.language\.checkpoint=\S+ has 1 of .*: model\.embed_tokens\.weight 399x72 instead of 400x72: .*",
    ),
    (is_a_blip, r"model\.checkpoint=\S+ is a blip model, and CLIPModel reads clip models: choose a model= that is of its kind"),
    (
        is_a_submodel_of_another_kind,
        r"model\.submodels\.language\.checkpoint=\S+ is a clip_vision_model model, and "
        r"model\.submodels\.language\.architecture=GPT2LMHeadModel reads gpt2 models: choose a checkpoint of one, .*",
    ),
    (
        is_a_tower_of_another_kind,
        r"model\.checkpoint=\S+ is a clip model, and Dinov2Model reads dinov2 models: choose a model= that is of .*",
    ),
    (
        has_images_of_another_size,
        r"\S+: its image processor makes images of 48x48; the model takes 40x40: set size in its .*",
    ),
    (has_no_padding, r"\S+: its tokenizer names no token for padding: set pad_token in its tokenizer_config\.json"),
    (has_no_end, r"model\.submodels\.language\.checkpoint=\S+: its config\.json names no token that ends a text: set eos_.*"),
    (
        is_for_tensorflow,
        r"model\.checkpoint=\S+: neither model\.safetensors nor pytorch_model\.bin, nor .*: there are tf_model\.h5, which it .*",
    ),
    (is_a_gguf, r"model\.submodels\.language\.checkpoint=\S+: neither .*: there are model-q4\.gguf, which it does not read"),
    (is_cut_short, rf"\S+/{WEIGHTS} is broken \(.*\); copy it again from where the checkpoint comes from"),
    (is_a_pointer, rf"\S+/{WEIGHTS} is broken \(a pointer of git-lfs in its place: run git lfs pull\); .*"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "line"), cells(REFUSED))
def test_refused_in_one_line(case: Callable[[Path], Case], line: str, tmp_path: Path) -> None:
    config, task = case(tmp_path / "folder")
    with pytest.raises(UserError) as error:
        load(config, task)
    (said,) = error.value.problems
    assert re.fullmatch(line, said), said


def lacks_a_mask_token(folder: Path) -> Case:
    case = joined("dinov2", "gpt2", folder)
    changed(folder / "vision", without("mask_token"))
    return case


def is_a_tower_without_mask_token(folder: Path) -> Case:
    case = small("dinov2", "classification", folder, "vision")
    changed(folder, without("mask_token"))
    return case


def is_a_tower_without_pooler(folder: Path) -> Case:
    config, task = small("siglip_vision", "classification", folder, "vision")
    changed(folder, without(r"^head\.|\.head\."))
    config.options["pool"] = "mean"
    return config, task


def lacks_a_pooler(folder: Path) -> Case:
    case = small("align", "retrieval", folder)
    changed(folder, without(r"text_model\.pooler"))
    return case


def says_no_patch_size(folder: Path) -> Case:
    made = make("llava")
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    for name in ("patch_size", "vision_feature_select_strategy"):
        edited(folder / IMAGES, lambda settings, name=name: settings.pop(name, None))  # type: ignore[misc]
    return model_config("llava", checkpoint=str(folder), options=made.config.options), "vqa"


def says_no_mean(folder: Path) -> Case:
    case = small("dinov2", "classification", folder, "vision")
    edited(folder / "preprocessor_config.json", lambda settings: settings.pop("image_mean"))
    return case


TOLD: list[tuple[Callable[[Path], Case], str]] = [
    (has_more, r"model\.checkpoint=\S+ has 1 tensors that CLIPModel does not: text_model\.classifier\.bias"),
    (lacks_a_mask_token, r"model\.submodels\.vision\.\S+ lacks embeddings\.mask_token, which nothing uses here: zero"),
    (is_a_tower_without_mask_token, r"model\.checkpoint=\S+ lacks embeddings\.mask_token, which nothing uses here: zero"),
    (is_a_tower_without_pooler, r"model\.checkpoint=\S+ lacks head\.\S+, .*, which nothing uses here: zero"),
    (lacks_a_pooler, r"model\.checkpoint=\S+ lacks text_model\.pooler\.\S+, .*, which nothing uses here: zero"),
    (says_no_patch_size, r"\S+: its processor does not say patch_size=\d+.*: from its config\.json"),
    (says_no_mean, r"\S+: its image processor does not say image_mean: the defaults of .* are used, .*"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "line"), cells(TOLD))
def test_read_and_told_in_one_line(
    case: Callable[[Path], Case], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, task = case(tmp_path / "folder")
    with caplog.at_level(logging.INFO, "vlatrain"):
        backbone = load(config, task)
    assert [said for said in caplog.messages if re.fullmatch(line, said)], caplog.messages
    for key, tensor in backbone.model.state_dict().items():
        if "mask_token" in key or "text_model.pooler" in key:
            assert not tensor.any(), "not what happened to be in memory"
    inputs = backbone.blank(1, "cpu", 2)
    for value in (one for one in inputs.values() if isinstance(one, Tensor)):
        assert value.isfinite().all()


@pytest.mark.slow
def test_what_reads_its_own_pooling_needs_its_weights(tmp_path: Path) -> None:
    config, task = is_a_tower_without_pooler(tmp_path / "folder")
    config.options["pool"] = "own"
    with pytest.raises(UserError, match=r"lacks \d+ of the weights of SiglipVisionModel: head\."):
        load(config, task)


@pytest.mark.parametrize(
    ("vision", "language", "settings", "points", "paths"),
    [
        (
            "clip",
            "t5",
            {"text_config": {"feed_forward_proj": "gated-gelu", "is_gated_act": True}},
            ["text.1.ffn", "decoder.1.ffn"],
            {"gate": "DenseReluDense.wi_0", "inner": "DenseReluDense.wi_1", "out": "DenseReluDense.wo"},
        ),
        (
            "dinov2",
            "gpt2",
            {"vision_config": {"use_swiglu_ffn": True}},
            ["vision.1.ffn"],
            {"gate": "mlp.gate_proj", "inner": "mlp.up_proj", "out": "mlp.down_proj"},
        ),
    ],
)
def test_variants_have_their_sites(
    vision: str, language: str, settings: dict[str, Any], points: list[str], paths: dict[str, str]
) -> None:
    config = described(vision, language)
    for name, values in settings.items():
        config.config[name] = {**config.config[name], **values}
    model, places = meta_model(config, "vqa"), sites(config, "vqa", points).places
    assert len(places) == len(points)
    for place in places.values():
        for role, path in paths.items():
            assert place.modules[role].endswith(path)
        for path in (place.output, place.input, *place.modules.values()):
            model.get_submodule(path)
