"""Models that see an image among the tokens of a text and continue it: LLaVA (Liu et al., NeurIPS 2023, arXiv:2304.08485),
LLaVA-OneVision (Li et al., 2024, arXiv:2408.03326), Qwen2.5-VL (Bai et al., 2025, arXiv:2502.13923), Qwen3-VL (2025,
arXiv:2511.21631), SmolVLM (Marafioti et al., 2025, arXiv:2504.05299), PaliGemma (Beyer et al., 2024, arXiv:2407.07726), and others
that transformers gives the same interface. What differs between them is in their processors, in their descriptions
(`ChatOptions`), and in transformers' own forward passes, which are used as they are.

Images go through their tower once (`context`); prompts and texts are scored and written from there. Prompts are padded in front, so
that the tokens before their texts are in one column. A row may have several images: each stands where its text marks its place, or
all in front of the text. Without a chat template (PaliGemma) they are always in front, and a mark reads `image 1`, `image 2`.

Deviation: texts are generated as `task.decode` says, and not with the sampling or the penalties that a checkpoint's authors set.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlatrain.backbones import older, processors
from vlatrain.backbones.base import Backbone, Context, Inputs, Text, options_as, padded_text
from vlatrain.backbones.chat_template import Script, Turns, cut
from vlatrain.backbones.lengths import SLACK, Room, rooms
from vlatrain.backbones.placeholders import ONCE
from vlatrain.backbones.pretrained import refuse_tokens
from vlatrain.backbones.several import PLACE, counted, expansions, flat, numbered, parts_of, per_row
from vlatrain.backbones.writing import Writer, Written
from vlatrain.config import DecodeConfig, ModelConfig, TaskConfig, UserError
from vlatrain.config.families import ChatOptions
from vlatrain.config.spec import TOLD_IMAGE, TOLD_TURNS
from vlatrain.injection.context import provide, reads_other, rows_of_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlatrain.data.sample import Picture

ADDED = {"input_ids": 0, "attention_mask": 1, "token_type_ids": 1, "mm_token_type_ids": 0}
"""A prompt's inputs that have a value for each token, and the value for tokens behind the prompt (`input_ids` have their own)."""
# (N, 3): the patches of each image, which Qwen's positions are made from; in a context a row for each row's, padded with zeros
GRID = "image_grid_thw"
# models read their values where others know shapes
READ = (GRID, "image_sizes", "batch_num_images", "mm_token_type_ids")
EXAMPLES = 3  # images that are processed to see how many tokens they come to
DEEP = "deep_"  # Qwen3-VL: image states that are added to those of the first layers


class ChatInputs(Inputs, total=False):
    """Prompts with their images, by the names that the model itself has for them: what else its processor makes is there too.

    Attributes:
        input_ids: (B, L) the prompts' tokens.
        attention_mask: (B, L) 1 for these, 0 for padding.
        rest: (B, L) the tokens of conversations from the last one before the first reply on.
        expansions: by row, the tokens of each image that stands in these; absent: none does.
        shown: (B,) whether a row is about its image; absent: all are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rest: Text
    expansions: list[list[list[int]]]
    shown: Tensor


class Chat(Writer, Backbone):
    """A causal model. `Generator` and, with a chat template, `Converser`.

    The first token of a target stands for the prompt's last one: that is where a text's first token is predicted.

    Attributes:
        in_front: whether prompts are padded in front.
        reader: the tower that image and prompt enter.
    """

    model: Any
    in_front = True
    reader = "decoder"
    pads_with_end = True
    fast = ONCE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options_as(ChatOptions, self.config)
        self.image_options = self.options.images
        self.takes = tuple(inspect.signature(self.model.forward).parameters)
        self._examples = [Image.new("RGB", (56, 56))]
        self._beside: dict[str, int] = {}
        if self.processor is None:  # only shapes are asked for
            return
        self.script = Script(self.processor, self.options.lead, self.options.end)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        ends = {self.script.end_ids[-1], self.tokenizer.eos_token_id}
        if not self.config.random_init:  # a checkpoint may know of further ones
            known = self.model.generation_config.eos_token_id
            ends.update(known if isinstance(known, list) else [] if known is None else [known])
        self.writer.generation_config = GenerationConfig(
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.pad_token_id,
            decoder_start_token_id=getattr(self.model.config.text_config, "decoder_start_token_id", None),
        )

    @property
    def writer(self) -> Any:
        """The model that writes."""
        return self.model

    # -- loading --

    @classmethod
    def read(cls, config: ModelConfig, task: str, checkpoint: str, stored: bool = False) -> tuple[PreTrainedModel, Any]:
        """Weights and processor of a checkpoint."""
        model, processor = super().read(config, task, checkpoint, stored)
        settings: Any = model.config
        here, there = getattr(processor, "image_token_id", None), getattr(settings, "image_token_id", None)
        if None not in (here, there) and here != there:
            raise UserError(
                f"{checkpoint}: an image is token {here} for its tokenizer and token {there} for the model: they do not belong "
                "together; copy the tokenizer's files from where the weights come from"
            )
        if hasattr(processor, "qformer_tokenizer"):
            rows, where = settings.qformer_config.vocab_size, f"{checkpoint}/qformer_tokenizer"
            refuse_tokens(processor.qformer_tokenizer, rows, where)
        return model, processor

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """The processor of a checkpoint, for images only."""
        return processors.read(checkpoint)

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts and prompts."""
        options = options_as(ChatOptions, config)
        words = [*texts, *config.prompts.values()]
        return processors.make(settings, words, options.tokens, options.more_tokens, options.frame, options.template)

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings with the token ids of a processor that was made."""
        ids = {
            key: processor.tokenizer.convert_tokens_to_ids(token)
            for key, token in options_as(ChatOptions, config).tokens.items()
        }
        return {**super().with_tokens(config, settings, processor), **ids}

    # -- what the model is given --

    def inputs(self, images: Sequence[Any], questions: Sequence[str] | None = None, max_length: int = 0) -> ChatInputs:
        """Images in the prompts that `model.prompts` has for answers and captions, by the names the model has for them."""
        texts = [self.config.prompts[TOLD_IMAGE]] * len(images)
        if questions is not None:
            said = (self._said(text, max_length, count) for text, count in zip(questions, counted(images), strict=True))
            texts = [self.asked.replace("{question}", text) for text in said]
        return self._processed(images, [[(text, "")] for text in texts])

    def given(self, images: Sequence[int], questions: Sequence[str] | None = None, max_length: int = 0) -> ChatInputs:
        """The same for images that are known: nothing is seen of those that stand for them. For towers of a fixed image size."""
        blank = Image.new("RGB", (8, 8))
        return self.inputs([[blank] * count if count > 1 else blank for count in images], questions, max_length)

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> ChatInputs:
        """Inputs that have only shapes, those of a square image."""
        with torch.device("cpu"):
            if self.processor is None:
                self.processor = self.make_processor(self.config, self.model.config.to_dict(), ["a"])
                self.script = Script(self.processor, self.options.lead, self.options.end)
            asked = ["a " * question] if question else None
            image = Image.new("RGB", (448, 448))
            one = self.inputs([[image] * self.images_each if self.images_each > 1 else image], asked, question)
        repeated: dict[str, Any] = {
            name: value.to("cpu" if name in READ else device).repeat(batch_size, *[1] * (value.ndim - 1))
            for name, value in one.items()
            if isinstance(value, Tensor)
        }
        return cast(ChatInputs, repeated | ({"images": one["images"] * batch_size} if "images" in one else {}))

    @property
    def around(self) -> int:
        """None: what is around a question is its prompt."""
        return 0

    def rooms(self, config: TaskConfig) -> dict[str, Room]:
        """Image, prompt and text are one sequence."""
        lead, image = len(self.script.reply("", 1, config.begins_with)[0]), self._taken(config)
        prompt = self._framing if config.spec.prompt == TOLD_TURNS else 0
        return rooms(config, self.positions(self.reader), image=image - prompt, prompt=prompt, lead=lead, one=True)

    def measure(self, pictures: Sequence[Picture], most: int = 1) -> None:
        """Some of the pictures: where their size decides, positions are rotary, and a few tokens more do no harm."""
        super().measure(pictures, most)
        step = max(1, len(pictures) // EXAMPLES)
        self._examples = [picture.load() for picture in pictures[::step][:EXAMPLES]] or self._examples
        self._beside.clear()

    @cached_property
    def _framing(self) -> int:
        """Tokens that a turn has besides what the user says."""
        return len(self.script.ids(self.script.asked([("", "")], images=0)))

    def _taken(self, config: TaskConfig) -> int:
        """Tokens that the most images, or one alone (which has more of them), come to with a prompt whose question is empty."""
        kind = config.spec.prompt
        text = "" if kind == TOLD_TURNS else self.config.prompts.get(kind, "").replace("{question}", "")
        if text not in self._beside:
            rows: list[Any] = list(self._examples)
            rows += [[image] * self.images_each for image in self._examples] if self.images_each > 1 else []
            prompts = (self._processed([row], [[(text, "")]]) for row in rows)
            self._beside[text] = SLACK + max(prompt["input_ids"].shape[1] for prompt in prompts)
        return self._beside[text]

    def _said(self, text: str, max_length: int, count: int = 1) -> str:
        """A text of at most so many tokens, with the places of the images that it is about; where there are several."""
        if count > 1 and not self.script.template:
            text, count = numbered(text), 1
        said, left = list[str](), max_length
        for part in parts_of(text, count):
            own = cut(self.tokenizer, self.clean(part), left) if left > 0 or count == 1 else ""
            left -= len(self.script.ids(own)) if count > 1 else 0
            said.append(own)
        return PLACE.join(said)

    def _processed(
        self,
        images: Sequence[Any],
        conversations: Sequence[Turns],
        shown: Sequence[bool] = (),
        later: Sequence[int] = (),
    ) -> ChatInputs:
        """Images and conversations up to the last reply as the processor has them, padded in front.

        Args:
            images: of each row, or a list of several.
            conversations: with their places.
            shown: whether a row is about its images; empty: all are.
            later: so many of the last images of each row stand elsewhere: their tokens are in `expansions`.
        """
        about = [not shown or shown[row] for row in range(len(conversations))]
        counts, behind = counted(images), later or [0] * len(images)
        mark = str(self.processor.image_token)
        apart = f"{self.tokenizer.eos_token}{mark}"
        texts = []
        for turns, own, count, others in zip(conversations, about, counts, behind, strict=True):
            text = self.script.asked(turns if own else [("", "")], count - others)
            if own and count > 1 and self.script.template and text.count(mark) != count - others:
                raise self.script.unreadable(f"writes {text.count(mark)} of {count - others} images")
            several = count > 1 and not self.script.template  # the prompt's own mark stands for all
            texts.append((text.replace(mark, mark * count) if several else text) + apart * others)
        options: dict[str, Any] = {"images_kwargs": self.image_options} if self.image_options else {}
        if (start := self.tokenizer.bos_token) and texts[0].startswith(start):  # as in apply_chat_template
            options["add_special_tokens"] = False
        given = per_row(flat(images), counts) if max(counts) > 1 else flat(images)
        found = self.processor(images=given, text=texts, padding=True, return_tensors="pt", **options)
        kept = {name: value for name, value in found.items() if name in self.takes and name != "labels"}
        if max(counts) > 1:
            kept["images"] = counts
        if any(behind):
            end, padding = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            kept["expansions"] = expansions(kept["input_ids"], kept["attention_mask"], behind, end, padding)
        if not all(about):
            kept = self._hidden(kept, conversations, torch.tensor(about))
        # stable, so that only padding moves: to the front, whichever side the processor has put it (BLIP-2's: the middle)
        order = kept["attention_mask"].argsort(dim=1, stable=True, descending=not self.in_front)
        moved = {name: value.gather(1, order) if name in ADDED else value for name, value in kept.items()}
        return cast(ChatInputs, moved)  # the names are the model's own

    def _hidden(self, inputs: dict[str, Any], conversations: Sequence[Turns], shown: Tensor) -> dict[str, Any]:
        """Inputs in which conversations of text alone stand behind their prompts, which are masked like padding, the image in them.

        So every row has an image, as processors and towers want it, and nothing sees it; positions do not count it either.
        """
        told = [self.script.asked(turns, images=0) for turns in conversations]
        start = self.tokenizer.bos_token
        opened = bool(start) and told[0].startswith(start)
        ids: list[list[int]] = self.tokenizer(told, add_special_tokens=not opened)["input_ids"]
        text = self._padded([[] if own else row for row, own in zip(ids, shown.tolist(), strict=True)])
        new = {"input_ids": text.ids, "attention_mask": text.mask}
        before = {**inputs, "attention_mask": inputs["attention_mask"] * shown[:, None]}
        behind = {
            name: new.get(name, value.new_zeros(text.ids.shape)) for name, value in before.items() if name in ADDED
        }
        joined = {
            name: torch.cat([before[name], value.to(before[name].dtype)], dim=1) for name, value in behind.items()
        }
        return {**before, **joined, "shown": shown}

    # -- the image, and the text behind it --

    def _seen(self, inputs: ChatInputs) -> Any:
        """What the model makes of images, before it reads."""
        see = self.model.base_model.get_image_features
        wanted = inspect.signature(see).parameters
        # where only shapes are asked for, what is made from values must have some
        several = rows_of_images(self.model, inputs.get("images", []))
        with self.prefix("vision", inputs), several, torch.device("cpu"):
            return see(**{name: value for name, value in inputs.items() if name in wanted}, return_dict=True)

    def context(self, inputs: ChatInputs) -> Context:
        """The prompt's tokens; the image's states as `states` (B, S, d), padded to the most, with their mask `visible` (B, S) and,
        where some are padded, their `lengths` (B,)."""
        found = self._seen(inputs)
        rows = self._rows(found.pooler_output, inputs)
        # of ones, and not from the lengths: those would have to come to the device, and be no numbers of a float type
        visible = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        taken = (*ADDED, GRID, "shown")
        context = {name: value for name, value in inputs.items() if name in taken and isinstance(value, Tensor)}
        if GRID in context and "images" in inputs:  # a row for each row's: (B, most, 3)
            context[GRID] = pad_sequence(list(context[GRID].split(inputs["images"])), batch_first=True)
        context |= {"states": pad_sequence(rows, batch_first=True), "visible": visible}
        if len({len(row) for row in rows}) > 1:  # only then the device has to be asked, see `_features`
            context["lengths"] = visible.sum(dim=1)
        if "shown" in inputs:
            context["visible"] = visible * inputs["shown"][:, None]
        for number, states in enumerate(getattr(found, "deepstack_features", None) or ()):
            context[f"{DEEP}{number}"] = pad_sequence(self._rows(states, inputs), batch_first=True)
        return context

    def _rows(self, states: Any, inputs: ChatInputs) -> list[Tensor]:
        """The states (S, d) of each row's images, one behind the other."""
        counts, ids = inputs.get("images"), inputs["input_ids"]
        if counts and len(states) == sum(counts) > len(counts):  # of each image
            return [torch.cat(own) for own in per_row(states, counts)]
        if "expansions" in inputs:
            ids = torch.cat([ids, inputs["rest"].ids], dim=1)
        return older.in_rows(states, ids, self.model.config.image_token_id)

    def select_rows(self, context: Context, group_index: Tensor) -> Context:
        """A context with its rows repeated or picked; of blank inputs, what must have values is as it is."""
        return {
            name: value if group_index.is_meta and not value.is_meta else value.index_select(0, group_index)
            for name, value in context.items()
        }

    def _features(self, context: Context) -> Any:
        """The image's states as the model has them from its own tower."""
        full = "lengths" not in context
        lengths = [] if full else context["lengths"].tolist()

        def rows(states: Tensor) -> list[Tensor]:
            return list(states) if full else [row[:length] for row, length in zip(states, lengths, strict=True)]

        states: Any = context["states"] if self.options.stacked and full else rows(context["states"])
        found: Any = BaseModelOutputWithPooling(pooler_output=states)
        if deep := [value for name, value in context.items() if name.startswith(DEEP)]:
            # they are added where the image's tokens are, which shapes do not tell
            found.deepstack_features = [rows(value) for value in deep if not value.is_meta]
        return found

    def _extended(self, context: Context, ids: Tensor, mask: Tensor) -> Context:
        """A prompt's inputs with further tokens (N, L) and their mask."""
        # images may stand in what follows the first reply
        new = {"input_ids": ids, "attention_mask": mask}
        if not ids.is_meta:  # else there are none, and the values of the others are read
            new["mm_token_type_ids"] = ids == self.model.config.image_token_id
        return {
            name: torch.cat([value, new.get(name, value.new_full(mask.shape, ADDED[name])).to(value.dtype)], dim=1)
            if name in ADDED
            else value
            for name, value in self._prompt(context).items()
        }

    def _prompt(self, context: Context) -> Context:
        """A prompt's inputs."""
        prompt = {name: value for name, value in context.items() if name in (*ADDED, GRID)}
        if GRID in prompt and prompt[GRID].ndim == 3:
            grids = prompt[GRID].flatten(0, 1)  # (B * most, 3)
            prompt[GRID] = grids[grids[:, 0] > 0]
        return prompt

    def _shown(self, context: Context) -> AbstractContextManager[None]:
        """Hand the image to the adapters that read it."""
        if not reads_other(self.model, self.reader):
            return nullcontext()
        return provide(self.model, self.reader, context["states"], context["visible"])

    def _encoded(self, context: Context, prompt: Context) -> AbstractContextManager[dict[str, Any]]:
        """The arguments by which the model takes the image's states."""
        return older.encoded(self.model, self._features(context), prompt, self.options.stacked)

    def _logits(self, context: Context, prompt: Context, last: int) -> Tensor:
        """Next-token logits of the last so many tokens of prompts."""
        with self._shown(context), self._encoded(context, prompt) as image:
            logits: Tensor = self.model(**prompt, **image, use_cache=False, logits_to_keep=last).logits
            return logits

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """A token that stands for the prompt's last one, the text's own prompt, the text, the end."""
        rows = []
        for text in texts:
            start, own = self.script.reply(self.clean(text), max_length, prompt)
            rows.append([self.script.end_ids[-1], *start, *own])
        return self._padded(rows), 1 + len(start)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Text:
        """Tokens (N, L) and their mask, padded behind."""
        return padded_text(rows, self.tokenizer.pad_token_id)

    def logits(self, context: Context, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        prompt = self._extended(context, target.ids[:, 1:], target.mask[:, 1:])
        return self._logits(context, prompt, target.ids.shape[1])

    def candidate_logits(self, context: Context, target: Text) -> Tensor:
        """See `Backbone`. The prompt is read once; each text goes on from its keys and values."""
        count = len(target.ids)
        prompt = self._prompt(context)
        with self._shown(context), self._encoded(context, prompt) as image:
            begun = self.model(**prompt, **image, use_cache=True, logits_to_keep=1)
        begun.past_key_values.batch_repeat_interleave(count)
        several = self.select_rows(context, torch.zeros(count, dtype=torch.long, device=target.ids.device))
        going: dict[str, Any] = {"input_ids": target.ids[:, 1:], "past_key_values": begun.past_key_values}
        going["attention_mask"] = torch.cat([several["attention_mask"], target.mask[:, 1:]], dim=1)
        if (
            GRID in prompt
        ):  # positions in three dimensions: the model has noted how far an image lets them lag behind the tokens
            place = torch.arange(target.ids.shape[1] - 1, device=target.ids.device) + prompt["attention_mask"].sum()
            going["position_ids"] = (place + self.model.base_model.rope_deltas).expand(3, count, -1)
        with self._shown(several):
            rest = self.model(**going, use_cache=True)
        return torch.cat([begun.logits.expand(count, -1, -1), rest.logits], dim=1)

    def write(self, context: Context, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[Written]:
        """Greedy or beam search, key-value cached."""
        if (order := self._order(context)) is not None:
            texts = self._write(self.select_rows(context, order), decode, prompt, alternatives)
            starts = (alternatives * order.argsort()).tolist()
            return [text for start in starts for text in texts[start : start + alternatives]]
        return self._write(context, decode, prompt, alternatives)

    def _write(self, context: Context, decode: DecodeConfig, prompt: str, alternatives: int) -> list[Written]:
        given = self._begun(context, prompt)
        with self._shown(context), self._encoded(context, given) as image:
            return self.search(self.writer, {**given, **image}, decode, alternatives)

    def _begun(self, context: Context, prompt: str) -> Context:
        """A context's prompts with what the text is to begin with."""
        ids = context["input_ids"]
        start = ids.new_tensor(self.script.reply("", 1, prompt)[0]).expand(len(ids), -1)  # (B, P)
        return self._extended(context, start, torch.ones_like(start))

    def _order(self, context: Context) -> Tensor | None:
        """Of a batch with hidden images the rows (B,), those with images first, where the model makes positions from their grids.

        It takes a grid for each image that it sees, in order, and so the first ones.
        """
        if GRID not in context or "shown" not in context:
            return None
        return context["shown"].argsort(descending=True, stable=True)
