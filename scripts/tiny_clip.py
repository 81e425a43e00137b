"""tiny_clip: its configuration, what it learns to choose between, and the pre-training losses.

The vision tower starts from the shipped tiny_blip's, which knows colours, shapes and places, and is widened: a CLIP
says everything about an image in one vector, where BLIP's question reads every patch. The text tower and the common
space are learned by contrast: a whole caption against the batch's and against false ones of the same image, and short
statements both against others that differ in one thing and, each, among the batch's images that it is not true of.
Shape suffixes as in tiny_batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tiny_batches import WORDS, Pictures, encode
from tiny_dense import DenseHead
from tiny_grammar import HUES, ZONES, Noun, Text, absent, add_noun, caption, described, false_nouns, single, zone
from tiny_words import CLS, PAD, SEP
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from vlatrain.data.scenes import KINDS, Figure, Scene, pick, shuffled

WIDTH, WORDS_WIDTH = 192, 128  # of image and text states; 128 image states bound colour and place in 75 of 100 scenes
CAPTIONS = 3  # of an image: a true one and two false ones
COUNTS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Choice:
    """Statements that differ in one thing, the true one first; `untrue` says of which scenes that one is surely false."""

    skill: str
    texts: list[Text]
    untrue: Callable[[Scene], bool]


def config() -> CLIPConfig:
    """The architecture, about 2.2 million parameters."""
    both = {"projection_dim": WIDTH, "hidden_act": "silu", "intermediate_size": 512}
    text = both | {
        "vocab_size": len(WORDS), "hidden_size": WORDS_WIDTH, "num_attention_heads": 4, "num_hidden_layers": 3,
        "max_position_embeddings": 64, "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
    }  # fmt: skip
    vision = both | {
        "hidden_size": WIDTH, "num_attention_heads": 6, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


def widen(small: Tensor, large: Tensor) -> Tensor:
    """`large` with `small` in its leading corner; what the small one computes does not see the added inputs."""
    wide = large.clone()
    if small.ndim == 2:
        wide[: small.shape[0]] = 0
    wide[tuple(slice(0, size) for size in small.shape)] = small
    return wide


class TinyClip(nn.Module):
    """A CLIPModel and the dense head that only pre-training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPModel._from_config(config(), attn_implementation="eager")
        self.aux_dense = DenseHead(WIDTH, WORDS_WIDTH)

    def start_from(self, blip: dict[str, Tensor]) -> None:
        """Take the vision tower and the word embeddings of a tiny_blip."""
        tower, embeddings = "vision_model.", "vision_model.embeddings."
        table = "text_model.embeddings.token_embedding.weight"
        start = {table: blip["text_encoder.embeddings.word_embeddings.weight"]}
        start[embeddings + "class_embedding"] = blip[embeddings + "class_embedding"].flatten()
        start[embeddings + "patch_embedding.weight"] = blip[embeddings + "patch_embedding.weight"]
        places = blip[embeddings + "position_embedding"][0].float()
        places[1:] += blip[embeddings + "patch_embedding.bias"]  # CLIP's patches have no bias of their own
        start[embeddings + "position_embedding.weight"] = places
        for name, value in blip.items():
            if name.startswith((tower + "encoder.", tower + "post_layernorm.")) and ".qkv." not in name:
                start[name.replace(".projection.", ".out_proj.")] = value
            elif name.startswith(tower) and ".qkv." in name:
                for part, piece in zip("qkv", value.chunk(3), strict=True):
                    start[name.replace(".qkv.", f".{part}_proj.")] = piece
        mine = self.clip.state_dict()
        self.clip.load_state_dict(mine | {name: widen(value, mine[name]) for name, value in start.items()})


def _said(
    parts: list[str | Noun], scene: Scene, rng: random.Random, article: bool = False, plural: bool = False
) -> Text:
    text = Text()
    for part in parts:
        if isinstance(part, str):
            text.add(part)
        else:
            add_noun(text, scene, part, rng, article=article, plural=plural)
    return text


def _no_figure(fits: Callable[[Figure], bool]) -> Callable[[Scene], bool]:
    """Whether no figure of a scene is like that."""
    return lambda scene: not any(map(fits, scene.figures))


def statements(scene: Scene, rng: random.Random) -> list[Choice]:
    """A choice for each skill that the scene allows."""
    choices = []
    form = pick(rng, ("colour", "kind", "both"))
    figure = pick(rng, scene.figures)
    noun, other = described(figure, form), absent(scene, rng, form)
    there, end = pick(rng, (["there is"], ["this is a picture with"], [])), pick(rng, ([], [], ["in the image"]))
    texts = [_said([*there, part, *end], scene, rng, article=True) for part in (noun, other)]
    choices.append(Choice("existence", texts, _no_figure(noun.fits)))
    texts = [_said(["there is no", part, *end], scene, rng) for part in (other, noun)]
    choices.append(Choice("negation", texts, lambda one: bool(other.among(one))))
    if named := single(scene, figure, rng, ("kind", "any")):
        hues = [figure.colour, *shuffled(rng, [hue for hue in HUES if hue != figure.colour])[:3]]
        texts = [_said(["the", named, "is", hue], scene, rng) for hue in hues]
        choices.append(Choice("colour", texts, _no_figure(Noun(figure.colour, named.kind).fits)))
    if named := single(scene, figure, rng, ("colour", "any")):
        kinds = [figure.kind, *shuffled(rng, [kind for kind in KINDS if kind != figure.kind])[:3]]
        texts = [_said(["the", named, "is a", kind], scene, rng) for kind in kinds]
        choices.append(Choice("shape", texts, _no_figure(Noun(named.colour, figure.kind).fits)))
    counted = pick(rng, (Noun(), Noun(), described(figure, form)))
    number = counted.among(scene).bit_count()
    numbers = [number, *(n for n in range(1, 4) if n != number)]
    texts = [_said([COUNTS[n], counted], scene, rng, plural=n != 1) for n in numbers]
    choices.append(Choice("count", texts, lambda one: counted.among(one).bit_count() != number))
    placed, place = single(scene, figure, rng, ("colour", "kind", "both", "any")), zone(figure)
    if placed and place:
        true = pick(rng, place.split())
        sides = [side for side in ZONES if side not in place.split() and (side != "center" or place == "center")]
        texts = [_said(["the", placed, "is on the", side], scene, rng) for side in [true, *sides[:2]]]
        there_too = _no_figure(lambda one: placed.fits(one) and (not zone(one) or true in zone(one).split()))
        choices.append(Choice("position", texts, there_too))
    return choices


def _embed(model: TinyClip, texts: list[Text], length: int, device: torch.device) -> Tensor:
    """Unit text features (number of texts, D)."""
    ids = encode([texts], length).ids[0].to(device)
    return F.normalize(model.clip.text_projection(model.clip.text_model(input_ids=ids).pooler_output).float(), dim=-1)


def contrast_losses(model: TinyClip, seen: Tensor, scenes: list[Scene], rng: random.Random) -> dict[str, Tensor]:
    """Each image among the batch's captions, true and false, and its true caption among its own.

    Captions that are true of an image by chance are no candidates.
    """
    size, device = len(scenes), seen.device
    stories, said = [], []
    for scene in scenes:
        false = [false_nouns(scene, rng) for _ in range(CAPTIONS - 1)]
        stories.append([caption(scene, rng), *(caption(scene, rng, nouns) for nouns in false)])
        named = [[(f.colour, f.kind) for f in scene.figures], *([(n.colour, n.kind) for n in nouns] for nouns in false)]
        said.append([tuple(sorted(pairs)) for pairs in named])
    told = _embed(model, [story[c] for c in range(CAPTIONS) for story in stories], 20, device)  # true ones first
    scores = model.clip.logit_scale.exp().clamp(max=100) * seen @ told.T  # (B, B * CAPTIONS)
    everything = [facts[c] for c in range(CAPTIONS) for facts in said]
    same = [[facts == said[b][0] and j != b for j, facts in enumerate(everything)] for b in range(size)]
    scores = scores.masked_fill(torch.tensor(same, device=device), -1e4)
    target = torch.arange(size, device=device)
    both = F.cross_entropy(scores, target) + F.cross_entropy(scores[:, :size].T, target)
    mine = torch.stack([scores[target, target + c * size] for c in range(CAPTIONS)], 1)
    hard = F.cross_entropy(mine, torch.zeros_like(target))
    return {"contrast": both / 2, "hard": hard, "%hard": (mine.argmax(1) == 0).float().mean()}


def statement_losses(model: TinyClip, seen: Tensor, scenes: list[Scene], rng: random.Random) -> dict[str, Tensor]:
    """Four choices an image: find the true statement for the image, and the image for the true statement."""
    device = seen.device
    asked: list[tuple[int, Choice]] = []
    for b, scene in enumerate(scenes):
        asked += [(b, choice) for choice in shuffled(rng, statements(scene, rng))[:4]]
    told = _embed(model, [text for _, one in asked for text in one.texts], 14, device)
    owner = torch.tensor([b for b, _ in asked], device=device)
    row = torch.tensor([g for g, (_, one) in enumerate(asked) for _ in one.texts], device=device)
    column = torch.tensor([c for _, one in asked for c in range(len(one.texts))], device=device)
    scale = model.clip.logit_scale.exp().clamp(max=100)
    scores = torch.full((len(asked), 4), -1e4, device=device)
    scores[row, column] = scale * (seen[owner[row]] * told).sum(-1)
    right = scores.argmax(1) == 0
    found = {"choose": F.cross_entropy(scores, torch.zeros_like(owner))}
    other = torch.tensor([[one.untrue(scene) for scene in scenes] for _, one in asked], device=device)
    other[torch.arange(len(asked)), owner] = True
    images = (scale * told[column == 0] @ seen.T).masked_fill(~other, -1e4)  # (choices, B)
    found["find"] = F.cross_entropy(images, owner)
    for skill in ("existence", "negation", "colour", "shape", "count", "position"):
        mask = torch.tensor([one.skill == skill for _, one in asked], device=device)
        found[f"%{skill}"] = right[mask].float().mean()
    return found


def losses(model: TinyClip, batch: Pictures, rng: random.Random) -> dict[str, Tensor]:
    """Dense, whole-caption and statement losses of one batch, and the share of choices made right (`%...`)."""
    vision = model.clip.vision_model(pixel_values=batch.pixels)
    table = model.clip.text_model.embeddings.token_embedding.weight
    found = model.aux_dense(model.clip.vision_model.post_layernorm(vision.last_hidden_state), table, batch)
    seen = F.normalize(model.clip.visual_projection(vision.pooler_output).float(), dim=-1)
    found |= contrast_losses(model, seen, batch.scenes, rng)
    return found | statement_losses(model, seen, batch.scenes, rng)
