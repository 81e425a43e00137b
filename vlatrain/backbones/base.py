"""What a loaded backbone is, and what tasks may ask of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vlatrain.config import DecodeConfig, ModelConfig

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Text:
    """Tokenised texts of a batch.

    Attributes:
        ids: (N, L) token ids, padded on the right.
        mask: (N, L) 1 for tokens, 0 for padding.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Text:
        """The same on another device."""
        return Text(self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


class Backbone:
    """A frozen vision-language model with what is needed to feed it.

    A family subclasses it with the operations its models can do: `Generator` (answers and captions) and `Embedder` (retrieval).
    All operations run the model with whatever adapters have been put into it.

    Attributes:
        config: its description.
        task: the task its class serves.
        model: the transformers model.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        source: where the weights came from, for messages and the model card.
    """

    def __init__(
        self,
        config: ModelConfig,
        task: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        source: str,
    ) -> None:
        self.config, self.task = config, task
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.source = source

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Upright RGB images as the model wants them: (B, 3, H, W)."""
        return self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]

    def text(self, texts: Sequence[str], max_length: int) -> Text:
        """Tokenised texts with their special tokens, cut to `max_length` and padded to the longest."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_length, padding_side="right", return_tensors="pt"
        )
        return Text(encoded["input_ids"], encoded["attention_mask"])


@runtime_checkable
class Generator(Protocol):
    """A backbone that writes text about an image: answers to questions, or captions.

    It first turns the inputs into a context, the states that its decoder attends to, and then scores or writes text.
    """

    def context(self, pixels: Tensor, question: Text | None) -> tuple[Tensor, Tensor]:
        """The states (B, S, width) that the decoder attends to and their mask (B, S)."""
        ...

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """Texts as the decoder's tokens, from its start token to its end token, after the prompt; and the number of tokens
        before the first that is learned (start token and prompt)."""
        ...

    def logits(self, context: tuple[Tensor, Tensor], target: Text) -> Tensor:
        """Next-token logits (N, L, vocabulary) of target tokens (N, L), teacher-forced."""
        ...

    def generate(
        self, context: tuple[Tensor, Tensor], decode: DecodeConfig, prompt: str = "", alternatives: int = 1
    ) -> list[str]:
        """Generated texts without prompt and special tokens: `alternatives` for each of the B rows, best first, row by row."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A backbone with images and texts in one space."""

    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features (B, D), and the states (B, S, width) that `match` takes."""
        ...

    def text_features(self, text: Text) -> Tensor:
        """Unit features (N, D)."""
        ...

    def logit_scale(self) -> Tensor:
        """Factor on cosine similarities in the contrastive softmax: a scalar."""
        ...

    @property
    def matches(self) -> bool:
        """Whether `match` can tell more than the features: by a matching head, or by adapters where one tower reads the other."""
        ...

    def match(self, states: Tensor, text: Text) -> Tensor:
        """Of image states (N, S, width) with texts (N, L): matching logits (N, 2) (no, yes), or scores (N,) that order pairs."""
        ...
