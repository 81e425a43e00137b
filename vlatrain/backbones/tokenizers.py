"""Tokenizers trained on the data at hand, for backbones with random weights.

A model built with `model.random_init=true` has no vocabulary of its own, and none can be downloaded; it keeps the size of its
embedding, so that it has the published number of parameters, and uses the first rows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
START, END = "[DEC]", "[ENC]"


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer, `[CLS] text [SEP]`, with BLIP's two extra tokens.

    Args:
        texts: training texts. Printable ASCII is always in the vocabulary.
        vocab_size: largest vocabulary.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values(), START, END],
            initial_alphabet=[chr(code) for code in range(33, 127)],
            show_progress=False,
        ),
    )
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL.values()}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[START, END], padding_side="right", **SPECIAL
    )


def settings(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The token ids that a family's `text_config` needs for such a tokenizer."""
    ids = tokenizer.convert_tokens_to_ids
    if family == "clip":  # pools the state of the first eos token
        return {"bos_token_id": ids("[CLS]"), "eos_token_id": ids("[SEP]"), "pad_token_id": ids("[PAD]")}
    return {
        "bos_token_id": ids(START),
        "sep_token_id": ids("[SEP]"),
        "eos_token_id": ids("[SEP]"),
        "pad_token_id": ids("[PAD]"),
    }
