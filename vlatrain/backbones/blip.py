"""BLIP (Li et al., ICML 2022, arXiv:2201.12086) in transformers.

Differences from the forward passes in transformers 5.23, each on purpose:
- cross-attention masks the padding it is told of. transformers drops that mask on the way (`BlipTextAttention` hands it on as the
  mask of self-attention, which cross-attention does not read), so that an answer depends on how its question was padded;
- an answer's decoder input starts with the decoder's start token, as it does in generation and in BLIP's own code;
  transformers starts it with [CLS] in training;
- generation is told of the padding of questions; transformers' own passes a mask of ones;
- attention is torch's fused kernel (`blip_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.blip.modeling_blip_text import BlipTextEncoder

from vlatrain.backbones.base import Backbone, Inputs, Text, exact, padded_text, unit
from vlatrain.backbones.blip_attention import FAST, generating
from vlatrain.backbones.lengths import Room, rooms
from vlatrain.config import DecodeConfig, TaskConfig
from vlatrain.injection.context import bring, hand, left, reads_other


class Blip(Backbone):
    """BLIP for answering, captioning or retrieval, as `task` says. See `Generator` and `Embedder` for the operations."""

    model: Any
    fast = FAST
    stacks = (BlipTextEncoder,)
    reader = "fusion"
    scoring = ("itm_head",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, module in self.model.named_modules():
            if name.endswith("crossattention.self"):
                module.register_forward_pre_hook(_hand_mask_on, with_kwargs=True)

    def _image_states(self, inputs: Inputs) -> Tensor:
        prefix = inputs.get("prefix", {})
        if prefix and "vision" not in prefix:  # whoever reads them is kept as a whole
            (states,) = prefix.values()
            return states[:, 0, :1]
        with self.prefix("vision", inputs):
            return self.model.vision_model(pixel_values=inputs["pixels"]).last_hidden_state  # (B, S, width)

    def context(self, inputs: Inputs) -> Inputs:
        """Image states, or the question's states after it has attended to the image: `states` (B, S, width), `mask` (B, S).

        Where adapters in the vision tower read the question, it is first encoded on its own.
        """
        question = inputs.get("question")
        with self._asked(question):
            states = self._image_states(inputs)
        mask = states.new_ones(states.shape[:2], dtype=torch.long)
        if question is None:
            return {"states": states, "mask": mask, **left(self.model)}
        with self.prefix("fusion", inputs):
            fused = self.model.text_encoder(
                input_ids=question.ids,
                attention_mask=question.mask,
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
            )
        return {"states": fused.last_hidden_state, "mask": question.mask, **left(self.model)}

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """`[DEC] prompt text [SEP]`."""
        start = self._prompt_ids(prompt)
        rows = [
            start + self.tokenizer(text, add_special_tokens=False)["input_ids"][: max_length - 1] + [self._end]
            for text in texts
        ]
        return padded_text(rows, self.model.config.text_config.pad_token_id), len(start)

    def rooms(self, config: TaskConfig) -> dict[str, Room]:
        """Question and text have a tower each."""
        lead = len(self._prompt_ids(config.prompt))
        return rooms(config, self.positions(self.reader), self.positions("decoder"), lead=lead)

    def logits(self, context: Inputs, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        with bring(self.model, context):
            return self.model.text_decoder(
                input_ids=target.ids,
                attention_mask=target.mask,
                encoder_hidden_states=context["states"],
                encoder_attention_mask=context["mask"],
                use_cache=False,
            ).logits

    def generate(self, context: Inputs, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Greedy or beam search, key-value cached."""
        states, mask = context["states"], context["mask"]
        start = torch.tensor([self._prompt_ids(prompt)] * len(states), device=states.device)  # (B, P)
        search = self.search(decode, alternatives)
        with bring(self.model, context), generating(self.model.text_decoder, search["num_beams"]):
            ids = self.model.text_decoder.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                eos_token_id=self._end,
                pad_token_id=self.model.config.text_config.pad_token_id,
                **search,
            )  # (B * alternatives, P + new)
        texts = self.tokenizer.batch_decode(ids[:, start.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

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

    def _asked(self, question: Text | None) -> AbstractContextManager:
        """Hand the vision tower the question's own states, if anything there reads them."""
        if question is None or not reads_other(self.model, "vision"):
            return nullcontext()
        states = self.model.text_encoder(input_ids=question.ids, attention_mask=question.mask).last_hidden_state
        return hand(self.model, "vision", states, question.mask)

    @property
    def _end(self) -> int:
        return self.model.config.text_config.sep_token_id

    def _prompt_ids(self, prompt: str) -> list[int]:
        start = self.model.config.text_config.bos_token_id
        return [start, *(self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else [])]


def _hand_mask_on(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Give cross-attention the mask of what it attends to under the name it reads."""
    if kwargs.get("encoder_hidden_states") is not None and kwargs.get("encoder_attention_mask") is None:
        kwargs["encoder_attention_mask"] = kwargs.get("attention_mask")
    return args, kwargs
