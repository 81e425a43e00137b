from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from vlatrain import runs
from vlatrain.config import AdapterConfig, TrainConfig, UserError


def test_samples_of_a_pass_and_passes_of_a_step_are_read_as_samples_of_a_step(tmp_path: Path) -> None:
    """Descriptions of backbones had both, in runs of before."""
    file = runs.save_config(TrainConfig(), tmp_path)
    values = yaml.safe_load(file.read_text())
    values["model"]["tasks"] = {
        "vqa": {"samples_per_pass": 2, "passes_per_step": 16},
        "captioning": {"samples_per_pass": 8},
    }
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    tasks = runs.saved_config(tmp_path)["model"]["tasks"]
    assert tasks == {"vqa": {"samples_per_step": 32}, "captioning": {"samples_per_step": 8}}


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = TrainConfig()
    config.task.prompt = "größer: ${oc.env:HOME}"
    runs.save_config(config, tmp_path / "run")
    read = runs.read_config(tmp_path / "run")
    assert read["adapter"]["dim"] == config.adapter.dim
    assert read["task"]["prompt"] == "größer: \\${oc.env:HOME}"  # escaped: nothing is interpolated from a file


def test_an_exported_router_names_its_runs_from_where_it_lies(tmp_path: Path) -> None:
    """Any other configuration names them as it was written."""
    routed = AdapterConfig(name="router", sources=["sources/vqa"])
    runs.save_config(TrainConfig(adapter=routed), tmp_path)
    assert runs.saved_config(tmp_path)["adapter"]["sources"] == ["sources/vqa"]
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    assert runs.saved_config(tmp_path)["adapter"]["sources"] == [str(tmp_path / "sources" / "vqa")]
    runs.save_config(TrainConfig(adapter=replace(routed, name="fusion")), tmp_path)
    assert runs.saved_config(tmp_path)["adapter"]["sources"] == ["sources/vqa"]


def test_a_folder_that_is_no_run_names_those_that_are(tmp_path: Path) -> None:
    for age, name in enumerate(["old", "new"]):
        runs.save_config(TrainConfig(), tmp_path / "vqa" / "blip" / name)
        os.utime(tmp_path / "vqa" / "blip" / name / "config.yaml", (age, age))
    with pytest.raises(UserError, match=r"there is no such folder; there are: .*blip/new.*blip/old"):
        runs.read_config(tmp_path / "vqa" / "blip" / "nwe")
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        runs.read_config(tmp_path / "vqa")


def begun(folder: Path, *seeds: int) -> Path:
    """A run folder with a checkpoint for each seed, whose configuration has that seed."""
    for step, seed in enumerate(seeds, start=1):
        checkpoint = folder / "checkpoints" / f"step_{step}"
        checkpoint.mkdir(parents=True)
        state = json.dumps({"config": runs.config_text(TrainConfig(seed=seed))})
        (checkpoint / "state.json").write_text(state)
        about = {"files": {"state.json": {"sha256": hashlib.sha256(state.encode()).hexdigest()}}}
        (checkpoint / "manifest.json").write_text(json.dumps(about))
    runs.save_config(TrainConfig(seed=seeds[-1] if seeds else 0), folder)
    return folder


TEXT = runs.config_text(TrainConfig())
BROKEN = {
    "cut in a line": TEXT[: len(TEXT) // 2].rstrip() + "\n  x",
    "cut between lines": "".join(TEXT.splitlines(keepends=True)[:-1]),
    "empty": "",
    "zeros": "\0" * 4096,
    "a list": "- 1\n",
    "bytes": "\x80",
}


@pytest.mark.parametrize("text", [*BROKEN.values(), None], ids=[*BROKEN, "missing"])
def test_a_configuration_that_cannot_be_read_is_restored_from_the_newest_checkpoint(
    tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = begun(tmp_path / "run", 1, 2)
    before = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_bytes(text.encode("latin-1"))
    assert runs.read_config(folder)["seed"] == 2
    (told,) = caplog.messages
    assert told.startswith(f"{folder / 'config.yaml'}: ")
    assert told.endswith(f"it is restored from {folder / 'checkpoints' / 'step_2'}")
    assert "\n" not in told
    assert (folder / "config.yaml").read_bytes() == before
    assert runs.read_config(folder)["seed"] == 2
    assert len(caplog.messages) == 1, "once restored, there is nothing to say"


def test_a_configuration_that_is_sound_but_changed_is_restored_and_kept_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = begun(tmp_path / "run", 1, 2)
    runs.RunFolder(folder).seal(complete=False)
    file = folder / "config.yaml"
    before = file.read_text()
    file.write_text(before.replace("seed: 2", "seed: 3"))
    assert runs.read_config(folder)["seed"] == 2
    assert "config.yaml: has changed since it was written" in caplog.text
    assert "what was there is in config.changed.yaml" in caplog.text
    assert file.read_text() == before
    assert "seed: 3" in (folder / "config.changed.yaml").read_text()


SEALED = {
    "metrics.json": '{"metrics": {"accuracy": 50.0}}',
    "metrics.jsonl": '{"step": 1, "loss": 0.5}\n',
    "predictions.jsonl": '{"id": "a", "score": 1.0}\n',
    "baselines.json": "{}",
}


@pytest.mark.parametrize("damage", ["a digit", "cut at a line", "removed", "the manifest"])
@pytest.mark.parametrize("name", [*SEALED][:3])
def test_what_has_changed_since_it_was_written_is_not_believed(name: str, damage: str, tmp_path: Path) -> None:
    for file, text in SEALED.items():
        (tmp_path / file).write_text(text)
    runs.RunFolder(tmp_path).seal()
    run = runs.Run(tmp_path)
    read = {"metrics.json": lambda: run.metrics, "metrics.jsonl": lambda: run.history}.get(
        name, lambda: run.predictions
    )
    assert read()
    file = tmp_path / ("manifest.json" if damage == "the manifest" else name)
    if damage == "removed":
        file.unlink()
    else:
        file.write_text(file.read_text().replace("0", "1", 1) if damage == "a digit" else "")
    with pytest.raises(UserError, match=rf"{name}: .*run again what wrote it") as caught:
        read()
    assert len(caught.value.problems) == 1
    (tmp_path / "manifest.json").unlink()  # as it says, where it was on purpose; those of before have none
    if damage in ("a digit", "the manifest"):
        assert read()


def test_an_evaluation_without_its_scores_is_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "eval"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    runs.RunFolder(folder).seal()
    (folder / "metrics.json").unlink()
    (found,) = runs.Run(tmp_path).evaluations
    with pytest.raises(UserError, match=r"metrics\.json: is missing, though it was written"):
        _ = found.metrics


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = begun(tmp_path / "run", 1, 2, 3)
    state = folder / "checkpoints" / "step_3" / "state.json"
    state.write_text(state.read_text().replace("seed: 3", "seed: 4"))
    (folder / "checkpoints" / "step_2" / "state.json").write_text("{")
    (folder / "config.yaml").write_text("")
    assert runs.read_config(folder)["seed"] == 1
    assert "step_1" in caplog.text


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_without_a_checkpoint_a_broken_file_is_told_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml: .*no checkpoint holds the configuration; put a copy") as caught:
        runs.read_config(tmp_path)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_a_configuration_of_before_is_read_in_the_keys_of_today(tmp_path: Path) -> None:
    runs.save_config(TrainConfig(), tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(
        "model:\n  tasks: {vqa: {pure: {vision: [image]}, ends: [decoder], other: {}}}\n  parts: null\nresume: 'no'\n"
    )
    served = runs.saved_config(tmp_path)["model"]["tasks"]["vqa"]
    assert served == {"cacheable_inputs": {"vision": ["image"]}, "output_towers": ["decoder"], "other_modality": {}}


BEFORE = """
task: {name: joint, parts: {vqa: {name: vqa, max_length: 5, parts: {}}}}
data: {name: files, parts: {vqa: {train: parts.jsonl, parts: {}}}}
model:
  tasks: {joint: {parts: [vqa]}}
  parts: {vision: {architecture: CLIPVisionModel, other: {}}}
adapter: {name: mixed, needs: [parts], parts: {one: {name: lora, needs: [end], parts: {}}}}
resume: 'no'
"""
TODAY = """
task: {name: joint, subtasks: {vqa: {name: vqa, max_length: 5, subtasks: {}}}}
data: {name: files, subtasks: {vqa: {train: parts.jsonl, subtasks: {}}}}
model:
  tasks: {joint: {subtasks: [vqa]}}
  submodels: {vision: {architecture: CLIPVisionModel, other_modality: {}}}
adapter: {name: mixed, needs: [components], components: {one: {name: lora, needs: [end], components: {}}}}
resume: 'no'
"""


def test_what_was_called_parts_has_the_names_of_today(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(BEFORE)
    assert runs.saved_config(tmp_path) == yaml.safe_load(TODAY)


@pytest.mark.parametrize(
    ("task", "by_class"),
    [
        ("{name: vqa, spec: {fields: [question, answers]}}", True),
        ("{name: classification}", False),
        ("{name: joint, subtasks: {see: {name: classification}, vqa: {}}}", False),
    ],
)
def test_a_run_of_before_keeps_its_splits(task: str, by_class: bool, tmp_path: Path) -> None:
    """Hold-outs and caps were drawn from all samples; only where there are classes is it another draw today."""
    (tmp_path / "config.yaml").write_text(f"task: {task}\ndata: {{name: files}}\nresume: 'no'\n")
    assert runs.saved_config(tmp_path)["data"].get("stratify", True) == by_class
    (tmp_path / "config.yaml").write_text(f"task: {task}\ndata: {{stratify: true}}\nresume: 'no'\n")
    assert runs.saved_config(tmp_path)["data"]["stratify"]


# nine levels, each of nine times the one before
BOMB = "a: &a [x]\n" + "".join(f"{own}: &{own} [{','.join([f'*{up}'] * 9)}]\n" for up, own in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            BOMB + "resume: no\n",
            "aliases stand for over 2,000,000 values",
        ),
        ("a: &a [*a]\nresume: no\n", "aliases stand for over"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\nresume: no\n", "nested too deeply"),
        ("a: " + "x" * 17_000_000 + "\nresume: no\n", "17 MB: a run's configuration has at most 16 MB"),
    ],
    ids=["bomb", "cycle", "deep", "large"],
)
def test_a_bomb_is_refused_before_it_goes_off(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        runs.read_config(tmp_path)


def test_aliases_that_repeat_a_little_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &a [1, 2]\nb: *a\nresume: no\n")
    assert runs.read_config(tmp_path)["b"] == [1, 2]
