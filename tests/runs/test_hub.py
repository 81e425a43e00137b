"""Runs of the hub: fetched once, whole, and only what cannot execute; what is not to be had is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loopback import Hub
from vlatrain.backbones.describe import ASSETS
from vlatrain.config import TrainConfig, UserError
from vlatrain.runs import RunFolder, hub_name, local_run, save_config, upload
from vlatrain.runs.hub import _fetched


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    save_config(TrainConfig(), folder)
    for name, content in {
        "manifest.json": '{"files": {}}',
        "adapter_config.json": "{}",
        "evil.py": "boom",
        "w.bin": "pickled",
    }.items():
        (folder / name).write_text(content)
    return folder


def test_names_of_the_hub_are_told_from_folders() -> None:
    assert hub_name("hub:me/doors") == hub_name("hub:me/doors@v1") == "me/doors"
    assert hub_name("outputs/vqa/run") == ""
    assert local_run("outputs/vqa/run") == "outputs/vqa/run"


def test_it_is_fetched_once_and_is_there_when_the_hub_is_not(
    server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.add("me/doors", exported)
    folder = Path(local_run("hub:me/doors"))
    assert folder == Path("outputs/hub") / f"me--doors@{commit[:12]}"
    assert {file.name for file in folder.iterdir()} == {"config.yaml", "manifest.json", "adapter_config.json"}
    assert RunFolder(folder).adapter == folder, "as the hub has it, adapter and run are one folder"
    (folder / "evaluations").mkdir()  # what is made of it stays
    asked = len(server.asked)
    assert local_run("hub:me/doors") == str(folder)
    assert len(server.asked) == asked
    _fetched.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert local_run("hub:me/doors") == str(folder)
    assert (folder / "evaluations").is_dir()


def test_a_new_commit_is_another_folder_and_an_old_one_has_a_name(server: Hub, exported: Path) -> None:
    first = server.add("me/doors", exported)
    second = server.add("me/doors", exported)
    assert local_run("hub:me/doors").endswith(second[:12])
    assert local_run(f"hub:me/doors@{first}").endswith(first[:12])


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("hub:me/nowhere", "hub:me/nowhere: .* has no me/nowhere, or it is private: log in"),
        ("hub:doors", "hub:doors: a run of the hub is hub:OWNER/NAME, or hub:OWNER/NAME@REVISION"),
        ("hub:me/tiny", "hub:me/tiny: has no config.yaml, so it is no run; a whole model is model.checkpoint=me/tiny"),
        ("hub:me/tiny@v9", "me/tiny has no revision v9$"),
    ],
)
def test_what_is_not_to_be_had_is_one_line(run: str, said: str, server: Hub) -> None:
    server.add("me/tiny", ASSETS / "tiny_clip")
    with pytest.raises(UserError, match=said) as error:
        local_run(run)
    assert "\n" not in str(error.value)
    assert not server.sent.get("model.safetensors"), "no weights are fetched to see that it is no run"


def test_what_is_uploaded_comes_back_bit_for_bit(server: Hub, exported: Path) -> None:
    (exported / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 100)  # large enough for LFS
    assert upload(exported, "me/doors", private=True) == f"{server.address}/me/doors"
    folder = Path(local_run("hub:me/doors"))
    for name in ("config.yaml", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (exported / name).read_bytes()
    assert server.repositories["models/me/doors"].private


def test_one_who_may_not_is_told(server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    with pytest.raises(UserError, match=r"to=hub:me/doors: .* refuses me/doors \(401\): log in"):
        upload(exported, "me/doors")
