"""Checkpoints are read without running their code, and what they lack is said instead of replaced."""

from __future__ import annotations

import ast
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from tests.backbones.chatting import make
from tests.backbones.composites import described
from tests.conftest import CONF, model_config
from vlatrain.backbones import processors
from vlatrain.backbones.describe import ASSETS
from vlatrain.backbones.loading import load
from vlatrain.backbones.pretrained import read_tokenizer
from vlatrain.config import UserError
from vlatrain.config.files import write_manifest
from vlatrain.config.model import ModelConfig

PACKAGE = ASSETS.parent
READERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "_load_tokenizer_from_pretrained"}
TINY = [("tiny_clip", "retrieval"), ("tiny_blip", "vqa")]
tiny = pytest.mark.parametrize(("name", "task"), TINY)


def trusting(source: str) -> Iterator[str]:
    """Where a source reads a checkpoint and does not refuse its code. PEFT's adapters bring none."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and refuses(node)}
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in READERS and id(node) not in called and not ast.unparse(node).startswith("Peft"):
            yield f"{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]


def refuses(call: ast.Call) -> bool:
    return any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in call.keywords)


def test_every_call_that_reads_a_checkpoint_refuses_its_code() -> None:
    found = {path.name: list(trusting(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert len(found) > 100
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("AutoModel.from_pretrained(x)", 1),
        ("kind.from_pretrained(x, trust_remote_code=flag)", 1),
        ("load = AutoTokenizer.from_pretrained", 1),
        ("from datasets import load_dataset\nload_dataset(x)", 1),
        ("kind.from_pretrained(x, trust_remote_code=False)", 0),
        ("PeftModel.from_pretrained(model, x)", 0),
    ],
)
def test_such_calls_are_found(source: str, caught: int) -> None:
    assert len(list(trusting(source))) == caught


@tiny
def test_a_checkpoint_with_a_manifest_is_as_it_was_written(name: str, task: str, folder: Path) -> None:
    config = model_config(name, checkpoint=str(folder))
    write_manifest(folder)
    load(config, task)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "logit_scale_init_value": 1.0}))
    with pytest.raises(UserError, match=r"config\.json has changed since it was written"):
        load(config, task)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a shipped checkpoint, to take something from."""
    source = ASSETS / request.node.callspec.params["name"]
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (tmp_path / file.name).symlink_to(file)
        else:
            shutil.copy(file, tmp_path)
    return tmp_path


def edit(file: Path, **values: Any) -> None:
    """Set values in a JSON file; None takes one away. `image_processor` is a level of its own."""
    read = json.loads(file.read_text())
    inner = read["image_processor"] if file.name == "processor_config.json" else read
    inner.update(values)
    for key in [key for key, value in values.items() if value is None]:
        del inner[key]
    file.write_text(json.dumps(read))


def refusal(config: ModelConfig, task: str) -> str:
    """The one line that a checkpoint is refused with."""
    with pytest.raises(UserError) as error:
        load(config, task)
    (line,) = error.value.problems
    assert "\n" not in line
    return line


@pytest.fixture
def code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Code in the folder that leaves a trace when it runs; whoever asks whether it may is told yes."""
    trace = folder / "trace"
    (folder / "code.py").write_text(
        f"open({str(trace)!r}, 'w')\nclass Config: pass\nclass Images: pass\nclass Model: pass\n"
    )
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": (asked.append(text), "y")[1])
    yield folder
    assert not trace.exists(), "it ran"
    assert not asked


@tiny
def test_a_kind_of_model_that_comes_as_code_is_refused(name: str, task: str, code: Path) -> None:
    edit(code / "config.json", model_type="ours", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    line = refusal(model_config(name, checkpoint=str(code)), task)
    assert f"{code} is a ours model" in line
    assert "code of its own (code.Config, code.Model), which vlatrain never runs" in line
    assert f"use a checkpoint of a {name.removeprefix('tiny_')} model" in line


@pytest.mark.parametrize("name", ["tiny_clip"])
def test_as_a_submodel_of_a_composite_too(name: str, code: Path) -> None:
    edit(code / "config.json", model_type="ours", auto_map={"AutoConfig": "code.Config"})
    config = described("tiny_clip", "tiny_gpt", "tiny_composite")
    for submodel in config.submodels.values():
        shipped, submodel.checkpoint = submodel.checkpoint, str(code)
        assert "which vlatrain never runs" in refusal(config, "vqa")
        submodel.checkpoint = shipped


@tiny
def test_an_image_processor_that_comes_as_code_is_refused(name: str, task: str, code: Path) -> None:
    auto_map = {"AutoImageProcessor": "code.Images"}
    edit(code / "processor_config.json", auto_map=auto_map, image_processor_type="Images")
    line = refusal(model_config(name, checkpoint=str(code)), task)
    assert str(code) in line
    assert "which vlatrain never runs" in line


@tiny
def test_code_beside_what_transformers_knows_is_no_matter(name: str, task: str, code: Path) -> None:
    edit(code / "config.json", auto_map={"AutoConfig": "code.Config"})
    assert load(model_config(name, checkpoint=str(code)), task).model.config.vision_config.image_size == 64


def model_types() -> list[str]:
    """The kinds of model in the descriptions that come with a tokenizer."""
    found = set()
    for file in CONF.glob("model/**/*.yaml"):
        found |= {line.split()[-1] for line in file.read_text().splitlines() if line.strip().startswith("model_type:")}
    return sorted(kind for kind in found if TOKENIZER_MAPPING_NAMES.get(kind))


@pytest.mark.parametrize("model_type", model_types())
def test_no_kind_makes_do_with_an_empty_tokenizer(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for told in ({}, {"tokenizer_class": TOKENIZER_MAPPING_NAMES[model_type]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=r"no whole vocabulary for its tokenizer \(.*tokenizer.json.* copy"):
            read_tokenizer(str(tmp_path))


@tiny
def test_a_folder_without_tokenizer_files_is_refused(name: str, task: str, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    line = refusal(model_config(name, checkpoint=str(folder)), task)
    assert line.startswith(f"{folder} has no whole vocabulary")
    assert "not there: tokenizer.json, vocab" in line


def test_words_without_their_merges_are_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{c}</w>" for c in "abcdefghijkl"),
        "ab</w>",
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    with pytest.raises(UserError, match=r"no whole vocabulary for its tokenizer \(no.* tokenizer.json"):
        read_tokenizer(str(tmp_path))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    assert len(read_tokenizer(str(tmp_path))) > 30


@tiny
def test_a_tokenizer_of_another_model_is_refused(name: str, task: str, folder: Path) -> None:
    file = folder / "tokenizer.json"
    read = json.loads(file.read_text())
    rows = len(read["model"]["vocab"])
    read["model"]["vocab"]["overmuch"] = rows
    file.write_text(json.dumps(read))
    assert f"tokens up to {rows}, but the model has embeddings for {rows}" in refusal(
        model_config(name, checkpoint=str(folder)), task
    )


@pytest.mark.parametrize("name", ["tiny_clip"])
def test_files_of_two_tokenizers_are_refused(name: str, folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert "its tokenizer cannot be read" in refusal(model_config(name, checkpoint=str(folder)), "retrieval")


def test_a_second_tokenizer_is_not_replaced_by_the_first(tmp_path: Path) -> None:
    made = make("instructblip")
    made.processor.save_pretrained(tmp_path)
    made.model.config.save_pretrained(tmp_path)
    assert len(processors.read(str(tmp_path)).qformer_tokenizer) == len(made.processor.qformer_tokenizer)
    shutil.rmtree(tmp_path / "qformer_tokenizer")
    with pytest.raises((UserError, OSError), match="qformer_tokenizer"):
        processors.read(str(tmp_path))


def test_the_images_token_is_the_same_for_both(tmp_path: Path) -> None:
    made = make("paligemma")
    made.model.config.image_token_id += 1
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    here = made.processor.image_token_id
    line = refusal(model_config("paligemma", checkpoint=str(tmp_path), options=made.config.options), "vqa")
    assert f"token {here} for its tokenizer and token {here + 1} for the model" in line


@tiny
def test_a_folder_without_image_processor_is_refused(name: str, task: str, folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    line = refusal(model_config(name, checkpoint=str(folder)), task)
    assert (
        f"{folder} has no image processor: there is neither preprocessor_config.json nor processor_config.json" in line
    )


@tiny
def test_a_size_that_is_a_mere_default_is_refused(name: str, task: str, folder: Path) -> None:
    edit(folder / "processor_config.json", size=None)
    line = refusal(model_config(name, checkpoint=str(folder)), task)
    assert "a default, as it does not say a size; the model takes 64x64: set size" in line


@tiny
def test_images_of_a_size_that_the_model_cannot_take_are_refused(name: str, task: str, folder: Path) -> None:
    edit(folder / "processor_config.json", size={"height": 48, "width": 48})
    assert "makes images of 48x48; the model takes 64x64" in refusal(model_config(name, checkpoint=str(folder)), task)


@pytest.mark.parametrize("name", ["tiny_clip"])
def test_a_default_normalisation_is_told(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = model_config(name, checkpoint=str(folder))
    with caplog.at_level(logging.WARNING, "vlatrain"):
        load(config, "retrieval")
        assert not caplog.messages
        edit(folder / "processor_config.json", image_mean=None)
        load(config, "retrieval")
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: its image processor does not say image_mean: the defaults of CLIPImageProcessor")
    assert "0.48145466" in line
