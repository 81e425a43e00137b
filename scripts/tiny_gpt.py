"""tiny_gpt: its configuration, the text that it is pre-trained on, and its loss. It sees no image.

A window holds texts about one scene, one after the other: captions, questions with their answers, and now and then
words to repeat, which give every word of the vocabulary its embedding. What is answered first can only be plausible; what
comes later agrees with what came earlier, so that the model learns to read an answer off what stands in front of it.
"""

from __future__ import annotations

import random

import torch
from tiny_batches import SKILLS, echo, new_scene
from tiny_grammar import caption, question
from tiny_words import DEC, PAD, SEP, dialogue_vocabulary
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from vlatrain.data.scenes import Scene, pick

WORDS = dialogue_vocabulary()
IDS = {word: place for place, word in enumerate(WORDS)}
LENGTH = 96  # tokens of a window
PLACES = 192  # positions: room for visual tokens in front of a text


def config() -> GPT2Config:
    """The architecture, about 0.6 million parameters."""
    return GPT2Config(
        vocab_size=len(WORDS), n_positions=PLACES, n_embd=128, n_layer=4, n_head=4, n_inner=256,
        activation_function="silu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=DEC, eos_token_id=SEP, pad_token_id=PAD,
    )  # fmt: skip


def asked(rng: random.Random, words: list[str], answer: str) -> list[str]:
    """The words of a question and its answer in one of the two templates that the model knows."""
    ask, reply = ("question", "answer") if rng.random() < 0.75 else ("user", "assistant")
    return [ask, ":", *words, reply, ":", *answer.split()]


def told(scene: Scene, rng: random.Random) -> tuple[list[str], int]:
    """The words of one text about a scene, and how many of the last are an answer: a caption, a question, or words to repeat."""
    choice = rng.random()
    if choice < 0.2:
        return caption(scene, rng).words, 0
    text = echo(rng) if choice < 0.26 else question(scene, rng, pick(rng, SKILLS))
    return (asked(rng, text.words, text.answer), len(text.answer.split())) if text else told(scene, rng)


def window(rng: random.Random, most: int = 3, length: int = LENGTH) -> tuple[list[int], list[bool]]:
    """Token ids of texts about a scene of up to `most` figures, each between `DEC` and `SEP`, the last cut off; which are answers.

    Two of three begin with a caption: what there is to read.
    """
    scene = new_scene(rng, most)
    ids: list[int] = []
    answers: list[bool] = []
    while len(ids) < length:
        words, answer = (caption(scene, rng).words, 0) if not ids and rng.random() < 0.67 else told(scene, rng)
        ids += [DEC, *(IDS[word] for word in words), SEP]
        answers += [False] * (len(words) + 1 - answer) + [True] * answer + [False]
    return ids[:length], answers[:length]


def losses(model: GPT2LMHeadModel, number: int, most: int, rng: random.Random, device: str) -> dict[str, Tensor]:
    """Next-token loss of so many windows, half of them at places further back, where visual tokens would push them.

    An answer counts as much as five other tokens: it is what reading is for.
    """
    ids, answers = (
        torch.tensor(part, device=device) for part in zip(*(window(rng, most) for _ in range(number)), strict=True)
    )
    starts = [int(rng.random() * (PLACES - LENGTH + 1)) if rng.random() < 0.5 else 0 for _ in range(number)]
    places = torch.tensor(starts, device=device)[:, None] + torch.arange(LENGTH, device=device)  # (N, L)
    logits = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, :-1].float()
    each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")  # (N, L - 1)
    weights = 1.0 + 4.0 * answers[:, 1:]
    right = (logits.detach().argmax(-1) == ids[:, 1:])[answers[:, 1:]]
    return {"next": (each * weights).sum() / weights.sum(), "%answers": right.float().mean()}
