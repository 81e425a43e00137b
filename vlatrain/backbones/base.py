"""What a loaded backbone is, and what tasks may ask of one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypedDict, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlatrain.backbones import tokenizers
from vlatrain.backbones.architecture import image_processor_class, model_class, transformers_config
from vlatrain.backbones.attention import masks_once
from vlatrain.backbones.box_words import LOCATION
from vlatrain.backbones.describe import positions_in
from vlatrain.backbones.lengths import UNLIMITED, Room, rooms
from vlatrain.backbones.plain_text import joined, marked, special_tokens, splits_at_signs, unmarked
from vlatrain.backbones.prefix import PrefixReplay
from vlatrain.backbones.pretrained import (
    read_image_processor,
    read_model,
    read_tokenizer,
    refuse_code,
    refuse_family,
    refuse_images,
    refuse_tokens,
)
from vlatrain.backbones.search import word_start
from vlatrain.config import DecodeConfig, ModelConfig, TaskConfig, UserError
from vlatrain.config.keys import did_you_mean
from vlatrain.config.spec import TOLD_QUESTION
from vlatrain.data.images import load_at
from vlatrain.metrics.precision import full_precision

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from vlatrain.data.sample import Picture, Sample, Turn

Kind = TypeVar("Kind", bound=Any)
Context = dict[str, Tensor]
"""What texts are scored, or written, from: states and masks by name, with a row for each of the inputs."""

BUCKET = 8
"""Questions are padded to a multiple of so many tokens: fewer shapes for a compiler, and fewer roundings for a cache of states."""


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


class Inputs(TypedDict, total=False):
    """What a model is given, with a row for each sample. A family may have more, in a class of its own.

    Attributes:
        pixels: (B, 3, H, W) images; where rows have several (N, 3, H, W), those of a row one after the other.
        images: where some row has several, the number of each row's; absent: one each.
        question: (B, L) the questions about them, where some are asked.
        prefix: by tower, the kept states (B, taps, L, width) of its frozen layers, where there are any; (N, ...) of images.
    """

    pixels: Tensor
    images: list[int]
    question: Text
    prefix: dict[str, Tensor]


@dataclass
class Pair:
    """A tokenizer and an image processor: what feeds a model that has no processor of its own.

    Attributes:
        tokenizer: the tokenizer; None where no text is read.
        image_processor: the image processor; None where images come as features.
    """

    tokenizer: PreTrainedTokenizerBase | None
    image_processor: Any

    def save_pretrained(self, folder: str) -> None:
        """Write both."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)


class Backbone:
    """A frozen vision-language model with what is needed to feed it.

    A family subclasses it with the operations its models can do: `Generator` (answers and captions), `Embedder` (retrieval), ...
    All operations run the model with whatever adapters have been put into it.

    Attributes:
        config: its description.
        task: the task its class serves.
        model: the transformers model.
        processor: what turns texts and images into its inputs: has a `tokenizer` and an `image_processor`.
        source: where the weights came from, for messages and the model card.
        image_options: arguments that the image processor is called with.
        scoring: the heads whose outputs order pairs or answers (see `exact`): their weights stay fp32.
        fast: for attention that transformers leaves eager, the subclass that does the same by torch's fused kernel.
        stacks: the stacks of layers with such attention that are called with masks.
        reader: the tower that questions and texts enter.
        pads_with_end: whether texts are padded with the token that ends one, where the tokenizer has none for it: masked, it is no
            matter which.
        images_each: the most images of a sample; `measure` is told so.
        box_towers: the towers whose states a head for boxes reads: those of patches, those of words.
        writes_at: path of the model in it that writes texts; empty: itself.
        shares_beams: whether the beams of a row have the keys and values of what they attend to in common.
        more_room: what leaves more room for texts, for messages.
    """

    fast: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    stacks: ClassVar[tuple[type[nn.Module], ...]] = ()
    image_options: Mapping[str, Any] = {}
    reader: ClassVar[str] = "text"
    more_room = "a model of more positions"
    scoring: ClassVar[tuple[str, ...]] = ()
    pads_with_end: ClassVar[bool] = False
    box_towers: ClassVar[tuple[str, str]] = ("vision", "text")
    writes_at: ClassVar[str] = ""
    shares_beams: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, task: str, model: PreTrainedModel, processor: Any, source: str) -> None:
        self.config, self.task, self.model, self.processor, self.source = config, task, model, processor, source
        settings = model.config.to_dict()
        self._max_positions = {name: positions_in(settings, tower) for name, tower in config.towers.items()}
        self.images_each = 1
        self.prefix_replay: PrefixReplay | None = None
        # what gives tasks kept states instead of images (`vlatrain.training.prefix_cache.compute`)
        self.cache: Any = None
        self.writes_places = False  # whether the special tokens that are places are words, which a task is to write
        # what has images kept resized (`vlatrain.training.resized`)
        self.resized: Callable[[Picture], Any] | None = None
        self.jpeg_side = 0  # pixels that no side of an image need have more of, see `vlatrain.data.images.load_at`
        self.looked_at: dict[str, dict[Any, Any]] = {}  # what `vlatrain.tasks.looks` has seen of texts
        self._back: dict[str, str] = {}  # texts as they come back, see `as_written`
        precise = {*self.scoring, "box_head", "location_words"}
        model._keep_in_fp32_modules_strict = precise | set(model._keep_in_fp32_modules_strict or ())
        for tokenizer in (getattr(processor, name, None) for name in ("tokenizer", "qformer_tokenizer")):
            if tokenizer is not None:  # what is too long is cut, whatever transformers' warning says
                tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        for module in model.modules():
            if type(module) in self.fast:
                module.__class__ = self.fast[type(module)]
            if isinstance(module, self.stacks):
                module.register_forward_pre_hook(masks_once, with_kwargs=True)

    @classmethod
    def build(cls, config: ModelConfig, task: str, settings: dict[str, Any]) -> PreTrainedModel:
        """The architecture with random weights, on torch's default device."""
        return cls.architecture(config, task)(transformers_config(settings))

    @classmethod
    def architecture(cls, config: ModelConfig, task: str) -> type[PreTrainedModel]:
        """The class that serves a task."""
        return model_class(config.tasks[task].architecture, f"model.tasks.{task}.architecture")

    @classmethod
    def read(cls, config: ModelConfig, task: str, checkpoint: str, stored: bool = False) -> tuple[PreTrainedModel, Any]:
        """Weights and processor of a checkpoint; the weights in fp32, or in the type that they are `stored` in.

        Raises:
            OSError: they cannot be had.
            UserError: something is missing in it, or it is the checkpoint's own code.
        """
        kind, new, named = cls.architecture(config, task), config.tasks[task].trained, f"model.checkpoint={checkpoint}"
        refuse_code(kind, checkpoint)
        refuse_family(kind, checkpoint, named)
        # the small thing first: it may need a package that is not there
        processor = cls.processor_of(config, task, checkpoint)
        model = read_model(kind, checkpoint, named, new, stored, lambda: cls.used(config, task))
        refuse_tokens(
            processor.tokenizer, cls.vocabulary(model.config), checkpoint, padding=processor.tokenizer.pad_token_id
        )
        if processor.image_processor is not None and "vision" in config.towers:
            refuse_images(model, processor.image_processor, config.towers["vision"], checkpoint)
        return model, processor

    @classmethod
    def used(cls, config: ModelConfig, task: str, submodel: str = "") -> set[str] | None:
        """The names of the weights that a task's forward passes use, in a submodel (`vision.`) if one is named; None: it cannot be
        told."""
        from vlatrain.backbones.touched import used_weights  # it runs what this file describes

        names = used_weights(cls, config, task)
        return names and {name.removeprefix(submodel) for name in names if name.startswith(submodel)}

    @classmethod
    def vocabulary(cls, settings: Any) -> int:
        """How many words a model with such settings has embeddings for."""
        size: int = getattr(settings, "text_config", settings).vocab_size
        return size

    @classmethod
    def processor_of(cls, config: ModelConfig, task: str, checkpoint: str) -> Any:
        """What `read` takes as the processor for a task; reads no weights.

        Raises:
            OSError: it cannot be had.
        """
        processor = cls.read_processor(checkpoint)
        tokenizer = processor.tokenizer
        if tokenizer.pad_token is None and not (cls.pads_with_end and tokenizer.eos_token is not None):
            raise UserError(
                f"{checkpoint}: its tokenizer names no token for padding: set pad_token in its tokenizer_config.json"
            )
        return processor

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """The processor of a checkpoint: image processing on PIL, equal on every machine."""
        return Pair(read_tokenizer(checkpoint), read_image_processor(checkpoint))

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts."""
        tokenizer = tokenizers.make_wordpiece(texts, settings["text_config"]["vocab_size"])
        return Pair(tokenizer, square_processor(settings))

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings with the token ids of a processor that was made."""
        return {**settings, "text_config": {**settings["text_config"], **tokenizers.token_ids(processor.tokenizer)}}

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        """Its image processor."""
        return self.processor.image_processor

    def scale_jpegs(self) -> None:
        """Let large JPEGs be decoded small, with twice the pixels a side that the image processor makes them to. Nothing is done
        where that goes by an image's own size."""
        self.jpeg_side = 2 * self.fixed_side

    @property
    def fixed_side(self) -> int:
        """The longer side that the image processor makes images to; 0: it goes by an image's own size."""
        processor = self.image_processor
        size = dict(getattr(processor, "size", None) or {})
        fixed = {*size} in ({"height", "width"}, {"shortest_edge"}) and getattr(processor, "do_resize", True)
        return max(size.values()) if fixed and not getattr(processor, "image_grid_pinpoints", None) else 0

    def load(self, picture: Picture) -> Any:
        """The image of a picture, for `inputs`: decoded, or kept from an earlier time. Runs in data-loading workers."""
        return self.resized(picture) if self.resized else load_at(picture, self.jpeg_side)

    def load_all(self, samples: Sequence[Sample]) -> list[Any]:
        """The image of each sample; of one with several a list of them."""
        return [[*map(self.load, one.pictures)] if one.more else self.load(one.image) for one in samples]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str] | None = None, max_length: int = 0
    ) -> Inputs:
        """What the model is given: images, (B, 3, H, W) as `pixels`, and questions about them. Runs in data-loading workers.

        Args:
            images: upright RGB images; of a family that takes several for a text, a list of those of a row that has several.
            questions: a question about each; None: there are none.
            max_length: tokens that a question is cut to.
        """
        found: Inputs = {"pixels": self.pixels(images)}
        return found if questions is None else {**found, "question": self.text(questions, max_length, BUCKET)}

    def given(self, images: Sequence[int], questions: Sequence[str] | None = None, max_length: int = 0) -> Inputs:
        """The same without images, but for how many each sample has; what the towers would make of these is to be added as
        `prefix`."""
        found: Inputs = {"pixels": torch.zeros(len(images), 1)}
        return found if questions is None else {**found, "question": self.text(questions, max_length, BUCKET)}

    def prefix(self, tower: str, inputs: Inputs) -> AbstractContextManager[Any]:
        """The context of a tower's call whose states are a function of the sample (`ModelTaskConfig.cacheable_inputs`): its frozen
        prefix is put back, if the inputs have it."""
        if self.prefix_replay is None:
            return nullcontext()
        states = inputs.get("prefix", {}).get(tower)
        return self.prefix_replay.around(self.model, self.config.towers[tower], tower, states)

    def candidate_logits(self, context: Context, target: Text) -> Tensor:
        """See `Generator`: the row is repeated. A family that can read it once for all texts does."""
        group_index = torch.zeros(len(target.ids), dtype=torch.long, device=target.ids.device)
        logits: Tensor = cast("Generator", self).logits(self.select_rows(context, group_index), target)
        return logits

    def run_frozen_towers(self, inputs: Inputs) -> None:
        """Run all towers whose states are a function of the sample."""
        run: Any = getattr(self, "context", None) or self.image_features  # type: ignore[attr-defined]
        run(inputs)

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> Inputs:
        """Inputs that have only shapes, with questions of so many tokens (0: none): for estimating memory on the meta device."""
        size = self.model.config.vision_config.image_size
        found: Inputs = {"pixels": torch.zeros(batch_size, 3, size, size, device=device)}
        return {**found, "question": blank_text(batch_size, question, device)} if question else found

    @cached_property
    def word_start(self) -> tuple[Tensor, Tensor] | None:
        """Where a word may begin, for whoever searches for texts (`vlatrain.backbones.search`)."""
        return word_start(self.tokenizer)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Upright RGB images as the model wants them: (B, 3, H, W)."""
        pixels: Tensor = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def positions(self, tower: str) -> int | None:
        """The number of positions that a tower has for tokens; None: there is no limit."""
        return self._max_positions.get(tower)

    def rooms(self, config: TaskConfig) -> dict[str, Room]:
        """The room for each kind of text, see `vlatrain.backbones.lengths`.

        Args:
            config: the task, or the subtask of a joint one.
        """
        return rooms(config, self.positions(self.reader))

    def longest(self, config: TaskConfig, kind: str) -> int:
        """The most tokens that a kind of text is cut to: `task.max_length`, or what there is room for."""
        return config.most(self.rooms(config)[kind].tokens)

    def measure(self, pictures: Sequence[Picture], most: int = 1) -> None:
        """Look at pictures for the number of tokens that one comes to, where that depends on the picture. `rooms` goes by it, and
        by the most pictures that a sample has."""
        self.images_each = most

    @property
    def around(self) -> int:
        """Special tokens around a question, or a text that is read, which `max_length` counts too."""
        count: int = self.tokenizer.num_special_tokens_to_add()
        return count

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of questions, or of texts that are read, without special ones; not cut."""
        said = [self.clean(text) for text in texts]
        ids: list[list[int]] = self.tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def text(self, texts: Sequence[str], max_length: int, multiple: int = 1) -> Text:
        """Tokenised texts with their special tokens, cut to `max_length` and to the model's positions, padded to the longest or a
        multiple of some length."""
        limit = self.positions(self.reader) or UNLIMITED
        cut = max(min(max_length, limit), self.around)  # tokenizers cut nothing where special tokens alone are too many
        rows = self.tokenizer([*map(self.clean, texts)], truncation=True, max_length=cut)["input_ids"]
        longest = -(-max(map(len, rows)) // multiple) * multiple
        return padded_text(rows, self.tokenizer.pad_token_id, min(longest, limit))

    def clean(self, text: str) -> str:
        """A user's text as tokenizers get it: what looks like a special token is text, see `vlatrain.backbones.plain_text`."""
        if self._locations and LOCATION.search(text):
            found = [marked(part, self._special_tokens) for part in LOCATION.split(text)]
            places = [*LOCATION.findall(text), ""]
            return "".join(said + place for said, place in zip(found, places, strict=True))
        return marked(text, self._special_tokens)

    def written(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Tokens (N, L), or of N texts, as texts without special tokens, as people write them."""
        if self._locations:
            special, rows = (
                set(self.tokenizer.all_special_ids) - self._locations,
                ids if isinstance(ids, Sequence) else ids.tolist(),
            )
            decoded = self.tokenizer.batch_decode([[one for one in row if one not in special] for row in rows])
        else:
            decoded = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts = map(unmarked, decoded)
        return [joined(text) if self._splits_at_signs else text for text in texts]

    def as_written(self, texts: Sequence[str]) -> list[str]:
        """Texts as they come back from a model that writes them token for token."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._back]:
            ids: list[list[int]] = self.tokenizer([*map(self.clean, new)], add_special_tokens=False)["input_ids"]
            self._back.update(zip(new, self.written(ids), strict=True))
        return [self._back[text] for text in texts]

    @cached_property
    def tokenises(self) -> str:
        """What texts become by, as a hash: equal, where all texts become the same tokens; empty: it cannot be told."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        script = getattr(self, "script", None)
        written = [getattr(script, name, "") for name in ("template", "lead", "end")]
        said = repr((type(self).__qualname__, backend and backend.to_str(), written, dict(self.config.prompts)))
        return hashlib.sha256(said.encode()).hexdigest() if backend else ""

    @property
    def has_grid(self) -> bool:
        """Whether the states of patches are those of a square grid, so that a head for boxes knows where each lies."""
        return True

    @property
    def asked(self) -> str:
        """The prompt of tasks that are asked questions, `{question}` in place of the question."""
        prompts = self.config.prompts
        return prompts.get(self.task, prompts[TOLD_QUESTION])

    @cached_property
    def _special_tokens(self) -> re.Pattern[str] | None:
        return special_tokens(self.processor)

    @property
    def _locations(self) -> frozenset[int]:
        return self._location_tokens if self.writes_places else frozenset()

    @cached_property
    def _location_tokens(self) -> frozenset[int]:
        """Special tokens that are places in an image."""
        special = set(self.tokenizer.all_special_ids)
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(
            number for number, token in added if LOCATION.fullmatch(str(token)) and (token.special or number in special)
        )

    @cached_property
    def _splits_at_signs(self) -> bool:
        return splits_at_signs(self.tokenizer)

    def padded_to(self, tokens: int) -> int:
        """The length that texts of so many tokens get where they are not padded for others' sake."""
        return tokens

    def select_rows(self, context: Context, group_index: Tensor) -> Context:
        """A context with its rows repeated or picked: row i of the result is row `group_index[i]`, (N,)."""
        return {name: value.index_select(0, group_index) for name, value in context.items()}


def unit(features: Tensor) -> Tensor:
    """Features (..., D) of unit length, in fp32 whatever the model computes in."""
    return normalize(features.float(), dim=-1)


def exact(head: nn.Module, states: Tensor) -> Tensor:
    """What a head makes of states, in fp32: the computation in the type of its weights, without autocast."""
    with full_precision(states.device):
        scores: Tensor = head(states.to(next(head.parameters()).dtype)).float()
        return scores


def square_processor(settings: dict[str, Any]) -> Any:
    """The image processor of an architecture, at its image size."""
    side = settings["vision_config"]["image_size"]
    size = {"height": side, "width": side}
    return image_processor_class(settings["model_type"])(size=size, crop_size=size, do_center_crop=False)


def padded_text(rows: Sequence[Sequence[int]], padding: int, length: int = 0, left: bool = False) -> Text:
    """Rows of token ids as one tensor.

    Args:
        rows: the tokens of each text.
        padding: id of the padding token.
        length: tokens of each row of the result; 0: those of the longest.
        left: pad in front.
    """
    length = length or max(map(len, rows))
    ids = torch.full((len(rows), length), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(rows):
        place = slice(length - len(own), length) if left else slice(0, len(own))
        ids[row, place], mask[row, place] = torch.tensor(own, dtype=torch.long), 1
    return Text(ids, mask)


def blank_text(batch_size: int, length: int, device: torch.device | str) -> Text:
    """Texts without content: (B, L)."""
    ids = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    return Text(ids, torch.ones_like(ids))


def options_as(kind: type[Kind], config: ModelConfig) -> Kind:
    """A description's `model.options` as a family has them, a dataclass.

    Raises:
        UserError: it has others.
    """
    known = [option.name for option in fields(kind)]
    if unknown := [str(name) for name in config.options if name not in known]:
        raise UserError(
            f"model.options.{name}: family={config.family} has no such option{did_you_mean(name, known)}"
            for name in unknown
        )
    options: Kind = kind(**config.options)
    return options


@runtime_checkable
class Generator(Protocol):
    """A backbone that writes text about an image: answers to questions, or captions.

    It first turns the inputs into a context, the states that texts are scored or written from.
    """

    def context(self, inputs: Inputs) -> Context:
        """What all texts about a row's image have in common, a row for each row of the inputs (see `Backbone.select_rows`)."""
        ...

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """Texts as the decoder's tokens, from its start token to its end token, after the prompt; and the number of tokens
        before the first that is learned (start token and prompt)."""
        ...

    def logits(self, context: Context, target: Text) -> Tensor:
        """Next-token logits (N, L, vocabulary) of target tokens (N, L), teacher-forced."""
        ...

    def candidate_logits(self, context: Context, target: Text) -> Tensor:
        """The same of several texts for a context of one row, as an answer is chosen from a list."""
        ...

    def generate(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Generated texts without prompt and special tokens, best first, row by row: for each `alternatives`, at most the beams."""
        ...


@runtime_checkable
class Converser(Protocol):
    """A backbone that talks about an image, turn by turn. It is a `Generator` too: replies are generated from the context of
    `prompts`."""

    def conversations(
        self,
        images: Sequence[Image.Image] | None,
        conversations: Sequence[Sequence[Turn]],
        max_length: int,
        shown: Sequence[bool] = (),
    ) -> tuple[Inputs, Text]:
        """Whole conversations, one about each image, cut to `max_length` tokens besides the image's. Runs in workers.

        Args:
            images: the images; None: what the towers would make of them is to be added as `prefix`, see `Backbone.given`.
            conversations: the conversations.
            max_length: tokens that they are cut to.
            shown: for each conversation whether it is about its image; if not, it is of text alone, and nothing sees the image that
                stands in its place. Empty: all are.

        Returns:
            the model's inputs, and as (B, L) their tokens, as many as `conversation_logits` has logits: the mask is 1 for those
            that are learned, the tokens of all replies and the end token of each, and 0 for all others.
        """
        ...

    def transcript(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """The tokens of a whole conversation, not cut, without those of the image; and for each 1 if it is learned, else 0."""
        ...

    def conversation_logits(self, inputs: Inputs, places: Tensor | None = None) -> Tensor:
        """Next-token logits (B, L, vocabulary) of whole conversations, or those (B, n, vocabulary) at some places (B, n) of each.
        Takes what `Backbone.blank` makes, too."""
        ...

    def prompts(
        self,
        images: Sequence[Image.Image] | None,
        conversations: Sequence[Sequence[Turn]],
        max_length: int,
        shown: Sequence[bool] = (),
    ) -> Inputs:
        """Conversations up to where the last reply begins, which is ignored: inputs for `Generator.context`. Runs in workers."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A backbone with images and texts in one space."""

    def image_features(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Unit features (B, D), or several for an image, (B, V, D), of which the most similar counts; and the states (B, S, width)
        that `match` takes."""
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


@runtime_checkable
class Biased(Protocol):
    """An `Embedder` whose scaled similarities have a bias: what the sigmoid loss needs."""

    def logit_bias(self) -> Tensor:
        """What is added to scaled similarities: a scalar."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """A backbone that answers questions by choosing from a list."""

    @property
    def answers(self) -> list[str]:
        """The list."""
        ...

    def take_answers(self, answers: Sequence[str]) -> None:
        """Have another list; what is known of an answer that stays is kept. Before anything is put into the model."""
        ...

    def answer_logits(self, inputs: Inputs) -> Tensor:
        """Of each answer of the list that it is right: (B, answers)."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A backbone that sees images alone, with a head that tells classes apart: those of images, or of their patches."""

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images that it is given."""
        ...

    @property
    def classes(self) -> list[str]:
        """The classes of the head."""
        ...

    def take_classes(self, classes: Sequence[str]) -> None:
        """Have others; what is known of a class that stays is kept. Before anything is put into the model."""
        ...

    def image_features(self, inputs: Inputs) -> Tensor:
        """Features (B, D) of images: what the head reads."""
        ...

    def class_logits(self, inputs: Inputs) -> Tensor:
        """Of each image a logit for each class: (B, classes)."""
        ...

    def patch_logits(self, inputs: Inputs) -> Tensor:
        """Of each patch, in the grid that they make, a logit for each class: (B, classes, h, w)."""
        ...


@runtime_checkable
class Grounder(Protocol):
    """A backbone that says of an image and a text what a head for boxes reads (`vlatrain.backbones.box_head`)."""

    def grounding_states(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Of images and what is asked about them: states of patches (B, S, P), the cells of a square grid last, row by row;
        states of words (B, L, W) and their mask (B, L)."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """A backbone that scores pairs of an image and a text, and has no features to search by."""

    def image_context(self, inputs: Inputs) -> Context:
        """What all pairs with a row's image have in common, a row for each row of the inputs (see `Backbone.select_rows`)."""
        ...

    def pair_scores(self, context: Context, text: Text) -> Tensor:
        """Scores (N,) of images, rows of a context, with texts (N, L): higher fits better."""
        ...
