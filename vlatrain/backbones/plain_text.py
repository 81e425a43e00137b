"""Texts on their way into a tokenizer and out of it.

In: what looks like a special token of the model (`[SEP]`, `<image>`) is text wherever a user wrote it. It gets a mark that nobody
sees behind its first character, so that no tokenizer finds it; the mark is taken out of what a model writes.

Out: BERT's tokenizers split a text at every sign and write a blank between all pieces, so that "3.5" comes back as "3. 5" and
"don't" as "don ' t". The blanks are taken out where people write none. What a tokenizer has lost (accents, upper case, unknown
characters) does not come back.
"""

from __future__ import annotations

import re
from typing import Any

MARK = "\u200b"  # a blank of no width
PROBE = "it's 3.5 (50%)"  # a tokenizer that writes this otherwise is one of those that split at every sign
BLANKS = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?<=\d) ?([.:]) ?(?=\d)", r"\1"),  # 3. 5, 10 : 30
        (r"(?<=\d), (?=\d{3}(?!\d))", ","),  # 1, 000
        (r"(?<=\w) ?([-/_]) ?(?=\w)", r"\1"),  # t - shirt, and / or, a _ b
        (r"(?<=\d) (?=[%°])", ""),  # 50 %
        (r"(?<=[$€£¥#]) (?=\d)", ""),  # $ 5
        (r"(?:(?<=^)|(?<=[\s(]))([-+]) (?=\d)", r"\1"),  # - 5
        (r"(?<=\w) ?' ?(?=(?:s|t|m|d|ll|re|ve)\b)", "'"),  # don ' t
        (r"(?<=\b[od]) ?' ?(?=\w)", "'"),  # o ' clock
        (r"(?<=[(\[{<]) ", ""),  # ( red )
        (r" (?=[)\]}>])", ""),
        (r'" ([^"]*?) "', r'"\1"'),  # " stop "
        (r" (?=[:;](?:\s|$))", ""),  # time : noon
        (r"\b(\w\.) (?=\w\.)", r"\1"),  # p. m.
    )
)


def special_tokens(processor: Any) -> re.Pattern[str] | None:
    """What finds in a text that which a processor's tokenizers read as special tokens; None if there are none.

    Tokens that look like ordinary text are left out: some tokenizers of CLIP's pad with "!".
    """
    found: set[str] = set()
    for tokenizer in filter(None, (processor.tokenizer, getattr(processor, "qformer_tokenizer", None))):
        found.update(tokenizer.all_special_tokens)
        found.update(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    marked = sorted(token for token in found if len(token) > 2 and not (token[0].isalnum() or token[-1].isalnum()))
    return re.compile("|".join(map(re.escape, marked))) if marked else None


def marked(text: str, special: re.Pattern[str] | None) -> str:
    """A text in which a tokenizer finds no special token."""
    return special.sub(lambda found: found[0][0] + MARK + found[0][1:], text) if special else text


def unmarked(text: str) -> str:
    """A text without what `marked` has put in, and without blanks at its ends."""
    return text.replace(MARK, "").strip()


def splits_at_signs(tokenizer: Any) -> bool:
    """Whether a tokenizer writes a blank around every sign."""
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    written = tokenizer.decode(ids, skip_special_tokens=True)
    return "' s" in written or "3. 5" in written


def joined(text: str) -> str:
    """A text as people write it, from one with a blank around every sign."""
    for pattern, new in BLANKS:
        text = pattern.sub(new, text)
    return text
