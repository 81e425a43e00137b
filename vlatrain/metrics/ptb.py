"""Penn-Treebank tokens for caption metrics, without Java.

Captions are scored on the tokens of `pycocoevalcap`'s PTBTokenizer: Stanford's PTBTokenizer (CoreNLP 3.4.1 with
`-preserveLines -lowerCase`), then removal of a fixed list of punctuation tokens. This module gives the same tokens in
pure Python. It was written from the observed behaviour of that program, not from its source: the word lists were found
by running it on 47,000 words in several contexts, the character classes by running it on every character of the basic
plane. On 18,000 captions put together from difficult parts no token differs; of 80,000 one-line descriptions of
software, far messier than captions, 42 differ (web addresses, version numbers, non-Latin punctuation).
`tests/metrics/make_references.py` makes the test's references where Java is installed.

Quirks that are kept, because published scores contain them:
- brackets become `-lrb-`, `-rrb-`, ... and are *not* removed (lower-casing happens before the removal list, which is
  upper-case); runs such as `!!!` are not removed either;
- `'empty'` in single quotes becomes `'em pty`; `€` becomes `$`, `£` becomes `#`, `¢` becomes `cents`;
- `3 1/2` and `555 123-4567` are one token with a no-break space inside.

Deviations: the Java program sees all captions as one file, so whether a one-letter abbreviation keeps its final period
at the end of a caption (`plan b.`) depends there on how the *next* caption begins; here nothing follows. Web addresses,
e-mail addresses and mark-up are covered for their plain forms only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


def _any(words: str, *forms: Callable[[str], str]) -> str:
    """A pattern for any of the words, in each of the given forms."""
    return "|".join(form(word) for word in words.split() for form in forms or (str,))


_LETTER = (
    "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u060b\u060d-\u061a\u0620-\u1fff\u2071\u207f\u2c00-\u2dff"
    "\u3005\u3006\u3031-\u3035\u3040-\u30fa\u30fc-\ud7ff\uf900-\ufdff\ufe70-\ufefc\uff10-\uff19\uff21-\uff3a"
    "\uff41-\uff5a\uff66-\uffdc"
)
_L = f"[{_LETTER}]"
_N = f"[{_LETTER}0-9]"  # a letter or a digit
_A = "['\u2019]"  # an apostrophe
_H = "[-_\u2010\u2011]"  # what joins the parts of a compound

# Words that keep their period in any case, then those that do so only when capitalised, then only before a number.
_ABBREVIATION = _any("""
    adj adm adv al ala alex apr ariz assn assoc atty attys aug ave bancorp bldg blvd brig bros calif capt cf cie
    cmdr co col colo conn corp cos cpl ct dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov hon
    inc ind insp intl jan jos jr jul jun kan kans ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr
    mrs ms mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof pte pty pvt rd rep rev rt sen sens sep sept
    seq sfc sgt spc sq sr st ste supt sys tel tenn thu thur thurs tue tues univ va vs vt wed wis wm
""")
_CAPITALISED = _any("ark az del ill la mass miss ore pa tex wash", str.capitalize, str.upper)
_NUMBERED = _any("art ca fig no nos op pp prop")
# A one-letter abbreviation before one of these ends a sentence: `plan B. The ...`.
_STARTER = _any(
    """
    a about according after an as at but earlier he her here however if in it last many more now once one other our she
    since so some such that the their then there these they this we what when while yet you
    """,
    str.capitalize,
    str.upper,
)
_WORD = f"{_L}{_N}*(?:[.!?]{_L}{_N}*)*"  # `end.of` is one word
_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"  # of he/she/it
_ADDRESS = '[^\\s<>"(){}]*[^\\s<>"(){},.;:!?\']'

# At each place the longest match wins. A match is one token unless `_split` knows better.
_RULES = [
    re.compile(pattern)
    for pattern in (
        # contractions and what looks like them
        f"(?i:cannot|gonna|gotta|lemme|gimme|wanna|'tis|'twas|more{_A}n)",
        f"{_L}*[nN]['\u2019`][tT](?!{_N})",
        f"{_A}(?i:s|d|m|n(?!-)|ll|re|ve)(?!{_L})",
        f"[yY]{_A}(?=[aA][lL][lL](?!{_N}))",
        f"{_A}[nN]{_A}|[dDjJlL]{_A}|{_A}(?i:em|till?|cause)",
        f"(?i:ol{_A}(?!{_L})|somethin{_A}|dunkin{_A}(?!{_L})|e{_A}er|ne{_A}er|s{_A}mores|ev{_A}ry|li{_A}l|ma{_A}am)",
        f"(?i:c{_A}mon|hawai{_A}i|xi{_A}an|c{_A}est|qu{_A}il)",
        f"(?:[dDlLnNoO]{_A}{_L}|J{_A}){_N}+(?:{_H}{_N}+)*",  # o'clock, D'Artagnan
        f"{_A}(?:[0-9]0s(?!{_N})|[0-9][0-9](?=\\s|$))",  # '90s, '07
        # abbreviations
        f"(?i:{_ABBREVIATION})\\.",
        f"(?:{_CAPITALISED})\\.",
        f"(?i:{_NUMBERED})\\.(?= ?[0-9])",
        f"{_L}\\.(?!\\s+(?:{_STARTER})(?:\\s|$))",
        f"(?:{_L}\\.)+{_L}(?!{_N})\\.?",  # U.S., p.m
        f"{_L}(?:{_N}|[.,])*(?:-{_N}+)+",  # U.S.-based
        f"(?:{_N}+-)+(?:{_L}\\.){{2,}}",  # non-U.S.
        f"{_N}+\\.(?=[,;:])",
        "(?i:ph\\.d\\.?)",
        # words, compounds, numbers
        _WORD,
        f"{_N}+(?:{_H}{_N}+)*",
        f"{_PART}(?:/{_PART}){{1,2}}",
        "[-+]?(?:[0-9]+(?:[.,:][0-9]+)*|(?:[.,:][0-9]+)+)",
        f"[0-9]+(?:[.][0-9]+)*[.]x(?!{_N})",
        f"[0-9]+(?:[.,:/][0-9]+)*(?:-{_N}+)+",  # 2.5-inch
        "(?:[0-9]{1,4}[- ])?[0-9]{1,4}/[0-9]{1,4}",  # 3 1/2
        "(?:\\([0-9]{3}\\) ?|(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ][0-9]{3,5}",  # (555) 123-4567
        "[A-Z]+(?:[&+][A-Z]+)+|[A-Z]{1,3}\\$|[cC]\\+\\+|[cCfF]#",
        # addresses, tags, faces, mark-up
        f"https?://{_ADDRESS}",
        f"(?:www\\.(?:[A-Za-z0-9-]+\\.)+|(?:[A-Za-z][A-Za-z0-9]+\\.)+)(?:com|net|org|edu)(?![A-Za-z0-9])(?:/(?:{_ADDRESS})?)?",
        "[A-Za-z0-9_.-]+@[A-Za-z0-9_-]+(?:\\.[A-Za-z0-9_-]+)*[,:]?",  # the mark stays, in the Java program too
        f"@{_L}[{_LETTER}0-9_]*|#{_L}+",
        f"[<>]?[:;=][-o*']?[()\\\\@|\\[\\]DPpdO3](?!\\.?{_N})|\\^_\\^|-_-",
        f"</?(?!https?:){_L}[^<>]*>|<[!?][^<>]*>",
        "&(?:amp|lt|gt|quot|apos|#[0-9]+);",
        # punctuation
        "``|''|-+|[?!]+|\\.{3,5}|\\*+|_+|<<|>>|#+|@+",
        "\\S",
    )
]
_PLAIN = re.compile(f"{_L}+(?=\\s|$)")

# Deleted by the Java program: controls, invisible formatting, most currency signs, everything above the basic plane.
_DELETED = re.compile(
    "[\u0000-\u001f\u007f-\u00a0\u2000-\u200f\u2012\u2024\u2025\u2027-\u202f\u203c\u203d\u2045-\u2064\u2066-\u206f"
    "\u20a1-\u20a3\u20a5-\u20ab\u20ad-\u20f0\u3000\u3003\u3004\u3008-\u3011\u3013-\u3020\u3030\ud800-\uf8ff\ufe00-\ufe2f"
    "\ufeff\ufff9-\uffff\U00010000-\U0010ffff]"
)
# pycocoevalcap's list, with every spelling that the Java program turns into one on it. Its bracket tokens are left out
# because, lower-cased, they never match. The two Unicode hyphens are deleted where they stand alone.
_REMOVED = frozenset(
    ["``", "`", "''", "'", ".", "?", "!", ",", ":", ";", "-", "--", "---", "----", "...", "....", "....."]
)
_REMOVED |= frozenset('"\u2018\u2019\u201b\u201c\u201d\u2039\u203a\u00ab\u00bb\u2013\u2014\u2015\u2026\u2010\u2011')
_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "\u00a3": "#",
    "\u00a4": "$",
    "\u20a0": "$",
    "\u20ac": "$",
    "\u00a2": "cents",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&apos;": "'",
}
_JOINED = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2, "more'n": 4}
_CLITICS = frozenset(["'s", "'d", "'m", "'n", "'ll", "'re", "'ve"])


def tokenize(caption: str) -> list[str]:
    """The lower-case tokens of one caption, punctuation removed.

    Args:
        caption: any text; every run of white space separates, line breaks too.

    Returns:
        The tokens. A token holds a no-break space where the Java program keeps two words together (`3 1/2`).
    """
    text = caption if caption.isascii() else _DELETED.sub(" ", caption.replace("\u00ad", ""))
    return [token for token in _lex(" ".join(text.split())) if token not in _REMOVED]


def _lex(text: str) -> list[str]:
    """All tokens of text with single blanks, punctuation included: at each place the longest match of any rule."""
    tokens: list[str] = []
    at = 0
    while at < len(text):
        plain = _PLAIN.match(text, at)
        if plain and plain.group().lower() not in _JOINED:
            # Most of a caption is words between blanks; no rule can match more than the word there.
            tokens.append(plain.group().lower())
            at = plain.end()
        elif text[at] == " ":
            at += 1
        else:
            end = max(match.end() for rule in _RULES if (match := rule.match(text, at)))
            tokens += _split(text[at:end])
            at = end
    return tokens


@lru_cache(maxsize=65536)
def _split(match: str) -> tuple[str, ...]:
    """The token or tokens that a matched piece of text stands for."""
    lower = match.lower()
    if lower in _SPELLED:
        return (_SPELLED[lower],)
    straight = lower.replace("\u2019", "'")
    if straight in _JOINED:
        at = _JOINED[straight]
        return straight[:at], straight[at:]
    if straight in _CLITICS:
        return (straight,)
    if re.search("n['`]t$", straight):
        return (straight[:-3], straight[-3:]) if len(straight) > 3 else (straight,)
    # Brackets inside a face are spelled out too.
    return (lower.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0"),)
