"""Dual encoders in transformers: an image tower and a text tower that meet in one space. What differs between them is data.

CLIP (Radford et al., ICML 2021, arXiv:2103.00020), SigLIP (Zhai et al., ICCV 2023, arXiv:2303.15343), SigLIP 2 (Tschannen et al.,
2025, arXiv:2502.14786), MetaCLIP 2 (Chuang et al., 2025, arXiv:2507.22062), ALIGN (Jia et al., ICML 2021, arXiv:2102.05918) and
others of the kind: their classes have `get_image_features` and `get_text_features`. What a description says of one is in
`DualOptions`, as `model.options`.

Deviations from transformers 5.23, each on purpose:
- SigLIP with random weights starts from the paper's scale and bias (`DualOptions.start`); with its 1 and 0 there, no sigmoid of a
  cosine similarity can come near 0 or 1;
- a causal text tower is causal whatever the batch: AIMv2's is so there only where some text of the batch is padded, and hence
  gives a text other features on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from vlatrain.backbones import tokenizers
from vlatrain.backbones.answer_list import AnswerList, with_classifier
from vlatrain.backbones.architecture import image_processor_class
from vlatrain.backbones.base import BUCKET, Backbone, Inputs, Pair, Text, blank_text, exact, options_as, unit
from vlatrain.backbones.pretrained import read_tokenizer
from vlatrain.config import ModelConfig
from vlatrain.config.families import DualOptions
from vlatrain.injection.context import provide, reads_other

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel


class DualInputs(Inputs, total=False):
    """Images; of SigLIP 2 in any aspect ratio, `pixels` are patches (B, N, values), and there is more to say of them.

    Attributes:
        question: the questions (B, L).
        pixel_attention_mask: (B, N) 1 for patches, 0 for padding.
        spatial_shapes: (B, 2) rows and columns of patches.
    """

    question: Text
    pixel_attention_mask: Tensor
    spatial_shapes: Tensor


class Dual(AnswerList, Backbone):
    """A dual encoder for retrieval and classification; and for VQA: its text tower reads the question, adapters in it can read the
    image, and a classifier sees the question's features and their product with the image's. See `Embedder` and `Answerer`."""

    model: Any
    scoring = ("classifier",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options_as(DualOptions, self.config)
        towers = [self.config.towers[name] for name in self.config.tasks[self.task].towers]
        for layers in (self.model.get_submodule(tower.layers) for tower in towers if tower.causal):
            for module in layers.modules():
                if hasattr(module, "is_causal"):
                    module.is_causal = True

    @classmethod
    def architecture(cls, config: ModelConfig, task: str) -> type[PreTrainedModel]:
        """The class that serves a task; with a classifier where the task's description names one."""
        kind = super().architecture(config, task)
        return with_classifier(kind) if "classifier" in config.tasks[task].trained else kind

    @classmethod
    def build(cls, config: ModelConfig, task: str, settings: dict[str, Any]) -> PreTrainedModel:
        """The architecture with random weights, on torch's default device."""
        model = super().build(config, task, settings)
        with torch.no_grad():
            for name, value in options_as(DualOptions, config).start.items():
                model.get_parameter(name).fill_(value)
        return model

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts."""
        vision = settings["vision_config"]
        if "num_patches" not in vision:
            return super().make_processor(config, settings, texts)
        images = image_processor_class(settings["model_type"])
        return Pair(
            tokenizers.make_wordpiece(texts, settings["text_config"]["vocab_size"]),
            images(patch_size=vision["patch_size"], max_num_patches=vision["num_patches"]),
        )

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """The processor of a checkpoint."""
        processor = super().read_processor(checkpoint)
        made = get_tokenizer_config(checkpoint).get("tokenizer_class")
        if made in (PreTrainedTokenizerFast.__name__, "PreTrainedTokenizerFast"):
            # one that was made for random weights: transformers would put SigLIP 2's own class in its place
            processor.tokenizer = read_tokenizer(checkpoint, kind=PreTrainedTokenizerFast)
        return processor

    def inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str] | None = None, max_length: int = 0
    ) -> DualInputs:
        """Images: (B, 3, H, W) as `pixels`; of SigLIP 2 in any aspect ratio patches (B, N, values) with what it needs of them. And
        questions."""
        encoded = self.image_processor(images=list(images), return_tensors="pt")
        found: DualInputs = {"pixels": encoded["pixel_values"]}
        if self._in_patches:
            found["pixel_attention_mask"] = encoded["pixel_attention_mask"]
            found["spatial_shapes"] = encoded["spatial_shapes"]
        return found if questions is None else {**found, "question": self.text(questions, max_length, BUCKET)}

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> DualInputs:
        """Inputs that have only shapes."""
        vision = self.model.config.vision_config
        asked: DualInputs = {"question": blank_text(batch_size, self.padded_to(question), device)} if question else {}
        if not self._in_patches:
            return {"pixels": super().blank(batch_size, device)["pixels"], **asked}
        side, channels = int(vision.num_patches**0.5), vision.num_channels
        return {
            **asked,
            "pixels": torch.zeros(batch_size, side * side, channels * vision.patch_size**2, device=device),
            "pixel_attention_mask": torch.ones(batch_size, side * side, dtype=torch.long, device=device),
            "spatial_shapes": torch.full((batch_size, 2), side, device="cpu"),  # the model reads these values
        }

    def text(self, texts: Sequence[str], max_length: int, multiple: int = 1) -> Text:
        """Tokenised texts with their special tokens, cut to `max_length` and to what the model can take."""
        text = super().text(texts, max_length, self.padded_to(1) if self.options.pad_to_end else multiple)
        return Text(text.ids, torch.ones_like(text.mask)) if self.options.pad_to_end else text

    def padded_to(self, tokens: int) -> int:
        """The length that texts of so many tokens get."""
        return self.model.config.text_config.max_position_embeddings if self.options.pad_to_end else tokens

    def image_features(self, inputs: DualInputs) -> tuple[Tensor, Tensor]:
        """The image's features, and all its last states."""
        further = {key: value for key, value in inputs.items() if key not in ("pixels", "prefix", "question")}
        with self.prefix("vision", inputs):
            output = self.model.get_image_features(pixel_values=inputs["pixels"], **further)
        states = output.last_hidden_state
        if states.dim() == 4:  # the map of a convolutional tower
            states = states.flatten(2).transpose(1, 2)  # (B, width, H, W) -> (B, H * W, width)
        if self._in_patches:
            states = states * inputs["pixel_attention_mask"][..., None]  # padding is zero: by that `match` knows it
        return unit(output.pooler_output), states

    def text_features(self, text: Text) -> Tensor:
        """The text's features."""
        output = self.model.get_text_features(input_ids=text.ids, attention_mask=text.mask)
        return unit(output.pooler_output)

    def logit_scale(self) -> Tensor:
        """The learned scale."""
        if self.options.temperature:
            inverse: Tensor = self.model.get_parameter(self.options.temperature)
            return 1 / inverse.squeeze()
        scale: Tensor = self.model.get_parameter(self.options.logit_scale).exp().squeeze()
        return scale if self.options.max_logit_scale is None else scale.clamp(max=self.options.max_logit_scale)

    def logit_bias(self) -> Tensor:
        """The learned bias; zero where there is none."""
        if not self.options.logit_bias:
            return torch.zeros((), device=self.device)
        bias: Tensor = self.model.get_parameter(self.options.logit_bias).squeeze()
        return bias

    @property
    def matches(self) -> bool:
        """Whether an adapter in the text tower reads the image. The towers themselves do not meet."""
        return reads_other(self.model, "text")

    def match(self, states: Tensor, text: Text) -> Tensor:
        """Similarity (N,) of an image and a text that is encoded given this image, times the logit scale."""
        states, mask = self._handed(states)
        images = states
        for step in self.options.pool:
            if step == "first":
                images = images[:, 0]
            elif step == "mean":
                images = images.mean(dim=1)
            else:
                images = self.model.get_submodule(step)(images, *([] if mask is None else [mask]))
        with provide(self.model, "text", states, mask):
            texts = self.text_features(text)
        return (unit(images) * texts).sum(dim=-1) * self.logit_scale()

    def answer_logits(self, inputs: DualInputs) -> Tensor:
        """Of each answer that it is right: (B, answers)."""
        images, states = self.image_features(inputs)
        with provide(self.model, "text", *self._handed(states)) if self.matches else nullcontext():
            questions = self.text_features(inputs["question"])
        size = images.shape[-1] ** 0.5  # makes the entries of a unit vector, and those of the product, around one
        return exact(self.model.classifier, torch.cat([size * questions, size**2 * questions * images], dim=-1))

    def grounding_states(self, inputs: DualInputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Grounder`: the last states of both towers. The text tower is handed the image's, if anything there reads them."""
        text, states = inputs["question"], self.image_features(inputs)[1]
        with provide(self.model, "text", *self._handed(states)) if self.matches else nullcontext():
            read = self.model.get_submodule(self.options.words) if self.options.words else self.model.get_text_features
            words = read(input_ids=text.ids, attention_mask=text.mask).last_hidden_state
        return states, words, text.mask

    def _handed(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """An image's last states as the text tower is handed them, and their mask (N, S)."""
        mask = states.any(dim=-1).long() if self._in_patches else None
        norm = self.options.states_norm
        return self.model.get_submodule(norm)(states) if norm else states, mask

    @property
    def has_grid(self) -> bool:
        """Not where images come in any aspect ratio."""
        return not self._in_patches

    @property
    def _in_patches(self) -> bool:
        """Whether images come as patches of any aspect ratio, padded to a number of them (SigLIP 2 NaFlex)."""
        return hasattr(self.model.config.vision_config, "num_patches")
