"""How conversations are written: published chat templates, what is learned of them, and those that cannot be used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.backbones.chatting import CONVERSING, TEXTS, images, shared
from tests.numerics import assert_close
from vlatrain.backbones.base import Converser
from vlatrain.backbones.chat_template import Script
from vlatrain.backbones.tokenizers import make_wordpiece
from vlatrain.config import DecodeConfig, UserError
from vlatrain.data.sample import Turn

SLOW = [name if name in ("llava", "qwen3_vl") else pytest.param(name, marks=pytest.mark.slow) for name in CONVERSING]
TURNS = [("is it red?", "yes"), ("what is it?", "a red picture"), ("number?", "it is 1")]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as published with llava-1.5-7b-hf: no token ends a reply
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# in the manner of llava-onevision's: a turn that is still to be written begins with a blank less
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Processor(SimpleNamespace):
    """What a script asks of a processor."""

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        assert kwargs["tokenize"] is False
        return self.tokenizer.apply_chat_template(messages, **kwargs)


def script(template: str, **options: str) -> Script:
    made = make_wordpiece(TEXTS, 400).backend_tokenizer
    made.add_special_tokens(["<image>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="[SEP]",
        pad_token="[PAD]",
        extra_special_tokens=["<image>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>"],
    )
    return Script(Processor(tokenizer=tokenizer, chat_template=template or None, image_token="<image>"), **options)


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        (
            CHATML,
            [
                "<|im_start|>user\n<image>is it red?<|im_end|>\n<|im_start|>assistant\n",
                "yes<|im_end|>",
                "\n<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\n",
                "a red picture<|im_end|>",
            ],
        ),
        (
            VICUNA,
            [
                "USER: <image>\nis it red? ASSISTANT:",
                " yes[SEP]",
                " USER: what is it? ASSISTANT:",
                " a red picture[SEP]",
            ],
        ),
        (
            ONEVISION,
            [
                "<|im_start|>user <image>\nis it red?<|im_end|><|im_start|>assistant\n",
                "yes<|im_end|>",
                "<|im_start|>user \nwhat is it?<|im_end|><|im_start|>assistant\n",
                "a red picture<|im_end|>",
            ],
        ),
    ],
    ids=["chatml", "vicuna", "onevision"],
)
def test_what_is_given_and_what_is_learned(template: str, pieces: list[str]) -> None:
    found = script(template)
    assert found.pieces(TURNS[:2]) == pieces
    assert found.asked(TURNS[:2]) == "".join(pieces[:3])
    assert found.asked([("is it red?", "")]) == pieces[0]
    assert found.pieces([TURNS[0], ("what is it?", "")]) == pieces[:3]
    rest, learned, before = found.tokens(TURNS[:2])
    shown = found.asked([TURNS[0]], images=0)
    assert before == len(found.ids(shown))
    assert found.tokenizer.decode([t for t, own in zip(rest, learned, strict=True) if own]) == found.tokenizer.decode(
        [t for piece in pieces[1::2] for t in found.ids(piece.strip())]
    )
    assert found.ids(shown) + rest == found.ids("".join(found.pieces(TURNS[:2], images=0)))
    assert found.reply("yes", 9) == ([], found.ids(pieces[1].strip()))


def test_plain_text() -> None:
    found = script("", lead=" ", end="<end_of_utterance>")
    assert found.pieces([("question: what? answer:", "a red picture")]) == [
        "question: what? answer:",
        " a red picture<end_of_utterance>",
    ]
    start, own = found.reply("red picture", 3, prompt="a blue")
    assert found.tokenizer.decode(start) == "a blue"
    assert found.tokenizer.decode(own) == "red picture <end_of_utterance>"
    assert found.reply("red picture picture", 3, prompt="a blue")[1] == [*own[:2], own[1]], "cut, and not ended"
    assert script("").end == "[SEP]"
    with pytest.raises(UserError, match="a conversation of several turns needs a chat template"):
        script("").pieces(TURNS)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] == 'user' %}"), "leaves out"),
        (CHATML.replace("c['text']", "c['text'] if loop.last and m == messages[-1] else '...'"), "otherwise once"),
    ],
    ids=["no replies", "shortened history"],
)
def test_templates_that_cannot_be_used_are_told(template: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"the chat template of .* {told}.*put another chat_template.jinja"):
        script(template).pieces(TURNS)


@pytest.mark.parametrize("name", SLOW)
def test_conversations_are_scored_as_they_are_generated(name: str) -> None:
    backbone = shared(name)
    assert isinstance(backbone, Converser)
    conversations = [[Turn(*turn) for turn in TURNS], [Turn(*TURNS[1])]]
    inputs, target = backbone.conversations(images()[:2], conversations, 200)
    logits = backbone.conversation_logits(inputs)
    assert logits.shape[:2] == target.ids.shape == target.mask.shape
    places = torch.tensor([[2, 0], [1, 2]])
    assert_close(backbone.conversation_logits(inputs, places), logits[[[0], [1]], places], backbone.model)
    end = backbone.script.end_ids[-1]
    for turns, ids, mask in zip(conversations, target.ids, target.mask, strict=True):
        expected = [token for turn in turns for token in backbone.script.reply(turn.reply, 99)[1]]
        assert ids[mask.bool()].tolist() == expected
        assert expected.count(end) == len(turns)
        assert mask[0] == 0
    # the last reply, from its own prompt, has the same scores
    prompts = backbone.prompts(images()[:2], conversations, 200)
    last, _ = backbone.target([turns[-1].reply for turns in conversations], 99)
    alone = backbone.logits(backbone.context(prompts), last)
    for number in range(2):
        length = int(last.mask[number].sum())
        stop = int(target.mask[number].nonzero().max()) + 1
        assert_close(alone[number, : length - 1], logits[number, stop - length : stop - 1], backbone.model)
    assert len(backbone.generate(backbone.context(prompts), DecodeConfig(max_new_tokens=3))) == 2


@pytest.mark.parametrize("name", SLOW)
def test_long_conversations_are_cut(name: str) -> None:
    backbone = shared(name)
    turns = [Turn(*turn) for turn in TURNS]
    whole, _ = backbone.conversations(images()[:1], [turns], 500)
    _, _, before = backbone.script.tokens(TURNS)
    cut, target = backbone.conversations(images()[:1], [turns], before + 3)
    assert torch.equal(cut["input_ids"], whole["input_ids"])
    assert target.ids.shape[1] == 4
    assert torch.equal(cut["rest"].ids[:, 1:], whole["rest"].ids[:, 1:4])
    short = backbone.prompts(images()[:1], [turns], before + 3)
    assert torch.equal(short["input_ids"], backbone.prompts(images()[:1], [turns[2:]], 500)["input_ids"])
    nothing, target = backbone.conversations(images()[:1], [turns], 2)
    assert not target.mask.any()
    assert backbone.conversation_logits(nothing).shape[1] == 1
    blank = backbone.conversation_logits(backbone.blank(2, "cpu", 5))
    assert blank.shape[0] == 2
    assert blank.shape[1] >= 5


@torch.no_grad()
@pytest.mark.parametrize("name", SLOW)
def test_text_alone_is_read_as_by_the_language_model_alone(name: str) -> None:
    backbone = shared(name)
    conversations = [[Turn(*TURNS[0]), Turn(*TURNS[1])], [Turn(*TURNS[1])], [Turn(*TURNS[2])]]
    seen, shown = images()[:3], [False, True, False]
    inputs, target = backbone.conversations(seen, conversations, 200, shown)
    logits = backbone.conversation_logits(inputs)
    places = torch.tensor([[2, 0], [1, 2], [0, 1]])
    assert_close(backbone.conversation_logits(inputs, places), logits[[[0], [1], [2]], places], backbone.model)
    others = backbone.conversation_logits(backbone.conversations(seen[::-1], conversations, 200, shown)[0])
    for row in (0, 2):
        script = backbone.script
        turns = [(turn.user, turn.reply) for turn in conversations[row]]
        given, rest = script.ids(script.asked(turns[:1], images=0)), script.tokens(turns)[0]
        ids = torch.tensor([given + rest])
        own = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[
            0, len(given) - 1 :
        ]
        assert_close(logits[row, : len(rest) + 1], own, backbone.model)
        assert_close(others[row], logits[row], backbone.model)
        learned = [token for turn in turns for token in script.reply(turn[1], 99)[1]]
        assert target.ids[row][target.mask[row].bool()].tolist() == learned
    alone = backbone.conversation_logits(backbone.conversations(seen[1:2], conversations[1:2], 200)[0])
    assert_close(logits[1, : alone.shape[1]], alone[0], backbone.model)
    decode = DecodeConfig(max_new_tokens=4, num_beams=2)
    written = backbone.generate(
        backbone.context(backbone.prompts(seen, conversations, 200, shown)), decode, alternatives=2
    )
    for row in range(3):
        one = backbone.prompts(seen[row : row + 1], conversations[row : row + 1], 200, shown[row : row + 1])
        assert backbone.generate(backbone.context(one), decode, alternatives=2) == written[2 * row : 2 * row + 2]
