"""Composites: what the language model is given, against calls made by hand; and that they learn, save and load."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel

from tests.backbones.composites import LANGUAGE, QUESTIONS, TEXTS, VISION, described, images, loaded, small
from tests.backbones.heads import assert_heads
from tests.conftest import adapter_config, make_samples
from tests.injection.table import randomise
from tests.learning import overfit
from tests.numerics import assert_close
from vlatrain.backbones.base import Text
from vlatrain.backbones.describe import sites
from vlatrain.backbones.families.composite_model import VisualProjection, grid_boxes, pooled
from vlatrain.backbones.loading import load, meta_model, write
from vlatrain.backbones.search import generate_settings
from vlatrain.backbones.several import numbered
from vlatrain.backbones.tokenizers import token_ids
from vlatrain.config import DecodeConfig, TaskConfig, UserError
from vlatrain.data.sample import Turn
from vlatrain.injection.attach import attach
from vlatrain.tasks import build
from vlatrain.training.batches import SharedBatches

CAUSAL, SEQ2SEQ = ("gpt2", "llama"), ("bart", "t5")
SHORT = DecodeConfig(num_beams=1, max_new_tokens=6, min_new_tokens=0, length_penalty=1.0)


def embed(backbone: Any, ids: list[int] | Tensor) -> Tensor:
    return backbone.language.get_input_embeddings()(torch.as_tensor(ids)[None])


def visual(backbone: Any, image: Any) -> Tensor:
    """Visual tokens by hand, (1, S, d)."""
    model = backbone.model
    if model.vision is None:
        states = torch.as_tensor(image)[None]
    else:
        states = model.vision(pixel_values=backbone.pixels([image])).last_hidden_state
        if hasattr(model.vision, "vision_model") or type(model.vision).__name__ == "CLIPVisionModel":
            states = model.vision.post_layernorm(states)
    table = backbone.language.get_input_embeddings().weight
    return model.projection(states) * table[:1024].pow(2).mean().sqrt()


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("language", CAUSAL)
def test_a_causal_model_gets_image_then_text(vision: str, language: str) -> None:
    """Row by row without any padding, against a batch with prompts of different lengths."""
    backbone = loaded(vision, language)
    seen = images(backbone)
    target, given = backbone.target(["red", "blue picture", "yes", "no"], 20)
    found = backbone.logits(backbone.context(backbone.inputs(seen, QUESTIONS, 40)), target)
    assert given == 1
    for row, (image, question) in enumerate(zip(seen, QUESTIONS, strict=True)):
        length = int(target.mask[row].sum())
        start, text = backbone.language.config.bos_token_id, f"question: {question} answer:"
        ids = [start, *backbone.tokenizer(text, add_special_tokens=False)["input_ids"]]
        embeddings = torch.cat(
            [visual(backbone, image), embed(backbone, [*ids, *target.ids[row, 1:length].tolist()])], 1
        )
        expected = backbone.language(inputs_embeds=embeddings).logits[0, -length:]
        assert_close(found[row, :length], expected, backbone.model)


@pytest.mark.parametrize("language", SEQ2SEQ)
@pytest.mark.parametrize("vision", ["clip", "features"])
def test_an_encoder_has_image_and_question(vision: str, language: str) -> None:
    backbone = loaded(vision, language)
    seen = images(backbone)
    target, given = backbone.target(["red", "blue picture", "yes", "no"], 20)
    found = backbone.logits(backbone.context(backbone.inputs(seen, QUESTIONS, 40)), target)
    assert given == 2  # the start token, and the [CLS] that this tokenizer puts in front of every text
    for row, (image, question) in enumerate(zip(seen, QUESTIONS, strict=True)):
        length = int(target.mask[row].sum())
        ids = backbone.tokenizer(f"vqa: {question}")["input_ids"]
        embeddings = torch.cat([visual(backbone, image), embed(backbone, ids)], 1)
        expected = backbone.language(inputs_embeds=embeddings, decoder_input_ids=target.ids[row : row + 1, :length])
        assert_close(found[row, :length], expected.logits[0], backbone.model)


def greedy(backbone: Any, inputs: Any, steps: int) -> list[int]:
    """Greedy decoding by a whole forward pass for each token."""
    told, (start,) = backbone._start(), generate_settings(SHORT, 1, backbone.word_start)["logits_processor"]
    for _ in range(steps):
        ids = torch.tensor([told])
        logits = backbone.logits(backbone.context(inputs), replace_text(ids))[:, -1]
        told.append(int(start(ids, logits).argmax()))
        if told[-1] == backbone.end:
            break
    return told[len(backbone._start()) :]


def replace_text(ids: Tensor) -> Any:
    from vlatrain.backbones.base import Text

    return Text(ids, torch.ones_like(ids))


@pytest.mark.parametrize("language", LANGUAGE)
def test_generation_is_what_the_logits_say_and_the_same_in_any_batch(language: str) -> None:
    backbone = loaded("clip", language)
    seen = images(backbone)
    together = backbone.generate(backbone.context(backbone.inputs(seen, QUESTIONS, 40)), SHORT)
    for row, (image, question) in enumerate(zip(seen, QUESTIONS, strict=True)):
        inputs = backbone.inputs([image], [question], 40)
        (expected,) = backbone.written([greedy(backbone, inputs, 6)])
        assert backbone.generate(backbone.context(inputs), SHORT) == [expected] == [together[row]]


@pytest.mark.parametrize("language", LANGUAGE)
def test_beams_find_what_is_likelier(language: str) -> None:
    backbone = loaded("clip", language, "captioning")
    context = backbone.context(backbone.inputs(images(backbone)))
    wide = replace(SHORT, num_beams=4)
    scores = []
    for decode in (SHORT, wide):
        texts = backbone.generate(context, decode, prompt="a picture")
        assert len(texts) == 4
        scores.append(texts)
    several = backbone.generate(context, wide, prompt="a picture", alternatives=3)
    assert len(several) == 12
    assert several[::3] == scores[1]


@pytest.mark.parametrize("language", LANGUAGE)
def test_a_caption_begins_with_its_prompt(language: str) -> None:
    backbone = loaded("clip", language, "captioning")
    plain, _ = backbone.target(["red picture"], 20)
    target, given = backbone.target(["picture"], 20, prompt="red")
    assert torch.equal(target.ids, plain.ids)
    assert given == plain.ids.shape[1] - 2


@pytest.mark.parametrize("language", LANGUAGE)
def test_without_visual_tokens_it_starts_as_the_language_model_alone(language: str) -> None:
    backbone = loaded("clip", language, visual="adapters")
    seen = images(backbone)
    attach(backbone.model, adapter_config("cross_modal", dim=4), sites(backbone.config, "vqa", ["{text,decoder}"]))
    target, _ = backbone.target(["red", "blue picture", "yes", "no"], 20)
    inputs = backbone.inputs(seen, QUESTIONS, 40)
    prompt, mask = inputs["prompt"].ids, inputs["prompt"].mask
    found = backbone.logits(backbone.context(inputs), target)
    if language in SEQ2SEQ:
        given = {"decoder_input_ids": target.ids, "decoder_attention_mask": target.mask}
        assert_close(found, backbone.language(input_ids=prompt, attention_mask=mask, **given).logits, backbone.model)
    else:
        for row in range(4):
            length = int(target.mask[row].sum())
            ids = [*prompt[row][mask[row] == 1].tolist(), *target.ids[row, 1:length].tolist()]
            expected = backbone.language(input_ids=torch.tensor([ids])).logits[0, -length:]
            assert_close(found[row, :length], expected, backbone.model)


@pytest.mark.parametrize("visual_way", ["adapters", "both"])
@pytest.mark.parametrize("language", LANGUAGE)
def test_adapters_read_their_own_rows_image(language: str, visual_way: str) -> None:
    backbone = loaded("clip", language, visual=visual_way)
    seen = images(backbone)
    attach(backbone.model, adapter_config("cross_modal", dim=4), sites(backbone.config, "vqa", ["decoder"]))
    randomise(backbone.model)
    target, _ = backbone.target(["red"], 20)
    pairs = [backbone.inputs([image], QUESTIONS[:1], 40) for image in seen]
    alone = [backbone.logits(backbone.context(inputs), target) for inputs in pairs]
    assert not torch.allclose(alone[0], alone[2], atol=1e-2)
    inputs = backbone.inputs([seen[2], seen[0]], QUESTIONS[:1] * 2, 40)
    context = backbone.select_rows(backbone.context(inputs), torch.tensor([1, 1, 0]))
    both = backbone.logits(context, replace_text(target.ids.expand(3, -1)))
    assert_close(both, torch.cat([alone[0], alone[0], alone[2]]), backbone.model)
    texts = backbone.generate(backbone.context(inputs), replace(SHORT, num_beams=3))  # beams are rows of one image
    assert texts == [backbone.generate(backbone.context(pairs[i]), replace(SHORT, num_beams=3))[0] for i in (2, 0)]


def test_features_that_are_fewer_are_padded_and_not_seen() -> None:
    backbone = loaded("features", "t5", visual="both")
    attach(backbone.model, adapter_config("cross_modal", dim=4), sites(backbone.config, "vqa", ["{text,decoder}"]))
    randomise(backbone.model)
    seen = images(backbone)  # 4, 5, 4 and 5 of them
    target, _ = backbone.target(["red"] * 4, 20)
    together = backbone.logits(backbone.context(backbone.inputs(seen, QUESTIONS, 40)), target)
    for row in range(4):
        alone = backbone.inputs(seen[row : row + 1], QUESTIONS[row : row + 1], 40)
        logits = backbone.logits(backbone.context(alone), replace_text(target.ids[:1]))
        assert_close(logits[0], together[row], backbone.model)


def learn(backbone: Any, task: str, steps: int) -> None:
    """Overfit four samples with adapters and the projection, and write their answers or captions."""
    samples = [replace(sample, captions=sample.captions[:1]) for sample in make_samples()[:4]]
    where = sites(backbone.config, task, ["{text,decoder}"])
    attach(backbone.model, adapter_config("cross_modal", dim=32), where)
    work = build(TaskConfig(name=task, decode=replace(SHORT, max_new_tokens=12)), backbone)
    assert overfit(work, samples, steps, lr=3e-3) < 0.05
    with torch.no_grad():
        found = work.evaluate(samples, SharedBatches("cpu", 3))
    expected = [sample.answers[0] if task == "vqa" else sample.captions[0] for sample in samples]
    assert [record["prediction"] for record in found.predictions] == expected


PAIRS = [(vision, language) for vision in ("clip", "dinov2") for language in LANGUAGE]


@pytest.mark.slow
def test_it_learns() -> None:
    learn(loaded("clip", "gpt2", "vqa"), "vqa", 120)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tokens", "adapters", "both"])
@pytest.mark.parametrize("task", ["vqa", "captioning"])
@pytest.mark.parametrize(("vision", "language"), PAIRS)
def test_every_pair_learns_every_way(vision: str, language: str, task: str, way: str) -> None:
    learn(loaded(vision, language, task, visual=way), task, 300)


@pytest.mark.parametrize(
    ("width", "norm", "count"), [(2048, "layer", 1_582_848), (512, "layer", 403_200), (2048, "rms", 1_581_312)]
)
def test_the_published_projections(width: int, norm: str, count: int) -> None:
    with torch.device("meta"):
        made = VisualProjection(width, 768, norm, boxes=True, order=True)
    assert sum(parameter.numel() for parameter in made.parameters()) == count


def test_vl_adapters_clip_bart_has_the_published_size() -> None:
    config = described("features", "bart")
    config.options |= {"boxes": True, "order": True, "added_tokens": 200, "visual": "tokens"}
    model = meta_model(config, "vqa")
    assert sum(parameter.numel() for parameter in model.parameters()) == 141_156_864


def test_patches_are_pooled_to_visual_tokens() -> None:
    states = torch.randn(2, 2 + 36, 5)  # two in front of a grid of 6 x 6
    grid = states[:, 2:].reshape(2, 6, 6, 5)
    expected = torch.stack(
        [grid[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for y in (0, 2, 4) for x in (0, 2, 4)], dim=1
    )
    assert_close(pooled(states, 9), expected)
    for count in (49, 8):
        with pytest.raises(ValueError, match="a square number, and no more"):
            pooled(states, count)
    backbone = loaded("clip", "gpt2", visual_tokens=4)
    context = backbone.context(backbone.inputs(images(backbone, 2), QUESTIONS[:2], 20))
    assert context["visual"].shape[1] == backbone.visual_tokens == 4
    with pytest.raises(UserError, match="visual_tokens=16: an image has 9 patches"):
        assert loaded("clip", "gpt2", visual_tokens=16).visual_tokens


CHAT_TEMPLATE = (  # as SmolLM2's: messages are texts
    "{% for m in messages %}{{ '[CLS]' + m['role'] + ' ' + m['content'] + '[SEP]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant ' }}{% endif %}"
)


@torch.no_grad()
def test_prompts_and_conversations_are_put_into_a_chat_template() -> None:
    backbone: Any = loaded("clip", "llama", chat=True)
    assert backbone.script is None, "a made tokenizer has none"
    backbone = loaded("clip", "llama", chat=True)
    backbone.tokenizer.chat_template = CHAT_TEMPLATE
    inputs = backbone.inputs(images(backbone, 1), ["is it red?"], 20)
    asked = backbone.config.prompts["vqa"].replace("{question}", "is it red?")
    given = backbone.tokenizer(f"[CLS]user {asked}[SEP][CLS]assistant ", add_special_tokens=False)["input_ids"]
    assert inputs["prompt"].ids[0].tolist() == given
    turns = [Turn("is it red?", "yes"), Turn("what colour is it?", "red picture")]
    ids, learned = backbone.transcript(turns)
    told = [backbone.tokenizer.decode([t for t, own in zip(ids, learned, strict=True) if own])]
    assert told == ["yes [SEP] red picture [SEP]"]
    text = backbone.conversations(images(backbone, 1), [turns], 90)
    logits = backbone.conversation_logits(text[0])
    prompt = backbone.prompts(images(backbone, 1), [turns], 90)
    target, _ = backbone.target(["red picture"], 20)
    alone = backbone.logits(backbone.context(prompt), target)[0]
    stop = int(text[1].mask[0].nonzero().max()) + 1
    length = target.ids.shape[1] - 1
    assert_close(alone[:length], logits[0, stop - 1 - length : stop - 1], backbone.model)
    assert len(backbone.generate(backbone.context(prompt), SHORT)) == 1


def test_cells_of_the_grid_have_their_boxes() -> None:
    boxes = grid_boxes(6)  # two in front of a grid of four
    whole = [0.0, 0.0, 1.0, 1.0, 1.0]
    cells = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]
    assert boxes.tolist() == [whole, whole, *([*cell, 0.25] for cell in cells)]


def test_boxes_and_order_are_added_to_the_projected_states() -> None:
    made = VisualProjection(6, 4, "layer", boxes=True, order=True)
    states = torch.randn(2, 5, 6)
    linear, norm = made.boxes
    expected = made.norm(made.linear(states)) + norm(linear(grid_boxes(5))) + made.order.weight[0]
    assert_close(made(states), expected)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Checkpoints of a whole CLIP and of a GPT-2, with their tokenizer and image processor."""
    backbone = loaded("clip", "gpt2")
    torch.manual_seed(1)
    text = {
        "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 44, "vocab_size": 99,
        "eos_token_id": 3,
    }  # fmt: skip
    whole = CLIPConfig(vision_config=VISION["clip"], text_config=text, projection_dim=12)
    CLIPModel(whole).save_pretrained(tmp_path / "clip")
    special = token_ids(backbone.tokenizer)
    GPT2LMHeadModel(GPT2Config(**{**LANGUAGE["gpt2"], **special, "n_layer": 4})).save_pretrained(tmp_path / "gpt2")
    backbone.image_processor.save_pretrained(tmp_path / "clip")
    backbone.tokenizer.save_pretrained(tmp_path / "gpt2")
    return {"vision": str(tmp_path / "clip"), "language": str(tmp_path / "gpt2")}


def from_folders(folders: dict[str, str], **options: Any) -> Any:
    config = described("clip", "gpt2")
    for submodel, folder in folders.items():
        config.submodels[submodel].checkpoint = folder
    config.options |= options
    return config


def test_the_submodels_come_from_their_checkpoints(folders: dict[str, str]) -> None:
    config = from_folders(folders)
    assert set(map(str, sites(config, "vqa", ["*.*.attn"]).places)) == {
        *(f"vision.{i}.attn" for i in range(3)), *(f"decoder.{i}.attn" for i in range(4)),
    }  # fmt: skip
    one, again, other = (load(config, "vqa", seed=seed) for seed in (0, 0, 1))
    clip, gpt = CLIPModel.from_pretrained(folders["vision"]), GPT2LMHeadModel.from_pretrained(folders["language"])
    for name, tensor in one.model.vision.state_dict().items():
        assert torch.equal(tensor, clip.vision_model.state_dict()[name])
    for name, tensor in one.model.language.state_dict().items():
        assert torch.equal(tensor, gpt.state_dict()[name])
    weights = [backbone.model.projection.linear.weight for backbone in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.source == " + ".join(folders.values())
    ids, mask = torch.arange(20).view(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    own = gpt.eval()(input_ids=ids, attention_mask=mask).logits
    assert_close(one.model.language(input_ids=ids, attention_mask=mask).logits, own, gpt)  # causal, above all


def test_added_tokens_enlarge_the_embedding(folders: dict[str, str]) -> None:
    grown = load(from_folders(folders, added_tokens=7), "vqa")
    assert grown.language.get_input_embeddings().weight.shape == (407, 72)
    assert grown.logits(
        grown.context(grown.inputs(images(grown, 1), QUESTIONS[:1], 9)), grown.target(["red"], 9)[0]
    ).shape[2] == 407  # fmt: skip


def test_a_checkpoint_of_something_else_is_refused(folders: dict[str, str]) -> None:
    config = from_folders({"vision": folders["vision"], "language": folders["vision"]})
    with pytest.raises(
        UserError, match=r"language.checkpoint=\S+ is a clip model, and \S+=GPT2LMHeadModel reads gpt2 models"
    ):
        load(config, "vqa")


def test_what_is_joined_can_be_written_and_read_as_one(folders: dict[str, str], tmp_path: Path) -> None:
    config = from_folders(folders)
    backbone = load(config, "vqa")
    write(backbone, backbone.model, tmp_path / "whole")
    config.checkpoint = str(tmp_path / "whole")
    again = load(config, "vqa", seed=7)
    assert str(sites(config, "vqa", ["decoder.2.ffn"]).places)
    inputs, (target, _) = again.inputs(images(again), QUESTIONS, 20), again.target(["red"] * 4, 20)
    with torch.no_grad():
        found, expected = (one.logits(one.context(inputs), target) for one in (again, backbone))
    assert_close(found, expected, backbone.model)


def test_more_than_the_model_has_positions_for_is_told() -> None:
    backbone = loaded("clip", "gpt2")
    inputs = backbone.inputs(images(backbone, 1), ["red " * 100], 95)
    with pytest.raises(UserError, match=r"10 visual tokens and \d+ of text are more than the 96 .* task.max_length"):
        backbone.generate(backbone.context(inputs), SHORT)


def test_a_conversation_is_learned_reply_by_reply() -> None:
    backbone = loaded("clip", "gpt2", visual="tokens")
    seen = images(backbone, 2)
    talks = [[Turn("is it red?", "yes"), Turn("what colour is it?", "red picture")], [Turn("is it red?", "no")]]
    inputs, text = backbone.conversations(seen, talks, 60)
    logits = backbone.conversation_logits(inputs)
    assert logits.shape[:2] == text.ids.shape
    places = torch.tensor([[4, 0, 2], [1, 3, 5]])
    assert_close(backbone.conversation_logits(inputs, places), logits[[[0], [1]], places], backbone.model)
    told = [backbone.tokenizer.decode(text.ids[row][text.mask[row] == 1]) for row in range(2)]
    assert told == ["yes [SEP] red picture [SEP]", "no [SEP]"]
    for row, turns in enumerate(talks):  # each reply as an answer to all that was said before it
        for number, turn in enumerate(turns):
            prompt = backbone.prompts([seen[row]], [[*turns[:number], Turn(turn.user)]], 60)
            target, _ = backbone.target([turn.reply], 20)
            alone = backbone.logits(backbone.context(prompt), target)[0, :-1]
            places = text.mask[row].nonzero().flatten()
            before = sum(len(backbone.target([t.reply], 20)[0].ids[0]) - 1 for t in turns[:number])
            own = places[before : before + target.ids.shape[1] - 1]
            assert_close(alone, logits[row, own - 1], backbone.model)
    assert math.isfinite(float(backbone.conversation_logits(backbone.blank(2, "cpu", 9)).sum()))


@torch.no_grad()
@pytest.mark.parametrize(("vision", "language"), [("clip", "gpt2"), ("features", "llama")])
def test_text_alone_is_read_as_by_the_language_model_alone(vision: str, language: str) -> None:
    backbone = loaded(vision, language)
    seen = [Image.new("RGB", (56, 56), "grey"), images(backbone, 1)[0]]
    talks = [[Turn("is it red?", "yes"), Turn("what colour is it?", "red picture")], [Turn("is it red?", "no")]]
    inputs, text = backbone.conversations(seen, talks, 60, [False, True])
    logits = backbone.conversation_logits(inputs)
    embedded = backbone.model.embedded(text.ids[:1])
    mask = text.mask.new_ones(embedded.shape[:2])
    own = backbone.language(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
    assert_close(logits[0], own[0], backbone.model)
    alone = backbone.conversation_logits(backbone.conversations(seen[1:], talks[1:], 60)[0])
    assert_close(logits[1, : alone.shape[1]], alone[0], backbone.model)
    written = backbone.generate(backbone.context(backbone.prompts(seen, talks, 60, [False, True])), SHORT)
    one = backbone.prompts([images(backbone, 2)[1]], talks[:1], 60, [False])
    assert backbone.generate(backbone.context(one), SHORT) == written[:1]


@pytest.mark.parametrize(
    ("vision", "language"), [*((vision, "t5") for vision in VISION), *(("clip", language) for language in LANGUAGE)]
)
def test_full_size_is_built_without_weights(vision: str, language: str) -> None:
    for config in (described(vision, language), small(vision, language)):
        model = meta_model(config, "vqa")
        for tower in config.tasks["vqa"].towers:
            for point, place in sites(config, "vqa", [tower]).places.items():
                for path in (place.output, place.input, *place.modules.values()):
                    model.get_submodule(path)
                if point.site == "attn":
                    assert_heads(model, place)
            model.get_submodule(config.towers[tower].embeddings)


def test_the_texts_of_random_models_are_their_own() -> None:
    """The same seed gives the same model."""
    one, two = (load(small("clip", "gpt2"), "vqa", texts=TEXTS, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


@pytest.mark.parametrize("vision", ["clip", "features"])
@pytest.mark.parametrize("language", ["gpt2", "t5"])
def test_the_images_of_a_row_stand_one_behind_the_other(vision: str, language: str) -> None:
    """Rows with one, two and three images: the states are those of each image, and what a row says is the same in any batch."""
    backbone = loaded(vision, language, order=True)
    seen = images(backbone, 6)
    rows = [seen[0], [seen[1], seen[2]], [seen[3], seen[4], seen[5]]]
    asked = ["what is it", "do <image> and <image> show the same", "which"]
    inputs = backbone.inputs(rows, asked, 16)
    assert inputs["images"] == [1, 2, 3]
    context = backbone.context(inputs)
    target, _ = backbone.target(["a", "b", "c"], 4)
    logits = backbone.logits(context, target)
    for row, own in enumerate(rows):
        apart = backbone.inputs([own], asked[row : row + 1], 16)
        single = Text(target.ids[row : row + 1], target.mask[row : row + 1])
        assert_close(backbone.logits(backbone.context(apart), single)[0], logits[row], backbone.model)
        states = [backbone._visual(backbone.inputs([one], ["a"], 16))["visual"][0] for one in (own if row else [own])]
        places = [backbone.model.projection.order.weight[min(place, 1)] for place in range(len(states))]
        first = backbone.model.projection.order.weight[0]
        expected = torch.cat([one - first + place for one, place in zip(states, places, strict=True)])
        visual = backbone._visual(apart)
        assert_close(visual["visual"][0][visual["visible"][0].bool()], expected, backbone.model)
    single = backbone.inputs(rows[:1], asked[:1], 16)
    assert "images" not in single  # one image each: as ever
    assert numbered("<image> or <image>?", 1) == "image 2 or image 3?"
