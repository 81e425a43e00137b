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


def told(scene: Scene, rng: random.Random) -> list[str]:
    """The words of one text about a scene: a caption, a question with its answer, or words to repeat."""
    choice = rng.random()
    if choice < 0.25:
        return caption(scene, rng).words
    text = echo(rng) if choice < 0.35 else question(scene, rng, pick(rng, SKILLS))
    return asked(rng, text.words, text.answer) if text else told(scene, rng)


def window(rng: random.Random, length: int = LENGTH) -> list[int]:
    """Token ids of texts about one scene, each between `DEC` and `SEP`; the last is cut off."""
    scene, ids = new_scene(rng, 3), []
    while len(ids) < length:
        ids += [DEC, *(IDS[word] for word in told(scene, rng)), SEP]
    return ids[:length]


def losses(model: GPT2LMHeadModel, number: int, rng: random.Random, device: str) -> dict[str, Tensor]:
    """Next-token loss of so many windows, half of them at places further back, where visual tokens would push them."""
    ids = torch.tensor([window(rng) for _ in range(number)], device=device)  # (N, L)
    starts = [int(rng.random() * (PLACES - LENGTH + 1)) if rng.random() < 0.5 else 0 for _ in range(number)]
    places = torch.tensor(starts, device=device)[:, None] + torch.arange(LENGTH, device=device)  # (N, L)
    logits = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, :-1].float()
    return {"next": F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])}
