"""Soft prompts: against towers run by hand with the prompt in front; masks, padding, caches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.language import described, full_size, small, trainable
from tests.injection.language import where as language_sites
from tests.numerics import assert_close
from vlatrain.adapters.base import Call
from vlatrain.adapters.prompt import Prompt, forget
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.injection.attach import attach

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
WIDTH, IMAGE, DIM = 32, 48, 3  # of the decoder for captions, and of the image
both = pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])


def frozen_of(name: str, task: str) -> Backbone:
    """A small backbone, always the same, with weights large enough (BLIP's image tower starts at 1e-10) to tell prompts by."""
    backbone = load(small_config(name), task, texts=TEXTS)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return backbone


def adapted(name: str, task: str, deep: bool = False, dim: int = DIM, points: str = "*") -> tuple[Backbone, nn.Module]:
    config, backbone = small_config(name), frozen_of(name, task)
    method = adapter_config("prompt", dim=dim, init_std=0.5, options={"deep": deep})
    torch.manual_seed(4)
    return backbone, attach(backbone.model, method, sites(config, task, [points])).eval()


def tokens_of(backbone: Backbone, layers: nn.ModuleList) -> list[Tensor | None]:
    """The prompt of each layer; None: what the layer before has made of its own."""
    return [layer.adapter.units["default"].tokens for layer in layers]


def by_hand(layers: nn.ModuleList, states: Tensor, prompts: list[Tensor | None], **arguments: Any) -> Tensor:
    """A frozen tower with the prompt in front, in memory too."""
    front: Tensor | None = None
    for layer, own in zip(layers, prompts, strict=True):
        front = front if own is None else own.expand(len(states), -1, -1)
        made = layer(torch.cat([front, states], dim=1), **arguments)
        front, states = made[:, : front.shape[1]], made[:, front.shape[1] :]
    return states


@both
@pytest.mark.parametrize("name", ["blip", "clip"])
def test_an_image_tower_is_as_by_hand(name: str, deep: bool) -> None:
    backbone, _ = adapted(name, "retrieval", deep)
    frozen = frozen_of(name, "retrieval").model.vision_model
    pixels = backbone.pixels([sample.image.load() for sample in make_samples()])
    states = frozen.embeddings(pixels)
    if name == "clip":
        states = frozen.pre_layrnorm(states)
    prompts = tokens_of(backbone, backbone.model.vision_model.encoder.layers)
    mask = {"attention_mask": None} if name == "clip" else {}
    expected = by_hand(frozen.encoder.layers, states, prompts, **mask)
    found = backbone.model.vision_model(pixel_values=pixels, output_hidden_states=True)
    assert_close(found.hidden_states[-1], expected, frozen)
    out = expected if name == "clip" else frozen.post_layernorm(expected)
    assert_close(found.last_hidden_state, out, frozen)
    assert {states.shape[1] for states in found.hidden_states[1:]} == {expected.shape[1]}, "nothing outside notices"


def causal(length: int, prompt: int) -> Tensor:
    """What sees what, the prompt in front: all tokens see it, it sees itself, tokens see those before them."""
    whole = torch.ones(prompt + length, prompt + length, dtype=torch.bool).tril()
    whole[:prompt, :prompt] = True
    return whole[None, None]


@both
def test_a_causal_text_tower_is_as_by_hand(deep: bool) -> None:
    """CLIP's, without padding: it is given no mask but told to be causal."""
    backbone, _ = adapted("clip", "retrieval", deep)
    frozen = frozen_of("clip", "retrieval").model.text_model
    text = backbone.text(["a red picture"], 16)
    prompts = tokens_of(backbone, backbone.model.text_model.encoder.layers)
    length = text.ids.shape[1]
    expected = by_hand(
        frozen.encoder.layers, frozen.embeddings(text.ids), prompts, attention_mask=causal(length, DIM), is_causal=True
    )
    found = backbone.model.text_model(input_ids=text.ids)
    assert_close(found.last_hidden_state, frozen.final_layer_norm(expected), frozen)


@both
def test_a_decoder_is_as_by_hand(deep: bool) -> None:
    backbone, _ = adapted("blip", "captioning", deep)
    frozen = frozen_of("blip", "captioning").model.text_decoder.bert
    ids, image = torch.tensor([[5, 9, 7, 11]] * 2), torch.randn(2, 6, IMAGE)
    prompts = tokens_of(backbone, backbone.model.text_decoder.bert.encoder.layer)
    mask = torch.where(causal(4, DIM), 0.0, torch.finfo(torch.float32).min)
    expected = by_hand(
        frozen.encoder.layer, frozen.embeddings(ids), prompts, attention_mask=mask, encoder_hidden_states=image
    )
    found = backbone.model.text_decoder.bert(input_ids=ids, encoder_hidden_states=image, is_decoder=True)
    assert_close(found.last_hidden_state, expected, frozen)


@both
@pytest.mark.parametrize("name", ["blip", "clip"])
def test_padding_changes_nothing(name: str, deep: bool) -> None:
    backbone, _ = adapted(name, "retrieval", deep)
    short, long = "a red picture", "picture 1 is red and a green picture number 0"
    alone, together = backbone.text([short], 32), backbone.text([short, long], 32)
    assert together.ids.shape[1] > alone.ids.shape[1]
    assert_close(backbone.text_features(together)[0], backbone.text_features(alone)[0], backbone.model)


@both
def test_a_cache_never_holds_the_prompt(deep: bool) -> None:
    backbone, _ = adapted("blip", "captioning", deep)
    decoder = backbone.model.text_decoder
    ids, image = torch.tensor([[5, 9, 7, 11]] * 2), torch.randn(2, 6, IMAGE)
    whole = decoder(input_ids=ids, encoder_hidden_states=image, use_cache=False).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for step, part in enumerate((ids[:, :2], ids[:, 2:3], ids[:, 3:])):
        out = decoder(input_ids=part, encoder_hidden_states=image, past_key_values=cache, use_cache=True)
        assert cache.get_seq_length(1) == (2, 3, 4)[step]
    assert_close(out.logits[:, -1], whole[:, -1], decoder)


def test_a_cache_that_cannot_shrink_is_refused() -> None:
    backbone, _ = adapted("blip", "captioning")
    cache = StaticCache(config=backbone.model.config.text_config, max_cache_len=8)
    cache.update(torch.zeros(1, 4, 3, 8), torch.zeros(1, 4, 3, 8), 0)
    with pytest.raises(ValueError, match="a key-value cache that can shrink, not a Static"):
        forget(cache, 0, 1)


@pytest.mark.parametrize("causal", [False, True])
def test_boolean_and_additive_masks_say_the_same(causal: bool) -> None:
    prompt = adapter_of(Prompt, WIDTH, DIM, causal=causal)
    shown = (
        torch.ones(4, 4, dtype=torch.bool).tril() if causal else torch.tensor([True, True, True, False]).expand(4, 4)
    )
    lowest = torch.finfo(torch.float32).min
    one = prompt.seen(shown[None, None], 4, causal)
    two = prompt.seen(torch.where(shown, 0.0, lowest)[None, None], 4, causal)
    assert one.shape == (1, 1, 4 + DIM, 4 + DIM)
    assert torch.equal(one, two == 0)
    front = slice(4, None) if causal else slice(0, DIM)  # where in memory it stands
    tokens = slice(0, 4) if causal else slice(DIM, None)
    assert bool(one[0, 0, :, front].all()), "everything sees the prompt"
    assert bool(one[0, 0, front, tokens].any()) is not causal
    assert torch.equal(one[0, 0, tokens, tokens], shown)
    if not causal:
        assert torch.equal(prompt.seen(shown[None, None, :1], 4, causal), one), "one row for all"


def test_two_at_once_are_as_one_of_both() -> None:
    backbone, model = adapted("blip", "captioning", points="vision")
    other, _ = adapted("blip", "captioning", dim=2 * DIM, points="vision")
    model.add_adapter("another", model.peft_config["default"])
    model.base_model.set_adapter(["default", "another"])
    units = backbone.model.vision_model.encoder.layers[0].adapter.units
    both = torch.cat([units["default"].tokens, units["another"].tokens]).detach()
    other.model.vision_model.encoder.layers[0].adapter.units["default"].tokens.data = both
    pixels = backbone.pixels([sample.image.load() for sample in make_samples()])
    found, expected = (one.model.vision_model(pixel_values=pixels).last_hidden_state for one in (backbone, other))
    assert_close(found, expected, model)


def test_layers_without_a_point_go_without() -> None:
    backbone, model = adapted("blip", "captioning", points="vision.1")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == DIM * IMAGE
    pixels = backbone.pixels([sample.image.load() for sample in make_samples()])
    states = backbone.model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    frozen = frozen_of("blip", "captioning").model.vision_model
    before = frozen(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert torch.equal(states[1], before[1])
    assert not torch.allclose(states[2], before[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_embeddings": (torch.zeros(1), torch.zeros(1))}, "rotary positions"),
        ({"attention_mask": torch.ones(2, 4)}, "masks of four dimensions"),
    ],
)
def test_what_it_cannot_extend_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_of(Prompt, WIDTH, DIM).enter({"hidden_states": torch.zeros(2, 4, WIDTH), **arguments}, Call(carried={}))


def test_a_call_that_broke_off_leaves_nothing_behind() -> None:
    backbone, _ = adapted("blip", "captioning")
    decoder, image = backbone.model.text_decoder, torch.randn(2, 6, IMAGE)
    arguments = {"input_ids": torch.tensor([[5, 9, 7, 11]] * 2), "encoder_hidden_states": image}
    expected = decoder(**arguments, use_cache=False).logits
    layer = decoder.bert.encoder.layer[1].output
    handle = layer.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        decoder(**arguments, use_cache=True)
    handle.remove()
    assert torch.equal(decoder(**arguments, use_cache=False).logits, expected)


def test_dropping_layers_is_refused() -> None:
    config = TrainConfig(task=TaskConfig(name="captioning", points=["*"]), model=small_config("blip"))
    config.adapter = adapter_config("prompt", drop_layers=1)
    (problem,) = incompatibilities(config)
    assert "adapter.drop_layers" in problem


def test_a_network_makes_the_tokens() -> None:
    prompt = adapter_of(Prompt, WIDTH, DIM, hidden=5)
    first, _, second = prompt.network
    made = torch.tanh(prompt.tokens @ first.weight.T + first.bias) @ second.weight.T + second.bias
    found = prompt.enter({"hidden_states": torch.zeros(2, 4, WIDTH)}, Call(carried={}))["hidden_states"]
    assert_close(found[:, :DIM], made.expand(2, -1, -1))
    assert not found[:, DIM:].any()
    later = adapter_of(Prompt, WIDTH, DIM, hidden=5, first=False)
    assert not list(later.parameters())
    assert later.network is None


def encoder_of(model: nn.Module, name: str) -> nn.Module:
    return model.language.encoder if name == "t5" else model.language.model.encoder


@both
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoder_of_a_language_model_is_as_by_hand(name: str, deep: bool) -> None:
    """T5's positions are relative: those of a prompt that stands in front, whatever the padding behind."""
    config = adapter_config("prompt", dim=DIM, options={"deep": deep, "hidden": 6})
    model, frozen = small(name), small(name)
    attach(model, config, language_sites(name, "text", small=True)).eval()
    ids = torch.arange(10).reshape(2, 5) + 4
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    encoder, plain = encoder_of(model, name), encoder_of(frozen, name)
    found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    alone = encoder(input_ids=ids[1:, :3], attention_mask=mask[1:, :3]).last_hidden_state
    assert_close(found[1, :3], alone[0], encoder)
    layers = encoder.block if name == "t5" else encoder.layers
    made = [unit.network(unit.tokens) if unit.tokens is not None else None for unit in units_of(layers)]
    keep = torch.cat([torch.ones(2, DIM), mask], dim=1).bool()[:, None, None].expand(-1, -1, DIM + 5, -1)
    states, front, bias = embedded(plain, ids, name), None, None
    for layer, own in zip(plain.block if name == "t5" else plain.layers, made, strict=True):
        front = front if own is None else own.expand(2, -1, -1)
        whole = torch.cat([front, states], dim=1)
        if name == "t5":
            out, bias, *_ = layer(whole, keep, bias)
        else:
            out = layer(whole, keep)
        front, states = out[:, :DIM], out[:, DIM:]
    expected = plain.final_layer_norm(states) if name == "t5" else states
    assert_close(found[mask.bool()], expected[mask.bool()], encoder)


def units_of(layers: nn.Module) -> list[Any]:
    return [layer.adapter.units["default"] for layer in layers]


def embedded(encoder: Any, ids: Tensor, name: str) -> Tensor:
    states = encoder.embed_tokens(ids)
    return states if name == "t5" else encoder.layernorm_embedding(states + encoder.embed_positions(ids))


@pytest.mark.parametrize("points", [["decoder"], ["text.0"], ["text.1"]])
def test_relative_positions_allow_it_in_all_layers_of_an_encoder_only(points: list[str]) -> None:
    model = small("t5")
    attach(model, adapter_config("prompt", dim=DIM), language_sites("t5", *points, small=True))
    ids = torch.arange(10).reshape(2, 5) + 4
    with pytest.raises(ValueError, match="in all layers of an encoder, and nowhere else"):
        model.language(input_ids=ids, decoder_input_ids=ids)
    config = TrainConfig(task=TaskConfig(name="captioning", points=points), model=described("t5", small=True))
    config.adapter = adapter_config("prompt")
    (problem,) = incompatibilities(config)
    assert isinstance(problem, Incompatible)
    assert "relative positions" in problem


def test_rotary_positions_are_refused_before_anything_loads() -> None:
    model = copy.deepcopy(described("bart", small=True))
    model.towers["decoder"].positions = "rotary"
    config = TrainConfig(
        task=TaskConfig(name="captioning", points=["*"]), model=model, adapter=adapter_config("prompt")
    )
    (problem,) = incompatibilities(config)
    assert "the decoder tower of model=bart has rotary positions" in problem


def test_published_count() -> None:
    """VL-Adapter's: 40 tokens through 768-800-768, at the encoder's input; for four tasks."""
    config = adapter_config("prompt", dim=40, options={"hidden": 800})
    for name in ("bart", "t5"):
        assert trainable(attach(full_size(name), config, language_sites(name, "text"))) == 1_261_088
    config.by_task = True
    assert trainable(attach(full_size("bart"), config, language_sites("bart", "text"), list("abcd"))) == 5_044_352
