"""Models that continue text after an image, against transformers' own forward passes, alone and in a batch."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from tests.backbones.chatting import CHAT, NAMES, QUESTIONS, REPLIES, TEXTS, images, make, own_logits, shared
from tests.backbones.heads import assert_heads
from tests.conftest import adapter_config, make_samples, model_config, small_config
from tests.injection.table import randomise
from tests.numerics import assert_close
from vlatrain.backbones.base import Backbone, Generator, Text
from vlatrain.backbones.describe import sites, stacks, widths
from vlatrain.backbones.families.qformer_lm import OptLayer
from vlatrain.backbones.loading import load, meta_model
from vlatrain.backbones.processors import processor_class
from vlatrain.backbones.search import generate_settings
from vlatrain.config import DecodeConfig, TaskConfig, UserError
from vlatrain.injection.attach import attach
from vlatrain.injection.context import context_of
from vlatrain.injection.points import everything
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches

QUICK = ("llava", "qwen3_vl", "blip2_opt", "florence2")


def named(*names: str, quick: Sequence[str] = QUICK) -> Any:
    """Parametrised by name; those that are not quick are marked."""
    return pytest.mark.parametrize(
        "name", [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


def row(text: Text, number: int) -> Text:
    """A text without the padding of its batch."""
    length = int(text.mask[number].sum())
    return Text(text.ids[number : number + 1, :length], text.mask[number : number + 1, :length])


@named(*NAMES)
def test_scores_are_transformers_own_whatever_else_is_in_the_batch(name: str) -> None:
    backbone = shared(name)
    context = backbone.context(backbone.inputs(images(), QUESTIONS, 40))
    target, given = backbone.target(REPLIES, 20)
    assert given >= 1
    logits = backbone.logits(context, target)
    for number in range(4):
        inputs = backbone.inputs(images()[number : number + 1], QUESTIONS[number : number + 1], 40)
        own = row(target, number)
        alone = backbone.logits(backbone.context(inputs), own)
        assert_close(alone, own_logits(backbone, name, inputs, own.ids), backbone.model)
        assert_close(logits[number, : own.ids.shape[1]], alone[0], backbone.model)
    group_index = torch.tensor([2, 0, 0, 3])
    picked = backbone.logits(
        backbone.select_rows(context, group_index), Text(target.ids[group_index], target.mask[group_index])
    )
    assert_close(picked, logits[group_index], backbone.model)
    others = backbone.logits(backbone.context(backbone.inputs(images()[::-1], QUESTIONS, 40)), target)
    assert (others - logits).abs().amax(dim=(1, 2)).min() > 1e-3, "the image is seen"


@named(*CHAT)
def test_a_prompt_is_read_once_for_all_texts_that_might_follow(name: str) -> None:
    backbone = make(name)
    attach(backbone.model, adapter_config("cross_modal", dim=8), sites(backbone.config, "vqa", ["{text,decoder}"]))
    randomise(backbone.model.eval())
    with torch.no_grad():
        context = backbone.context(backbone.inputs(images(), QUESTIONS, 40))  # prompts of several lengths, padded
        target, _ = backbone.target(REPLIES, 20)
        read: list[int] = []
        backbone.model.get_input_embeddings().register_forward_hook(lambda _, ids, out: read.append(ids[0].numel()))
        for number in range(len(QUESTIONS)):
            alone = backbone.select_rows(context, torch.tensor([number]))
            read.clear()
            logits = backbone.candidate_logits(alone, target)
            assert sum(read) <= alone["input_ids"].shape[1] + target.ids.numel()
            expected = Backbone.candidate_logits(backbone, alone, target)
            learned = target.mask.bool()
            assert_close(logits[learned], expected[learned], backbone.model)


@named(*NAMES)
def test_what_is_written_is_what_scores_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = shared(name)
    context = backbone.context(backbone.inputs(images(), QUESTIONS, 40))
    seen: list[Tensor] = []
    image_token = backbone.model.config.image_token_id  # which a model with random weights might write
    monkeypatch.setattr(backbone.writer.generation_config, "suppress_tokens", [image_token])
    monkeypatch.setattr(type(backbone), "written", lambda self, ids: seen.append(ids) or [""] * len(ids))
    decode = DecodeConfig(max_new_tokens=6)
    backbone.generate(context, decode)
    (ids,) = seen
    assert ids.shape[1] > 1
    start, given = backbone.target([""], 1)
    start_ids = start.ids[:, :given].expand(len(ids), -1)
    whole = torch.cat([start_ids, ids], dim=1)
    logits = backbone.logits(context, Text(whole, torch.ones_like(whole))).detach()
    logits[..., image_token] = -torch.inf
    (begin,) = generate_settings(decode, 1, backbone.word_start)["logits_processor"]
    ends = backbone.writer.generation_config.eos_token_id
    running = torch.ones(len(ids), dtype=torch.bool)
    for place in range(ids.shape[1]):  # behind its end a text is padding
        best = begin(whole[:, : given + place], logits[:, given - 1 + place]).argmax(dim=-1)
        assert torch.equal(ids[running, place], best[running])
        running &= ~torch.isin(ids[:, place], torch.tensor(ends))


@named(*NAMES)
def test_beams_and_alternatives_do_not_depend_on_other_rows(name: str) -> None:
    backbone = shared(name)
    decode = DecodeConfig(num_beams=3, max_new_tokens=5)
    texts = backbone.generate(backbone.context(backbone.inputs(images(), QUESTIONS, 40)), decode, alternatives=2)
    assert len(texts) == 8
    for number in (0, 3):
        inputs = backbone.inputs(images()[number : number + 1], QUESTIONS[number : number + 1], 40)
        assert backbone.generate(backbone.context(inputs), decode, alternatives=2) == texts[2 * number : 2 * number + 2]


@named(*NAMES)
def test_a_caption_goes_on_from_its_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = shared(name)
    monkeypatch.setattr(type(backbone), "written", lambda self, ids: ids.tolist())  # special tokens, too
    plain, first = backbone.target(["red picture"], 20)
    target, given = backbone.target(["red picture"], 20, prompt="a blue")
    assert given == first + 2
    assert backbone.tokenizer.decode(target.ids[0, first:given]) == "a blue"
    assert torch.equal(target.ids[0, given:], plain.ids[0, first:])
    assert target.ids[0, -1] == backbone.script.end_ids[-1]
    cut = backbone.target(["red picture " * 9], 4)[0].ids
    assert cut.shape[1] == first + 4
    assert cut[0, -1] != backbone.script.end_ids[-1], "cut, and not ended"
    context = backbone.context(backbone.inputs(images()))
    decode = DecodeConfig(max_new_tokens=6, min_new_tokens=6)
    assert backbone.generate(context, decode, "a blue") != backbone.generate(context, decode)


@named(*NAMES)
def test_a_folder_loads_as_it_was_saved(name: str, tmp_path: Path) -> None:
    first = make(name)
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    second = load(model_config(name, checkpoint=str(tmp_path), options=first.config.options), "vqa")
    assert isinstance(second, Generator)
    for (key, one), (_, two) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(one, two), key
    given = [backbone.inputs(images(), QUESTIONS, 40) for backbone in (first, second)]
    assert given[0].keys() == given[1].keys()
    assert all(torch.equal(value, given[1][key]) for key, value in given[0].items())
    target, _ = first.target(REPLIES, 20)
    assert torch.equal(target.ids, second.target(REPLIES, 20)[0].ids)
    found = [b.logits(b.context(i), target) for b, i in zip((first, second), given, strict=True)]
    assert_close(*found, first.model)
    carried = pickle.loads(pickle.dumps(second.processor))  # as data-loading workers may get it
    assert type(carried) is type(second.processor)
    assert carried.to_dict() == second.processor.to_dict()
    decode = DecodeConfig(max_new_tokens=4)
    assert len({tuple(b.generate(b.context(given[0]), decode)) for b in (first, second)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAT)
def test_a_tokenizer_without_padding_pads_with_the_end(name: str, tmp_path: Path) -> None:
    """Masked, it is no matter which token stands there: rows of a batch are as alone."""
    made = make(name)
    made.processor.tokenizer.pad_token = None
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    backbone = load(model_config(name, checkpoint=str(tmp_path), options=made.config.options), "vqa")
    assert backbone.tokenizer.pad_token == backbone.tokenizer.eos_token
    target, _ = backbone.target(REPLIES, 20)
    logits = backbone.logits(backbone.context(backbone.inputs(images(), QUESTIONS, 40)), target)
    for number in range(4):
        inputs = backbone.inputs(images()[number : number + 1], QUESTIONS[number : number + 1], 40)
        own = row(target, number)
        alone = backbone.logits(backbone.context(inputs), own)
        assert_close(logits[number, : own.ids.shape[1]], alone[0], backbone.model)


def test_a_folder_in_the_hubs_older_layout(tmp_path: Path) -> None:
    """No settings of the whole processor, those of its image processor on their own, the chat template in JSON."""
    first = make("qwen2_5_vl")
    first.model.generation_config.eos_token_id = [7, 8]
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    first.processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": first.processor.chat_template}))
    assert not (tmp_path / "processor_config.json").exists()
    second = load(model_config("qwen2_5_vl", checkpoint=str(tmp_path), options=first.config.options), "vqa")
    assert type(second.processor) is type(first.processor)
    given = [backbone.inputs(images(), QUESTIONS, 40) for backbone in (first, second)]
    assert all(torch.equal(value, given[1][key]) for key, value in given[0].items())
    assert second.script.end_ids == first.script.end_ids
    assert second.writer.generation_config.eos_token_id == sorted({7, 8, second.script.end_ids[-1], 3})


@named(*NAMES)
def test_adapters_read_the_image_alone_and_in_a_batch_scoring_and_writing(name: str) -> None:
    backbone = make(name)
    config = backbone.config
    reader = backbone.reader
    assert config.tasks["vqa"].other_modality[reader] == "projector"
    torch.manual_seed(0)
    method = adapter_config("cross_modal", dim=8, init="normal", init_std=0.5)
    attach(backbone.model, method, sites(config, "vqa", [f"{reader}.*.*"]))
    for key, parameter in backbone.model.named_parameters():
        if key.endswith("cross_gate"):
            parameter.data.fill_(1.0)
    inputs = backbone.inputs(images(), QUESTIONS, 40)
    target, _ = backbone.target(REPLIES, 20)
    logits = backbone.logits(backbone.context(inputs), target)
    decode = [DecodeConfig(max_new_tokens=4), DecodeConfig(num_beams=3, max_new_tokens=4)]
    texts = [backbone.generate(backbone.context(inputs), one) for one in decode]
    for number in (0, 1):
        alone = backbone.context(backbone.inputs(images()[number : number + 1], QUESTIONS[number : number + 1], 40))
        own = row(target, number)
        assert_close(logits[number, : own.ids.shape[1]], backbone.logits(alone, own)[0], backbone.model)
        assert [backbone.generate(alone, one)[0] for one in decode] == [found[number] for found in texts]

    seen = []
    (site, *_) = context_of(backbone.model).readers
    (unit,) = site.units.values()
    unit.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    backbone.logits(backbone.context(inputs), target)
    image_token = backbone.model.config.image_token_id
    counts = (inputs["input_ids"] == image_token).sum(dim=1)
    assert seen[0].other.shape[-1] == widths(config, "vqa")["projector"]
    kept = torch.ones(seen[0].other.shape[:2]) if seen[0].mask is None else seen[0].mask
    assert kept.sum(dim=1).tolist() == counts.tolist(), "all of the image, and nothing of the padding"


@named(*NAMES, quick=["llava"])
def test_gradients_are_finite_under_padding_and_four_samples_are_learned(name: str) -> None:
    backbone = make(name)
    torch.manual_seed(0)
    points = backbone.config.tasks["vqa"].points
    attach(backbone.model, adapter_config("lora", dim=8), sites(backbone.config, "vqa", points))
    samples = make_samples()[:4]
    task = build(TaskConfig(name="vqa"), backbone)
    batch = task.collate(samples)
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for step in range(60):
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        optimizer.step()
    with torch.no_grad():
        found = task.evaluate(samples, SharedBatches("cpu", len(samples)))
    assert found.metrics["accuracy"] == 100, found.predictions


@pytest.mark.parametrize("name", NAMES)
def test_the_description_names_modules_that_are_there(name: str) -> None:
    backbone = shared(name)
    norms = (nn.LayerNorm, nn.RMSNorm)
    found = sites(backbone.config, "vqa", ["*"])
    for point, place in found.places.items():
        assert isinstance(backbone.model.get_submodule(place.output), nn.Linear), place.output
        backbone.model.get_submodule(place.input)
        for role, path in place.modules.items():
            module = backbone.model.get_submodule(path)
            is_norm = isinstance(module, norms) or type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))
            assert is_norm if role == "norm" else isinstance(module, nn.Linear), path
        width = backbone.model.get_submodule(place.output).out_features
        assert width == place.width, point
        if point.site == "attn":
            assert_heads(backbone.model, place)
    for tower in backbone.config.tasks["vqa"].towers:
        described = backbone.config.towers[tower]
        for path in (described.embeddings, described.norm, *described.outside.values()):
            if path:
                backbone.model.get_submodule(path)
        depth = len(backbone.model.get_submodule(described.layers))
        unused = name == "llava" and tower == "vision"
        assert stacks(backbone.config, "vqa")[tower].layers == depth - unused


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llava", 7_063_427_072),  # 7.06 B as published on the hub
        ("llava_onevision", 8_030_807_584),  # 8.03 B
        ("qwen2_5_vl", 8_292_166_656),  # 8.29 B
        ("qwen2_5_vl_3b", 3_754_622_976),  # 3.75 B
        ("qwen3_vl", 4_437_815_808),  # 4.44 B
        ("smolvlm", 256_484_928),  # 256 M
        ("smolvlm_2b", 2_246_272_880),  # 2.25 B
        ("paligemma", 2_923_466_480),  # 2.92 B
        ("florence2", 231_443_968),  # 232 M in the paper
        ("blip2_opt", 3_744_761_856),  # 3.74 B
        (
            "blip2_t5",
            3_876_648_448,
        ),  # 3.94 B, which counts the output words, 65.8 M, that transformers ties to the others
        ("instructblip", 7_913_726_720),  # 7.91 B
    ],
)
def test_full_size_on_the_meta_device(name: str, parameters: int) -> None:
    model = meta_model(model_config(name), "vqa")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("first", [True, False])
def test_opt_is_transformers_own_but_for_the_shape_inside(first: bool) -> None:
    settings = {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = OPTForCausalLM(
        OPTConfig(**settings, vocab_size=50, max_position_embeddings=32, do_layer_norm_before=first)
    ).eval()
    ids, mask = torch.randint(4, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    expected = model(input_ids=ids, attention_mask=mask).logits
    shapes = []
    for layer in model.model.decoder.layers:
        layer.__class__ = OptLayer
        layer.fc2.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    assert_close(model(input_ids=ids, attention_mask=mask).logits, expected, model)
    assert shapes == [(2, 7, 32)] * 2


def test_a_reply_of_paligemma_is_causal_and_its_prompt_is_not() -> None:
    backbone = shared("paligemma")
    inputs = backbone.inputs(images()[:1], QUESTIONS[:1], 40)
    target, _ = backbone.target(["red picture is blue"], 20)
    context = backbone.context(inputs)
    logits = backbone.logits(context, target)
    changed = Text(target.ids.clone(), target.mask)
    changed.ids[0, 3] += 1
    other = backbone.logits(context, changed)
    assert_close(other[:, :3], logits[:, :3], backbone.model)
    assert (other[:, 3:] - logits[:, 3:]).abs().amax(dim=-1).min() > 1e-3
    states = backbone.model(**inputs, output_hidden_states=True).hidden_states[-1]
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, -1] += 1
    again = backbone.model(**inputs, output_hidden_states=True).hidden_states[-1]
    assert (again - states)[0, :-1].abs().amax(dim=-1).min() > 1e-4, "tokens before it see the prompt's last one"


def test_cross_attention_of_a_q_former_is_in_every_second_layer() -> None:
    config = small_config("blip2_opt")
    config.config["qformer_config"]["num_hidden_layers"] = 4
    found = [str(point) for point in everything(stacks(config, "vqa")) if point.tower == "qformer"]
    assert [point for point in found if point.endswith("cross")] == ["qformer.0.cross", "qformer.2.cross"]
    assert "qformer.3.ffn" in found
    with pytest.raises(UserError, match="matches nothing"):
        sites(config, "vqa", ["qformer.1.cross"])


def test_the_image_token_in_a_question_is_no_image() -> None:
    for name in ("llava", "qwen2_5_vl", "blip2_opt"):
        backbone = shared(name)
        image = str(backbone.processor.image_token)
        odd, plain = (backbone.inputs(images()[:1], [f"is {said}it red?"], 40)["input_ids"] for said in (image, ""))
        number = backbone.model.config.image_token_id
        assert (odd == number).sum() == (plain == number).sum()


def test_questions_are_cut() -> None:
    backbone = shared("llava")
    long, short = (backbone.inputs(images()[:1], [text], 3)["input_ids"] for text in ("is it red? it is", "is it red"))
    assert torch.equal(long, short)


def test_images_are_as_large_as_the_description_allows() -> None:
    backbone = make("qwen2_5_vl")
    picture = [images()[0].resize((640, 640))]
    whole = backbone.inputs(picture, ["red"], 9)["pixel_values"].shape[0]
    backbone.options.images["size"] = {"shortest_edge": 1024, "longest_edge": 128 * 128}
    assert backbone.inputs(picture, ["red"], 9)["pixel_values"].shape[0] == 256 < whole


def test_options_and_processors_are_checked() -> None:
    with pytest.raises(
        UserError, match=r"model.options.tempalte: family=chat has no such option; did you mean template\?"
    ):
        load(model_config("llava", random_init=True, options={"tempalte": "x"}), "vqa", texts=TEXTS)
    with pytest.raises(UserError, match="no processor of transformers"):
        processor_class("Trainer")
    assert "video_processor" not in processor_class("Qwen2_5_VLProcessor").get_attributes()


def test_what_positions_are_made_from_has_values_where_the_rest_has_shapes() -> None:
    backbone = shared("qwen2_5_vl")
    prompt, behind = backbone.blank(2, "meta"), torch.zeros(2, 3, dtype=torch.long, device="meta")
    with torch.device("meta"):
        extended = backbone._extended(prompt, behind, torch.ones_like(behind))
    assert extended["input_ids"].is_meta
    assert extended["mm_token_type_ids"].shape == extended["input_ids"].shape
    assert 1 in extended["mm_token_type_ids"].unique().tolist(), "where the image stands"
