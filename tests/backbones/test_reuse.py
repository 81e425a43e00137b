"""A backbone that jobs of a sweep read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import MOMENT
from tests.conftest import model_config, small_config
from vlatrain.backbones import loading, reuse
from vlatrain.cli.main import main


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read from checkpoints or drawn, by name, as it happens."""
    found: list[str] = []
    for name in ("_pretrained", "_random"):
        original = getattr(loading, name)

        def counted(*args: Any, original: Any = original) -> Any:
            source = original(*args)
            found.append(source.name)
            return source

        monkeypatch.setattr(loading, name, counted)
    return found


def test_a_copy_has_the_weights_and_nothing_else_of_it(reads: list[str]) -> None:
    config = model_config("tiny_blip")
    with reuse.reusing():
        first = loading.load(config, "vqa")
        first.model.register_forward_hook(lambda *_: None)
        reuse.give_back([])
        second = loading.load(config, "vqa", seed=7)
    assert len(reads) == 1, "no weight of a checkpoint depends on the seed"
    pairs = zip(first.model.named_parameters(), second.model.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        assert one is not other, name
        assert one.data_ptr() == other.data_ptr(), name
    assert first.model is not second.model
    assert not second.model._forward_hooks
    assert first.processor is not second.processor
    anew = loading.load(config, "vqa")
    assert all(
        torch.equal(one, other) for one, other in zip(second.model.parameters(), anew.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("nothing", False),
        ("not given back", True),
        ("trained in place", True),
        ("task", True),
        ("seed of drawn ones", True),
    ],
)
def test_when_it_is_read_again(changed: str, again: bool, reads: list[str]) -> None:
    config = small_config("blip") if "drawn" in changed else model_config("tiny_blip")
    words = ["a red square", "what is it?"]
    with reuse.reusing():
        backbone = loading.load(config, "vqa", texts=words)
        if changed != "not given back":
            reuse.give_back([*backbone.model.parameters()][:1] if changed == "trained in place" else [])
        task, seed = ("captioning" if changed == "task" else "vqa"), (3 if "seed" in changed else 0)
        loading.load(config, task, texts=words, seed=seed)
    assert len(reads) == 1 + again


def test_outside_a_sweep_nothing_is_kept(reads: list[str]) -> None:
    config = model_config("tiny_blip")
    for _ in range(2):
        loading.load(config, "vqa")
        reuse.give_back([])
    assert len(reads) == 2


def test_nothing_is_kept_once_the_sweep_has_ended(reads: list[str]) -> None:
    for _ in range(2):
        with reuse.reusing():
            loading.load(model_config("tiny_blip"), "vqa")
            reuse.give_back([])
        reuse.clear()
    assert len(reads) == 2
    assert reuse._shelf.source is None


def test_what_a_job_trains_in_place_it_has_for_itself_if_it_is_little(reads: list[str]) -> None:
    config = model_config("tiny_blip")
    with reuse.reusing():
        model = loading.load(config, "vqa").model
        trained = [parameter for name, parameter in model.named_parameters() if "norm" in name.lower()]
        before = [parameter.detach().clone() for parameter in trained]
        reuse.separate(trained)
        for parameter in trained:
            parameter.data.add_(1)
        reuse.give_back(trained)
        again = loading.load(config, "vqa").model
        norms = [parameter for name, parameter in again.named_parameters() if "norm" in name.lower()]
        assert all(torch.equal(one, other) for one, other in zip(norms, before, strict=True))
        reuse.separate(again.parameters())
        reuse.give_back(again.parameters())
        loading.load(config, "vqa")
    assert len(reads) == 2, "all of it is too much to have twice"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_blip", "tiny_composite"])
def test_jobs_of_a_sweep_are_what_they_are_alone(
    model: str, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*MOMENT, f"model={model}", "seed=1", "adapter.points=[vision.last2.*]"]
    methods = ["bottleneck", "lora", "full", "bitfit"]
    assert (
        main(["-m", *words, f"adapter={','.join(methods)}", "run.dir=swept", "adapter.points=['vision.last2.*']"]) == 0
    )
    assert len(reads) == 2, "after full fine-tuning it is read again"
    for number, method in enumerate(methods):
        assert main([*words, f"adapter={method}", f"run.dir={method}"]) == 0
        (folder,) = Path("swept").glob(f"{number:02d}-*")
        files = sorted(path.name for path in (folder / "adapter").glob("*.safetensors"))
        assert files
        for file in files:
            assert (folder / "adapter" / file).read_bytes() == Path(method, "adapter", file).read_bytes(), method
