"""Makes `references.json`: what pycocoevalcap says about the captions in `captions.txt` and `quirks.txt`.

    python tests/metrics/make_references.py

It runs the real thing, the Java tokenizer included, so it needs Java and pycocoevalcap (made with pycocoevalcap 1.2,
its CoreNLP 3.4.1, OpenJDK 17). The captions are ours. `captions.txt` holds blocks of six, one image each: a candidate
and five references. `quirks.txt` holds lines for the tokenizer alone. The tests need neither Java nor pycocoevalcap.

Each caption is followed by a neutral line when it is tokenized: the Java program looks across line ends, and would
otherwise let the next caption decide about a final period.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEPARATOR = "zz"
# Parts of generated captions: who, does what, where; most with something for a tokenizer to decide.
WHO = """A man|Two of the dogs|the boy's brother|James' dog|An elderly couple|Mr. Lee|a T-shirt-clad teen|She|They|\
The U.S. team|a 5-year-old|Dr. O'Brien's cat|The "winner"|ten (10) kids|A man & woman|Somebody's|\
a half-naked surfer|No one|St. Bernard dogs"""
WHAT = """isn't riding|'s holding|can't reach|cannot see|is gonna eat|are about to cut|rides|won't share|\
're looking at|plays w/|hasn't moved|sells $1.50|says "hello" to|, smiling, holds|... watches|doesn't (yet) like|\
and/or paints|didn't even notice"""
WHICH = """a red/white kite|the women's bikes|1/2 of a pizza|a black-and-white photo|two 12-oz. cups|M&M's|3,000 birds|\
a '57 Chevy|an old '60s TV|a "No Parking" sign|the 'exit' sign|50% of it|the clock (10:30 a.m.)|a 6' board|\
vegetables, fruits, etc.|an x-ray|crème brûlée|John's -- or Jane's -- hat"""
WHERE = """.| in the park.| at 5 p.m.| on 2nd Ave.| near Washington, D.C.|!| in a well-lit room|, isn't it?|\
 - a sunny day| next to Joe's|...| by the sea; it's calm.| on the dogs' bed.| for £5.|, 1/4 mile away| at the café.|\
 on Oct. 31st, 2012| vs. the others| in front of St. Mary's.| of Apple Inc. products"""


def blocks() -> list[list[str]]:
    """The images of `captions.txt`, six captions each."""
    return [block.split("\n") for block in (HERE / "captions.txt").read_text("utf8").strip("\n").split("\n\n")]


def quirks() -> list[str]:
    """The lines of `quirks.txt`."""
    return (HERE / "quirks.txt").read_text("utf8").strip("\n").split("\n")


def generated(count: int = 160) -> list[str]:
    """Captions put together from parts, the same ones each time."""
    choose = random.Random(0).choice
    parts = [part.split("|") for part in (WHO, WHAT, WHICH, WHERE)]
    lines = [[choose(part) for part in parts] for _ in range(count)]
    return [
        f"{who}{'' if what[0] in ',.' + chr(39) else ' '}{what} {which}{where}" for who, what, which, where in lines
    ]


def images(captions: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Candidates and references: the blocks, then the same ones with other captions as candidates, more references
    missing each time, a candidate that matches a reference exactly, an empty one, and one of another image."""
    candidates = [block[0] for block in captions] + [block[1] for block in captions]
    references = [block[1:] for block in captions] + [block[2 + i % 4 :] for i, block in enumerate(captions)]
    candidates += [captions[0][2], "", captions[1][0]]
    references += [captions[0][1:], captions[2][1:], captions[3][1:]]
    return candidates, references


def java_tokens(lines: list[str]) -> list[list[str]]:
    """Tokens by pycocoevalcap's PTBTokenizer."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    separated = [text for line in lines for text in (line, SEPARATOR)]
    found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(separated)})
    return [found[i][0].split(" ") if found[i][0] else [] for i in range(0, len(separated), 2)]


def java_scores(candidates: list[str], references: list[list[str]]) -> dict[str, float | list[float]]:
    """Scores by pycocoevalcap, times 100."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    flat = java_tokens([*candidates, *(caption for captions in references for caption in captions)])
    joined = iter([" ".join(tokens) for tokens in flat])
    results = {i: [next(joined)] for i in range(len(candidates))}
    truths = {i: [next(joined) for _ in captions] for i, captions in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(truths, results)
    rouge, _ = Rouge().compute_score(truths, results)
    cider, each = Cider().compute_score(truths, results)
    named: dict[str, float | list[float]] = {f"bleu_{n}": 100.0 * value for n, value in enumerate(bleu, 1)}
    return named | {"rouge_l": 100.0 * rouge, "cider_d": 100.0 * cider, "per_sample": [100.0 * float(e) for e in each]}


def main() -> None:
    """Write `references.json`."""
    captions = blocks()
    lines = [caption for block in captions for caption in block] + quirks() + generated()
    tokens = {line: " ".join(found) for line, found in zip(lines, java_tokens(lines), strict=True)}
    candidates, references = images(captions)
    scores = {
        "all": java_scores(candidates, references),
        "four": java_scores(candidates[:4], references[:4]),
        "one": java_scores(candidates[:1], references[:1]),
    }
    text = json.dumps({"tokens": tokens, "scores": scores}, ensure_ascii=False, indent=0)
    (HERE / "references.json").write_text(text + "\n", "utf8")


if __name__ == "__main__":
    main()
