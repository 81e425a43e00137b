"""Texts that a model writes, and how sure it was of each: noted while they are searched for, which costs no pass of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from vlatrain.backbones.search import generate_settings
from vlatrain.config import DecodeConfig

if TYPE_CHECKING:
    from vlatrain.backbones.base import Context, Generator


class Written(NamedTuple):
    """A text that a model has written.

    Attributes:
        text: the text.
        probability: the geometric mean of its tokens' probabilities, that of its end included: exp(log p(text) / length), the
            inverse of its perplexity. So long texts are not unsure for their length (Malinin and Gales, "Uncertainty Estimation in
            Autoregressive Structured Prediction", ICLR 2021). None: it is not known.
    """

    text: str
    probability: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What `predictions.jsonl` says of it."""
        known = {} if self.probability is None else {"token_probability": self.probability}
        return {"prediction": self.text, **known}


class TokenProbabilities(LogitsProcessor):
    """Notes how probable each text is while it is searched for, without changing a score, and without a pass of the model.

    A token's probability is among the tokens that may stand at its place. It stands last among what changes scores, and the
    criterion that follows it sees which texts a step has made: all that go on, and those that have come to their end.

    Args:
        beams: texts that are searched side by side for each row.
    """

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.begin = -1  # tokens that are given: known once the first is asked for
        self.texts: list[Tensor] = []  # of each step (B, R, step + 1): what it has made of the B rows' texts
        self.totals: list[Tensor] = []  # of each (B, R): their log-probabilities

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, V) of the next token behind tokens (N, L), as they are."""
        if self.begin < 0:
            self.begin = input_ids.shape[1]
        self._before = input_ids[:, self.begin :].unflatten(0, (-1, self.beams))  # (B, K, step)
        self._scores, self._norm = scores, scores.logsumexp(dim=-1).view(-1, self.beams)
        return scores

    def made(self, input_ids: Tensor) -> None:
        """Note the texts (N, L) that a step has made of those before."""
        texts = input_ids[:, self.begin :].unflatten(0, (len(self._before), -1))  # (B, R, step + 1)
        place = _place(texts[..., :-1], self._before)  # (B, R)
        scores = self._scores.unflatten(0, self._norm.shape)  # (B, K, V)
        token = scores[
            torch.arange(len(texts), device=place.device)[:, None], place, texts[..., -1]
        ] - self._norm.gather(1, place)
        if self.texts:
            token = token + self.totals[-1].gather(1, _place(texts[..., :-1], self.texts[-1]))
        self.texts.append(texts)
        self.totals.append(token)
        del self._scores  # which would be kept over the next pass

    def of(self, texts: Tensor, end_tokens: Sequence[int]) -> list[float | None]:
        """The probabilities, as `Written` has them, of texts (N, L) that were found, as many for each row; one ends with the first
        of the tokens that end one."""
        rows = texts.unflatten(0, (len(self.texts[0]), -1))  # (B, A, L)
        ended = torch.isin(rows, rows.new_tensor([*end_tokens])).int()
        length = torch.where(ended.any(dim=-1), ended.argmax(dim=-1) + 1, rows.shape[-1])  # (B, A)
        means = torch.full(length.shape, torch.nan, device=length.device)
        for step, (made, totals) in enumerate(zip(self.texts, self.totals, strict=True), 1):
            if step > rows.shape[-1]:
                break
            own = rows[..., :step]
            known = (length == step) & (own[:, :, None] == made[:, None]).all(dim=-1).any(dim=-1)
            means = torch.where(known, totals.gather(1, _place(own, made)) / step, means)
        return [None if value != value else value for value in means.exp().flatten().tolist()]


class _Made(StoppingCriteria):
    """Stops nothing, and hands on what each step has made."""

    def __init__(self, noted: TokenProbabilities) -> None:
        self.noted = noted

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """For texts (N, L) that none of them stops here, (N,)."""
        self.noted.made(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(writer: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Tensor, list[float | None]]:
    """Search for texts.

    Args:
        writer: transformers' model.
        inputs: what its `generate` begins with.
        settings: as `generate_settings` returns them.

    Returns:
        The texts' tokens (N, L) without those that were given, and how probable each is.
    """
    noted = TokenProbabilities(settings["num_beams"])
    processors = [*settings.get("logits_processor", []), noted]
    end_tokens = inputs.get("eos_token_id", writer.generation_config.eos_token_id)
    ids = writer.generate(**inputs, **{**settings, "logits_processor": processors}, stopping_criteria=[_Made(noted)])
    new = ids[:, noted.begin :]
    return new, noted.of(
        new, end_tokens if isinstance(end_tokens, list) else [] if end_tokens is None else [end_tokens]
    )


class Writer:
    """A `Generator` that knows how sure it was of what it has written: a family of transformers' generating models."""

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """What `generate` returns, each text with its probability."""
        raise NotImplementedError

    def generate(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """See `Generator`."""
        return [found.text for found in self.write(context, decode, prompt, alternatives)]

    def search(self, writer: Any, begun: dict[str, Any], decode: DecodeConfig, alternatives: int) -> list[Written]:
        """So many texts a row, at most `decode.num_beams`, that transformers' `generate` of a model writes from what is begun."""
        own: Any = self
        ids, probabilities = generate(writer, begun, generate_settings(decode, alternatives, own.word_start))
        return [*map(Written, own.written(ids), probabilities)]


def write(
    generator: Generator, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1
) -> list[Written]:
    """What a `Generator` writes, with probabilities where it is a `Writer`."""
    if isinstance(generator, Writer):
        return generator.write(context, decode, prompt, alternatives)
    return [Written(text) for text in generator.generate(context, decode, prompt, alternatives)]


def _place(texts: Tensor, known: Tensor) -> Tensor:
    """Where each of texts (B, R, L) is among known ones (B, K, L): (B, R)."""
    return (texts[:, :, None] == known[:, None]).all(dim=-1).int().argmax(dim=-1)
