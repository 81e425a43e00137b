"""Composites: any frozen vision tower joined to any frozen language model, for answers, captions and conversations.

The image reaches the text as `model.options.visual` says: as tokens in front of the text, through adapters that read the projected
states (every tower of the language model is handed them), or both ways. A causal model gets image, then text, and goes on from it
(Tsimpoukelis et al., "Multimodal Few-Shot Learning with Frozen Language Models", NeurIPS 2021); an encoder-decoder model has image
and question in its encoder and writes with its decoder (Cho et al., ICML 2021; Sung et al., CVPR 2022).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from vlatrain.backbones import tokenizers
from vlatrain.backbones.architecture import image_processor_class, model_class
from vlatrain.backbones.base import Backbone, Inputs, Pair, Text, blank_text, read_model, square_processor
from vlatrain.backbones.describe import checkpoints_of
from vlatrain.backbones.joined import Joined, JoinedConfig
from vlatrain.config import DecodeConfig, ModelConfig, UserError
from vlatrain.injection.context import bring, hand, left, reads_other

if TYPE_CHECKING:
    from vlatrain.data.sample import Turn

ANCHOR = "a"  # a text that another is tokenised behind


class Composite(Backbone):
    """What all composites have in common: loading, images, and the tokens of texts. See `Generator` for the operations."""

    model: Any
    causal = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.language: Any = self.model.language
        visual = self.config.options.get("visual", "both")
        self.shows, self.hands = visual != "adapters", visual != "tokens"
        settings = self.language.config
        end = settings.eos_token_id
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
        """Both parts with random weights, joined, on torch's default device."""
        vision, text = (AutoConfig.for_model(**settings[key]) for key in ("vision_config", "text_config"))
        text.vocab_size += config.options.get("added_tokens", 0)
        return Joined(_joined(config, vision, text))

    @classmethod
    def read(cls, config: ModelConfig, task: str, checkpoint: str) -> tuple[PreTrainedModel, Any]:
        """Both parts from their checkpoints, joined by a new projection; or all of it from one folder."""
        if config.checkpoint:
            return super().read(config, task, checkpoint)
        found = checkpoints_of(config, task)
        models: dict[str, Any] = {}
        for part, name in found.items():
            key = f"model.parts.{part}"
            kind: Any = model_class(config.parts[part].architecture, f"{key}.architecture")
            wanted, there = kind.config_class.model_type, AutoConfig.from_pretrained(name).model_type
            if _whole(wanted) != _whole(there):
                raise UserError(
                    f"{key}.checkpoint={name} is a {there} model, and {key}.architecture={kind.__name__} none"
                )
            models[part] = read_model(kind, name, f"{key}.checkpoint={name}")
        language, vision = models["language"], models.get("vision")
        if added := config.options.get("added_tokens", 0):
            language.resize_token_embeddings(language.get_input_embeddings().weight.shape[0] + added)
        seen = vision.config if vision is not None else AutoConfig.for_model(**config.config["vision_config"])
        model = Joined(_joined(config, seen, language.config), vision, language)
        images = _read_image_processor(found["vision"], seen.model_type) if vision is not None else None
        return model, Pair(AutoTokenizer.from_pretrained(found["language"]), images)

    @classmethod
    def read_processor(cls, checkpoint: str) -> Any:
        """The processor of a folder; without image processor for features."""
        names = ("preprocessor_config.json", "processor_config.json")
        if Path(checkpoint).is_dir() and not any((Path(checkpoint) / name).is_file() for name in names):
            return Pair(AutoTokenizer.from_pretrained(checkpoint), None)
        return super().read_processor(checkpoint)

    @classmethod
    def make_processor(cls, config: ModelConfig, settings: dict[str, Any], texts: Iterable[str]) -> Any:
        """A processor for random weights of such settings, its tokenizer made from texts."""
        tokenizer = tokenizers.make_wordpiece(texts, settings["text_config"]["vocab_size"])
        vision = settings["vision_config"]
        if "image_size" not in vision:
            return Pair(tokenizer, None)
        return Pair(tokenizer, square_processor({**settings, "model_type": _whole(vision["model_type"])}))

    @classmethod
    def with_tokens(cls, config: ModelConfig, settings: dict[str, Any], processor: Any) -> dict[str, Any]:
        """The settings with the token ids of a processor that was made."""
        settings = super().with_tokens(config, settings, processor)
        start = {"decoder_start_token_id": settings["text_config"]["bos_token_id"]}
        return settings if cls.causal else {**settings, "text_config": settings["text_config"] | start}

    # -- what the model is given --

    def inputs(self, images: Sequence[Any], questions: Sequence[str] | None = None, max_length: int = 0) -> Inputs:
        """Images, or their features (S, width), and the prompts: the templates in `model.prompts`."""
        return {**self._seen(images), "prompt": self._asked_for(len(images), questions, max_length)}

    def given(self, count: int, questions: Sequence[str] | None = None, max_length: int = 0) -> Inputs:
        """The same without images: of these only the shape."""
        return {**self._unseen(count), "prompt": self._asked_for(count, questions, max_length)}

    def _asked_for(self, count: int, questions: Sequence[str] | None, max_length: int) -> Text:
        if questions is None:
            return self._prompt([self.config.prompts["captioning"]] * count)
        template = self.config.prompts["vqa"]
        return self._prompt([template.replace("{question}", self._cut(text, max_length)) for text in questions])

    def blank(self, batch_size: int, device: torch.device | str, question: int = 0) -> Inputs:
        """Inputs without content; a caption's prompt has one token."""
        vision = self.model.config.vision_config
        prompt = blank_text(batch_size, max(question, 1), device)
        if self.model.vision is not None:
            size = vision.image_size
            return {"pixels": torch.zeros(batch_size, 3, size, size, device=device), "prompt": prompt}
        features = torch.zeros(batch_size, vision.tokens, vision.hidden_size, device=device)
        return {"features": features, "visible": features.new_ones(features.shape[:2]).long(), "prompt": prompt}

    def _unseen(self, count: int) -> Inputs:
        """The images' part of the inputs where they are not looked at: `pixels` that have only their shape."""
        size = self.model.config.vision_config.image_size
        return {"pixels": torch.zeros(1, 1, 1, 1).expand(count, 3, size, size)}

    def _seen(self, images: Sequence[Any]) -> Inputs:
        """The images' part of the inputs: `pixels`, or `features` (B, S, width) padded to the most with `visible` (B, S)."""
        if self.model.vision is not None:
            return {"pixels": self.pixels(images)}
        most = max(len(features) for features in images)
        width = self.model.config.vision_config.hidden_size
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
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids(f"{ANCHOR} {text}")[len(self._ids(ANCHOR)) :]

    def _cut(self, text: str, max_length: int) -> str:
        """A text of at most so many tokens."""
        ids = self._ids(text)
        return text if len(ids) <= max_length else self.tokenizer.decode(ids[:max_length])

    def _padded(self, rows: Sequence[list[int]], left: bool = False) -> Text:
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.padding)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(rows):
            place = slice(length - len(own), length) if left else slice(0, len(own))
            ids[row, place], mask[row, place] = torch.tensor(own, dtype=torch.long), 1
        return Text(ids, mask)

    def target(self, texts: Sequence[str], max_length: int, prompt: str = "") -> tuple[Text, int]:
        """Start tokens, the prompt, the text, the end token."""
        given = self._start() + self._ids(prompt, behind=self.causal)
        rows = [
            given + self._ids(text, behind=self.causal or bool(prompt))[: max_length - 1] + [self.end] for text in texts
        ]
        return self._padded(rows), len(given)

    # -- the image, and the text behind it --

    def _visual(self, inputs: Inputs) -> Inputs:
        """The image's projected states as `visual` (B, S, d), and `visible` (B, S): 1 for those that are there."""
        if self.model.vision is None:
            states = inputs["features"]
        else:
            with self.prefix("vision", inputs):
                states = self.model.see(inputs["pixels"])
        visual = self.model.projection(states)
        visible = inputs.get("visible")
        return {"visual": visual, "visible": visual.new_ones(visual.shape[:2]).long() if visible is None else visible}

    def _embedded(self, context: Inputs, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
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
    def _shown(self, context: Inputs) -> Iterator[None]:
        """Hand the image to the adapters that read it, in every tower of the language model; and what the encoder's leave to the
        decoder's."""
        with ExitStack() as stack:
            stack.enter_context(bring(self.model, context))
            for tower in self.config.parts["language"].towers if self.hands else ():
                if reads_other(self.model, tower):
                    stack.enter_context(hand(self.model, tower, context["visual"], context["visible"]))
            yield

    def _written(self, inputs: dict[str, Any], decode: DecodeConfig, alternatives: int, skip: int) -> list[str]:
        """Texts that the language model generates from inputs, without their first `skip` tokens."""
        beams = max(decode.num_beams, alternatives)
        beam_options = {"length_penalty": decode.length_penalty, "early_stopping": False} if beams > 1 else {}
        ids = self.language.generate(
            **inputs,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=alternatives,
            max_new_tokens=decode.max_new_tokens,
            min_new_tokens=decode.min_new_tokens,
            **beam_options,
        )  # (B * alternatives, skip + new)
        return [text.strip() for text in self.tokenizer.batch_decode(ids[:, skip:], skip_special_tokens=True)]


class CausalComposite(Composite):
    """A causal language model: image, prompt and answer in one sequence. `Generator` and `Converser`.

    The first token of a target stands for the prompt's last one: that is where the first token of the answer is predicted. Prompts
    are padded in front, so that their last tokens are in one column; positions do not count padding.
    """

    def _prompt(self, texts: Sequence[str]) -> Text:
        return self._padded([self._start() + self._ids(text) for text in texts], left=True)

    def _start(self) -> list[int]:
        start = self.language.config.bos_token_id
        return [self.end if start is None else start]

    def context(self, inputs: Inputs) -> Inputs:
        """The image's projected states, and the prompt's tokens."""
        return {**self._visual(inputs), "ids": inputs["prompt"].ids, "mask": inputs["prompt"].mask}

    def logits(self, context: Inputs, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        ids = torch.cat([context["ids"], target.ids[:, 1:]], dim=1)
        return self._logits(context, ids, torch.cat([context["mask"], target.mask[:, 1:]], dim=1), target.ids.shape[1])

    def _logits(self, context: Inputs, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        """Next-token logits of the last so many tokens."""
        embeddings, mask = self._embedded(context, ids, mask)
        with self._shown(context):
            return self.language(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=last,
            ).logits

    def generate(self, context: Inputs, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Greedy or beam search, key-value cached."""
        ids, mask = context["ids"], context["mask"]
        if given := self._ids(prompt, behind=True):
            ids = torch.cat([ids, ids.new_tensor(given).expand(len(ids), -1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(ids), len(given))], dim=1)
        embeddings, mask = self._embedded(context, ids, mask)
        with self._shown(context):
            return self._written({"inputs_embeds": embeddings, "attention_mask": mask}, decode, alternatives, 0)

    def conversations(
        self, images: Sequence[Any] | None, conversations: Sequence[Sequence[Turn]], max_length: int
    ) -> tuple[Inputs, Text]:
        """Turn by turn: `user: ... assistant: reply`, the end token."""
        rows, learned = [], []
        for turns in conversations:
            row, own = self._start(), [0]
            for turn in turns:
                asked, reply = self._asked(turn), [*self._ids(turn.reply, behind=True), self.end]
                row, own = row + asked + reply, own + [0] * len(asked) + [1] * len(reply)
            rows.append(row[:max_length])
            learned.append(own[:max_length])
        text = self._padded(rows)
        mask = torch.zeros_like(text.mask)
        for place, own in enumerate(learned):
            mask[place, : len(own)] = torch.tensor(own)
        seen = self._unseen(len(rows)) if images is None else self._seen(images)
        return {**seen, "prompt": text}, Text(text.ids, mask)

    def conversation_logits(self, inputs: Inputs) -> Tensor:
        """Next-token logits of the conversations' tokens, (B, L, vocabulary)."""
        text = inputs["prompt"]
        return self._logits(self._visual(inputs), text.ids, text.mask, text.ids.shape[1])

    def prompts(self, images: Sequence[Any] | None, conversations: Sequence[Sequence[Turn]], max_length: int) -> Inputs:
        """Conversations up to the last reply; of those that are too long the end."""
        rows = []
        for turns in conversations:
            row = self._start()
            for turn in turns[:-1]:
                row = [*row, *self._asked(turn), *self._ids(turn.reply, behind=True), self.end]
            rows.append([*row, *self._asked(turns[-1])][-max_length:])
        seen = self._unseen(len(rows)) if images is None else self._seen(images)
        return {**seen, "prompt": self._padded(rows, left=True)}

    def _asked(self, turn: Turn) -> list[int]:
        return self._ids(self.config.prompts["instruct"].replace("{question}", turn.user))


class Seq2SeqComposite(Composite):
    """An encoder-decoder language model: image and prompt in the encoder, the answer in the decoder. `Generator`."""

    causal = False

    def _prompt(self, texts: Sequence[str]) -> Text:
        return self._padded([self.tokenizer(text)["input_ids"] for text in texts])

    def _start(self) -> list[int]:
        """The decoder's start token, and what the tokenizer puts in front of every text (BART's `<s>`)."""
        front = [token for token in self.tokenizer("")["input_ids"] if token != self.end]
        return [self.language.config.decoder_start_token_id, *front]

    def context(self, inputs: Inputs) -> Inputs:
        """The encoder's `states` (B, S + L, d) and their `mask`; and the image's, for adapters in the decoder."""
        visual = self._visual(inputs)
        embeddings, mask = self._embedded(visual, inputs["prompt"].ids, inputs["prompt"].mask)
        if "visible" in inputs:  # padding to the end: an encoder counts it where it is
            order = mask.argsort(dim=1, descending=True, stable=True)  # (B, S + L)
            embeddings = embeddings.take_along_dim(order[..., None], dim=1)
            mask = mask.take_along_dim(order, dim=1)
        with self._shown(visual):
            states = self.language.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return {**visual, "states": states, "mask": mask, **left(self.model)}

    def logits(self, context: Inputs, target: Text) -> Tensor:
        """Next-token logits, (N, L, vocabulary)."""
        with self._shown(context):
            return self.language(
                encoder_outputs=BaseModelOutput(last_hidden_state=context["states"]),
                attention_mask=context["mask"],
                decoder_input_ids=target.ids,
                decoder_attention_mask=target.mask,
                use_cache=False,
            ).logits

    def generate(self, context: Inputs, decode: DecodeConfig, prompt: str = "", alternatives: int = 1) -> list[str]:
        """Greedy or beam search, key-value cached."""
        states = context["states"]
        given = self._start() + self._ids(prompt)
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "attention_mask": context["mask"],
            "decoder_input_ids": context["mask"].new_tensor(given).expand(len(states), -1),
        }
        with self._shown(context):
            return self._written(inputs, decode, alternatives, len(given))


def _joined(config: ModelConfig, vision: Any, text: Any) -> JoinedConfig:
    """The settings of parts joined as a description says."""
    parts, options = config.parts, config.options
    return JoinedConfig(
        vision_config=vision.to_dict(),  # copies: in its own it would forget how a loaded model computes attention
        text_config=text.to_dict(),
        vision_class=parts["vision"].architecture,
        language_class=parts["language"].architecture,
        vision_norm=parts["vision"].norm,
        **{key: options[key] for key in ("norm", "boxes", "order") if key in options},
    )


def _whole(model_type: str) -> str:
    """The kind of model that a vision tower is of: CLIP's image tower has CLIP's image processor."""
    return model_type.removesuffix("_vision_model")


def _read_image_processor(checkpoint: str, model_type: str) -> Any:
    """The image processor of a checkpoint, on PIL; ViT's where its own needs torchvision."""
    kind = image_processor_class(_whole(model_type))
    if kind.__name__ == "ViTImageProcessorPil":
        return kind.from_pretrained(checkpoint)
    return AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
