"""The whole side network: its formula, T5's positions, the published count, generation; nothing goes back through the trunk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers import DynamicCache, StaticCache
from transformers.models.t5.modeling_t5 import T5Attention

from tests.adapters.alone import adapter_of
from tests.conftest import adapter_config, make_samples, small_config
from tests.injection.language import Language, described, full_size, small, trainable, where
from tests.numerics import assert_close
from vlatrain.adapters.base import Call
from vlatrain.adapters.lst import Attention, Lst, buckets_of, kept, remembered
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.compatibility import incompatibilities
from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load
from vlatrain.config import ModelConfig, TaskConfig, TrainConfig
from vlatrain.config.errors import Incompatible
from vlatrain.config.model import TowerConfig
from vlatrain.injection.attach import attach
from vlatrain.injection.context import context_of, exported, restore
from vlatrain.tasks import build

TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions)]
IDS = torch.arange(12).reshape(2, 6) + 4
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def adapted(name: str, *points: str, **options: Any) -> tuple[Language, nn.Module]:
    model = small(name)
    adapter = attach(model, adapter_config("lst", options=options), where(name, *points, small=True))
    torch.manual_seed(5)
    for key, parameter in adapter.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=3.0 if ".up." in key else 0.3)  # the words of these are far apart
    return model, adapter.eval()


def logits(model: Language, ids: Tensor = IDS, written: Tensor = IDS, **more: Any) -> Tensor:
    mask = MASK if ids is IDS else torch.ones_like(ids)
    return model.language(input_ids=ids, attention_mask=mask, decoder_input_ids=written, **more).logits


def attended(attention: Attention, states: Tensor, source: Tensor, add: Tensor | float) -> Tensor:
    """Multi-head attention, head by head."""
    size = states.shape[-1] // attention.heads
    query, key, value = attention.query(states), attention.key(source), attention.value(source)
    heads = []
    for head in range(attention.heads):
        own = slice(head * size, (head + 1) * size)
        extra = add[head] if isinstance(add, Tensor) else add
        scores = query[..., own] @ key[..., own].transpose(1, 2) / size**0.5 + extra
        heads.append(scores.softmax(dim=-1) @ value[..., own])
    return attention.out(torch.cat(heads, dim=-1))


def rms(norm: nn.Module, states: Tensor) -> Tensor:
    return norm.weight * states / (states.pow(2).mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


@pytest.mark.parametrize("reads", ["side", "trunk"])
def test_is_the_formula(reads: str) -> None:
    """A decoder of two rungs, beside layers whose outputs are drawn; it attends to a side or to the trunk."""
    torch.manual_seed(0)
    facts = {
        "layers": 2,
        "tower": "decoder",
        "cross": "text",
        "cross_width": 10,
        "towers": ["text", "decoder"],
        "heads": 2,
    }
    rungs = [
        adapter_of(
            Lst, 8, scaling=2.0, reduction=2, reads=reads, first=not i, last=i == 1, index=i, causal=True, **facts
        )  # type: ignore[arg-type]
        for i in range(2)
    ]
    for parameter in (parameter for rung in rungs for parameter in rung.parameters()):
        nn.init.normal_(parameter, std=0.5)
    start, trunk, other, side_of_other = (
        torch.randn(2, 5, 8),
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 3, 10),
        torch.randn(2, 3, 5),
    )
    source = side_of_other if reads == "side" else other
    first = rungs[0]
    side = start @ first.embed.weight.T + first.embed.bias
    bias = torch.zeros(2, 5, 5)
    for query in range(5):
        for key in range(5):
            bias[:, query, key] = first.positions[query - key] if key <= query else -1e9  # near ones have a bucket each
    for rung, states in zip(rungs, trunk, strict=True):
        share = torch.sigmoid(rung.gate / 0.1)
        side = share * (states @ rung.down.weight.T + rung.down.bias) + (1 - share) * side
        normed = rms(rung.attention_norm, side)
        side = side + attended(rung.attention, normed, normed, bias)
        side = side + attended(rung.cross, rms(rung.cross_norm, side), source, 0.0)
        side = side + relu(rms(rung.norm, side) @ rung.inner.weight.T) @ rung.out.weight.T
    expected = 2 * (rms(rungs[1].end_norm, side) @ rungs[1].up.weight.T + rungs[1].up.bias)
    call = Call(carried={}, exported={"text": side_of_other})
    arguments = {"hidden_states": start, "encoder_hidden_states": other}
    found = []
    for rung, states in zip(rungs, trunk, strict=True):
        rung.enter(arguments, call)
        found.append(rung(states, call))
    assert found[0] is None
    assert_close(found[1], expected)
    assert not call.carried, "the states are handed on, not kept"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("buckets", [8, 32])
def test_positions_are_in_the_buckets_of_t5(buckets: int, causal: bool) -> None:
    where = torch.arange(300)
    distance = where[None] - where[:, None]
    expected = T5Attention._relative_position_bucket(distance, bidirectional=not causal, num_buckets=buckets)
    assert torch.equal(buckets_of(distance, buckets, causal), expected)


def test_published_count_on_t5() -> None:
    """LST's: 24 layers, 26 projections down and one up, positions, final norms and gates."""
    found = trainable(attach(full_size("t5"), adapter_config("lst"), where("t5")))
    encoder, decoder = Lst.count(768, 12, 12, end=False), Lst.count(768, 12, 12, cross=768 // 4)
    assert found == encoder + decoder == 16_386_072


def test_counted_on_bart_with_layer_norms_and_biases() -> None:
    config = adapter_config("lst", bias=True, options={"norm": "layer", "buckets": 0})
    found = trainable(attach(small("bart"), config, where("bart", small=True)))
    down, attention, feed = 32 * 8 + 8, 4 * (64 + 8) + 16, 8 * 64 + 8 * 5 + 16
    layers, attentions = 2 + 3, 2 + 2 * 3  # the decoder's attend to the encoder's, too
    assert found == layers * (down + 1 + feed) + attentions * attention + 2 * (down + 16) + 8 * 32 + 32


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_starts_as_the_frozen_model(name: str) -> None:
    model = small(name)
    before = logits(model)
    attach(model, adapter_config("lst"), where(name, small=True))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize(
    "options", [{}, {"buckets": 0, "norm": "layer"}, {"reads": "trunk"}], ids=["", "plain", "trunk"]
)
def test_writes_what_teacher_forcing_says(name: str, options: dict[str, Any]) -> None:
    """Greedily, with and without a key-value cache, the likeliest next token of the whole sequence so far; beams agree too."""
    points = ["decoder"] if options.get("reads") == "trunk" else []
    model, adapter = adapted(name, *points, **options)
    plain = small(name).language.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6, min_new_tokens=6)
    found = {}
    for cached in (True, False):
        for beams in (1, 3):
            found[cached, beams] = model.language.generate(
                input_ids=IDS,
                attention_mask=MASK,
                max_new_tokens=6,
                min_new_tokens=6,
                num_beams=beams,
                use_cache=cached,
            )
    for beams in (1, 3):
        assert torch.equal(found[True, beams], found[False, beams])
    written = found[True, 1]
    assert not torch.equal(written, plain), "the side has a say"
    with torch.no_grad():
        scores = logits(model, written=written[:, :-1])
    if name == "bart":  # the first token is a forced one, the last is the end
        scores, written = scores[:, 1:-1], written[:, 1:-1]
    allowed = scores.clone()
    allowed[..., model.language.generation_config.eos_token_id] = -torch.inf  # before six tokens, it may not end
    assert torch.equal(allowed.argmax(dim=-1), written[:, 1:])
    del adapter


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_changes_nothing(name: str) -> None:
    model, _ = adapted(name)
    together, alone = logits(model)[1], logits(model, IDS[1:, :4], IDS[1:])[0]
    assert_close(together, alone, model)


def test_a_token_sees_none_after_it() -> None:
    model, _ = adapted("t5")
    changed = IDS.clone()
    changed[:, 4:] = 7
    one, two = logits(model), logits(model, written=changed)
    assert_close(one[:, :4], two[:, :4], model)
    assert not torch.allclose(one[:, 4:], two[:, 4:])


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("points", [[], ["*.1-2"]], ids=["every layer", "layers dropped"])
def test_nothing_goes_back_through_the_trunk_but_all_of_the_side_learns(name: str, points: list[str]) -> None:
    """What trains before the first layer learns through the side."""
    model, adapter = adapted(name, *points)
    seen: list[tuple[str, Any]] = []
    for path, module in model.named_modules():
        if ".adapter" not in path and (".block." in path or ".layers." in path) and path.count(".") > 4:
            module.register_forward_hook(lambda module, args, output, path=path: seen.append((path, output)))
    embeds = model.language.get_input_embeddings()(IDS).detach().requires_grad_(True)
    labels = IDS.flip(1)
    model.language(inputs_embeds=embeds, attention_mask=MASK, labels=labels).loss.backward()
    assert seen
    for path, output in seen:
        before = points and (".block.0." in path or ".layers.0." in path)  # no rung has detached what it is given
        for tensor in output if isinstance(output, tuple) else (output,):
            assert not isinstance(tensor, Tensor) or tensor.grad_fn is None or before, path
    assert (embeds.grad is not None) == (not points)
    for key, parameter in adapter.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key


def test_what_the_encoder_leaves_is_taken_along_with_its_rows() -> None:
    model, _ = adapted("t5")
    encoder, owner = model.language.get_encoder(), torch.tensor([1, 0, 0])
    states = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    values = {"states": states, **exported(model)}
    expected = logits(model, written=IDS)[owner]
    encoder(input_ids=IDS[:1])  # of something else, meanwhile
    picked = {name: value.index_select(0, owner) for name, value in values.items()}
    outputs = (picked["states"],)
    arguments = {"encoder_outputs": outputs, "attention_mask": MASK[owner], "decoder_input_ids": IDS[owner]}
    with restore(model, picked):
        found = model.language(**arguments).logits
    assert_close(found, expected, model)
    with pytest.raises(ValueError, match="but the last one, of text, has run for"):
        model.language(**{**arguments, "encoder_outputs": (torch.zeros(3, 5, 32),), "attention_mask": None})
    context_of(model).call.exported.clear()
    with pytest.raises(ValueError, match="but none has run"):
        model.language(**arguments)


def test_a_copy_while_it_is_at_work() -> None:
    model, adapter = adapted("bart")
    before = logits(model)
    assert exported(model)
    other = copy.deepcopy(adapter)
    assert not exported(other)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(model), before)


def deeper(name: str) -> ModelConfig:
    config = small_config(name)
    for part in ("vision_config", "text_config"):
        config.config[part]["num_hidden_layers"] = 3
    return config


def loss_of(backbone: Backbone) -> Tensor:
    torch.manual_seed(0)
    task = build(TaskConfig(name=backbone.task), backbone)
    return task.loss(task.collate(make_samples()))


@pytest.mark.parametrize("task", ["vqa", "captioning"])
def test_a_chain_of_towers_in_blip(task: str) -> None:
    """Image, question, answer: each side attends to the one before, whatever rows the task makes of the context."""
    config = deeper("blip")
    backbone = load(config, task, texts=TEXTS)
    model = attach(backbone.model, adapter_config("lst"), sites(config, task, ["*"]))
    ups = [key for key, _ in model.named_parameters() if ".up." in key]
    assert len(ups) == 2, "weight and bias, in the decoder only"
    assert all(".text_decoder." in key for key in ups)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    loss = loss_of(backbone)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters() if p.requires_grad)
    assert all(not carried for carried in context_of(backbone.model).call.carried.values())


def test_a_side_that_the_heads_do_not_divide_is_refused_with_one_that_they_do() -> None:
    config = TrainConfig(task=TaskConfig(name="vqa"), model=small_config("blip"))
    config.adapter = adapter_config("lst", options={"reduction": 7})
    (problem,) = incompatibilities(config)
    assert isinstance(problem, Incompatible)
    assert "adapter.options.reduction=7" in problem
    assert "vision, 48 wide with 3 heads, a side of 6" not in problem
    assert "fusion, 48 wide with 4 heads, a side of 6" in problem
    assert problem.endswith("; 6 would do") is False
    config.adapter.options["reduction"] = int(problem.removesuffix(" would do").rpartition(" ")[2])
    assert not incompatibilities(config)
    config.adapter.overrides = {"vision.*.*": {"reduction": 8}}
    (problem,) = incompatibilities(config)
    assert "a side is as wide beside all layers" in problem


def test_a_cache_that_does_not_grow_is_refused() -> None:
    cache = StaticCache(config=small("bart").config, max_cache_len=8)
    states = torch.zeros(1, 2, 3, 16)
    cache.update(states, states, 0)
    with pytest.raises(ValueError, match="that grows with the text, not a Static"):
        remembered(cache, 4, states, states)
    dynamic = DynamicCache()
    dynamic.update(states, states, 0)
    for length in (3, 6):
        assert remembered(dynamic, 4, states, states)[0].shape[2] == length
    assert dynamic.get_seq_length() == 3


def test_masks_of_all_kinds_say_the_same() -> None:
    shown = torch.tensor([[True, True, False]])
    for mask in (shown, shown.long(), shown[:, None, None], torch.where(shown, 0.0, -1e9)[:, None, None]):
        assert torch.equal(kept(mask), shown[:, None, None])
    assert kept(None) is None


@pytest.mark.parametrize(
    ("model", "task", "changes", "message"),
    [
        ("t5", "captioning", {"points": ["decoder"]}, "attends to that of text, which has no points"),
        ("t5", "captioning", {"points": ["text", "decoder.0"]}, "the last layer of decoder, 1"),
        ("t5", "captioning", {"points": ["text"]}, "end in a head (decoder), those that these attend to, and not text"),
        ("t5", "captioning", {"options": {"reads": "trunk"}}, "end in a head (decoder), and not text"),
        ("blip", "retrieval", {}, "matches texts with images anew"),
        ("blip", "captioning", {"drop_layers": 1}, "adapter.drop_layers"),
        ("blip", "captioning", {"trunk": ["norms"]}, "never goes back through the trunk"),
    ],
)
def test_refused_by_name_before_anything_loads(model: str, task: str, changes: dict[str, Any], message: str) -> None:
    config = TrainConfig(
        task=TaskConfig(name=task), model=small_config(model) if model == "blip" else described(model, small=True)
    )
    config.adapter = adapter_config("lst", **changes)
    (problem,) = incompatibilities(config)
    assert message in problem
    assert isinstance(problem, Incompatible) == ("last layer" not in message)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lst", {}, ""),
        (
            "lst",
            {"points": ["decoder"], "options": {"reads": "trunk"}},
            "(projection) could not learn; adapter=lst has",
        ),
        ("ladder", {"points": ["decoder"]}, "(projection) could not learn; adapter=lst has a side in both"),
        ("lst", {"points": ["*.1-2"]}, "layer 0 of text must be among its points"),
    ],
)
def test_what_is_new_before_an_encoder_needs_a_side_there(name: str, changes: dict[str, Any], message: str) -> None:
    model = copy.deepcopy(described("bart", small=True))
    model.tasks["captioning"].trained, model.tasks["captioning"].other_modality = (
        ["projection"],
        {"decoder": "projector"},
    )
    model.towers["projector"] = TowerConfig(width="text_config.d_model")
    config = TrainConfig(task=TaskConfig(name="captioning"), model=model, adapter=adapter_config(name, **changes))
    found = incompatibilities(config)
    assert message in "".join(found)
    assert len(found) == bool(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 9}, "from 1 to 8"),
        ({"temperature": 0.0}, "more than 0"),
        ({"activation": "gelo"}, "must be one of"),
        ({"norm": "batch"}, "norm=batch: must be one of rms, layer"),
        ({"reads": "both"}, "reads=both: must be one of side, trunk"),
        ({"heads": 3}, "3 attention heads do not divide a side of 2"),
        ({"cross": "text", "tower": "decoder"}, "the decoder tower attends to text, which has no side"),
    ],
)
def test_options_that_do_not_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_of(Lst, 8, **options)
