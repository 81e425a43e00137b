"""The predicted peak of memory: its lengths are those of real batches, its keys and values those of a real search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.backbones import composites
from tests.conftest import adapter_config, make_samples
from tests.gpu_free.families import config_of, set_up, task_of
from vlatrain.backbones.base import BUCKET, Generator
from vlatrain.backbones.describe import sites
from vlatrain.backbones.keys_values import kept_in_search
from vlatrain.backbones.loading import load
from vlatrain.backbones.quantise import layers_of
from vlatrain.config import DecodeConfig, TaskConfig, TrainConfig, TrainerConfig
from vlatrain.injection.attach import attach
from vlatrain.tasks import Task, build
from vlatrain.tasks.lengths import longest_texts
from vlatrain.training import memory
from vlatrain.training.memory import on_meta, predicted
from vlatrain.training.shapes import Alive
from vlatrain.verbs.inspect import count

LONG = [
    replace(sample, captions=(*sample.captions, "a longer caption of the same picture"), answers=("yes", "no", "yes"))
    for sample in make_samples()
]


def task_on(name: str, task: str, **settings: Any) -> Task:
    backbone = load(config_of(name), task, texts=composites.TEXTS)
    return build(TaskConfig(name=task, **settings), backbone, LONG)


@pytest.mark.parametrize(
    ("name", "task"), [("blip", "vqa"), ("vilt", "vqa"), ("clip", "retrieval"), ("clip+gpt2", "captioning")]
)
def test_lengths_are_those_of_the_batch(name: str, task: str) -> None:
    own = task_on(name, task, max_length=9)
    batch: Any = own.collate(LONG)
    lengths = longest_texts(own, LONG, len(LONG))
    if task == "vqa":
        more = lengths["questions"] - batch["inputs"]["question"].ids.shape[1]
        assert 0 <= more < (BUCKET if name == "vilt" else 1)  # not every family pads to a multiple
    if name == "vilt":
        return  # answers are places in a list
    text = next(batch[key] for key in ("caption", "answer", "text") if key in batch)
    kind = "answers" if task == "vqa" else "captions"
    assert own.backbone.padded_to(lengths[kind]) == text.ids.shape[1]
    assert lengths["texts"] * len(LONG) == len(text.ids)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("beams", [pytest.param(1, marks=SLOW), 3])
@pytest.mark.parametrize(
    "name",
    [
        "blip",
        "clip+gpt2",
        *(pytest.param(name, marks=SLOW) for name in ("llava", "blip2_opt", "siglip+llama", "dinov3+t5")),
    ],
)
def test_a_search_keeps_what_is_counted(name: str, beams: int) -> None:
    """The keys and values that are there when the last token has been asked for."""
    backbone, settings = set_up(config_of(name), "captioning")
    assert isinstance(backbone, Generator)
    new = 5
    decode = DecodeConfig(num_beams=beams, max_new_tokens=new, min_new_tokens=new)
    inputs = task_of(backbone, settings).inputs(make_samples()[:2])
    context = backbone.context(inputs)
    held = 0

    def look(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal held
        caches = kwargs["past_key_values"]
        pairs = [getattr(caches, "self_attention_cache", caches), getattr(caches, "cross_attention_cache", None)]
        tensors = [
            t for cache in pairs if cache is not None for layer in cache.layers for t in (layer.keys, layer.values)
        ]
        tensors += [t for inner in backbone.model.modules() for t in getattr(inner, "kept", None) or ()]
        held = sum(tensor.numel() for tensor in tensors if tensor is not None)

    writer = backbone.model.text_decoder if name == "blip" else getattr(backbone, "writer", None) or backbone.language
    handle = writer.register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        backbone.generate(context, decode)
    handle.remove()
    counted = kept_in_search(backbone, context, beams, new)
    # the last token is asked for and not kept, and a search may begin with tokens of its own
    assert counted == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize(
    ("name", "task", "settings"),
    [
        ("blip", "captioning", {}),
        *(
            pytest.param(*cell, marks=SLOW)
            for cell in (
                ("blip", "vqa", {"answers": "rank", "answer_list": [f"answer {number}" for number in range(40)]}),
                ("blip", "retrieval", {"rerank": 4}),
                ("llava", "instruct", {}),
                ("qwen2_5_vl", "instruct", {}),
                ("clip", "classification", {}),
                ("vilt", "vqa", {}),
                ("vilt", "retrieval", {}),
            )
        ),
    ],
)
def test_an_evaluation_on_shapes_is_one_on_a_device(name: str, task: str, settings: dict[str, Any]) -> None:
    config = TrainConfig(
        task=TaskConfig(name=task, points=["*"], **settings),
        model=config_of(name),
        adapter=adapter_config("bottleneck", dim=4),
        trainer=TrainerConfig(batch_size=2, device="cpu"),
    )
    backbone = load(config.model, task, texts=composites.TEXTS)
    model = attach(backbone.model, config.adapter, sites(config.model, task, config.task.points))
    own = build(config.task, backbone, LONG)
    found = memory.largest_passes(replace(config, task=own.config), on_meta(backbone, model)[0], 2)
    assert not any(parameter.is_meta for parameter in model.parameters())  # the copies are others
    with torch.no_grad(), Alive() as alive:
        own.evaluate_on_meta(4, "cpu")
    assert found.evaluation == pytest.approx(alive.peak, rel=0.1)


def test_logits_count_where_replies_are_learned() -> None:
    config = TrainConfig(
        task=TaskConfig(name="instruct", points=["decoder"]),
        model=composites.small("clip", "gpt2", visual="tokens"),
        adapter=adapter_config("bottleneck", dim=4),
    )
    backbone = load(config.model, "instruct", texts=composites.TEXTS)
    model = on_meta(backbone, attach(backbone.model, config.adapter, sites(config.model, "instruct", ["decoder"])))[0]
    few, many = (
        memory.largest_passes(config, model, 4, {"": {"conversations": 40, "replies": replies}}).training
        for replies in (3, 39)
    )
    logits = 4 * 36 * backbone.language.config.vocab_size * 4
    assert many - few >= logits


@SLOW
def test_states_kept_in_memory_count_and_spare_the_towers() -> None:
    def of(cache: str) -> Any:
        config = TrainConfig(
            task=TaskConfig(name="captioning", points=["decoder"]),
            model=config_of("blip"),
            adapter=adapter_config("bottleneck", dim=4),
            trainer=TrainerConfig(batch_size=4, cache=cache, device="cpu"),
        )
        backbone = load(config.model, "captioning", texts=composites.TEXTS)
        model = attach(backbone.model, config.adapter, sites(config.model, "captioning", config.task.points))
        return predicted(config, *on_meta(backbone, model), 4, samples=100)

    off, kept, disk = (of(cache) for cache in ("off", "memory", "disk"))
    assert off.kept == disk.kept == 0
    assert kept.kept == 100 * kept.passes.kept > 0
    assert kept.training == disk.training
    assert kept.evaluation <= off.evaluation


@SLOW
def test_what_looks_at_values_is_bounded_by_all_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(method: str) -> Any:
        return count(
            TrainConfig(
                task=TaskConfig(name="captioning", points=["decoder"]),
                model=config_of("blip"),
                adapter=adapter_config(method),
                trainer=TrainerConfig(batch_size=4, device="cpu"),
            )
        ).memory

    known, run, calls = of("lora"), memory.largest_passes, []

    def looks(*given: Any) -> Any:
        if not calls:
            calls.append(given)
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")
        return run(*given)

    monkeypatch.setattr(memory, "largest_passes", looks)
    bound = of("lora")
    assert bound.passes is None
    assert known.passes is not None
    assert bound.training > known.training


def test_shards_take_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(
        task=TaskConfig(name="captioning"),
        model=config_of("blip"),
        adapter=adapter_config("bottleneck", dim=4),
        trainer=TrainerConfig(batch_size=2, device="cpu", shard=True),
    )
    backbone = load(config.model, "captioning", texts=composites.TEXTS)
    layers = [
        sum(own.numel() for own in layer.parameters())
        for layer in layers_of(backbone.model, config.model, "captioning")
    ]
    shapes = on_meta(backbone, attach(backbone.model, config.adapter, sites(config.model, "captioning", ["*"])))
    monkeypatch.setattr(memory, "largest_passes", lambda *_: memory.Passes(0, 0, 0))
    found = {}
    for processes in (1, 2, 8):
        monkeypatch.setattr(memory, "count", lambda processes=processes: processes)
        found[processes] = memory.predicted(config, *shapes, 2).weights
    for processes in (2, 8):
        held = sum(layers) // processes + 3 * max(layers)
        assert found[1] - found[processes] == pytest.approx(4 * (sum(layers) - held), abs=8)
