"""Composites: any frozen vision tower joined to any frozen language model. What all of them have in common; `composite_kinds` has
the kinds.

The image reaches the text as `model.options.visual` says: as tokens in front of the text, through adapters that read the projected
states (every tower of the language model is handed them), or both ways.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from vlatrain.backbones import tokenizers
from vlatrain.backbones.base import Backbone, Context, Inputs, Pair, Text, blank_text, padded_text, square_processor
from vlatrain.backbones.describe import checkpoints_of
from vlatrain.backbones.families.composite_model import Joined, JoinedConfig
from vlatrain.backbones.lengths import SLACK, Room, ended, rooms
from vlatrain.backbones.pretrained import (
    has_image_processor,
    read_image_processor,
    read_model,
    read_tokenizer,
    refuse_images,
    refuse_tokens,
    whole,
)
from vlatrain.backbones.several import counted, flat, numbered
from vlatrain.backbones.towers import checked_class, described_side, image_shape, read_images
from vlatrain.backbones.writing import Writer
from vlatrain.config import ModelConfig, TaskConfig, UserError
from vlatrain.config.spec import TOLD_IMAGE
from vlatrain.data.features import FeaturePicture
from vlatrain.injection.context import provide, reads_other, restore, rows_of_images

if TYPE_CHECKING:
    from vlatrain.data.sample import Picture

ANCHOR = "a"  # a text that another is tokenised behind


class CompositeInputs(Inputs, total=False):
    """Images as `pixels`, or their features, and prompts, which have the questions in them.

    Attributes:
        features: (B, S, width) features of images, padded to the most; (N, S, width) where rows have several.
        visible: (B, S) 1 for these, 0 for padding.
        shown: (B,) whether a row is about its image; absent: all are.
        prompt: (B, L) the prompts' tokens.
    """

    features: Tensor
    visible: Tensor
    shown: Tensor
    prompt: Text


class Composite(Writer, Backbone):
    """What all composites have in common: loading, images, and the tokens of texts. See `Generator` for the operations."""

    model: Any
    writes_at = "language"
    causal = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.language: Any = self.model.language
        visual = self.config.options.get("visual", "both")
        self.shows, self.hands = visual != "adapters", visual != "tokens"
        if self.shows:
            self.more_room = f"{self.more_room}, or model.options.visual=adapters"
        settings = self.language.config
        end = settings.eos_token_id
        if end is None:
            raise UserError(
                f"model.submodels.language.checkpoint={self.config.submodels['language'].checkpoint}: its config.json names no "
                "token that ends a text: set eos_token_id in it"
            )
        self.end: int = end[0] if isinstance(end, list) else end
        self.padding = self.end if settings.pad_token_id is None else settings.pad_token_id
        # generation is as the run says, and not as the checkpoint's authors found best for something else
        start = getattr(settings, "decoder_start_token_id", None)
        self.language.generation_config = GenerationConfig(
            eos_token_id=self.end, pad_token_id=self.padding, decoder_start_token_id=start
        )
        self.model.word_size()  # before anything trains

    @classmethod
    def architecture(cls, config: ModelConfig, task: str) -> type[PreTrainedModel]:
        """The same for every task."""
        return Joined

    @classmethod
    def build(cls, config: ModelConfig, task: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Both submodels with random weights, joined, on torch's default device."""
        vision, text = (AutoConfig.for_model(**settings[key]) for key in ("vision_config", "text_config"))
        text.vocab_size += config.options.get("added_tokens", 0)
        return Joined(_joined(config, vision, text))

    @classmethod
    def read(cls, config: ModelConfig, task: str, checkpoint: str, stored: bool = False) -> tuple[PreTrainedModel, Any]:
        """Both submodels from their checkpoints, joined by a new projection; or all of it from one folder."""
        if config.checkpoint:
            model, processor = super().read(config, task, checkpoint, stored)
            if processor.image_processor is None and model.vision is not None:
                processor.image_processor = read_image_processor(checkpoint)  # says what is missing
            model.config.visual_tokens = config.options.get("visual_tokens", 0) or model.config.visual_tokens
            return model, processor
        found = checkpoints_of(config, task)
        named = {submodel: f"model.submodels.{submodel}.checkpoint={name}" for submodel, name in found.items()}
        kinds = {submodel: checked_class(config, submodel, name, named[submodel]) for submodel, name in found.items()}
        processor = cls.processor_of(config, task, checkpoint)
        models: dict[str, Any] = {
            submodel: read_model(
                kinds[submodel],
                name,
                named[submodel],
                stored=stored,
                used=partial(cls.used, config, task, f"{submodel}."),
            )
            for submodel, name in found.items()
        }
        language, vision = models["language"], models.get("vision")
        refuse_tokens(processor.tokenizer, language.config.vocab_size, found["language"])
        if added := config.options.get("added_tokens", 0):
            language.resize_token_embeddings(language.get_input_embeddings().weight.shape[0] + added)
        seen = vision.config if vision is not None else AutoConfig.for_model(**config.config["vision_config"])
        joined = Joined(_joined(config, seen, language.config), vision, language)
        if processor.image_processor is not None:
            refuse_images(joined, processor.image_processor, config.towers["vision"], found["vision"])
        return joined, processor

    @classmethod
    def processor_of(cls, config: ModelConfig, task: str, checkpoint: str) -> Any:
        """The language model's tokenizer and the vision model's image processor; of one folder, what is there."""
        if config.checkpoint:
            return cls.read_processor(checkpoint)
        names = checkpoints_of(config, task)
        images = read_images(config, names["vision"]) if "vision" in names else None
        return Pair(read_tokenizer(names["language"]), images)

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """The processor of a folder; without image processor for features."""
        if Path(checkpoint).is_dir() and not has_image_processor(checkpoint):
            return Pair(read_tokenizer(checkpoint), None)
        return super().read_processor(checkpoint)

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts."""
        tokenizer = tokenizers.make_wordpiece(texts, settings["text_config"]["vocab_size"])
        vision = settings["vision_config"]
        if "image_size" not in vision:
            return Pair(tokenizer, None)
        side = {**vision, "image_size": described_side(config, vision["image_size"])}
        return Pair(tokenizer, square_processor({"vision_config": side, "model_type": whole(vision["model_type"])}))

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings with the token ids of a processor that was made."""
        settings = super().with_tokens(config, settings, processor)
        start = {"decoder_start_token_id": settings["text_config"]["bos_token_id"]}
        return settings if cls.causal else {**settings, "text_config": settings["text_config"] | start}

    # -- what the model is given --

    def inputs(
        self, images: Sequence[Any], questions: Sequence[str] | None = None, max_length: int = 0
    ) -> CompositeInputs:
        """Images, or their features (S, width), and the prompts: the templates in `model.prompts`."""
        return {**self._seen(images), "prompt": self._asked_for(counted(images), questions, max_length)}

    def given(
        self, images: Sequence[int], questions: Sequence[str] | None = None, max_length: int = 0
    ) -> CompositeInputs:
        """The same without images: of these only the shape."""
        return {**self._unseen(images), "prompt": self._asked_for(images, questions, max_length)}

    def _asked_for(self, images: Sequence[int], questions: Sequence[str] | None, max_length: int) -> Text:
        if questions is None:
            return self._prompt([self.config.prompts[TOLD_IMAGE]] * len(images))
        named = [numbered(text) if count > 1 else text for text, count in zip(questions, images, strict=True)]
        template = self.asked
        return self._prompt([template.replace("{question}", self._cut(text, max_length)) for text in named])

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> CompositeInputs:
        """Inputs without content; a caption's prompt has one token."""
        vision, number = self.model.config.vision_config, batch_size * self.images_each
        prompt = blank_text(batch_size, max(question, 1), device)
        found: CompositeInputs = {"prompt": prompt}
        if self.images_each > 1:
            found["images"] = [self.images_each] * batch_size
        if self.model.vision is not None:
            return {**found, "pixels": torch.zeros(number, 3, *self.image_shape, device=device)}
        features = torch.zeros(number, vision.tokens, vision.hidden_size, device=device)
        return {**found, "features": features, "visible": features.new_ones(features.shape[:2]).long()}

    def _unseen(self, images: Sequence[int]) -> CompositeInputs:
        """The images' part of the inputs where they are not looked at: as `pixels` (N, 1, 1, 1), one zero for each."""
        pixels = torch.zeros(sum(images), 1, 1, 1)
        return {"pixels": pixels} if max(images) == 1 else {"pixels": pixels, "images": [*images]}

    def _seen(self, given: Sequence[Any]) -> CompositeInputs:
        """The images' part of the inputs: `pixels`, or `features` (N, S, width) padded to the most with `visible` (N, S); and where
        some row has several images their numbers."""
        counts, images = counted(given), flat(given)
        if max(counts) > 1:
            return {**self._seen(images), "images": counts}
        if self.model.vision is not None:
            return {"pixels": self.pixels(images)}
        width = self.model.config.vision_config.hidden_size
        images = [
            np.zeros((1, width), np.float32) if isinstance(own, Image.Image) else own for own in images
        ]  # a hidden one
        most = max(len(features) for features in images)
        features = np.zeros((len(images), most, width), np.float32)
        visible = torch.zeros(len(images), most, dtype=torch.long)
        for row, own in enumerate(images):
            features[row, : len(own)] = own
            visible[row, : len(own)] = 1
        return {"features": torch.from_numpy(features), "visible": visible}

    # -- tokens --

    @abstractmethod
    def _prompt(self, texts: Sequence[str]) -> Text:
        """Prompts as tokens."""

    @abstractmethod
    def _start(self) -> list[int]:
        """The tokens that every target starts with."""

    def _ids(self, text: str, behind: bool = False) -> list[int]:
        """Token ids of a text without special ones; `behind`: as it is tokenised behind another and a blank."""
        if not behind or not text:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        return self._ids(f"{ANCHOR} {text}")[len(self._ids(ANCHOR)) :]

    def _cut(self, text: str, max_length: int) -> str:
        """A question of at most so many tokens."""
        text = self.clean(text)
        ids = self._ids(text)
        return text if len(ids) <= max_length else self.tokenizer.decode(ids[:max_length])

    def _padded(self, rows: Sequence[list[int]], left: bool = False) -> Text:
        return padded_text(rows, self.padding, left=left)

    @property
    def around(self) -> int:
        """None: what is around a question is its prompt."""
        return 0

    def rooms(self, config: TaskConfig) -> dict[str, Room]:
        """Image and prompt are in one tower; of a causal language model the text that is written, too."""
        read, write = self.positions(self.reader), self.positions("decoder")
        template = self.config.prompts[config.spec.prompt]
        image, prompt = (
            self.visual_tokens * self.images_each if self.shows else 0,
            self._prompt([template.replace("{question}", "")]),
        )
        lead = len(self._ids(config.begins_with, behind=self.causal)) + (0 if self.causal else len(self._start()))
        length = SLACK + prompt.ids.shape[1]
        return rooms(config, read, write, image=image, prompt=length, lead=lead, one=self.causal)

    @property
    def has_grid(self) -> bool:
        """Not where images come as features."""
        return self.model.vision is not None

    @cached_property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of what the image processor makes of an image."""
        images = self.processor.image_processor if self.processor is not None else None
        return image_shape(self.config, self.task, images, self.model.config.vision_config.image_size)

    @cached_property
    def visual_tokens(self) -> int:
        """Tokens that an image comes to: the most of those that `measure` has seen, where they are features."""
        vision = self.model.vision
        count: int
        if vision is None:
            count = self.model.config.vision_config.tokens
            return count
        with torch.device("meta"):  # only the shape is asked for
            pixels = torch.zeros(1, 3, *self.image_shape)
            count = type(vision)(vision.config)(pixel_values=pixels).last_hidden_state.shape[1]
        if wanted := self.model.config.visual_tokens:
            if wanted > math.isqrt(count) ** 2:
                raise UserError(f"model.options.visual_tokens={wanted}: an image has {math.isqrt(count) ** 2} patches")
            return int(wanted)
        return count

    def measure(self, pictures: Sequence[Picture], most: int = 1) -> None:
        """The most features that an image has."""
        super().measure(pictures, most)
        if self.model.vision is None:
            distinct = {picture.path: picture for picture in pictures if isinstance(picture, FeaturePicture)}
            self.visual_tokens = max((one.shape()[0] for one in distinct.values()), default=self.visual_tokens)

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """Start tokens, the prompt, the text, the end token."""
        given = self._start() + self._ids(prompt, behind=self.causal)
        rows = [
            given + ended(self._ids(self.clean(text), behind=self.causal or bool(prompt)), [self.end], max_length)
            for text in texts
        ]
        return self._padded(rows), len(given)

    # -- the image, and the text behind it --

    def _visual(self, inputs: CompositeInputs) -> Context:
        """The image's projected states as `visual` (B, S, d), and `visible` (B, S): 1 for those that are there."""
        counts = inputs.get("images") or []
        with rows_of_images(self.model, counts):
            states = inputs["features"] if self.model.vision is None else self._states(inputs)
            visual = self.model.projection(states, [place for count in counts for place in range(count)])
        visible = inputs.get("visible")
        visible = visual.new_ones(visual.shape[:2]).long() if visible is None else visible
        if counts:  # the states of a row's images one behind the other
            visual, visible = (
                pad_sequence([own.flatten(0, 1) for own in one.split(counts)], batch_first=True)
                for one in (visual, visible)
            )
        if "shown" in inputs:
            visible = visible * inputs["shown"][:, None]
        return {"visual": visual, "visible": visible}

    def _states(self, inputs: CompositeInputs) -> Tensor:
        """The image tower's states (N, S, width)."""
        with self.prefix("vision", inputs):
            pixels = inputs["pixels"]
            if "vision" in inputs.get("prefix", {}):  # nothing looks at them; a tower may ask for their shape
                # only here: a batch with such a tensor cannot be pinned
                pixels = pixels.expand(-1, 3, *self.image_shape)
            states: Tensor = self.model.see(pixels)
            return states

    def _embedded(self, context: Context, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, S + L, d) of the visual tokens, if there are any, and of tokens (N, L); and their mask (N, S + L).

        Raises:
            UserError: they are more than the language model has positions for.
        """
        embeddings = self.model.embedded(ids)
        if self.shows:
            embeddings = torch.cat([self.model.as_tokens(context["visual"]), embeddings], dim=1)
            mask = torch.cat([context["visible"], mask], dim=1)
        limit = getattr(self.language.config, "max_position_embeddings", None)
        if limit is not None and mask.shape[1] > limit:
            raise UserError(
                f"{mask.shape[1] - ids.shape[1]} visual tokens and {ids.shape[1]} of text are more than the {limit} that the "
                "language model has positions for: use a smaller task.max_length, fewer visual tokens, or "
                "model.options.visual=adapters"
            )
        return embeddings, mask

    @contextmanager
    def _shown(self, context: Context) -> Iterator[None]:
        """Hand the image to the adapters that read it, in every tower of the language model; and what the encoder's leave to the
        decoder's."""
        with ExitStack() as stack:
            stack.enter_context(restore(self.model, context))
            for tower in self.config.submodels["language"].towers if self.hands else ():
                if reads_other(self.model, tower):
                    stack.enter_context(provide(self.model, tower, context["visual"], context["visible"]))
            yield


def _joined(config: ModelConfig, vision: Any, text: Any) -> JoinedConfig:
    """The settings of submodels joined as a description says."""
    submodels, options = config.submodels, config.options
    return JoinedConfig(
        vision_config=vision.to_dict(),  # copies: in its own it would forget how a loaded model computes attention
        text_config=text.to_dict(),
        vision_class=submodels["vision"].architecture,
        language_class=submodels["language"].architecture,
        vision_norm=submodels["vision"].norm,
        **{key: options[key] for key in ("norm", "boxes", "order", "visual_tokens") if key in options},
    )
