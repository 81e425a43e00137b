"""Tokenizers made from the data at hand, for backbones with random weights.

A model built with `model.random_init=true` has no vocabulary of its own, and none can be downloaded; it keeps the size
of its embedding, so that it has the published number of parameters, and uses the first rows of it.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
START, EXTRA = "[DEC]", "[ENC]"
ALPHABET = string.ascii_lowercase + string.digits + string.punctuation


def make_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer, `[CLS] text [SEP]`, with BLIP's two extra tokens.

    Its vocabulary is the most frequent words of the texts, equal ones in alphabetical order, and single characters for
    all others. (The trainer of the tokenizers library breaks ties differently at every run.)

    Args:
        texts: the texts.
        vocab_size: largest vocabulary, at least that of the special tokens and characters.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    counts: Counter[str] = Counter()
    for text in texts:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    tokens = [*SPECIAL.values(), START, EXTRA, *ALPHABET, *(f"##{character}" for character in ALPHABET)]
    tokens += sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {token: number for number, token in enumerate(list(dict.fromkeys(tokens))[:vocab_size])}
    tokenizer.model = models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[START, EXTRA], padding_side="right", **SPECIAL
    )


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The token ids that a model's `text_config` needs for such a tokenizer."""
    start, end, padding = (tokenizer.convert_tokens_to_ids(token) for token in (START, "[SEP]", "[PAD]"))
    # CLIP pools the state of the first eos token
    return {"bos_token_id": start, "eos_token_id": end, "sep_token_id": end, "pad_token_id": padding}
