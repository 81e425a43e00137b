from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from tests.conftest import adapter_config, make_samples, small_config
from tests.training.conftest import Adapter, make_model
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, UserError
from vlatrain.injection.attach import attach
from vlatrain.tasks import build
from vlatrain.training.modes import (
    cast_trunk,
    checkpoint_gradients,
    compile_layers,
    fingerprint,
    keep_from_overflow,
    moving_buffers,
    train_mode,
    trainable,
)


class Lora(nn.Module):
    """As PEFT's layers: the dropout beside the wrapped layer has no parameters to tell by."""

    def __init__(self, trained: bool = True) -> None:
        super().__init__()
        self.base_layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).requires_grad_(False)
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.1)})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(2, 1).requires_grad_(trained)})


def in_train_mode(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def test_only_what_is_trained_is_in_train_mode() -> None:
    model = make_model()
    train_mode(model)
    adapters = {f"layers.{i}.adapter" for i in (0, 1)}
    assert in_train_mode(model) == {a + part for a in adapters for part in ("", ".down", ".dropout", ".up")}
    assert not moving_buffers(model)


def test_full_fine_tuning_trains_dropout_and_buffers_too() -> None:
    model = make_model(full=True)
    train_mode(model)
    assert all(module.training for module in model.modules())
    assert "layers.1.norm.running_mean" in moving_buffers(model)


def test_nothing_trained_means_eval_mode() -> None:
    model = make_model().requires_grad_(False)
    train_mode(model)
    assert not in_train_mode(model)


def test_the_dropout_of_a_wrapping_layer_is_on_and_the_wrapped_layers_is_off() -> None:
    model = nn.ModuleList([Lora(), Lora(trained=False)])
    train_mode(model)
    assert in_train_mode(model) == {"0", "0.lora_dropout", "0.lora_dropout.default", "0.lora_A", "0.lora_A.default"}


def test_the_fingerprint_sees_frozen_weights_and_buffers_and_nothing_else() -> None:
    model = make_model()
    before = fingerprint(model)
    assert fingerprint(make_model()) == before
    with torch.no_grad():
        model.layers[0].adapter.up.weight += 1
    assert fingerprint(model) == before
    model.layers[0].norm.running_var[3] += 1e-6
    assert fingerprint(model) != before
    model = make_model()
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert fingerprint(model) != before


def test_casting_leaves_what_is_trained_scalars_and_statistics_in_full_precision() -> None:
    model = make_model()
    model.scale = nn.Parameter(torch.tensor(2.6), requires_grad=False)
    cast_trunk(model, torch.bfloat16)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert model.head.weight.dtype == model.layers[0].linear.bias.dtype == torch.bfloat16
    assert model.scale.dtype == model.layers[0].norm.weight.dtype == torch.float32


def test_low_norms_give_what_the_next_layer_would_make_of_an_exact_one() -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.LayerNorm(6), nn.BatchNorm1d(6)).requires_grad_(False)
    model[1].bias.requires_grad_(True)
    states = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    exact = model[0](states.to(torch.bfloat16).float()).to(torch.bfloat16)
    cast_trunk(model, torch.bfloat16, low_norms=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = model[0](states)
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=1e-6)  # of the same type; an ulp is left to the kernel
    assert type(model[1]) is nn.LayerNorm, "one that trains"
    assert {module.weight.dtype for module in model[1:]} == {torch.float32}


def test_casting_leaves_the_scale_of_a_model_in_full_precision() -> None:
    backbone = load(small_config("siglip"), "retrieval", texts=["a"])
    backbone.model.logit_scale.data.fill_(4.7262)  # of shape (1,)
    cast_trunk(backbone.model, torch.bfloat16)
    assert backbone.logit_scale().item() == pytest.approx(112.87, abs=0.01)  # in bf16: 112.0
    assert backbone.logit_bias().dtype == torch.float32


def test_what_overflows_in_fp16_is_computed_in_fp32() -> None:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).requires_grad_(False).eval()
    layer = model.encoder.block[0].layer[1].DenseReluDense
    layer.wi.weight.data.fill_(1.0)
    layer.wo.weight.data.fill_(1000.0)
    keep_from_overflow(model)
    cast_trunk(model, torch.float16)
    assert layer.wo.weight.dtype == torch.float32
    assert layer.wi.weight.dtype == torch.float16
    with torch.autocast("cpu", torch.float16):
        states = layer(torch.ones(1, 3, 16))
        assert states.amax() > torch.finfo(torch.float16).max
        assert states.isfinite().all()
        ids = torch.ones(1, 3, dtype=torch.long)
        assert model(input_ids=ids, labels=ids).loss.isfinite()


def test_casting_leaves_the_heads_that_order_things_in_full_precision() -> None:
    model = load(small_config("blip"), "retrieval", texts=["a"]).model
    cast_trunk(model, torch.bfloat16)
    assert model.itm_head.weight.dtype == model.itm_head.bias.dtype == torch.float32
    assert model.vision_proj.weight.dtype == torch.bfloat16


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    train_mode(model)
    torch.manual_seed(5)
    model(torch.randn(4, 8, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    return {name: parameter.grad for name, parameter in trainable(model).items()}


def test_checkpointing_recomputes_the_layers_and_changes_no_gradient() -> None:
    plain, recomputed = make_model(), make_model()
    expected = gradients(plain)
    checkpoint_gradients(recomputed, recomputed.layers)
    found = gradients(recomputed)
    assert [layer.calls for layer in plain.layers] == [1, 1]
    assert [layer.calls for layer in recomputed.layers] == [2, 2]
    assert all(torch.equal(expected[name], found[name]) for name in expected), "the adapters' dropout is drawn alike"
    with torch.no_grad():
        recomputed(torch.randn(4, 8))
    assert [layer.calls for layer in recomputed.layers] == [3, 3]


def test_layers_are_compiled_in_place() -> None:
    plain, compiled = make_model().eval(), make_model().eval()
    names = list(compiled.state_dict())
    compile_layers(compiled.layers, backend="eager")
    inputs = torch.randn(3, 8)
    assert torch.equal(plain(inputs), compiled(inputs))
    assert list(compiled.state_dict()) == names
    assert all(layer._compiled_call_impl is not None for layer in compiled.layers)
    assert isinstance(compiled.layers[0].adapter, Adapter)


@pytest.mark.parametrize("design", ["bottleneck", "cross_modal"])
def test_recomputed_layers_are_compiled_unless_adapters_need_their_call(design: str) -> None:
    config = small_config("blip")
    backbone = load(config, "captioning", texts=["a red circle"])
    model = attach(backbone.model, adapter_config(design, dim=4), sites(config, "captioning", ["decoder"]))
    layers = list(backbone.model.get_submodule(config.towers["decoder"].layers).children())
    if design == "cross_modal":
        with pytest.raises(UserError, match="choose one of the two"):
            checkpoint_gradients(model, layers, compiled=True)
        return
    checkpoint_gradients(model, layers, compiled=True)
    compile_layers(layers, backend="eager")
    train_mode(model)
    work = build(TaskConfig(name="captioning"), backbone)
    work.loss(work.collate(make_samples())).backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
