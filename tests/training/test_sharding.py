"""Two processes that hold the frozen weights together train what two train that hold them each."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tests.commands import command
from tests.conftest import adapter_config, make_samples
from tests.gpu_free.families import NAMES, config_of, set_up, task_of
from tests.gpu_free.ranks import ranks
from tests.injection.test_methods import PLACES, ROWS, adapted, gradients, loss_of
from tests.numerics import assert_close, near, terms_of
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.quantise import layers_of
from vlatrain.injection.attach import attach, save
from vlatrain.training import loop as looping
from vlatrain.training import sharding
from vlatrain.training.batches import SharedBatches
from vlatrain.training.modes import frozen_hashes, hash_of
from vlatrain.training.processes import agree
from vlatrain.training.sharding import shard, sharded

SIZES = (
    "data.train_size=24", "data.eval_size=13", "trainer.batch_size=3", "trainer.eval_batch_size=3", "trainer.max_steps=3",
    "trainer.accumulate=1", "trainer.log_every=1", "trainer.threads=1", "trainer.device=cpu",
)  # fmt: skip
"""Of the five batches of an evaluation one process has three; the last one has a single sample."""

CASES: dict[str, Sequence[str]] = {
    "written answers": ["task=vqa", "trainer.cache=off", "trainer.eval_frozen=true", "optim.lr=0.02"],
    "ranked answers": ["task=vqa", "trainer.cache=off", "task.answers=rank"],
    "beams and kept states": ["task=captioning", "trainer.cache=disk", "adapter.points=[decoder]", "task.decode.num_beams=3"],
    "a trial of kept states": ["task=captioning", "trainer.cache=auto", "adapter.points=[decoder]", "trainer.epochs=9"],
    "features": ["task=retrieval", "model=tiny_clip", "trainer.cache=off", "trainer.accumulate=2", "task.negatives_per_step=12"],
    "pairs": ["task=retrieval", "model=tiny_blip", "trainer.cache=off", "adapter=cross_modal"],
    "classes": ["task=classification", "model=tiny_clip", "trainer.cache=off", "adapter=lora"],
    "conversations": [
        "task=instruct", "model=tiny_composite", "trainer.cache=off", "trainer.gradient_checkpointing=true", "optim.lr=0.02",
    ],
    "several tasks": ["task=joint", "trainer.cache=memory"],
}  # fmt: skip


class Counting:
    """The gatherings of a process, by whether it needed the layer itself."""

    def __init__(self) -> None:
        self.handed_in = 0
        packed = sharding._Unit.packed

        def counted(unit: Any) -> torch.Tensor:
            self.handed_in += unit.exchange is not None
            return packed(unit)

        sharding._Unit.packed = counted  # type: ignore[method-assign]


def trained(folder: Path, *words: str) -> list[Any]:
    """Two processes train into a folder. Of each: its exit status, bytes of the frozen weights that are shared, here and in
    all, and how often it has handed in a shard of what only the other needed."""

    def work(_: int) -> list[Any]:
        # of outputs whose gradients would gather nothing
        warnings.filterwarnings("error", message="FSDP2-wrapped module")
        sizes, counting = [0, 0], Counting()
        shard = looping.shard

        def measured(model: nn.Module, layers: Sequence[nn.Module], *rest: Any) -> None:
            found = [one for _, own in sharded(model, layers) for one in own]
            whole = sum(one.nbytes for one in found)
            shard(model, layers, *rest)
            held = [one.to_local().nbytes for one in model.parameters() if isinstance(one, DTensor)]
            sizes[:] = [sum(held), whole]

        looping.shard = measured  # type: ignore[assignment]
        os.environ["VLATRAIN_CACHE"] = str(folder.parent / "kept")
        return [command(*SIZES, *words, f"run.dir={folder / 'run'}"), *sizes, counting.handed_in]

    folder.mkdir(exist_ok=True)
    return ranks(work, folder, seconds=150.0)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "run/adapter").rglob("*.safetensors"))
    return {f"{file.parent.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def course(folder: Path) -> list[dict[str, float]]:
    """What `metrics.jsonl` says of losses and scores."""
    records = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in record.items() if key == "loss" or key.startswith(("eval/", "frozen/"))}
        for record in records
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_train_the_same(case: str, tmp_path: Path) -> None:
    together, each = tmp_path / "together", tmp_path / "each"
    one, two = trained(together, *CASES[case], "trainer.shard=true")
    assert (one[0], two[0]) == (0, 0)
    assert one[2] == two[2] > 0
    assert one[1] + two[1] == one[2], "nothing is held twice"
    assert one[1] == pytest.approx(one[2] / 2, rel=0.02)
    assert one[3] + two[3] > 0, "they compute different layers at times"
    assert trained(each, *CASES[case]) == [[0, 0, 0, 0]] * 2
    assert adapter(together)
    assert_close(adapter(together), adapter(each))
    found, expected = course(together), course(each)
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for record, other in zip(found, expected, strict=True):
        assert list(record.values()) == near(list(other.values()))
    metrics, others = (read(folder / "run/metrics.json") for folder in (together, each))
    assert metrics["frozen_hash"] == others["frozen_hash"]
    assert metrics["parameters"] == others["parameters"]
    if metrics["cache"]["where"] == "disk":
        assert metrics["cache"]["computed"] > others["cache"]["computed"] == 0, "states have the same names"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone(name: str, tmp_path: Path) -> None:
    """Each process computes what it does with the whole weights, though they compute different batches."""
    samples = make_samples()

    def work(rank: int) -> int:
        warnings.filterwarnings("error", message="FSDP2-wrapped module")
        config = config_of(name)
        backbone, settings = set_up(config)
        model = attach(backbone.model, adapter_config("bottleneck", dim=4), sites(config, settings.name, ["*"]))
        task = task_of(backbone, settings)
        with torch.no_grad():
            for parameter in model.parameters():  # adapters that do something
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))

        def outcome() -> list[Any]:
            torch.manual_seed(0)
            loss = task.loss(task.collate(samples[:2] if rank else samples[2:5]))
            loss.backward()
            gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                evaluation = task.evaluate(samples[:5], SharedBatches("cpu", 2))
            return [loss.detach(), gradients, evaluation.metrics, [str(one) for one in evaluation.predictions]]

        expected, hashes, terms = outcome(), frozen_hashes(model), terms_of(model)
        shard(model, layers_of(backbone.model, config, settings.name), torch.device("cpu"))
        assert {key: hash_of(one) for key, one in model.named_parameters() if key in hashes}.items() <= hashes.items()
        found = outcome()
        agree()
        assert len(found[1]) == len(expected[1]) > 0
        assert_close(found[0], expected[0], terms)
        assert_close(found[1], expected[1], terms)
        assert found[2:] == expected[2:]
        return sum(isinstance(one, DTensor) for one in model.parameters())

    one, two = ranks(work, tmp_path)
    assert one == two > 0


@pytest.mark.slow
def test_every_method(tmp_path: Path) -> None:
    """At the last place that it can go to: with the adapters, without them, their gradients, and what is saved."""

    def outcome(backbone: Backbone, model: Any, into: Path) -> list[Any]:
        with model.disable_adapter():
            found = [loss_of(backbone)]
        save(model, into)
        return [*found, loss_of(backbone), gradients(backbone, model)]

    def work(rank: int) -> dict[str, str]:
        differing = {}
        chosen = [name for name, row in ROWS.items() if name == row.config.name and not row.config.sources]
        for number, name in enumerate(chosen):
            row = ROWS[name]
            backbone, model = adapted(row, next(place for place in reversed(PLACES) if place not in row.unfit))
            terms = terms_of(model)
            folders = [tmp_path / f"{number}-{rank}-{when}" for when in ("before", "after")]
            expected = outcome(backbone, model, folders[0])
            shard(model, layers_of(backbone.model, backbone.config, backbone.task), torch.device("cpu"))
            try:
                found = outcome(backbone, model, folders[1])
                assert found[:2] == near(expected[:2], terms)
                assert_close(found[2], expected[2], terms)
                files = [
                    {file.relative_to(own): file.read_bytes() for file in own.rglob("*.safetensors")} for own in folders
                ]
                assert files[0] == files[1] != {}
            except (AssertionError, RuntimeError) as error:
                differing[name] = str(error)[:300]
            agree()
        return differing

    assert ranks(work, tmp_path, seconds=400.0) == [{}, {}]


class Layer(nn.Module):
    """A frozen layer with an odd number of rows, two types, a single number, and something that trains."""

    def __init__(self, tied: nn.Parameter) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(5, 5), nn.Parameter(torch.tensor(0.5))
        self.shift = nn.Parameter(torch.randn(1, 5, dtype=torch.bfloat16))
        self.requires_grad_(False)
        self.tied, self.added = tied, nn.Parameter(torch.randn(5))

    def forward(self, states: Tensor) -> Tensor:
        shifted = torch.tanh(self.linear(states)) * self.scale + self.shift.to(states.dtype)
        return (shifted + self.tied + self.added).view(states.shape)


def test_processes_that_compute_different_layers_serve_each_other(tmp_path: Path) -> None:
    class Left(Exception):  # noqa: N818
        pass

    def work(rank: int) -> list[Any]:
        torch.manual_seed(0)
        tied = nn.Parameter(torch.randn(5), requires_grad=False)
        model = nn.ModuleList(Layer(tied) for _ in range(4))
        model[3].bfloat16()

        def through(numbers: Sequence[int]) -> list[Tensor]:
            states = torch.ones(2, 5)
            for number in numbers:
                states = model[number](states.to(model[number].added.dtype))
                states += 1  # in place, of a view
            states.float().sum().backward()
            found = [states.detach(), *(layer.added.grad for layer in model)]
            model.zero_grad(set_to_none=True)
            return found

        paths = [[2, 1, 0], [3], [1, 1]] if rank else [[0, 1, 2, 3, 0, 1], [3, 2]]
        expected = [through(path) for path in paths]
        shard(model, list(model), torch.device("cpu"))
        cut = [name for name, one in model.named_parameters() if isinstance(one, DTensor)]

        def leave(*_: Any) -> None:
            raise Left

        def in_the_middle_of_a_layer() -> None:
            handle = model[1].register_forward_hook(leave, prepend=True)
            with pytest.raises(Left):
                through([0, 1])
            handle.remove()

        if rank:
            in_the_middle_of_a_layer()
        found = [through(path) for path in paths]
        if rank:
            in_the_middle_of_a_layer()
        agree()
        assert [name for name, one in model.named_parameters() if isinstance(one, DTensor)] == cut
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
        return [cut, sum(one.to_local().numel() for one in model.parameters() if isinstance(one, DTensor))]

    (names, one), (_, two) = ranks(work, tmp_path)
    assert names == [f"{number}.{name}" for number in range(4) for name in ("shift", "linear.weight", "linear.bias")]
    assert (one, two) == (4 * (3 * 6 + 5), 4 * 2 * 6), "of five rows three and two, of one row one and none"


@pytest.mark.slow
def test_a_run_goes_on_and_is_scored_and_asked(tmp_path: Path) -> None:
    """With the same bits, by processes that hold the weights together or each."""
    words = (
        *CASES["written answers"],
        "trainer.save_every=1",
        "trainer.keep=9",
        "adapter.dropout=0.2",
        "trainer.shard=true",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert trained(whole, *words)[0][0] == 0
    for way in ("true", "false"):
        shutil.copytree(whole, broken, dirs_exist_ok=True)
        shutil.rmtree(broken / "run/adapter")
        for step in (2, 3):
            shutil.rmtree(broken / f"run/checkpoints/step_{step}")
        (broken / "run/metrics.json").unlink()
        assert trained(broken, *words, f"trainer.shard={way}", "resume=auto")[0][0] == 0
        assert read(broken / "run/metrics.json")["training"]["resumed_from"] == 1
        found, expected = adapter(broken), adapter(whole)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    run = f"run={whole / 'run'}"
    image = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(image)
    asking = ("predict", run, f"image={image}", "question=what is it?")
    scored = ("eval", run, "trainer.device=cpu")

    def both(_: int) -> list[int]:
        counting = Counting()
        written = [f"output={tmp_path / name}" for name in ("two", "two.jsonl")]
        return [command(*scored, written[0]), command(*asking, written[1]), counting.handed_in]

    (*ended, one), (*others, two) = ranks(both, tmp_path, seconds=150.0)
    assert [*ended, *others] == [0] * 4
    assert one + two > 0, "they hold the weights together here, too"
    assert command(*scored, f"output={tmp_path / 'one'}") == command(*asking, f"output={tmp_path / 'one.jsonl'}") == 0
    one, two = (read(tmp_path / name / "metrics.json") for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] == read(whole / "run/metrics.json")["metrics"]
    assert (tmp_path / "one/predictions.jsonl").read_bytes() == (tmp_path / "two/predictions.jsonl").read_bytes()
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.mark.slow
def test_what_is_not_shared_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(*SIZES, "trainer.shard=true", f"run.dir={tmp_path / 'alone'}") == 2
    assert "trainer.shard=true: there is a single process" in capfd.readouterr().err
    kept = ("task=retrieval", "model=tiny_clip", "adapter=tip_adapter", "trainer.shard=true")
    assert [status for status, *_ in trained(tmp_path / "tip", *kept)] == [2, 2]
    assert "trainer.shard=true and adapter=tip_adapter: what it keeps" in capfd.readouterr().err
