"""tiny_blip: its configuration, a fast forward pass over its own transformers modules, and the pre-training losses.

Cross-attention to an image is shared by all its texts: keys and values are computed once an image, and the texts' words
are one long row of queries. The weights are those of the transformers classes, so nothing is converted at the end.
Shape suffixes as in tiny_batches; D = 128 the width, H = 4 heads, V the vocabulary.
"""

from __future__ import annotations

import torch
from tiny_batches import HUES, KINDS, WORDS, Pictures, Texts
from tiny_dense import DenseHead
from tiny_words import CLS, DEC, PAD, SEP
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

WIDTH, HEADS = 128, 4


def config() -> BlipConfig:
    """The architecture, about two million parameters."""
    both = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "projection_dim": WIDTH, "hidden_act": "silu"}
    text = both | {
        "vocab_size": len(WORDS), "encoder_hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 3,
        "max_position_embeddings": 64, "bos_token_id": DEC, "sep_token_id": SEP, "eos_token_id": SEP,
        "pad_token_id": PAD, "initializer_range": 0.05,
    }  # fmt: skip
    vision = both | {
        "intermediate_size": 512, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8, "initializer_range": 0.05,
    }  # fmt: skip
    return BlipConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=WIDTH,
        image_text_hidden_size=WIDTH,
        initializer_range=0.05,
    )


class TinyBlip(nn.Module):
    """The parts of the three BLIP classes in one module, and the heads that only pre-training uses (`aux_*`)."""

    def __init__(self) -> None:
        super().__init__()
        made = config()
        self.vision_model = BlipVisionModel(made.vision_config)
        self.text_encoder = BlipTextModel(made.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(made.text_config)
        words = self.text_encoder.embeddings.word_embeddings  # one table for both text towers while pre-training
        self.text_decoder.bert.embeddings.word_embeddings = words
        self.text_decoder.cls.predictions.decoder.weight = words.weight
        self.text_decoder.cls.predictions.decoder.bias = self.text_decoder.cls.predictions.bias
        self.vision_proj, self.text_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.itm_head = nn.Linear(WIDTH, 2)
        self.aux_dense = DenseHead(WIDTH, WIDTH)
        self.aux_token = nn.Linear(WIDTH, 4 + len(HUES) + len(KINDS) + 3 + 3)
        self.aux_heat = nn.Parameter(torch.tensor(2.6))

    def see(self, pixels: Tensor) -> Tensor:
        """Image states (B, N, D)."""
        tower = self.vision_model
        embed = tower.embeddings
        weight = embed.patch_embedding.weight
        size = pixels.shape[0]
        # (B, 3, 64, 64) -> (B, 3, 8, 8, 8, 8) -> (B, 64, 3 * 8 * 8): the strided convolution as one product
        cut = pixels.reshape(size, 3, 8, 8, 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(size, 64, 192)
        patches = F.linear(cut.to(weight.dtype), weight.flatten(1), embed.patch_embedding.bias)
        states = torch.cat([embed.class_embedding.expand(size, 1, -1), patches], 1) + embed.position_embedding
        for layer in tower.encoder.layers:
            attn = layer.self_attn
            qkv = attn.qkv(layer.layer_norm1(states))
            # (B, N, 3 * D) -> (3, B, H, N, D / H)
            q, k, v = qkv.view(size, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            mixed = _mix(q, k, v).transpose(1, 2).reshape(size, -1, WIDTH)
            states = states + attn.projection(mixed)
            states = states + layer.mlp(layer.layer_norm2(states))
        return tower.post_layernorm(states)

    def read(self, texts: Tensor, image: Tensor | None, looks: list[Tensor] | None = None) -> Tensor:
        """Text-encoder states (X, L, D) of X = B * Q texts, without or with the image.

        With `looks` a list, head 0's log attention (B, Q * L, N) of every layer is appended to it.
        """
        mask = (texts != PAD)[:, None, None, :]
        states = self.text_encoder.embeddings(texts)
        for layer in self.text_encoder.encoder.layer:
            states = _attend(layer.attention, states, states, mask)
            if image is not None:
                states = _look(layer.crossattention, states, image, looks)
            states = layer.feed_forward_chunk(states)
        return states

    def write(self, ids: Tensor, states: Tensor, mask: Tensor | None, looks: list[Tensor] | None = None) -> Tensor:
        """Decoder logits (X, A, V): `states` (X, L, D) of a question with its mask, or (B, N, D) of an image."""
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        hidden = self.text_decoder.bert.embeddings(ids)
        for layer in self.text_decoder.bert.encoder.layer:
            hidden = _attend(layer.attention, hidden, hidden, causal)
            if mask is None:
                hidden = _look(layer.crossattention, hidden, states, looks)
            else:
                hidden = _attend(layer.crossattention, hidden, states, mask)
            hidden = layer.feed_forward_chunk(hidden)
        return self.text_decoder.cls(hidden)


def _heads(rows: Tensor) -> Tensor:
    """(X, L, D) -> (X, H, L, D / H)."""
    return rows.view(*rows.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)


def _mix(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain attention; on a CPU its backward is several times faster than the fused one's at this size."""
    scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def _attend(part: nn.Module, rows: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """One attention block of the text towers: rows (X, L, D) look at states (X, S, D)."""
    own = part.self
    q, k, v = _heads(own.query(rows)), _heads(own.key(states)), _heads(own.value(states))
    mixed = _mix(q, k, v, torch.zeros(mask.shape, device=mask.device, dtype=q.dtype).masked_fill(~mask, -1e4))
    return part.output(mixed.transpose(1, 2).reshape(rows.shape), rows)


def _look(part: nn.Module, rows: Tensor, image: Tensor, looks: list[Tensor] | None) -> Tensor:
    """Cross-attention of all texts of an image at once; head 0's log attention goes to `looks`."""
    own = part.self
    flat = rows.reshape(image.shape[0], -1, WIDTH)  # (B * Q, L, D) -> (B, Q * L, D)
    q, k, v = _heads(own.query(flat)), _heads(own.key(image)), _heads(own.value(image))
    scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5  # (B, H, Q * L, N)
    if looks is not None:
        looks.append(scores[:, 0].float().log_softmax(-1))
    mixed = scores.softmax(-1) @ v
    return part.output(mixed.transpose(1, 2).reshape(flat.shape), flat).view(rows.shape)


def pointer_loss(looks: list[Tensor], texts: Texts, batch: Pictures) -> Tensor:
    """Cross-attention's head 0: a word looks at what it fits in the first layer, at what its phrase fits after."""
    total = torch.zeros((), device=looks[0].device)
    rows = torch.arange(len(batch.scenes), device=looks[0].device)[:, None]
    for place, look in enumerate(looks):
        told = (texts.own if place == 0 else texts.phrase).flatten(1)  # (B, Q * L)
        target = batch.point[rows, told.clamp(min=0)]
        each = -(target * look).sum(-1)
        total = total + each[told >= 0].mean()
    return total / len(looks)


def token_loss(model: TinyBlip, states: Tensor, texts: Texts, batch: Pictures) -> Tensor:
    """What a phrase's words should know at the end: how many figures it fits and, if one, its hue, kind and place."""
    told = texts.phrase
    b, q, word = (told >= 0).nonzero(as_tuple=True)
    subset = told[b, q, word]
    chosen = states.view(*told.shape, WIDTH)[b, q, word]
    count, hue, kind, column, row = model.aux_token(chosen).float().split([4, len(HUES), len(KINDS), 3, 3], -1)
    number = (subset & 1) + (subset >> 1 & 1) + (subset >> 2 & 1)
    facts = batch.facts[b, (subset >> 1).clamp(max=2)]  # sets 1, 2, 4 are figures 0, 1, 2
    facts = facts.where((number == 1)[:, None], -100)
    parts = [F.cross_entropy(count, number)]
    parts += [F.cross_entropy(logits, facts[:, place]) for place, logits in enumerate((hue, kind, column, row))]
    return torch.stack(parts).mean()


def language_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Next-word loss over the words after the first."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=PAD)


def match_loss(
    model: TinyBlip, image: Tensor, texts: Texts, keys: list[str], false_keys: list[str], batch: Pictures
) -> dict[str, Tensor]:
    """Image-text contrast and matching. texts: (B, 2, L), a true and a false caption an image.

    The contrast has every caption of the batch as a candidate, less those that are true of the image by chance; the
    matching head sees the true one, the false one and the next image's.
    """
    size = len(keys)
    read = model.read(texts.ids.flatten(0, 1), None)[:, 0]
    told = F.normalize(model.text_proj(read).float(), dim=-1).view(size, 2, WIDTH)
    seen = F.normalize(model.vision_proj(image[:, 0]).float(), dim=-1)
    heat = model.aux_heat.exp().clamp(max=50)
    to_text = heat * seen @ torch.cat([told[:, 0], told[:, 1]]).T  # (B, 2 B)
    said = keys + false_keys
    same = torch.tensor(
        [[said[j] == keys[i] and j != i for j in range(2 * size)] for i in range(size)], device=seen.device
    )
    target = torch.arange(size, device=seen.device)
    to_text = to_text.masked_fill(same, -1e4)
    losses = {"itc": (F.cross_entropy(to_text, target) + F.cross_entropy(to_text[:, :size].T, target)) / 2}

    other = torch.roll(texts.ids[:, :1], 1, 0)
    three = torch.cat([texts.ids, other], 1)  # (B, 3, L)
    looks: list[Tensor] = []
    states = model.read(three.flatten(0, 1), image, looks)
    logits = model.itm_head(states[:, 0]).float().view(size, 3, 2)
    truth = torch.tensor([[1, 0, int(keys[i] == keys[i - 1])] for i in range(size)], device=seen.device)
    losses["itm"] = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
    mine = [look.view(size, 3, -1, look.shape[-1])[:, :2].flatten(1, 2) for look in looks]
    losses["itm_point"] = pointer_loss(mine, texts, batch)
    losses["itm_token"] = token_loss(
        model, states.view(size, 3, -1, WIDTH)[:, :2].reshape(size * 2, -1, WIDTH), texts, batch
    )
    return losses


def caption_loss(model: TinyBlip, image: Tensor, texts: Texts, batch: Pictures) -> dict[str, Tensor]:
    """The true caption word by word; the word before a phrase's word looks at what that word will name."""
    ids = texts.ids[:, 0].clone()
    start = torch.rand(len(ids), device=ids.device) < 0.15
    ids[:, 0] = torch.where(start, CLS, DEC)
    looks: list[Tensor] = []
    logits = model.write(ids, image, None, looks)
    ahead = torch.full_like(texts.phrase[:, :1], -1)
    ahead[..., :-1] = texts.phrase[:, :1, 1:]
    next_word = Texts(ids[:, None], ahead, ahead)
    return {"caption": language_loss(logits, ids), "caption_point": pointer_loss(looks[-1:], next_word, batch)}
