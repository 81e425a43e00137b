"""BitFit: adding a vector to what a module puts out is training its bias."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.language import full_size, small, trainable
from tests.injection.language import where as language_sites
from tests.numerics import assert_close
from vlatrain.adapters.bitfit import BitFit
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig
from vlatrain.injection.attach import attach
from vlatrain.tasks import build

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
MARK = ".adapter.vlatrain_unit.default.bias"


def loss_of(backbone: Backbone) -> torch.Tensor:
    torch.manual_seed(0)
    task = build(TaskConfig(name=backbone.task), backbone)
    return task.loss(task.collate(make_samples()))


@pytest.mark.parametrize(("name", "task"), [("blip", "vqa"), ("blip", "retrieval"), ("clip", "retrieval")])
def test_is_the_training_of_the_biases_that_are_there(name: str, task: str) -> None:
    config = small_config(name)
    one, two = load(config, task, texts=TEXTS), load(config, task, texts=TEXTS)
    where = sites(config, task, ["*"])
    model = attach(one.model, adapter_config("bitfit"), where)
    own = dict(two.model.named_parameters())
    added = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            path = key.removeprefix("base_model.model.").replace(MARK, ".bias")
            torch.nn.init.normal_(parameter, std=0.1)
            own[path].data += parameter.data
            added[path] = parameter
            own[path].requires_grad_(True)
    roles = {path for place in where.places.values() for role, path in place.modules.items() if role != "key"}
    assert {f"{path}.bias" for path in roles} == set(added), "every bias but that of attention's key"
    losses = [loss_of(one), loss_of(two)]
    assert_close(*losses, one.model)
    for loss in losses:
        loss.backward()
    expected = {path: own[path].grad for path in added}
    assert_close({path: parameter.grad for path, parameter in added.items()}, expected, one.model)


def test_the_key_has_none_as_its_bias_changes_nothing() -> None:
    assert not BitFit.takes("key", {})
    query, key, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(8)
    plain, shifted = query @ key.T, query @ (key + bias).T
    assert_close(plain.softmax(dim=-1), shifted.softmax(dim=-1))


def test_low_precision_states_stay_so() -> None:
    assert adapter_of(BitFit, 4)(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_keys_and_modules_outside_the_layers_have_one_if_asked(name: str) -> None:
    """T5 has no biases: what they would be is what its modules put out."""
    model, where = small(name), language_sites(name, small=True)
    before = copy.deepcopy(model)
    attach(model, adapter_config("bitfit", options={"keys": True, "outside": True}), where)
    ids = torch.arange(10).reshape(2, 5) + 4
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
            target = before.get_submodule(key.removesuffix(MARK))
            target.register_forward_hook(lambda module, args, output, bias=parameter: output + bias)
    found, expected = (one.language(input_ids=ids, decoder_input_ids=ids).logits for one in (model, before))
    assert_close(found, expected, model)
    roles = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum("lm_head" in key for key in roles) == 1
    encoder, decoder = where.stacks["text"].layers, where.stacks["decoder"].layers
    assert len(roles) == encoder * (6 + 2) + decoder * (10 + 3) + 2 + 1


def test_published_count_on_t5() -> None:
    """VL-Adapter's: every linear layer, every norm and the head get a bias."""
    model = full_size("t5")
    adapted = attach(model, adapter_config("bitfit", options={"keys": True, "outside": True}), language_sites("t5"))
    assert trainable(adapted) == 282_496
