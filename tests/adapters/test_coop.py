"""CoOp: against a text tower that is given the changed word embeddings; what trains, what is saved, where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.adapters.alone import adapter_of
from tests.commands import command, tiny_run
from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.numerics import assert_close
from vlatrain.adapters.base import Call
from vlatrain.adapters.coop import Coop
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig, TrainerConfig
from vlatrain.injection.attach import attach
from vlatrain.training.setup import new_setup

TEXTS = ["a photo of a red circle.", *(sample.label for sample in make_samples())]


def coop_of(model: nn.Module) -> Coop:
    (found,) = (module for module in model.modules() if isinstance(module, Coop))
    return found


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_it_is_the_tower_with_other_words(name: str) -> None:
    """The words' embeddings are changed in the table, as CoOp does it; the class's name has none of the words."""
    config = small_config(name)
    frozen, adapted = (load(config, "classification", texts=TEXTS) for _ in range(2))
    model = attach(adapted.model, adapter_config("coop"), sites(config, "classification", ["text.0.attn"]))
    unit = coop_of(model)
    ids = frozen.text(["a photo of a circle."], 40).ids[0, 1:5]  # behind the start token
    unit.begin_at(1)
    texts = frozen.text(["a photo of a circle.", "a photo of a red."], 40)
    assert_close(adapted.text_features(texts), frozen.text_features(texts), frozen.model)  # it starts as the frozen one
    torch.manual_seed(0)
    change = {int(token): torch.randn(unit.context.shape[1]) * 0.3 for token in ids}  # "a" is there twice
    unit.context.data = torch.stack([change[int(token)] for token in ids])
    table = frozen.model.text_model.get_input_embeddings().weight
    with torch.no_grad():
        for token, difference in change.items():
            table[token] += difference
    assert_close(adapted.text_features(texts), frozen.text_features(texts), frozen.model)
    assert not torch.allclose(unit.context[0], unit.context[1])


def test_a_training_knows_where_words_begin() -> None:
    for name in ("clip", "siglip"):
        config = TrainConfig(
            task=TaskConfig(name="classification", points=["*"]),
            model=small_config(name),
            adapter=adapter_config("coop"),
            trainer=TrainerConfig(batch_size=1, device="cpu"),
        )
        setup = new_setup(config, {"train": make_samples()})
        front = setup.backbone.tokenizer("a photo")["input_ids"][0] in setup.backbone.tokenizer.all_special_ids
        assert int(coop_of(setup.model).start) == front, name
        assert next(key for key, p in setup.model.named_parameters() if p.requires_grad).endswith("context")
        assert setup.parameters(trainable=True) == 4 * coop_of(setup.model).context.shape[1]


def test_a_random_start() -> None:
    torch.manual_seed(0)
    unit = adapter_of(Coop, 8, dim=3, init="normal", init_std=0.5)
    assert 0.2 < float(unit.context.detach().std()) < 1
    assert {*unit.state_dict()} == {"context", "start"}
    assert not adapter_of(Coop, 8, dim=3).context.any()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="before layer 0, not before layer 2"):
        adapter_of(Coop, 8, dim=3, index=2)
    with pytest.raises(ValueError, match="first 3 tokens of a text, and there are texts of 3"):
        adapter_of(Coop, 8, dim=3).enter({"hidden_states": torch.zeros(1, 3, 8)}, Call())


@pytest.mark.parametrize(
    ("model", "task", "templates", "message"),
    [
        ("clip", "retrieval", ["a photo of a {}."], "task=retrieval has no classes; task=classification has"),
        ("tiny_composite", "classification", ["a photo of a {}."], "model=tiny_composite answers a question instead"),
        ("clip", "classification", ["a photo of a {}.", "a {}."], "adapter.dim=4: learns the words in front"),
        ("clip", "classification", ["one fine photo of a {}."], ""),
    ],
)
def test_where_it_cannot_go_it_is_refused(model: str, task: str, templates: list[str], message: str) -> None:
    config = TrainConfig(
        task=TaskConfig(name=task, templates=templates), model=model_config(model), adapter=adapter_config("coop")
    )
    found = incompatibilities(config)
    assert (message in found[0] and len(found) == 1) if message else found == []


@pytest.mark.slow
def test_a_run_is_saved_and_scored_again(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "classification", "model=tiny_clip", "adapter=coop")
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in saved} == {"context", "start"}
    assert command("eval", f"run={run}", f"output={tmp_path / 'again'}") == 0
    assert (run / "predictions.jsonl").read_text() == (tmp_path / "again" / "predictions.jsonl").read_text()
