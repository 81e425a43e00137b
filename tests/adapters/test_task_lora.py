"""LoRA of our own: the same as PEFT's, number for number; and what PEFT's cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.language import full_size, small, trainable, where
from tests.numerics import assert_close
from vlatrain.adapters.task_lora import TaskLora
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, UserError
from vlatrain.injection.attach import attach, check
from vlatrain.injection.context import for_task
from vlatrain.injection.peft_method import inputs_of, width_of
from vlatrain.tasks import build

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
ROLES = ["query", "value", "ffn.inner", "out"]


def loss_of(backbone: Backbone) -> Tensor:
    torch.manual_seed(0)
    task = build(TaskConfig(name=backbone.task), backbone)
    return task.loss(task.collate(make_samples()))


@pytest.mark.parametrize(("name", "task"), [("blip", "vqa"), ("clip", "retrieval")])
def test_is_pefts(name: str, task: str) -> None:
    """The same weights, the same loss, the same gradients; a fused qkv included."""
    config = small_config(name)
    one, two = (load(config, task, texts=TEXTS) for _ in range(2))
    where = sites(config, task, ["*"])
    ours = attach(one.model, adapter_config("task_lora", dim=3, options={"roles": ROLES}), where)
    pefts = attach(two.model, adapter_config("lora", dim=3, targets=ROLES), where)
    assert trainable(ours) == trainable(pefts)
    theirs = dict(pefts.named_parameters())
    for key, parameter in ours.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
            theirs[pefts_name(key)].data = parameter.data
    losses = [loss_of(one), loss_of(two)]
    assert_close(*losses, one.model)
    for loss in losses:
        loss.backward()
    found = {pefts_name(key): parameter.grad for key, parameter in ours.named_parameters() if parameter.requires_grad}
    assert_close(found, {key: theirs[key].grad for key in found}, one.model)


def pefts_name(key: str) -> str:
    for own, other in (("down", "lora_A"), ("up", "lora_B")):
        key = key.replace(f".adapter.vlatrain_unit.default.{own}.", f".{other}.default.")
    return key


def test_goes_into_a_conv1d() -> None:
    """GPT-2's: inputs and outputs the other way round."""
    layer = Conv1D(6, 4)
    assert (inputs_of(layer), width_of(layer)) == (4, 6)
    assert inputs_of(nn.LayerNorm(3)) == 0


def test_published_counts_on_bart() -> None:
    """VL-Adapter's: rank 128 on query and value, 36 layers; with four tasks."""
    config = adapter_config("task_lora", dim=128, options={"roles": ["query", "value"]})
    assert (
        trainable(attach(full_size("bart"), config, where("bart"))) == 36 * TaskLora.count(768, 768, 128) == 7_077_888
    )
    config.by_task = True
    assert trainable(attach(full_size("bart"), config, where("bart"), ["a", "b", "c", "d"])) == 28_311_552


def test_tasks_have_their_own() -> None:
    config = adapter_config("task_lora", dim=2, by_task=True)
    model = small("bart")
    attach(model, config, where("bart", small=True), ["one", "two"])
    for key, parameter in model.named_parameters():
        if "task_two" in key:
            nn.init.normal_(parameter)
    ids = torch.arange(10).reshape(2, 5) + 4
    found = []
    for task in ("one", "two"):
        with for_task(model, task), torch.no_grad():
            found.append(model.language(input_ids=ids, decoder_input_ids=ids).logits)
    expected = small("bart").language(input_ids=ids, decoder_input_ids=ids).logits
    assert torch.equal(found[0], expected)
    assert not torch.allclose(found[1], expected)


def test_shares_a_half_over_layers() -> None:
    config = adapter_config("task_lora", dim=2, share={"what": "down", "over": ["layer"]}, options={"roles": ["query"]})
    found = trainable(attach(small("bart"), config, where("bart", small=True)))
    sites_count, layers = 3, 2 + 3 + 3  # attention in the encoder, two in the decoder
    assert found == (sites_count + layers) * 2 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [({"roles": ["quary"]}, "no module that it goes to"), ({"roles": ["norm"]}, "changes linear layers")],
)
def test_what_there_is_none_of(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attach(small("bart"), adapter_config("task_lora", options=options), where("bart", small=True))


def test_a_rank_of_zero_is_refused_before_anything_loads() -> None:
    config = adapter_config("task_lora")
    config.dim = 0
    with pytest.raises(UserError, match="dim=0"):
        check(config)
