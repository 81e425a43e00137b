"""Checkpoints come from a hub as from a folder: each thing that can be wrong with it is one line that says what to do."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.backbones.composites import described
from tests.commands import asked, command
from tests.conftest import model_config
from tests.loopback import TOKEN, Hub, client_of, copy, serving
from vlatrain.backbones import fetching
from vlatrain.backbones.describe import ASSETS, settings_of
from vlatrain.backbones.loading import load, load_without_weights
from vlatrain.config import ModelConfig, UserError, hub_client
from vlatrain.runs import saved_config

TINY = ASSETS / "tiny_clip"
WEIGHTS = "model.safetensors"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        client_of(found, tmp_path / "home", monkeypatch)
        yield found


def config(name: str = "me/tiny", **more: Any) -> ModelConfig:
    return model_config("tiny_clip", checkpoint=name, **more)


def refusal(wanted: ModelConfig) -> str:
    with pytest.raises(UserError) as error:
        load(wanted, "retrieval")
    (line,) = error.value.problems
    assert "\n" not in line
    return line


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_it_is_fetched_once_and_read_as_a_folder_is(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = server.add("me/tiny", TINY)
    found, expected = load(config(), "retrieval").model, load(config(str(TINY)), "retrieval").model
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))
    assert (found.name_or_path, found.config._commit_hash) == ("me/tiny", commit)
    assert fetching.pinned(config(), "retrieval").revision == commit
    assert not [path for path in server.asked if path.endswith("README.md")], "nothing is fetched that is not read"
    server.asked.clear()
    load(config(), "retrieval")
    assert not [path for path in server.asked if "resolve" in path]
    offline(monkeypatch)
    load(config(), "retrieval")
    load(config(revision=commit), "retrieval")


def test_looking_at_data_fetches_no_weights(server: Hub) -> None:
    server.add("me/tiny", TINY)
    assert load_without_weights(config(), "retrieval").tokenizer("a")["input_ids"]
    assert WEIGHTS not in server.sent


@pytest.mark.slow
def test_a_revision_has_its_own_weights_and_layers(server: Hub, tmp_path: Path) -> None:
    other = copy(TINY, tmp_path / "other")
    weights = load_file(other / WEIGHTS)
    save_file({key: value + 1 for key, value in weights.items()}, other / WEIGHTS, {"format": "pt"})
    first, second = server.add("me/tiny", TINY), server.add("me/tiny", other, revision="v2")
    key = "logit_scale"
    one, two = (float(load(config(revision=own), "retrieval").model.state_dict()[key]) for own in (None, "v2"))
    assert two == pytest.approx(one + 1, rel=1e-3)
    assert float(load(config(revision=first), "retrieval").model.state_dict()[key]) == one
    assert fetching.pinned(config(revision="v2"), "retrieval").revision == second


@pytest.mark.slow
def test_layers_are_counted_from_the_settings_that_were_fetched(server: Hub, tmp_path: Path) -> None:
    other = copy(TINY, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    settings["vision_config"]["num_hidden_layers"] = 9
    (other / "config.json").write_text(json.dumps(settings))
    server.add("me/deep", other)
    wanted = config("me/deep")
    assert settings_of(wanted, "retrieval")["vision_config"]["num_hidden_layers"] != 9
    fetching.fetch("me/deep", weights=False)
    assert settings_of(wanted, "retrieval")["vision_config"]["num_hidden_layers"] == 9


@pytest.mark.slow
def test_submodels_come_by_their_own_names(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = described("tiny_clip", "tiny_gpt", "tiny_composite")
    for name, submodel in wanted.submodels.items():
        server.add(f"me/{name}", ASSETS / submodel.checkpoint.removeprefix("assets:"), revision="main")
        commit = server.add(f"me/{name}", ASSETS / submodel.checkpoint.removeprefix("assets:"), revision="v2")
        submodel.checkpoint, submodel.revision = f"me/{name}", commit
    task = next(iter(wanted.tasks))
    found = load(wanted, task)
    assert found.source == "me/vision + me/language"
    assert fetching.pinned(wanted, task).submodels["language"].revision == wanted.submodels["language"].revision
    wanted.submodels["language"].revision = "v3"
    with pytest.raises(UserError, match=r"has no revision v3.*model\.submodels\.language\.checkpoint=FOLDER"):
        load(wanted, task)


def private(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    server.add("me/tiny", TINY, private=True)
    return config()


def gated(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    server.add("me/tiny", TINY, gated=True)
    return config()


def absent(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return config()


def no_revision(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    server.add("me/tiny", TINY)
    return config(revision="v7")


def no_entry(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    server.add("me/tiny", TINY, hidden={WEIGHTS})
    return config()


def no_weights(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    folder = copy(TINY, tmp_path / "other")
    (folder / WEIGHTS).rename(folder / "tf_model.h5")
    server.add("me/tiny", folder)
    return config()


def not_cached(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    offline(monkeypatch)
    return config()


def half_cached(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    server.add("me/tiny", TINY)
    fetching.fetch("me/tiny", weights=False)
    offline(monkeypatch)
    return config()


def no_name(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    return config("my models/tiny")


def broken_in_cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    server.add("me/tiny", TINY)
    file = (fetching.fetch("me/tiny") / WEIGHTS).resolve()
    file.write_bytes(file.read_bytes()[:-1000])
    return config()


def page_in_cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """What a proxy that wants a password answers."""
    server.add("me/tiny", TINY)
    (fetching.fetch("me/tiny") / "config.json").resolve().write_text("<html>")
    return config()


def silent(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """It answers what is asked of its address alone."""
    monkeypatch.setattr(hub_client, "WAIT", 0.2)
    server.add("me/tiny", TINY)
    server.silent = ("/api", "/me")
    return config()


def stalls(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    monkeypatch.setattr(hub_client, "WAIT", 0.2)
    server.add("me/tiny", TINY)
    server.stalls[WEIGHTS] = 1_000_000
    return config()


WAYS = r"; set model\.checkpoint=FOLDER to a local copy, model\.random_init=true for .* or model=tiny_blip"
Case = Callable[[Hub, Path, pytest.MonkeyPatch], ModelConfig]
#: What is wrong, and the line that says so.
CASES: list[tuple[Case, str]] = [
    (private, r"cannot load me/tiny .* has no me/tiny, or it is private: log in with hf auth login, .*" + WAYS),
    (absent, r"cannot load me/tiny .* has no me/tiny, or it is private: .*" + WAYS),
    (gated, r"cannot load me/tiny .* me/tiny is gated: ask for access at http://\S+/me/tiny, and log in .*" + WAYS),
    (no_revision, r"cannot load me/tiny .* me/tiny has no revision v7 \(model\.revision\)" + WAYS),
    (no_entry, rf"cannot load me/tiny .* Entry not found: {WEIGHTS}.*" + WAYS),
    (
        no_weights,
        r"model\.checkpoint=me/tiny: neither model\.safetensors nor pytorch_model\.bin, .*: there are no weights",
    ),
    (not_cached, r"cannot load me/tiny .* HF_HUB_OFFLINE is set, and the cache lacks me/tiny \(\S+/home/hub\)" + WAYS),
    (
        half_cached,
        r"cannot load me/tiny .* HF_HUB_OFFLINE is set, and the cache lacks the weights of me/tiny \(\S+\)" + WAYS,
    ),
    (
        silent,
        r"cannot load me/tiny .* http://\S+ does not answer, or HF_HUB_OFFLINE is set, and the cache lacks .*" + WAYS,
    ),
    (
        stalls,
        r"cannot load me/tiny .* http://\S+ has stopped answering \(nothing has come for \d+ s\); run it again: .*"
        + WAYS,
    ),
    (no_name, r"model\.checkpoint=my models/tiny: it is neither a folder nor a name of the hub, OWNER/NAME"),
    (broken_in_cache, rf"\S+/{WEIGHTS} is broken \(.*\); delete \S+/blobs/\w+, and the next run downloads it anew"),
    (page_in_cache, r"\S+/config\.json is broken \(.*\); delete \S+/blobs/\w+, and the next run downloads it anew"),
]


@pytest.mark.parametrize(
    ("case", "line"),
    [
        pytest.param(*row, id=row[0].__name__, marks=() if row[0] in (gated, no_name, not_cached) else pytest.mark.slow)
        for row in CASES
    ],
)
def test_each_is_one_line(case: Case, line: str, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(case(server, tmp_path, monkeypatch))
    assert re.fullmatch(line, said), said


@pytest.mark.slow
@pytest.mark.parametrize("case", [private, gated])
def test_with_a_token_it_is_had(case: Case, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = case(server, tmp_path, monkeypatch)
    refusal(wanted)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load(wanted, "retrieval")


@pytest.mark.slow
@pytest.mark.parametrize("case", [broken_in_cache, page_in_cache])
def test_what_is_named_is_deleted_and_then_fetched_anew(
    case: Case, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = case(server, tmp_path, monkeypatch)
    named = re.search(r"delete (\S+),", refusal(wanted))
    assert named
    Path(named[1]).unlink()
    load(wanted, "retrieval")


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on_where_it_was(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    server.add("me/tiny", TINY)
    server.cut[WEIGHTS] = 3_000_000
    fetching.fetch("me/tiny")
    assert server.sent[WEIGHTS] < (TINY / WEIGHTS).stat().st_size + 20_000
    load(config(), "retrieval")


@pytest.mark.slow
def test_silence_with_a_filled_cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = silent(server, tmp_path, monkeypatch)
    server.silent = ()
    load(wanted, "retrieval")
    server.silent = ("/api", "/me")
    load(wanted, "retrieval")


FORMS = ["sharded", "fp16", "pickled", "pickled and sharded", "before 1.6", "old keys"]


def written(form: str, folder: Path) -> Path:
    """The tiny checkpoint in a form that checkpoints on the hub have."""
    copy(TINY, folder)
    weights = {key: value.float() for key, value in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    if form == "sharded":
        model = load(config(str(TINY)), "retrieval").model
        model.save_pretrained(folder, max_shard_size="1MB")
    elif form == "fp16":
        save_file({key: value.half() for key, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    elif form == "pickled and sharded":
        for name, keys in halves.items():
            torch.save({key: weights[key] for key in keys}, folder / name)
        places = {key: name for name, keys in halves.items() for key in keys}
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif form == "old keys":  # positions were kept as a buffer until 2023
        places = {f"{tower}_model.embeddings.position_ids": torch.arange(9)[None] for tower in ("text", "vision")}
        save_file({**weights, **places}, folder / WEIGHTS, {"format": "pt"})
    else:
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "pickled")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_is_read(
    form: str, server: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.add("me/tiny", written(form, tmp_path / "form"))
    with caplog.at_level(logging.INFO, "vlatrain"):
        found = load(config(), "retrieval").model
    expected = load(config(str(TINY)), "retrieval").model
    close = 2e-3 if form == "fp16" else 0
    for (key, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, atol=close, rtol=close), key
    assert any("no safetensors" in line for line in caplog.messages) == ("bin" in "".join(server.sent))
    low = load(config(), "retrieval", dtype=torch.bfloat16).model
    assert next(low.parameters()).dtype == (torch.float16 if form == "fp16" else torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sharded", "fp16", "pickled"])
def test_it_is_packed_as_a_folder_is(form: str, server: Hub, tmp_path: Path) -> None:
    server.add("me/tiny", written(form, tmp_path / "form"))
    found, expected = (
        load(config(name, quantize=8), "retrieval").model.state_dict() for name in ("me/tiny", str(tmp_path / "form"))
    )
    assert any(tensor.dtype == torch.int8 for tensor in found.values())
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items() if isinstance(tensor, torch.Tensor))


@pytest.mark.slow
def test_runs_keep_the_commit_that_they_began_with(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = server.add("me/tiny", TINY)
    run = tmp_path / "run"
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    question = [f"run={run}", f"image={tmp_path / 'red.png'}", "texts=[a red circle,a blue square]"]
    words = ["task=retrieval", "model=tiny_clip", "model.checkpoint=me/tiny", f"run.dir={run}", "data.train_size=24"]
    words += ["data.eval_size=10", "trainer.batch_size=8", "trainer.max_steps=2"]
    assert command(*words, "model.revision=main") == 0
    assert saved_config(run)["model"]["revision"] == commit
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["backbone"], metrics["backbone_revision"]) == ("me/tiny", commit)
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("me/tiny", commit)
    assert f'from_pretrained(checkpoint, revision="{commit}")' in (run / "adapter" / "README.md").read_text()

    predicted = asked(tmp_path / "first.jsonl", *question)

    other = copy(TINY, tmp_path / "other")
    save_file({key: value + 1 for key, value in load_file(other / WEIGHTS).items()}, other / WEIGHTS, {"format": "pt"})
    second = server.add("me/tiny", other)  # the branch goes on
    assert asked(tmp_path / "second.jsonl", *question) == predicted
    assert command("eval", f"run={run}") == 0
    again = json.loads((run / "evaluations" / "eval" / "metrics.json").read_text())
    assert again["metrics"] == metrics["metrics"]
    assert command(*words, "resume=auto", "model.revision=main") == 0, "it is what it was when it was last asked for"
    assert saved_config(run)["model"]["revision"] == commit
    capsys.readouterr()
    assert command(*words, "resume=auto", f"model.revision={second}") != 0
    assert f"model.revision: {commit} there, {second} now" in " ".join(capsys.readouterr().err.split())
    offline(monkeypatch)
    assert command("eval", f"run={run}", f"output={tmp_path / 'offline'}") == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pickled", "sharded"])
def test_a_missing_or_broken_file_of_these_is_named(form: str, tmp_path: Path) -> None:
    folder = written(form, tmp_path / "form")
    file = sorted(file for file in folder.iterdir() if file.suffix in (".bin", ".safetensors"))[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert re.search(rf"{file} is broken \(.*\); copy it again", refusal(config(str(folder))))
    file.unlink()
    line = refusal(config(str(folder)))
    assert re.search(
        "there are no weights" if form == "pickled" else rf"1 of the \d+ files .* missing \({file.name}\)", line
    )
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in refusal(config(str(folder)))
