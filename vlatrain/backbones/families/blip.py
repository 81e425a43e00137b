"""BLIP (Li et al., ICML 2022, arXiv:2201.12086) in transformers.

Differences from the forward passes in transformers 5.23, each on purpose:
- cross-attention masks the padding it is told of. transformers drops that mask on the way (`BlipTextAttention` hands it on as the
  mask of self-attention, which cross-attention does not read), so that an answer depends on how its question was padded;
- an answer's decoder input starts with the decoder's start token, as it does in generation and in BLIP's own code;
  transformers starts it with [CLS] in training;
- generation is told of the padding of questions; transformers' own passes a mask of ones;
- attention is torch's fused kernel, where transformers computes it step by step in both towers and keeps every step's result for
  the backward pass; the same numbers within rounding. Cross-attention from a short text to an image does not even make the
  image's keys and values, which would be most of all that a decoder computes: see `FastTextAttention.absorbed`. The modules stay
  what they are, with their names and weights; only their class is another, a subclass. Where somebody asks for the attention's
  weights, which the kernel does not give, the original is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextEncoder, BlipTextSelfAttention

from vlatrain.backbones.attention import additive
from vlatrain.backbones.base import Backbone, Context, Inputs, Text, exact, padded_text, unit
from vlatrain.backbones.lengths import Room, ended, rooms
from vlatrain.backbones.writing import Writer, Written
from vlatrain.config import DecodeConfig, TaskConfig
from vlatrain.injection.context import exported, provide, reads_other, restore

SHORT = 32
"""Tokens of a text up to which absorbed cross-attention costs less than keys and values of 64 features a head, training included.
It is compared with the size of heads, not with each batch's texts: the same text should be rounded alike in every batch."""
FAR = 4
"""So many times as many states must be there to attend to: an image has hundreds; with the few of a question nothing is gained."""


class FastVisionAttention(BlipAttention):
    """Self-attention of the image tower."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """(B, L, width) -> (B, L, width), and the weights if asked for."""
        if kwargs.get("output_attentions"):
            return super().forward(hidden_states, **kwargs)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, L, 3, heads, head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, head) each
        share = self.dropout.p if self.dropout.training else 0.0
        found = scaled_dot_product_attention(query, key, value, dropout_p=share, scale=self.scale)
        return self.projection(found.transpose(1, 2).flatten(2)), None  # (B, heads, L, head) -> (B, L, width)


class FastTextAttention(BlipTextSelfAttention):
    """Self-attention or cross-attention of a text tower, with a key-value cache or without.

    Attributes:
        beams: while texts are generated, how many of a row are; else 0.
        kept: cross-attention's keys and values (B, heads, S, head) of the rows that texts are being generated for.
    """

    beams = 0
    kept: tuple[Tensor, Tensor] | None = None

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, width) -> (B, L, width), and the weights if asked for. Masks are additive, (B, 1, L or 1, S)."""
        if kwargs.get("output_attentions"):
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
            )
        query = self._split(self.query(hidden_states))
        mask = attention_mask if encoder_hidden_states is None else encoder_attention_mask
        mask = additive(mask, query.dtype)
        share = self.dropout.p if self.dropout.training else 0.0
        if encoder_hidden_states is None:
            key, value = self._own(hidden_states, past_key_values)
            found = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=share)
        elif self._absorbs and not self.beams and encoder_hidden_states.shape[1] >= FAR * SHORT:
            return self.absorbed(query, encoder_hidden_states, mask, share), None
        else:
            found = self._crossed(query, encoder_hidden_states, mask, share)
        return found.transpose(1, 2).flatten(2), None  # (B, heads, L, head) -> (B, L, width)

    @property
    def _absorbs(self) -> bool:
        """Whether keys and values are plain products with frozen weights, and heads are large enough."""
        return self.attention_head_size >= 2 * SHORT and all(
            type(layer) is nn.Linear
            and not (layer.weight.requires_grad or layer._forward_hooks or layer._forward_pre_hooks)
            for layer in (self.key, self.value)
        )

    def absorbed(self, query: Tensor, states: Tensor, mask: Tensor | None, share: float = 0.0) -> Tensor:
        """Cross-attention with keys' and values' weights on the other side: q (W x) = (q W) x, and a (W x) = W (a x).

        As DeepSeek-V2's latent attention absorbs its up-projections (arXiv:2405.04434, 2.1.2). Keys and values of S states cost
        4 S width^2 operations, this 4 L heads S width: for texts of L = 20 tokens and 12 heads a third. The bias of keys moves all
        scores of a token alike, which softmax does not see.

        Args:
            query: (B, heads, L, head).
            states: what is attended to, (B, S, other width).
            mask: additive, (B, 1, L or 1, S).
            share: of dropout.

        Returns:
            (B, L, width).
        """
        heads, size = query.shape[1], query.shape[3]
        # (heads, head, other)
        key, value = (layer.weight.unflatten(0, (heads, size)) for layer in (self.key, self.value))
        asked = torch.einsum("bhlk,hkw->bhlw", query * size**-0.5, key)
        scores = torch.einsum("bhlw,bsw->bhls", asked, states)
        shares = dropout((scores if mask is None else scores + mask).softmax(dim=-1), share).to(states.dtype)
        read = torch.einsum("bhls,bsw->bhlw", shares, states)
        # (B, L, heads, head) -> (B, L, width)
        return torch.einsum("bhlw,hkw->blhk", read, value).flatten(2) + self.value.bias

    def _split(self, states: Tensor) -> Tensor:
        # (B, L, width) -> (B, heads, L, head)
        split: Tensor = states.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)
        return split

    def _keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        # (B, S, other width) -> (B, heads, S, head) each
        return self._split(self.key(states)), self._split(self.value(states))

    def _own(self, states: Tensor, past: Cache | None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, head) of the tokens, after those in the cache."""
        key, value = self._keys_and_values(states)
        own: Any = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
        return (key, value) if own is None else own.update(key, value, self.layer_idx)

    def _crossed(self, query: Tensor, states: Tensor, mask: Tensor | None, share: float) -> Tensor:
        """Cross-attention by the kernel, (B, heads, L, head). Beams of a row, B / beams, share its keys and values, and all tokens
        a mask: it says which states there are."""
        beams = self.beams or 1
        key, value = self.kept or self._keys_and_values(states[::beams])
        if self.beams:
            self.kept = key, value
        rows = query.unflatten(0, (-1, beams)).transpose(1, 2).flatten(2, 3)  # (B / beams, heads, beams * L, head)
        mask = None if mask is None else mask[::beams, :, :1]  # (B / beams, 1, 1, S)
        found = scaled_dot_product_attention(rows, key, value, attn_mask=mask, dropout_p=share)
        joined: Tensor = found.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)
        return joined


FAST: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: FastVisionAttention,
    BlipTextSelfAttention: FastTextAttention,
}


@contextmanager
def generating(model: nn.Module, beams: int) -> Iterator[None]:
    """Make keys and values of what texts attend to once for all tokens and beams, which are repeated rows next to each other."""
    layers = [module for module in model.modules() if isinstance(module, FastTextAttention)]
    for layer in layers:
        layer.beams = beams
    try:
        yield
    finally:
        for layer in layers:
            layer.beams, layer.kept = 0, None


class Blip(Writer, Backbone):
    """BLIP for answering, captioning or retrieval, as `task` says. See `Generator` and `Embedder` for the operations."""

    model: Any
    fast = FAST
    stacks = (BlipTextEncoder,)
    reader = "fusion"
    scoring = ("itm_head",)
    box_towers = ("vision", "fusion")
    writes_at = "text_decoder"
    shares_beams = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, module in self.model.named_modules():
            if name.endswith("crossattention.self"):
                module.register_forward_pre_hook(_hand_mask_on, with_kwargs=True)

    def _image_states(self, inputs: Inputs) -> Tensor:
        prefix = inputs.get("prefix", {})
        if prefix and "vision" not in prefix:  # whoever reads them is kept as a whole
            (states,) = prefix.values()
            first: Tensor = states[:, 0, :1]
            return first
        with self.prefix("vision", inputs):
            out: Tensor = self.model.vision_model(pixel_values=inputs["pixels"]).last_hidden_state  # (B, S, width)
            return out

    def context(self, inputs: Inputs) -> Context:
        """Image states, or the question's states after it has attended to the image: `states` (B, S, width), `mask` (B, S).

        Where adapters in the vision tower read the question, it is first encoded on its own.
        """
        question = inputs.get("question")
        with self._asked(question):
            states = self._image_states(inputs)
        mask = states.new_ones(states.shape[:2], dtype=torch.long)
        if question is None:
            return {"states": states, "mask": mask, **exported(self.model)}
        with self.prefix("fusion", inputs):
            fused = self.model.text_encoder(
                input_ids=question.ids,
                attention_mask=question.mask,
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
            )
        return {"states": fused.last_hidden_state, "mask": question.mask, **exported(self.model)}

    def grounding_states(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Grounder`: the image's states, and those of the text after it has attended to them."""
        question = inputs["question"]
        with self._asked(question):
            states = self._image_states(inputs)
        mask = states.new_ones(states.shape[:2], dtype=torch.long)
        fused = self.model.text_encoder(
            input_ids=question.ids,
            attention_mask=question.mask,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
        )
        return states, fused.last_hidden_state, question.mask

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """`[DEC] prompt text [SEP]`."""
        start = self._prompt_ids(prompt)
        rows = [
            start
            + ended(self.tokenizer(self.clean(text), add_special_tokens=False)["input_ids"], [self._end], max_length)
            for text in texts
        ]
        return padded_text(rows, self.model.config.text_config.pad_token_id), len(start)

    def rooms(self, config: TaskConfig) -> dict[str, Room]:
        """Question and text have a tower each."""
        lead = len(self._prompt_ids(config.begins_with))
        return rooms(config, self.positions(self.reader), self.positions("decoder"), lead=lead)

    def logits(self, context: Context, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        with restore(self.model, context):
            logits: Tensor = self.model.text_decoder(
                input_ids=target.ids,
                attention_mask=target.mask,
                encoder_hidden_states=context["states"],
                encoder_attention_mask=context["mask"],
                use_cache=False,
            ).logits
            return logits

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """Greedy or beam search, key-value cached."""
        states, mask = context["states"], context["mask"]
        start = torch.tensor([self._prompt_ids(prompt)] * len(states), device=states.device)  # (B, P)
        begun = {
            "input_ids": start,
            "attention_mask": torch.ones_like(start),
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask,
            "eos_token_id": self._end,
            "pad_token_id": self.model.config.text_config.pad_token_id,
        }
        with restore(self.model, context), generating(self.model.text_decoder, decode.num_beams):
            return self.search(self.model.text_decoder, begun, decode, alternatives)

    def image_features(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Projected [CLS] state of the image, and all its states."""
        states = self._image_states(inputs)
        return unit(self.model.vision_proj(states[:, 0])), states

    def text_features(self, text: Text) -> Tensor:
        """Projected [CLS] state of the text on its own."""
        states = self.model.text_encoder(input_ids=text.ids, attention_mask=text.mask).last_hidden_state
        return unit(self.model.text_proj(states[:, 0]))

    def logit_scale(self) -> Tensor:
        """1 / 0.07: BLIP's initial temperature. transformers drops the learned one."""
        return torch.full((), 1 / 0.07, device=self.device)  # filled there, not copied there

    @property
    def matches(self) -> bool:
        """Always: BLIP has a matching head."""
        return True

    def match(self, states: Tensor, text: Text) -> Tensor:
        """Matching head on the [CLS] state of the text after it has attended to the image."""
        mask = states.new_ones(states.shape[:2], dtype=torch.long)
        fused = self.model.text_encoder(
            input_ids=text.ids, attention_mask=text.mask, encoder_hidden_states=states, encoder_attention_mask=mask
        )
        return exact(self.model.itm_head, fused.last_hidden_state[:, 0])

    def _asked(self, question: Text | None) -> AbstractContextManager[None]:
        """Hand the vision tower the question's own states, if anything there reads them."""
        if question is None or not reads_other(self.model, "vision"):
            return nullcontext()
        states = self.model.text_encoder(input_ids=question.ids, attention_mask=question.mask).last_hidden_state
        return provide(self.model, "vision", states, question.mask)

    @property
    def _end(self) -> int:
        token: int = self.model.config.text_config.sep_token_id
        return token

    def _prompt_ids(self, prompt: str) -> list[int]:
        start = self.model.config.text_config.bos_token_id
        return [start, *(self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else [])]


def _hand_mask_on(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give cross-attention the mask of what it attends to under the name it reads."""
    if kwargs.get("encoder_hidden_states") is not None and kwargs.get("encoder_attention_mask") is None:
        kwargs["encoder_attention_mask"] = kwargs.get("attention_mask")
    return args, kwargs
