"""A small backbone that converses: an image as one embedding in front of a GPT-2 with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoTokenizer

from tests.conftest import make_samples
from vlatrain.backbones import tokenizers
from vlatrain.backbones.at_places import logits_at
from vlatrain.backbones.base import Backbone, Inputs, Pair, Text, blank_text
from vlatrain.backbones.loading import load
from vlatrain.cli.registry import register_resolvers
from vlatrain.config import DecodeConfig, ModelConfig
from vlatrain.data.sample import Turn

SIZE = 4  # an image is read as SIZE x SIZE pixels
YAML = """
defaults: [model_schema, _self_]
name: talker
family: talker
random_init: true
tasks:
  instruct: {architecture: GPT2LMHeadModel, towers: [decoder], output_towers: [decoder], samples_per_step: 4}
towers:
  decoder:
    layers: transformer.h
    depth: n_layer
    width: n_embd
    heads: n_head
    embeddings: transformer.wte
    norm: transformer.ln_f
    causal: true
    sites:
      attn: {output: attn.c_proj, input: attn, modules: {out: attn.c_proj, norm: ln_1}}
      ffn: {output: mlp.c_proj, input: mlp, modules: {inner: mlp.c_fc, out: mlp.c_proj, norm: ln_2}}
config: {model_type: gpt2, vocab_size: 300, n_positions: 96, n_embd: 48, n_layer: 2, n_head: 4}
"""


class Talker(Backbone):
    """`[image] user [SEP] reply [SEP] user [SEP] ...`"""

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A tokenizer made from texts."""
        return Pair(tokenizers.make_wordpiece(texts, 300), None)

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """That tokenizer."""
        return Pair(AutoTokenizer.from_pretrained(checkpoint), None)

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """GPT-2's own settings do."""
        return settings

    def conversations(
        self, images: Sequence[Any], conversations: Sequence[Sequence[Turn]], max_length: int
    ) -> tuple[Inputs, Text]:
        """See `Converser`."""
        rows = [self._row(turns) for turns in conversations]
        ids = self._padded([[token for token, _ in row][:max_length] for row in rows])
        learned = self._padded([[own for _, own in row][:max_length] for row in rows])
        return {"pixels": pixels(images), "ids": ids.ids, "mask": ids.mask}, Text(ids.ids, learned.ids * ids.mask)

    def transcript(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """See `Converser`."""
        ids, learned = zip(*self._row(turns), strict=True)
        return list(ids), list(learned)

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """A reply and its end, behind the token that stands for the prompt's last one."""
        end = self.tokenizer.sep_token_id
        return self._padded([[end, *self._ids(text)[: max_length - 1], end] for text in texts]), 1

    def conversation_logits(self, inputs: Inputs, places: Tensor | None = None) -> Tensor:
        """See `Converser`."""
        with logits_at(self.model.lm_head, places):
            return self.model(inputs_embeds=self._embedded(inputs), attention_mask=inputs["mask"]).logits

    def prompts(self, images: Sequence[Any], conversations: Sequence[Sequence[Turn]], max_length: int) -> Inputs:
        """See `Converser`."""
        rows = [
            [token for token, _ in self._row([*turns[:-1], Turn(turns[-1].user)])][-max_length:]
            for turns in conversations
        ]
        ids = self._padded(rows, left=True)
        return {"pixels": pixels(images), "ids": ids.ids, "mask": ids.mask}

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> Inputs:
        """Inputs that have only shapes."""
        text = blank_text(batch_size, question, device)
        return {"pixels": torch.zeros(batch_size, 3 * SIZE**2, device=device), "ids": text.ids, "mask": text.mask}

    def context(self, inputs: Inputs) -> Inputs:
        """The inputs themselves."""
        return inputs

    def logits(self, context: Inputs, target: Text) -> Tensor:
        """See `Generator`."""
        states = torch.cat([self._embedded(context), self.model.transformer.wte(target.ids)], dim=1)
        mask = torch.cat([context["mask"], target.mask], dim=1)
        return self.model(inputs_embeds=states, attention_mask=mask).logits[:, -target.ids.shape[1] :]

    def generate(self, context: Inputs, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Greedily, or with beams."""
        ids = self.model.generate(
            inputs_embeds=self._embedded(context),
            attention_mask=context["mask"],
            do_sample=False,
            num_beams=max(decode.num_beams, alternatives),
            num_return_sequences=alternatives,
            max_new_tokens=decode.max_new_tokens,
            eos_token_id=self.tokenizer.sep_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _row(self, turns: Sequence[Turn]) -> list[tuple[int, int]]:
        """Token and whether it is learned; a reply that is not there is not begun. The first is where the image stands."""
        end = self.tokenizer.sep_token_id
        row = [(self.tokenizer.cls_token_id, 0)]
        for turn in turns:
            row += [(token, 0) for token in [*self._ids(turn.user), end]]
            row += [(token, 1) for token in [*self._ids(turn.reply), end]] if turn.reply else []
        return row

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _embedded(self, inputs: Inputs) -> Tensor:
        """The image in place of the first token: (B, L, width). Rows may be padded on the left."""
        states = self.model.transformer.wte(inputs["ids"]).clone()
        generator = torch.Generator().manual_seed(0)
        seen = torch.randn(3 * SIZE**2, states.shape[2], generator=generator).to(states.device)  # (values, width)
        first = inputs["mask"].argmax(dim=1)
        states[torch.arange(len(states)), first] = inputs["pixels"] @ seen * 0.1
        return states

    def _padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> Text:
        length = max(map(len, rows))
        spaces = [[0] * (length - len(row)) for row in rows]
        ids = [[*space, *row] if left else [*row, *space] for row, space in zip(rows, spaces, strict=True)]
        masks = [
            [*space, *[1] * len(row)] if left else [*[1] * len(row), *space]
            for row, space in zip(rows, spaces, strict=True)
        ]
        return Text(torch.tensor(ids), torch.tensor(masks))


def pixels(images: Sequence[Any]) -> Tensor:
    """Coarse pixels, (B, 3 * SIZE * SIZE), from -1 to 1."""
    values = [np.asarray(image.resize((SIZE, SIZE)), dtype=np.float32) / 127.5 - 1 for image in images]
    return torch.tensor(np.stack(values)).flatten(1)


def described() -> ModelConfig:
    """Its description."""
    register_resolvers()
    node = OmegaConf.create(YAML)
    node.pop("defaults")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), node))  # type: ignore[return-value]


def talker() -> Talker:
    """One with the words of the tests' samples."""
    said = [text for sample in make_samples() for turn in sample.turns for text in (turn.user, turn.reply)]
    backbone = load(described(), "instruct", texts=said)
    assert isinstance(backbone, Talker)
    return backbone


def write_yaml(folder: Path) -> Path:
    """A configuration folder with it as `model=talker`."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "talker.yaml").write_text(YAML)
    return folder
