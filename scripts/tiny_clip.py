"""tiny_clip: its configuration, what it learns to choose between, and the pre-training losses.

The vision tower starts from tiny_blip's, which knows colours, shapes and places; the text tower and the common space
are learned by contrast: a whole caption against the batch's and against false ones of the same image, and short
statements against others that differ in one thing. Shape suffixes as in tiny_batches; S statements an image.
"""

from __future__ import annotations

import random

import torch
from tiny_batches import WORDS, Pictures, encode
from tiny_dense import DenseHead
from tiny_grammar import HUES, ZONES, Noun, Text, absent, add_noun, caption, described, false_nouns, single, zone
from tiny_words import CLS, PAD, SEP
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from vlatrain.data.scenes import KINDS, Scene, pick, shuffled

WIDTH = 128
CAPTIONS = 3  # of an image: a true one and two false ones
COUNTS = ("no", "one", "two", "three")


def config() -> CLIPConfig:
    """The architecture, about 1.5 million parameters."""
    both = {"hidden_size": WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH, "hidden_act": "silu"}
    text = both | {
        "vocab_size": len(WORDS), "intermediate_size": 512, "num_hidden_layers": 3, "max_position_embeddings": 64,
        "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
    }  # fmt: skip
    vision = both | {"intermediate_size": 512, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


class TinyClip(nn.Module):
    """A CLIPModel and the dense head that only pre-training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPModel._from_config(config(), attn_implementation="eager")
        self.aux_dense = DenseHead(WIDTH)

    def start_from(self, blip: dict[str, Tensor]) -> None:
        """Take the vision tower and the word embeddings of a tiny_blip state."""
        mine = self.clip.state_dict()
        tower = "vision_model."
        mine[tower + "embeddings.class_embedding"] = blip[tower + "embeddings.class_embedding"].flatten()
        mine[tower + "embeddings.patch_embedding.weight"] = blip[tower + "embeddings.patch_embedding.weight"]
        places = blip[tower + "embeddings.position_embedding"][0].clone()
        places[1:] += blip[tower + "embeddings.patch_embedding.bias"]  # CLIP's patches have no bias of their own
        mine[tower + "embeddings.position_embedding.weight"] = places
        for name, value in blip.items():
            if name.startswith((tower + "encoder.", tower + "post_layernorm.")) and ".qkv." not in name:
                mine[name.replace(".projection.", ".out_proj.")] = value
            elif name.startswith(tower) and ".qkv." in name:
                for part, piece in zip("qkv", value.chunk(3), strict=True):
                    mine[name.replace(".qkv.", f".{part}_proj.")] = piece
        mine["visual_projection.weight"] = blip["vision_proj.weight"]
        mine["text_model.embeddings.token_embedding.weight"] = blip["text_encoder.embeddings.word_embeddings.weight"]
        self.clip.load_state_dict(mine)
        dense = {
            name.removeprefix("aux_dense."): value for name, value in blip.items() if name.startswith("aux_dense.")
        }
        self.aux_dense.load_state_dict(dense)


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


def statements(scene: Scene, rng: random.Random) -> list[tuple[str, list[Text]]]:
    """Groups of statements by skill, the true one first; a skill that the scene does not allow is left out."""
    groups: list[tuple[str, list[Text]]] = []
    form = pick(rng, ("colour", "kind", "both"))
    figure = pick(rng, scene.figures)
    noun, other = described(figure, form), absent(scene, rng, form)
    there, end = pick(rng, (["there is"], ["this is a picture with"], [])), pick(rng, ([], [], ["in the image"]))
    groups.append(("existence", [_said([*there, part, *end], scene, rng, article=True) for part in (noun, other)]))
    groups.append(("negation", [_said(["there is no", part, *end], scene, rng) for part in (other, noun)]))
    if noun := single(scene, figure, rng, ("kind", "any")):
        hues = [figure.colour, *shuffled(rng, [hue for hue in HUES if hue != figure.colour])[:3]]
        groups.append(("colour", [_said(["the", noun, "is", hue], scene, rng) for hue in hues]))
    if noun := single(scene, figure, rng, ("colour", "any")):
        kinds = [figure.kind, *shuffled(rng, [kind for kind in KINDS if kind != figure.kind])[:3]]
        groups.append(("shape", [_said(["the", noun, "is a", kind], scene, rng) for kind in kinds]))
    noun = pick(rng, (Noun(), Noun(), described(figure, form)))
    number = noun.among(scene).bit_count()
    texts = [(_said([COUNTS[n], noun], scene, rng, plural=n != 1)) for n in range(1, 4)]
    groups.append(("count", [texts[number - 1], *(text for n, text in enumerate(texts, 1) if n != number)]))
    noun, place = single(scene, figure, rng, ("colour", "kind", "both", "any")), zone(figure)
    if noun and place:
        true = pick(rng, place.split())
        sides = [true, *(side for side in ZONES if side not in place.split())]
        if place != "center":
            sides = [side for side in sides if side != "center"]
        groups.append(("position", [_said(["the", noun, "is on the", side], scene, rng) for side in sides[:3]]))
    return groups


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


def statement_losses(
    model: TinyClip, seen: Tensor, scenes: list[Scene], weak: bool, rng: random.Random
) -> dict[str, Tensor]:
    """Three groups of statements an image, or with `weak` all on colour, shape and place: choose the true one."""
    device = seen.device
    groups = []
    for b, scene in enumerate(scenes):
        found_groups = shuffled(rng, statements(scene, rng))
        if weak:
            found_groups.sort(key=lambda group: group[0] not in ("colour", "shape", "position"))
        groups += [(b, skill, texts) for skill, texts in found_groups[: 4 if weak else 3]]
    told = _embed(model, [text for _, _, texts in groups for text in texts], 14, device)
    owner = torch.tensor([b for b, _, texts in groups for _ in texts], device=device)
    row = torch.tensor([g for g, (_, _, texts) in enumerate(groups) for _ in texts], device=device)
    column = torch.tensor([c for _, _, texts in groups for c in range(len(texts))], device=device)
    scores = torch.full((len(groups), 4), -1e4, device=device)
    scores[row, column] = model.clip.logit_scale.exp().clamp(max=100) * (seen[owner] * told).sum(-1)
    right = scores.argmax(1) == 0
    found = {"choose": F.cross_entropy(scores, torch.zeros(len(groups), dtype=torch.long, device=device))}
    for skill in ("existence", "negation", "colour", "shape", "count", "position"):
        mask = torch.tensor([name == skill for _, name, _ in groups], device=device)
        found[f"%{skill}"] = right[mask].float().mean()
    return found


def losses(model: TinyClip, batch: Pictures, weak: bool, rng: random.Random) -> dict[str, Tensor]:
    """Dense, whole-caption and statement losses of one batch, and the share of choices made right (`%...`)."""
    vision = model.clip.vision_model(pixel_values=batch.pixels)
    table = model.clip.text_model.embeddings.token_embedding.weight
    found = model.aux_dense(model.clip.vision_model.post_layernorm(vision.last_hidden_state), table, batch)
    seen = F.normalize(model.clip.visual_projection(vision.pooler_output).float(), dim=-1)
    found |= contrast_losses(model, seen, batch.scenes, rng)
    return found | statement_losses(model, seen, batch.scenes, weak, rng)
