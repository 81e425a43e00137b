"""What the tiny backbones are taught to understand and say about a scene.

Every text comes with what each of its words points at: `own`, the figures that the word alone fits ("red": the red
ones), and `phrase`, the figures that its whole noun phrase fits ("a red circle"). Both are bit masks over the scene's
figures; -1 marks words that point at nothing ("is", "the"). Pre-training uses them as dense supervision.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from vlatrain.data.scenes import COLOURS, KINDS, Figure, Scene, between, pick, shuffled

HUES = tuple(COLOURS)
PLURAL = {"": ""} | {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in KINDS}
ANY = ("shape", "shape", "object", "thing", "figure")
ANY_PLURAL = ("shapes", "shapes", "objects", "things", "figures")
ZONES = ("left", "right", "top", "bottom", "center")

EXISTENCE = (
    "is there {np} {where}",
    "is there {np} {where}",
    "does the {picture} contain {np}",
    "does the {picture} show {np}",
    "does this {picture} have {np}",
    "is {np} present {where}",
    "is {np} visible {where}",
    "is {np} {in}",
    "can you see {np} {where}",
    "do you see {np} {where}",
)
NEGATION = (
    "is there not {np} {where}",
    "is there not {np} {where}",
    "is there no {bare} {where}",
    "does the {picture} not contain {np}",
    "does the {picture} not contain {np}",
    "does the {picture} not show {np}",
    "does the {picture} contain no {bare}",
    "is no {bare} present {where}",
    "is no {bare} visible {where}",
    "is {np} not present {where}",
    "is {np} absent {where}",
    "is {np} missing {where}",
)
ASK_COLOUR = (
    "what {colour} is the {bare} {where}",
    "what is the {colour} of the {bare} {where}",
    "which {colour} is the {bare} {where}",
    "which {colour} does the {bare} have",
    "what {colour} does the {bare} have",
    "tell me the {colour} of the {bare}",
)
ASK_ONLY_COLOUR = ("what {colour} is present {where}", "what {colour} is {in}", "what {colour} can you see {where}")
ASK_KIND = (
    "what is the {bare} {where}",
    "what {shape} is the {bare} {where}",
    "what kind of {shape} is the {bare}",
    "which {shape} is {hue} {where}",
    "what {shape} does the {bare} have",
    "what is the {shape} of the {bare} {where}",
    "what {hue} {shape} is {in}",
    "what {hue} {shape} is present {where}",
)
ASK_ONLY_KIND = (
    "what {shape} is {in}",
    "what {shape} is present {where}",
    "which {shape} is {in}",
    "what {shape} does the {picture} contain",
    "what {shape} is this",
    "what is {in}",
    "which {shape} do you see {where}",
)
COUNT = (
    "how many {many} are there {where}",
    "how many {many} are {in}",
    "how many {many} are present {where}",
    "how many {many} does the {picture} contain",
    "how many {many} can you see {where}",
    "what is the number of {many} {where}",
    "count the {many} {where}",
)
WHERE = (
    "where is the {bare} {where}",
    "where is the {bare}",
    "in which part of the {picture} is the {bare}",
    "what is the position of the {bare} {where}",
)
SIDE = ("is the {bare} on the {side} {where}", "is the {bare} {at} the {side} of the {picture}")
CAPTION = (
    "{list}",
    "{list}",
    "a picture of {list}",
    "an image of {list}",
    "there is {list}",
    "{list} {in}",
    "this is {list}",
)
FILLERS = {
    "{picture}": ("image", "image", "picture", "scene"),
    "{in}": ("in the image", "in the image", "in the picture", "in this image", "in the scene", "shown"),
    "{where}": ("", "", "in the image", "in the image", "in the picture", "in this picture", "here"),
    "{colour}": ("color", "color", "colour"),
    "{shape}": ("shape", "shape", "object", "thing", "figure"),
    "{at}": ("on", "at", "in"),
}


@dataclass
class Text:
    """Words with what they point at; `answer` and `skill` for questions."""

    words: list[str] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    phrase: list[int] = field(default_factory=list)
    answer: str = ""
    skill: str = ""

    def add(self, words: str, own: int = -1, phrase: int = -1) -> None:
        """Append words that all point at the same figures."""
        for word in words.split():
            self.words.append(word)
            self.own.append(own)
            self.phrase.append(phrase)

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Noun:
    """What a noun phrase names: a colour, a kind, or both ("" means any)."""

    colour: str = ""
    kind: str = ""

    def fits(self, figure: Figure) -> bool:
        """Whether the figure is one."""
        return self.colour in ("", figure.colour) and self.kind in ("", figure.kind)

    def among(self, scene: Scene) -> int:
        """Bit mask of the figures that it fits."""
        return sum(1 << place for place, figure in enumerate(scene.figures) if self.fits(figure))


def _say_hue(rng: random.Random, hue: str) -> str:
    return "grey" if hue == "gray" and rng.random() < 0.4 else hue


def add_noun(
    text: Text, scene: Scene, noun: Noun, rng: random.Random, article: bool = False, plural: bool = False
) -> None:
    """Append "(a) red circle", "red shapes", "anything red" with what each word points at."""
    whole = noun.among(scene)
    hue = _say_hue(rng, noun.colour)
    if article and hue and not noun.kind and rng.random() < 0.12:
        text.add(pick(rng, ("something", "anything")), Noun().among(scene), whole)
        text.add(hue, whole, whole)
        return
    name = (PLURAL[noun.kind] if plural else noun.kind) or pick(rng, ANY_PLURAL if plural else ANY)
    if article:
        text.add("an" if (hue or name)[0] in "aeiou" else "a")
    if hue:
        text.add(hue, Noun(noun.colour).among(scene), whole)
    text.add(name, Noun("", noun.kind).among(scene), whole)


def fill(template: str, scene: Scene, noun: Noun, rng: random.Random, side: str = "") -> Text:
    """A text from a template, its slots filled at random."""
    text = Text()
    for part in template.split():
        if part in FILLERS:
            text.add(pick(rng, FILLERS[part]))
        elif part == "{np}":
            add_noun(text, scene, noun, rng, article=True)
        elif part == "{bare}":
            add_noun(text, scene, noun, rng)
        elif part == "{many}":
            add_noun(text, scene, noun, rng, plural=True)
        elif part == "{hue}":
            text.add(_say_hue(rng, noun.colour), noun.among(scene), noun.among(scene))
        elif part == "{side}":
            text.add(side)
        else:
            text.add(part)
    return text


def zone(figure: Figure) -> str:
    """Which of nine parts of the canvas the figure's centre is clearly in; "" where that is arguable."""
    names = []
    for value, low, high in zip(figure.centre, ("left", "top"), ("right", "bottom"), strict=True):
        if 25 < value < 27 or 37 < value < 39:
            return ""
        names.append(low if value <= 25 else high if value >= 39 else "")
    across, down = names
    return " ".join(part for part in (down, across) if part) or "center"


def absent(scene: Scene, rng: random.Random, form: str) -> Noun:
    """A noun phrase of that form that fits nothing, half the time one word away from something that is there."""
    while True:
        figure, other = pick(rng, scene.figures), pick(rng, scene.figures)
        hue, kind = pick(rng, HUES), pick(rng, KINDS)
        if form == "both" and rng.random() < 0.7:
            hue, kind = pick(rng, ((figure.colour, kind), (hue, figure.kind), (figure.colour, other.kind)))
        noun = Noun(hue if form != "kind" else "", kind if form != "colour" else "")
        if not noun.among(scene):
            return noun


def described(figure: Figure, form: str) -> Noun:
    """The noun phrase of that form for a figure."""
    return Noun(figure.colour if form != "kind" else "", figure.kind if form != "colour" else "")


def single(scene: Scene, figure: Figure, rng: random.Random, forms: tuple[str, ...]) -> Noun | None:
    """A noun phrase of one of the forms that fits this figure alone, if there is one."""
    nouns = [Noun() if form == "any" else described(figure, form) for form in forms]
    nouns = [noun for noun in nouns if noun.among(scene).bit_count() == 1]
    return pick(rng, nouns) if nouns else None


def _offer(text: Text, scene: Scene, figure: Figure, rng: random.Random, options: list[Noun], article: bool) -> None:
    """Append "red, blue or green": an option points at what it names and, as a phrase, at the figure that it is true of."""
    place = 1 << scene.figures.index(figure)
    for number, option in enumerate(shuffled(rng, options)):
        text.add("" if not number else "or" if number == len(options) - 1 else ",")
        text.add("a" if article else "")
        word = _say_hue(rng, option.colour) or option.kind
        text.add(word, option.among(scene), place if option.fits(figure) else 0)


def offering(scene: Scene, figure: Figure, rng: random.Random) -> Text | None:
    """A question that names its possible answers: "is the star red, blue or green?", "is the red shape a star or a ring?"."""
    about = pick(rng, ("colour", "kind", "side"))
    noun = single(scene, figure, rng, ("kind", "any") if about == "colour" else ("colour", "any"))
    if noun is None:
        return None
    text = fill(pick(rng, ("is the {bare}", "is the {bare}", "what is the {bare} :")), scene, noun, rng)
    others = 1 + int(rng.random() * 2)
    if about == "colour":
        hues = [hue for hue in HUES if hue != figure.colour]
        text.answer = figure.colour
        _offer(text, scene, figure, rng, [Noun(hue) for hue in (figure.colour, *shuffled(rng, hues)[:others])], False)
    elif about == "kind":
        kinds = [kind for kind in KINDS if kind != figure.kind]
        text.answer = figure.kind
        _offer(text, scene, figure, rng, [Noun("", k) for k in (figure.kind, *shuffled(rng, kinds)[:others])], True)
    else:
        pair = pick(rng, (("left", "right"), ("top", "bottom")))
        true = set(pair) & set(zone(figure).split())
        if not true:
            return None
        text.answer = true.pop()
        text.add(" or ".join(shuffled(rng, pair)))
    return text


def question(scene: Scene, rng: random.Random, skill: str) -> Text | None:
    """A question of that skill with its answer, or None where the scene does not allow one."""
    figure = pick(rng, scene.figures)
    form = pick(rng, ("colour", "kind", "both"))
    if skill in ("existence", "negation"):
        there = rng.random() < 0.5
        noun = described(figure, form) if there else absent(scene, rng, form)
        text = fill(pick(rng, EXISTENCE if skill == "existence" else NEGATION), scene, noun, rng)
        text.answer = "yes" if there == (skill == "existence") else "no"
    elif skill == "colour":
        noun = single(scene, figure, rng, ("kind", "any"))
        if noun is None:
            return None
        alone = not noun.kind and rng.random() < 0.2
        text = fill(pick(rng, ASK_ONLY_COLOUR if alone else ASK_COLOUR), scene, noun, rng)
        text.answer = figure.colour
    elif skill == "shape":
        noun = single(scene, figure, rng, ("colour", "any"))
        if noun is None:
            return None
        text = fill(pick(rng, ASK_KIND if noun.colour else ASK_ONLY_KIND), scene, noun, rng)
        text.answer = figure.kind
    elif skill == "count":
        choice = rng.random()
        noun = absent(scene, rng, form) if choice < 0.2 else Noun() if choice < 0.45 else described(figure, form)
        text = fill(pick(rng, COUNT), scene, noun, rng)
        text.answer = str(noun.among(scene).bit_count())
    elif skill == "choice":
        offered = offering(scene, figure, rng)
        if offered is None:
            return None
        text = offered
    else:
        noun = single(scene, figure, rng, ("colour", "kind", "both", "any"))
        place = zone(figure)
        if noun is None or not place:
            return None
        if rng.random() < 0.5:
            text, text_answer = fill(pick(rng, WHERE), scene, noun, rng), place
        else:
            true, side = place.split(), pick(rng, ZONES)
            side = pick(rng, true) if rng.random() < 0.5 else side
            text, text_answer = fill(pick(rng, SIDE), scene, noun, rng, side), "yes" if side in true else "no"
        text.answer = text_answer
    text.skill = skill
    if rng.random() < 0.6:
        text.add("?")
    return text


def caption(scene: Scene, rng: random.Random, nouns: list[Noun] | None = None) -> Text:
    """A caption that names every figure from left to right; with `nouns`, those instead (a false one, say)."""
    order = sorted(scene.figures, key=lambda figure: figure.centre[0])
    named = nouns if nouns is not None else [described(figure, "both") for figure in order]
    text = Text(skill="caption")
    for part in pick(rng, CAPTION).split():
        if part == "{list}":
            for place, noun in enumerate(named):
                text.add("" if not place else "and" if place == len(named) - 1 else ",")
                add_noun(text, scene, noun, rng, article=True)
        else:
            text.add(pick(rng, FILLERS[part]) if part in FILLERS else part)
    return text


def false_nouns(scene: Scene, rng: random.Random) -> list[Noun]:
    """The caption's noun phrases with one thing wrong: a colour, a kind, or two figures' colours swapped."""
    order = sorted(scene.figures, key=lambda figure: figure.centre[0])
    nouns = [described(figure, "both") for figure in order]
    place = int(rng.random() * len(nouns))
    if len(nouns) > 1 and rng.random() < 0.3:
        other = (place + 1) % len(nouns)
        mine, theirs = nouns[place], nouns[other]
        if mine.colour != theirs.colour and mine.kind != theirs.kind:
            nouns[place], nouns[other] = Noun(theirs.colour, mine.kind), Noun(mine.colour, theirs.kind)
            return nouns
    while True:
        noun = nouns[place]
        wrong = Noun(pick(rng, HUES), noun.kind) if rng.random() < 0.5 else Noun(noun.colour, pick(rng, KINDS))
        if not wrong.among(scene):
            nouns[place] = wrong
            return nouns


def looks(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Colour and kind of each figure; now and then two share one, so that counts go beyond one."""
    chosen: list[tuple[str, str]] = []
    for _ in range(count):
        hue, kind = pick(rng, HUES), pick(rng, KINDS)
        if chosen and rng.random() < 0.4:
            earlier = pick(rng, chosen)
            share = between(rng, 0, 1)
            hue, kind = (earlier[0], kind) if share < 0.4 else (hue, earlier[1]) if share < 0.8 else earlier
        chosen.append((hue, kind))
    return chosen


def words() -> list[str]:
    """Every word of the grammar."""
    found = {"a", "an", "the", "?", ",", ".", "and", "yes", "no", "grey", "something", "anything", "0", "1", "2", "3"}
    found |= {*HUES, *KINDS, *filter(None, PLURAL.values()), *ANY, *ANY_PLURAL, *ZONES}
    templates = (*EXISTENCE, *NEGATION, *ASK_COLOUR, *ASK_ONLY_COLOUR, *ASK_KIND, *ASK_ONLY_KIND)
    for template in (*templates, *COUNT, *WHERE, *SIDE, *CAPTION):
        found |= {part for part in template.split() if not part.startswith("{")}
    for options in FILLERS.values():
        found |= {word for option in options for word in option.split()}
    return sorted(found)
