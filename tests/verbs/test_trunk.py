"""Runs whose trunk has trained in part: evaluated, averaged, merged, refused as sources; a new projection goes with its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import command, tiny_run

NORMS, LORA = "adapter.trunk=[norms]", ("adapter=lora", "adapter.trunk=[biases]", "optim.lr=0.05")


OVERRIDES = {
    "a": (NORMS, "optim.lr=0.05", "optim.groups.trunk=0.01"),
    "b": (NORMS, "optim.lr=0.05", "data.seed=1"),
    "plain": ("optim.lr=0.05",),
    "lora": LORA,
    "composite": ("model=tiny_composite", "optim.lr=0.01"),
}


class Runs(dict[str, Path]):
    """The runs, each trained when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = tiny_run(self.folder / name, "vqa", *OVERRIDES[name])
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def trunk(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "trunk.safetensors")


def evaluated(run: Path) -> list[str]:
    assert command("eval", f"run={run}", "trainer.threads=1") == 0
    return answers(run / "evaluations" / "eval")


def answers(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", pytest.param("lora", marks=pytest.mark.slow), "composite"])
def test_a_run_is_evaluated_with_its_trunk(runs: Runs, name: str) -> None:
    assert evaluated(runs[name]) == answers(runs[name])
    (runs[name] / "adapter" / "trunk.safetensors").rename(runs[name] / "trunk.safetensors")
    assert command("eval", f"run={runs[name]}") == 2
    (runs[name] / "trunk.safetensors").rename(runs[name] / "adapter" / "trunk.safetensors")


def test_the_card_says_how_to_load_it(runs: Runs) -> None:
    card = (runs["a"] / "adapter" / "README.md").read_text()
    assert "load_trunk(backbone," in card


def test_the_projection_of_a_composite_is_in_its_trunk(runs: Runs) -> None:
    assert all(name.startswith("projection.") for name in trunk(runs["composite"]))
    assert json.loads((runs["composite"] / "metrics.json").read_text())["parameters"]["trainable"] > sum(
        tensor.numel() for tensor in trunk(runs["composite"]).values()
    )


@pytest.mark.slow
def test_the_mean_of_two_has_the_mean_of_their_trunks(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "mean"
    assert command("merge", f"sources=[{runs['a']},{runs['b']}]", f"output={output}") == 0
    found, one, two = trunk(output), trunk(runs["a"]), trunk(runs["b"])
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    assert len(evaluated(output)) == 10


@pytest.mark.slow
def test_lora_and_its_biases_go_into_the_weights(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "whole"
    assert command("export", f"run={runs['lora']}", "form=merged", f"to={output}") == 0
    weights = load_file(output / "model.safetensors")
    for name, tensor in trunk(runs["lora"]).items():
        assert torch.equal(weights[name], tensor), name
    words = [f"model.checkpoint={output}", "adapter=none", f"run.dir={tmp_path / 'none'}"]
    sizes = ["data.train_size=24", "data.eval_size=10", "trainer.threads=1"]
    assert command("task=vqa", *words, *sizes) == 0
    assert answers(tmp_path / "none") == answers(runs["lora"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "sources=[{a},{plain}]"], "its trained trunk is nothing, that of"),
        pytest.param(
            ["merge", "sources=[{a},{b}]", "weights=[1,1]"],
            "weights of the trunk, which are whole weights",
            marks=pytest.mark.slow,
        ),
        (["adapter=fusion", "adapter.sources=[{a},{plain}]"], "fit no other trunk"),
    ],
)
def test_what_makes_no_sense_is_refused(
    runs: Runs, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "output" if words[0] == "merge" else "run.dir"
    assert command(*(word.format_map(runs) for word in words), f"{key}={tmp_path / 'new'}") == 2
    assert message in " ".join(capsys.readouterr().err.split())
