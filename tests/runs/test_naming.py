from __future__ import annotations

from pathlib import Path

import pytest

from vlatrain.config import EvalConfig, TrainConfig, UserError
from vlatrain.config.schema import RunConfig
from vlatrain.runs import naming


def test_the_run_folder_is_named_after_task_model_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = TrainConfig(run=RunConfig(name="mine"))
    assert naming.run_folder(config) == Path("outputs/vqa/tiny_blip/mine")
    assert naming.run_folder(TrainConfig(run=RunConfig(dir="elsewhere/x"))) == Path("elsewhere/x")
    unnamed = TrainConfig()
    assert naming.run_folder(naming.named(unnamed, stamp="now")) == Path("outputs/vqa/tiny_blip/now")
    assert unnamed == TrainConfig(), "nothing is written into a configuration"
    assert naming.run_folder(EvalConfig(source="some/run")) == Path("some/run")


def test_new_names_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len({naming.new_name() for _ in range(20)}) > 1


def test_processes_of_one_training_agree_on_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    names = set()
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        names.add(naming.new_name())
    assert len(names) == 1


def test_several_machines_need_a_common_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match=r"run\.name"):
        naming.new_name()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "17")
    assert naming.new_name() == naming.new_name()


def test_jobs_of_a_sweep_never_share_a_folder() -> None:
    folders = set()
    for fixed in ({"name": "x"}, {"dir": "d"}, {}):
        for job in ("00-dim-16", "01-dim-64"):
            config = naming.named(TrainConfig(run=RunConfig(**fixed)), job, stamp="stamp")
            folders.add(naming.run_folder(config))
    assert len(folders) == 6


def test_job_names_are_plain_folder_names() -> None:
    assert naming.job_name(2, ["adapter.dim=64", "task=vqa", "++optim.groups.head=0.1"]) == "02-dim-64-head-0.1"
    odd = naming.job_name(0, ["adapter.points=['vision.*.{attn,ffn}']", "data.train=/a/b c.jsonl", "a=" + "x" * 200])
    assert len(odd) <= 80
    assert not set("/*{}'[], ") & set(odd)
