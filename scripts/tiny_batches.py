"""Batches of scenes with questions, captions and the dense targets that come with a generated scene.

Shape suffixes: B images, Q texts an image, L words a text, A words an answer, N = 65 image states (the class state and
64 patches), K = 3 figures at most, M = 8 sets of figures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from tiny_grammar import HUES, Text, caption, false_nouns, looks, question
from tiny_words import CLS, DEC, PAD, SEP, SPECIAL, vocabulary
from torch import Tensor

from vlatrain.data.scenes import GRID, KINDS, Scene, cover, make_scene, paint, pick

K, M, PATCH, SIDE = 3, 8, 8, 8
IDS = {word: place for place, word in enumerate(vocabulary())}
WORDS = vocabulary()
SKILLS = ("existence", "negation", "colour", "shape", "count", "position", "choice")


@dataclass
class Pictures:
    """Pixels and dense targets of B scenes.

    Attributes:
        scenes: the scenes; pixels: in [-1, 1].
        hue, kind: what each patch shows; -100 where unclear; `len(HUES)`, `len(KINDS)` mean background.
        place: column and row (0..2) of the centre of the figure that the patch shows, -100 where none (B, P, 2).
        point: for each set of figures, where to look: spread evenly over its figures, the class state if empty.
        facts: per figure hue, kind, column (0..2) and row (0..2), -100 where there is no figure (B, K, 4).
    """

    scenes: list[Scene]
    pixels: Tensor
    hue: Tensor
    kind: Tensor
    place: Tensor
    point: Tensor
    facts: Tensor


@dataclass
class Texts:
    """B x Q texts: token ids and what each token points at (-1: nothing), `CLS` first and `SEP` last."""

    ids: Tensor
    own: Tensor
    phrase: Tensor


def new_scene(rng: random.Random, most: int) -> Scene:
    """A scene of one to `most` figures."""
    return make_scene(rng, looks(rng, 1 + int(rng.random() * most)))


def pictures(scenes: list[Scene]) -> Pictures:
    """Render the scenes and derive their dense targets."""
    size = len(scenes)
    pixels = np.empty((size, 64, 64, 3), np.uint8)
    share = np.zeros((size, K, SIDE * SIDE), np.float32)
    facts = np.full((size, K, 4), -100, np.int64)
    for b, scene in enumerate(scenes):
        covers = [cover(figure) for figure in scene.figures]
        pixels[b] = paint(scene, covers)
        for k, (figure, part) in enumerate(zip(scene.figures, covers, strict=True)):
            # (64, 64) -> (8, 8, 8, 8): patch row, row, patch column, column -> (64,)
            counts = part.reshape(SIDE, PATCH, SIDE, PATCH).sum((1, 3), dtype=np.int32)
            share[b, k] = counts.reshape(-1) / (GRID * GRID * PATCH * PATCH)
            x, y = figure.centre
            facts[b, k] = (
                HUES.index(figure.colour),
                KINDS.index(figure.kind),
                int(x > 26) + int(x > 38),
                int(y > 26) + int(y > 38),
            )
    main, most, total = share.argmax(1), share.max(1), share.sum(1)
    rows = np.arange(size)[:, None]
    clear, empty = most > np.maximum(0.06, 0.7 * total), total == 0
    hue = np.where(clear, facts[rows, main, 0], np.where(empty, len(HUES), -100))
    kind = np.where(clear, facts[rows, main, 1], np.where(empty, len(KINDS), -100))
    place = np.where(clear[..., None], facts[rows, main, 2:], -100)
    each = share / np.maximum(share.sum(2, keepdims=True), 1e-6)
    point = np.zeros((size, M, SIDE * SIDE + 1), np.float32)
    point[:, 0, 0] = 1
    for subset in range(1, M):
        chosen = [k for k in range(K) if subset >> k & 1]
        point[:, subset, 1:] = each[:, chosen].mean(1)
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    tensors = (torch.from_numpy(part) for part in (hue, kind, place, point, facts))
    return Pictures(scenes, scaled, *tensors)


def encode(rows: list[list[Text]], length: int) -> Texts:
    """Token ids and pointers of B lists of Q texts, padded to `length`."""
    ids = np.full((len(rows), len(rows[0]), length), PAD, np.int64)
    own, phrase = np.full_like(ids, -1), np.full_like(ids, -1)
    for b, row in enumerate(rows):
        for q, text in enumerate(row):
            end = len(text.words) + 1
            ids[b, q, 0], ids[b, q, end] = CLS, SEP
            ids[b, q, 1:end] = [IDS[word] for word in text.words]
            own[b, q, 1:end], phrase[b, q, 1:end] = text.own, text.phrase
    return Texts(*(torch.from_numpy(part) for part in (ids, own, phrase)))


def answers(rows: list[list[Text]], rng: random.Random, length: int = 4) -> Tensor:
    """Decoder inputs (B, Q, A): `DEC`, the answer, `SEP`; now and then `CLS` first, as a plain tokenizer writes it."""
    ids = np.full((len(rows), len(rows[0]), length), PAD, np.int64)
    for b, row in enumerate(rows):
        for q, text in enumerate(row):
            told = [IDS[word] for word in text.answer.split()]
            ids[b, q, : len(told) + 2] = [CLS if rng.random() < 0.1 else DEC, *told, SEP]
    return torch.from_numpy(ids)


def echo(rng: random.Random) -> Text:
    """A question that asks to repeat one or two words: what gives every word of the vocabulary its embedding."""
    said = " ".join(pick(rng, WORDS[len(SPECIAL) :]) for _ in range(1 + int(rng.random() * 2)))
    text = Text(answer=said, skill="echo")
    text.add(f"say {said}")
    return text


def ask(scene: Scene, rng: random.Random, wanted: list[str]) -> list[Text]:
    """One question for each wanted skill; existence where the scene does not allow one of that skill."""
    made = []
    for skill in wanted:
        text = echo(rng) if skill == "echo" else question(scene, rng, skill)
        made.append(text or question(scene, rng, pick(rng, ("existence", "negation"))))
    return made


def tell(scene: Scene, rng: random.Random) -> tuple[list[Text], str, str]:
    """A true and a false caption of a scene, and what each says in a canonical form."""
    wrong = false_nouns(scene, rng)
    true_key = " ".join(sorted(f"{figure.colour}-{figure.kind}" for figure in scene.figures))
    false_key = " ".join(sorted(f"{noun.colour}-{noun.kind}" for noun in wrong))
    return [caption(scene, rng), caption(scene, rng, wrong)], true_key, false_key
