"""A quantised trunk: what is quantised, what it computes, and that adapters train on it, weights never whole in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples, model_config, small_config
from vlatrain.adapters import Call
from vlatrain.adapters.llama_adapter import LlamaAdapter
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.backbones.quantise import _quantised, layers_of, linears, quantise, size_of
from vlatrain.config import AdapterConfig, TaskConfig, TrainConfig
from vlatrain.config.checks.settings import problems
from vlatrain.injection.attach import attach
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches
from vlatrain.training.modes import frozen_hashes
from vlatrain.verbs.inspect import count

bnb = pytest.importorskip("bitsandbytes")
BITS = (8, 4)
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]


def quantised(bits: int | None, name: str = "blip", task: str = "captioning") -> Backbone:
    config = small_config(name)
    config.quantize = bits
    return load(config, task, texts=TEXTS, seed=3)


def dequantised(layer: nn.Module) -> torch.Tensor:
    """What the packed weights stand for: (out, in)."""
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.float() * scale[:, None] / 127


@pytest.mark.parametrize("bits", BITS)
def test_layers_of_towers_are_quantised_and_nothing_else(bits: int) -> None:
    whole, small = quantised(None), quantised(bits)
    kind = {8: bnb.nn.Linear8bitLt, 4: bnb.nn.Linear4bit}[bits]
    layers = layers_of(whole.model, whole.config, "captioning")
    inside = {id(child) for *_, child in linears(layers)}
    for name, module in whole.model.named_modules():
        found = small.model.get_submodule(name)
        assert isinstance(found, kind) == (id(module) in inside), name
    # drawn layer by layer from the same distributions: what is constant is equal, what is not has the same spread
    for (name, one), (_, two) in zip(whole.model.named_parameters(), small.model.named_parameters(), strict=True):
        assert size_of(two) == one.numel(), name
        if two.is_floating_point():
            torch.testing.assert_close(two.std(), one.std(), rtol=0.5, atol=1e-3)
    assert not list(linears(layers_of(small.model, small.config, "captioning")))


@pytest.mark.parametrize("bits", BITS)
def test_computes_what_the_packed_weights_stand_for(bits: int) -> None:
    torch.manual_seed(0)
    language = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=50, n_positions=20)).eval()
    before = {name: module for name, module in language.named_modules() if type(module).__name__ == "Conv1D"}
    quantise(language, language.transformer.h, bits, torch.device("cpu"), torch.float32)
    states = torch.randn(3, 64)
    for name, old in before.items():
        if old.weight.shape[0] != 64:
            continue
        new = language.get_submodule(name)
        expected = states @ dequantised(new).T + new.bias
        torch.testing.assert_close(new(states), expected, rtol=0.02, atol=0.02)
        torch.testing.assert_close(dequantised(new), old.weight.T, rtol=0, atol=old.weight.abs().max().item() * 0.2)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_t5_computes_nearly_the_same(kind: str, bits: int) -> None:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 3, "num_layers": 2, "vocab_size": 50}
    model = T5EncoderModel(T5Config(**sizes, feed_forward_proj=kind)).eval()
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        quantise(model, model.encoder.block, bits, torch.device("cpu"), torch.float32)
        found = model(ids).last_hidden_state
    assert (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", ["bottleneck", "lora"])
def test_adapters_train_in_fp32_on_frozen_packed_weights(method: str, bits: int) -> None:
    samples = make_samples()[:4]
    backbone = quantised(bits)
    torch.manual_seed(0)
    attach(backbone.model, adapter_config(method, dim=8), sites(backbone.config, "captioning", ["*"]))
    task = build(TaskConfig(name="captioning"), backbone)
    batch, before = task.collate(samples), frozen_hashes(backbone.model)
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(15):
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():  # inference must not repack them either
        task.evaluate(samples, SharedBatches("cpu", len(samples)))
    assert frozen_hashes(backbone.model) == before


@pytest.mark.slow
def test_inspect_counts_what_is_packed() -> None:
    def weights(bits: int | None) -> int:
        config = model_config("blip", quantize=bits)
        return count(
            TrainConfig(
                task=TaskConfig(name="captioning", points=["decoder"]), model=config, adapter=AdapterConfig("none")
            )
        ).memory.weights

    in_layers = 12 * (12 * 768 * 768) + 12 * (16 * 768 * 768)  # attention and feed-forward; with cross-attention
    assert weights(None) - weights(8) == 3 * in_layers
    assert weights(4) < weights(None) / 2


def test_what_cannot_be_on_a_quantised_trunk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(
        task=TaskConfig(name="captioning", points=["decoder"]),
        model=model_config("blip", quantize=4),
        adapter=adapter_config("vera"),
    )
    assert "PEFT does not put it on quantised layers" in incompatibilities(config)[0]
    config.adapter = AdapterConfig(name="full")
    assert any("quantised weights cannot train" in problem for problem in problems(config))
    config.model.quantize = 5
    assert any("model.quantize=5: must be one of 4, 8" in problem for problem in problems(config))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert any("pip install 'vlatrain[quantize]'" in problem for problem in problems(config))


@pytest.mark.parametrize("bits", BITS)
def test_attention_to_a_prompt_goes_through_the_packed_layers(bits: int) -> None:
    """LLaMA-Adapter projects by the frozen layers, whose weights cannot be read as they are: as by what they stand for."""
    outputs = {"query": 128, "key": 64, "value": 64, "out": 64}  # heads of 32, of which two share a key-value head
    packed, whole = {}, {}
    for role, width in outputs.items():
        layer = nn.Linear(128 if role == "out" else 64, width)
        packed[role] = _quantised(layer, bits, torch.device("cpu"), torch.float32)
        whole[role] = nn.Linear(layer.in_features, width)
        whole[role].weight.data, whole[role].bias.data = dequantised(packed[role]), layer.bias.data
    adapter, states = adapter_of(LlamaAdapter, 64, 5, heads=4), torch.randn(2, 3, 64)
    assert not adapter(states, Call(frozen=packed)).any()
    nn.init.constant_(adapter.gate, 0.5)
    found, expected = (adapter(states, Call(frozen=frozen)) for frozen in (packed, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.abs().max().item())
    found.sum().backward()
    assert bool(adapter.prompt.grad.abs().sum() > 0)
