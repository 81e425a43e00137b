from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlatrain.config import EvalConfig, TrainConfig, UserError, paths


def test_the_run_folder_is_named_after_task_model_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = TrainConfig()
    config.run.name = "mine"
    assert paths.run_folder(config) == Path("outputs/vqa/tiny_blip/mine")
    config.run.dir = "elsewhere/x"
    assert paths.run_folder(config) == Path("elsewhere/x")
    unnamed = TrainConfig()
    assert paths.run_folder(unnamed) == paths.run_folder(unnamed)  # once chosen, it stays
    assert paths.run_folder(EvalConfig(source="some/run")) == Path("some/run")


def test_new_names_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len({paths.new_name() for _ in range(20)}) > 1


def test_processes_of_one_training_agree_on_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    names = set()
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        names.add(paths.new_name())
    assert len(names) == 1


def test_several_machines_need_a_common_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match=r"run\.name"):
        paths.new_name()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "17")
    assert paths.new_name() == paths.new_name()


def test_jobs_of_a_sweep_never_share_a_folder() -> None:
    folders = set()
    for fixed in ({"name": "x"}, {"dir": "d"}, {}):
        for job in ("00-dim-16", "01-dim-64"):
            config = TrainConfig()
            for key, value in fixed.items():
                setattr(config.run, key, value)
            paths.name_run(config, job, stamp="stamp")
            folders.add(paths.run_folder(config))
    assert len(folders) == 6


def test_job_names_are_plain_folder_names() -> None:
    assert paths.job_name(2, ["adapter.dim=64", "task=vqa", "++optim.groups.head=0.1"]) == "02-dim-64-head-0.1"
    odd = paths.job_name(0, ["adapter.points=['vision.*.{attn,ffn}']", "data.train=/a/b c.jsonl", "a=" + "x" * 200])
    assert len(odd) <= 80
    assert not set("/*{}'[], ") & set(odd)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = TrainConfig()
    config.task.prompt = "größer: ${oc.env:HOME}"
    paths.save_config(config, tmp_path / "run")
    read = paths.read_config(tmp_path / "run")
    assert read["adapter"]["dim"] == config.adapter.dim
    assert read["task"]["prompt"] == "größer: \\${oc.env:HOME}"  # escaped: nothing is interpolated from a file


def test_a_folder_that_is_no_run_names_those_that_are(tmp_path: Path) -> None:
    for age, name in enumerate(["old", "new"]):
        paths.save_config(TrainConfig(), tmp_path / "vqa" / "blip" / name)
        os.utime(tmp_path / "vqa" / "blip" / name / "config.yaml", (age, age))
    with pytest.raises(UserError, match=r"there is no such folder; there are: .*blip/new.*blip/old"):
        paths.read_config(tmp_path / "vqa" / "blip" / "nwe")
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        paths.read_config(tmp_path / "vqa")


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x80"])
def test_a_broken_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml: not"):
        paths.read_config(tmp_path)
