"""What tokenising the texts of a run shows, each looked at once: how long it is, what there is to learn, whether it comes back.

What was seen stays with the backbone. Of many texts it is kept on disk too, by what they are and what tokenises them, so that the
next run over the same data need not look again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vlatrain.backbones.base import Backbone
from vlatrain.backbones.lengths import UNLIMITED
from vlatrain.config.files import kept_folder, replace_file
from vlatrain.data.lazy import select

if TYPE_CHECKING:
    from vlatrain.data.sample import Sample, Turn

log = logging.getLogger("vlatrain")

AT_MOST = 100_000  # samples of a split that are looked at
AT_ONCE = 256  # texts that are tokenised at a time
WORTH_KEEPING = 5_000  # texts that take a while to look at
KEPT = "texts-{}.npy"  # what was seen of so many
DIGEST = 32  # bytes of the checksum in front of it
NONE = -1  # in such a file, for `Seen.first`

Form = Callable[[str], Hashable]
"""The form in which a metric compares a text."""


class Seen(NamedTuple):
    """What tokenising a text shows.

    Attributes:
        tokens: all of them, as its limit counts them.
        first: so many must be kept that one of them can be learned or read; None: there is none, all are unknown.
        unknown: whether one is unknown.
        returns: whether a model that writes these tokens writes the text, as far as its metric can tell.
        learned: so many of a conversation are learned.
    """

    tokens: int
    first: int | None
    unknown: bool
    returns: bool = True
    learned: int = 0


def looked_at(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples that are looked at: all, or a seeded draw of `AT_MOST`, in their order."""
    if len(samples) <= AT_MOST:
        return samples
    return select(samples, sorted(random.Random("looked at").sample(range(len(samples)), AT_MOST)))


class Look:
    """How texts of a kind are looked at.

    Args:
        backbone: what tokenises them.
        name: tells it from other ways to look at the same texts.
        compute: what is to be seen of each text.
    """

    def __init__(self, backbone: Backbone, name: str, compute: Callable[[Sequence[Any]], Iterable[Seen]]) -> None:
        self._backbone, self._name, self._compute = backbone, name, compute

    def __call__(self, texts: Sequence[Any]) -> list[Seen]:
        """What is to be seen of each text."""
        known = self._backbone.looked_at.setdefault(self._name, {})
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(new, self._looked_at(new), strict=True))
        return [known[text] for text in texts]

    def _looked_at(self, texts: Sequence[Any]) -> Iterable[Seen]:
        """The same, from disk where it is there."""
        tokenises = self._backbone.tokenises if len(texts) >= WORTH_KEEPING else ""
        if not tokenises:
            return self._compute(texts)
        key = hashlib.blake2b(repr((self._name, tokenises, texts)).encode(), digest_size=16).hexdigest()
        file = kept_folder() / KEPT.format(key)
        with suppress(OSError, ValueError, EOFError):
            told, data = (content := file.read_bytes())[:DIGEST], content[DIGEST:]
            if hashlib.sha256(data).digest() != told:
                raise ValueError("it has changed since it was written")
            table = np.load(io.BytesIO(data), allow_pickle=False)
            if table.shape == (len(texts), len(Seen._fields)):
                os.utime(file)
                return [
                    Seen(tokens, None if first == NONE else first, bool(unknown), bool(returns), learned)
                    for tokens, first, unknown, returns, learned in table.tolist()
                ]
        log.info("Counting the tokens of %s texts", f"{len(texts):,}")
        found = list(self._compute(texts))
        rows = [one._replace(first=NONE if one.first is None else one.first) for one in found]
        stream = io.BytesIO()
        np.save(stream, np.array(rows, dtype=np.int32), allow_pickle=False)
        with suppress(OSError):  # it is looked at again
            replace_file(file, hashlib.sha256(stream.getvalue()).digest() + stream.getvalue())
        return found


def counts() -> list[Path]:
    """The files of what was seen of many texts."""
    with suppress(OSError):
        return [*kept_folder().glob(KEPT.format("*"))]
    return []


def reading(backbone: Backbone) -> Look:
    """How questions, and texts that are read, are looked at."""

    def look(texts: Sequence[str]) -> Iterator[Seen]:
        special, unknown, around = _special(backbone), _unknown(backbone), backbone.around
        for start in range(0, len(texts), AT_ONCE):
            for ids in backbone.tokens(texts[start : start + AT_ONCE]):
                yield _seen(ids, around, special, unknown)

    return Look(backbone, "read", look)


def writing(backbone: Any, prompt: str = "", end: bool = True, form: Form | None = None) -> Look:
    """How texts that are written are looked at.

    Args:
        backbone: a `Generator`.
        prompt: what they begin with; it is not counted.
        end: whether the token that ends them is counted.
        form: how a metric compares them, to see whether they come back; None: no metric does.
    """

    def look(texts: Sequence[str]) -> Iterator[Seen]:
        special, unknown = _special(backbone), _unknown(backbone)
        ends = len(written_tokens(backbone, [""], UNLIMITED, prompt)[0])
        back = backbone.as_written(texts) if form else texts
        for text, ids, again in zip(texts, written_tokens(backbone, texts, UNLIMITED, prompt), back, strict=True):
            returns = form is None or text == again or form(text) == form(again)
            yield _seen(ids[: len(ids) - ends], ends if end else 0, special, unknown)._replace(returns=returns)

    compared = f"{form.__module__}.{form.__qualname__}" if form else ""
    return Look(backbone, f"written {prompt!r} {end} {compared}", look)


def conversing(backbone: Any, given: bool = False) -> Look:
    """How conversations are looked at.

    Args:
        backbone: a `Converser`.
        given: whether only what stands before the last reply counts.
    """

    def look(conversations: Sequence[Sequence[Turn]]) -> Iterator[Seen]:
        special, unknown = _special(backbone), _unknown(backbone)
        for turns in conversations:
            ids, learned = backbone.transcript(turns)
            if given:  # the last reply is behind the last token that is not learned
                yield Seen(len(ids) - learned[::-1].index(0), 1, False)
                continue
            replied = [(place, token) for place, (token, own) in enumerate(zip(ids, learned, strict=True)) if own]
            first = next((place + 1 for place, token in replied if token not in special), None)
            yield Seen(len(ids), first, any(token == unknown for _, token in replied), learned=len(replied))

    return Look(backbone, f"conversation {given}", look)


def written_tokens(backbone: Any, texts: Sequence[str], length: int, prompt: str = "") -> list[tuple[int, ...]]:
    """The tokens that a `Generator` learns or scores of texts, behind a prompt; the one that ends them is among them."""
    found = []
    for start in range(0, len(texts), AT_ONCE):
        target, given = backbone.target(texts[start : start + AT_ONCE], length, prompt)
        found += [tuple(ids[mask == 1].tolist()[given:]) for ids, mask in zip(target.ids, target.mask, strict=True)]
    return found


def tokens_of(backbone: Backbone, texts: Sequence[str], length: int) -> list[tuple[int, ...]]:
    """The tokens that are left of texts that are read, special ones among them."""
    found = []
    for start in range(0, len(texts), AT_ONCE):
        text = backbone.text(texts[start : start + AT_ONCE], length)
        found += [tuple(ids[mask == 1].tolist()) for ids, mask in zip(text.ids, text.mask, strict=True)]
    return found


def _seen(ids: Sequence[int], around: int, special: set[int], unknown: int | None) -> Seen:
    first = next((place + 1 + around for place, token in enumerate(ids) if token not in special), None)
    return Seen(len(ids) + around, first, unknown in ids)


def _special(backbone: Backbone) -> set[int]:
    return set(backbone.tokenizer.all_special_ids)


def _unknown(backbone: Backbone) -> int | None:
    """The unknown token; none where it is a token with another meaning, too (CLIP's end)."""
    known, token = backbone.tokenizer, backbone.tokenizer.unk_token_id
    others = (known.bos_token_id, known.eos_token_id, known.pad_token_id, known.cls_token_id, known.sep_token_id)
    return None if token in others else token
