"""`merge`, and what it is for: fusions that need no source any more, and means of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import command, tiny_run
from tests.injection import rows_peft
from tests.injection.test_methods import adapted, loss_of
from vlatrain.injection.attach import merged

LORA = ("adapter=lora", "optim.lr=0.05")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a": tiny_run(folder / "a", "vqa", "optim.lr=0.05"),
        "b": tiny_run(folder / "b", "vqa", "optim.lr=0.05", "data.seed=1"),
        "lora": tiny_run(folder / "lora", "vqa", *LORA),
        "lora4": tiny_run(folder / "lora4", "vqa", *LORA, "adapter.dim=4", "data.seed=1"),
    }


@pytest.fixture(scope="module")
def fusion(runs: dict[str, Path]) -> Path:
    """A fusion whose sources are gone."""
    folder = runs["a"].parent
    gone = [shutil.copytree(runs[name], folder / f"gone_{name}") for name in ("a", "b")]
    sources = ",".join(map(str, gone))
    run = tiny_run(folder / "fusion", "vqa", "adapter=fusion", f"adapter.sources=[{sources}]", "optim.lr=0.01")
    for source in gone:
        shutil.rmtree(source)
    return run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def evaluated(run: Path, *words: str) -> list[str]:
    assert command("eval", f"run={run}", "trainer.threads=1", *words) == 0
    lines = (run / "evaluations" / "eval" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def predictions(run: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (run / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_only_the_fusion_trains(runs: dict[str, Path], fusion: Path) -> None:
    found = tensors(fusion)
    for number, name in enumerate("ab"):
        for key, tensor in tensors(runs[name]).items():
            assert torch.equal(found[key.replace("_unit.", f"_unit.sources.{number}.")], tensor), key
    assert any(tensor.abs().sum() > 0 for key, tensor in found.items() if "query" in key), "it starts at zero"
    shares = json.loads((fusion / "metrics.json").read_text())["fusion"]
    assert [*shares] == ["gone_a", "gone_b"]
    assert sum(shares.values()) == pytest.approx(1)
    assert "Sources by use: gone_a" in (fusion / "run.log").read_text()


@pytest.mark.slow
def test_a_finished_fusion_needs_no_source(fusion: Path) -> None:
    assert evaluated(fusion) == predictions(fusion)


@pytest.mark.slow
def test_a_fusion_is_pruned_to_its_most_used_source(runs: dict[str, Path], fusion: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned"
    assert command("merge", f"run={fusion}", "keep=1", f"output={output}") == 0
    note = json.loads((output / "merge.json").read_text())
    shares = json.loads((fusion / "metrics.json").read_text())["fusion"]
    assert note["kept"] == [max(shares, key=shares.get)]
    # with nothing to weigh, it is that source
    assert evaluated(output) == evaluated(runs[note["kept"][0].removeprefix("gone_")])


@pytest.mark.slow
def test_the_mean_of_a_run_with_itself_is_the_run(runs: dict[str, Path], tmp_path: Path) -> None:
    twin = shutil.copytree(runs["a"], tmp_path / "a, twin")
    output = tmp_path / "mean"
    assert command("merge", f"sources=[{runs['a']},'{twin}']", f"output={output}") == 0
    for key, tensor in tensors(runs["a"]).items():
        torch.testing.assert_close(tensors(output)[key], tensor)
    assert evaluated(output) == evaluated(runs["a"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"])
def test_what_has_changed_since_is_refused(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mean"
    assert command("merge", f"sources=[{runs['a']},{runs['b']}]", f"output={output}") == 0
    file = output / name
    file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
    assert command("eval", f"run={output}", "trainer.threads=1") == 2
    assert "has changed since it was written" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_may_be_any_numbers(runs: dict[str, Path], tmp_path: Path) -> None:
    sources = f"sources=[{runs['a']},{runs['b']}]"
    assert command("merge", sources, "weights=[1.5,-1]", f"output={tmp_path / 'out'}") == 0
    one, two = tensors(runs["a"]), tensors(runs["b"])
    for key, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, 1.5 * one[key] - two[key])
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["weights"] == [1.5, -1.0]


@pytest.mark.slow
def test_lora_of_other_ranks_is_averaged(runs: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "mean"
    assert command("merge", f"sources=[{runs['lora']},{runs['lora4']}]", f"output={output}") == 0
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["r"] == 12
    evaluated(output)


@pytest.mark.parametrize("name", [name for name, row in rows_peft.ROWS.items() if ("blip", "vqa") not in row.unfit])
def test_every_method_of_peft_goes_into_the_weights(name: str) -> None:
    backbone, model = adapted(rows_peft.ROWS[name], ("blip", "vqa"))
    expected = loss_of(backbone)
    assert merged(model) is backbone.model
    assert loss_of(backbone) == pytest.approx(expected, rel=1e-5)
    assert not any("lora" in key or "default" in key for key in backbone.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "merge needs sources=[FOLDER,FOLDER]"),
        (
            ("sources=[{a}]", "output={new}"),
            "a single run needs weights=[FACTOR] or keep=NUMBER (of a fusion); vlatrain export form=merged",
        ),
        (("sources=[{a},{b}]",), "output=FOLDER is missing"),
        (("sources=[{a},{b}]", "output={a}"), "there is something already"),
        (("sources=[{a},{b}]", "output={new}", "weights=[1]"), "1 of them for 2 sources"),
        (("sources=[{a},{b}]", "output={new}", "keep=1"), "prunes one run"),
        (("sources=[{a}]", "output={new}", "keep=1"), "only a fusion has sources to choose from"),
        (("sources=[{a},{lora}]", "output={new}"), "its method is lora, that of"),
        (("sources=[{a},{a}]", "output={new}"), "is named 2 times"),
        (("sources=[{a},{new}]", "output={new}"), "no finished run there"),
        (("sources=[{new},{a}]", "output={new}"), "there is no such folder"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    words: tuple[str, ...], said: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {**runs, "new": tmp_path / "new"}
    assert command("merge", *(word.format(**named) for word in words)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_wrong_sources_of_a_fusion_are_refused(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("adapter=fusion") == 2
    assert "adapter=fusion: needs adapter.sources=[RUN,RUN]" in capsys.readouterr().err
    assert command("adapter=fusion", f"adapter.sources=[{runs['a']},{runs['lora']},{runs['a'] / 'x'}]") == 2
    assert "no finished run there" in capsys.readouterr().err
    assert command("adapter=fusion", f"adapter.sources=[{runs['a']},{runs['lora']}]") == 2
    assert "is adapter=lora; only vlatrain's own adapters can be fused" in capsys.readouterr().err
    assert command(f"adapter.sources=[{runs['a']}]") == 2
    assert "adapter=bottleneck combines no runs" in capsys.readouterr().err
