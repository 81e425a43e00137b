"""Text that can be shown: a terminal obeys what file names, answers and captions of strangers have in them. No torch here."""

from __future__ import annotations

# C0 and C1 but for newline and tab, DEL, and what turns the direction of writing
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN = {code: repr(chr(code))[1:-1] for code in _CONTROLS if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    r"""A text with its control characters written out, as `\x1b`; newlines and tabs stay."""
    return text.translate(_SHOWN)
