"""The built-in data: eight small sets on generated scenes that the tiny backbones were not pre-trained for.

The backbones know colours, shapes, counts and places (scripts/tiny_grammar.py is all that they were taught). The tasks
here ask for something else that can be seen in the same pictures, so that an adapter has a job:

- vqa: how many corners a shape has, whether its colour is warm or cool, whether it is large or small;
- vqa_pairs (`data.pairs`): what two pictures have in common, and how many shapes they have together; of one of the two nothing
  can be told of yes or no, and of other answers no more than one of two, or of three;
- captioning: a house style, "set of two : small ring in red, large star in blue", with other words, another
  order and a size that no caption of the pre-training had;
- retrieval: a catalogue's vocabulary ("maroon hoop with navy gem"), where pre-training had "a red ring and a blue
  diamond";
- classification: the kind of the one large shape among small ones, in the same vocabulary ("hoop");
- segmentation: which shape each pixel shows, by its kind in that vocabulary; pixels that are partly covered are ignored;
- instruct: conversations of one or two turns, the second of which refers to the first ("is it large or small?");
- grounding: the box of the one shape that an expression fits ("the small red shape", "the shape left of the ring").

`build` is deterministic: the same arguments give the same samples, pixels included, on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from vlatrain.data.sample import Sample, Turn
from vlatrain.data.scenes import (
    CANVAS,
    COLOURS,
    KINDS,
    UNIT,
    Figure,
    Scene,
    SceneMask,
    make_scene,
    pick,
    shuffled,
)  # fmt: skip

CORNERS = {"circle": "0", "ring": "0", "triangle": "3", "rectangle": "4", "diamond": "4"}
TONES = {"warm": ("red", "orange", "yellow", "pink", "brown"), "cool": ("green", "blue", "teal", "purple")}
TONE_OF = {hue: tone for tone, hues in TONES.items() for hue in hues}
#: Longer side in pixels of what is called small and large; nothing lies between.
SMALL, LARGE = (9.5, 13.0), (20.0, 27.0)
#: A catalogue's words for kinds and colours; the backbones have them in their vocabulary, and no idea of their meaning.
HOUSE_KIND = {
    "circle": "disk", "rectangle": "box", "triangle": "arrow", "star": "sun", "cross": "plus", "ring": "hoop",
    "diamond": "gem",
}  # fmt: skip
HOUSE_COLOUR = {
    "red": "maroon", "green": "lime", "blue": "navy", "yellow": "gold", "orange": "hot", "purple": "magenta",
    "pink": "soft", "brown": "olive", "gray": "silver", "black": "night", "white": "blank", "teal": "cyan",
}  # fmt: skip
NUMBER = ("no", "one", "two", "three")
SIDES = (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1))
CLEAR = 5.0  # pixels by which one shape must be beyond another to be said to be
SPLITS = ("train", "eval", "test")


def size_word(figure: Figure) -> str:
    """ "small" or "large" by the longer side."""
    return "small" if figure.extent < (SMALL[1] + LARGE[0]) / 2 else "large"


def _scene(rng: random.Random, count: int) -> Scene:
    """A scene of shapes that differ in colour and in kind, each clearly small or large."""
    hues, kinds = shuffled(rng, tuple(COLOURS))[:count], shuffled(rng, KINDS)[:count]
    return _of(rng, hues, kinds)


def _drawn(
    rng: random.Random, hues: Sequence[str], kinds: Sequence[str], sizes: Callable[[], list[tuple[float, float]]]
) -> Scene:
    """A scene of shapes of these colours and kinds, each clearly small or large, for which sizes are asked anew until all fit."""
    while True:
        scene = make_scene(rng, list(zip(hues, kinds, strict=True)), sizes())
        clear = not any(SMALL[1] + 0.5 < figure.extent < LARGE[0] - 2 for figure in scene.figures)
        if clear and len(scene.figures) == len(kinds):
            return scene


def _ordered(scene: Scene) -> list[Figure]:
    """The figures from left to right."""
    return sorted(scene.figures, key=lambda figure: figure.centre)


def _can_be_asked(figure: Figure, topic: str) -> bool:
    """Whether the topic has one right answer for this shape: black is neither warm nor cool, a star's corners are arguable."""
    return topic == "size" or (figure.kind in CORNERS if topic == "corners" else figure.colour in TONE_OF)


def _vqa(rng: random.Random, number: int) -> Sample:
    """One question about one shape, named by its colour or its kind."""
    scene = _scene(rng, 1 + int(rng.random() * 3))
    topic = pick(rng, ("corners", "tone", "size"))
    figures = [figure for figure in scene.figures if _can_be_asked(figure, topic)]
    if not figures:
        return _vqa(rng, number)
    figure = pick(rng, figures)
    if topic == "corners":
        question, answer = f"how many corners does the {figure.colour} shape have?", CORNERS[figure.kind]
    elif topic == "tone":
        question = f"is the color of the {figure.kind} warm or cool?"
        answer = TONE_OF[figure.colour]
    else:
        named = pick(rng, (figure.kind, f"{figure.colour} shape"))
        question, answer = f"is the {named} large or small?", size_word(figure)
    return Sample("", scene, question=question, answers=(answer,), extra=(("topic", topic),))


def _vqa_pairs(rng: random.Random, number: int) -> Sample:
    """One question about two pictures. Seen alone, either leaves yes and no equally likely, a sum one of three, and what both have
    one of two."""
    topic = pick(rng, ("same number", "same color", "sum", "color", "kind"))
    if topic in ("same number", "sum"):
        first = 1 + int(rng.random() * 3)
        others = [count for count in (1, 2, 3) if count != first]
        second = 1 + int(rng.random() * 3) if topic == "sum" else first if rng.random() < 0.5 else pick(rng, others)
        scenes = _scene(rng, first), _scene(rng, second)
        if topic == "sum":
            question, answer = "how many shapes are there in both together?", str(first + second)
        else:
            question, answer = "do both show the same number of shapes?", "yes" if first == second else "no"
    elif topic == "same color":
        hues, kinds = shuffled(rng, tuple(COLOURS))[:2], shuffled(rng, KINDS)[:2]
        same = rng.random() < 0.5
        scenes = _of(rng, hues[:1], kinds[:1]), _of(rng, hues[:1] if same else hues[1:], kinds[1:])
        question, answer = "do both show the same color?", "yes" if same else "no"
    else:
        hues, kinds = shuffled(rng, tuple(COLOURS))[:4], shuffled(rng, KINDS)[:4]
        if topic == "color":
            scenes = _of(rng, hues[:2], kinds[:2]), _of(rng, [hues[0], hues[2]], kinds[2:])
            question, answer = "what color is in both?", hues[0]
        else:
            scenes = _of(rng, hues[:2], kinds[:2]), _of(rng, hues[2:], [kinds[0], kinds[2]])
            question, answer = "what shape is in both?", kinds[0]
    return Sample("", scenes[0], question, (answer,), extra=(("topic", topic),), more=(scenes[1],))


def _of(rng: random.Random, hues: Sequence[str], kinds: Sequence[str]) -> Scene:
    """A scene of shapes of these colours and kinds, each small or large."""
    return _drawn(rng, hues, kinds, lambda: [SMALL if rng.random() < 0.5 else LARGE for _ in hues])


def _captioning(rng: random.Random, number: int) -> Sample:
    """A caption in house style, in three wordings."""
    scene = _scene(rng, 1 + int(rng.random() * 3))
    parts = [f"{size_word(figure)} {figure.kind} in {figure.colour}" for figure in _ordered(scene)]
    count, extra = NUMBER[len(parts)], (("shapes", len(parts)),)
    captions = (
        f"set of {count} : {', '.join(parts)}",
        f"set of {count} : {' with '.join(parts)}",
        f"sheet with {count} : {', '.join(parts)}",
    )
    return Sample("", scene, captions=captions, extra=extra)


def _retrieval(rng: random.Random, number: int) -> Sample:
    """Two catalogue entries of a scene, the shapes in either order."""
    scene = _scene(rng, 2)
    parts = [f"{HOUSE_COLOUR[figure.colour]} {HOUSE_KIND[figure.kind]}" for figure in _ordered(scene)]
    captions = (f"{parts[0]} with {parts[1]}", f"{parts[1]} with {parts[0]}")
    return Sample("", scene, captions=captions)


def _classification(rng: random.Random, number: int) -> Sample:
    """The kind of the one large shape; up to two small ones beside it are of other kinds. All classes are equally frequent."""
    kind = KINDS[number % len(KINDS)]
    others = shuffled(rng, tuple(other for other in KINDS if other != kind))[: int(rng.random() * 3)]
    hues = shuffled(rng, tuple(COLOURS))[: 1 + len(others)]
    scene = _drawn(rng, hues, [kind, *others], lambda: [LARGE] + [SMALL] * len(others))
    return Sample("", scene, label=HOUSE_KIND[kind])


def _segmentation(rng: random.Random, number: int) -> Sample:
    """Up to three shapes, and what each pixel shows."""
    scene = _scene(rng, 1 + int(rng.random() * 3))
    return Sample("", scene, mask=SceneMask(scene, ("background", *(HOUSE_KIND[kind] for kind in KINDS))))


def _instruct(rng: random.Random, number: int) -> Sample:
    """A description alone or after a count, or a shape's colour and then its size."""
    scene = _scene(rng, 1 + int(rng.random() * 3))
    parts = [f"a {size_word(figure)} {figure.colour} {figure.kind}" for figure in _ordered(scene)]
    described = Turn("tell me what you see.", f"{' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}.")
    topic = pick(rng, ("describe", "count", "figure"))
    if topic == "figure":
        figure = pick(rng, scene.figures)
        colour = Turn(f"what color is the {figure.kind}?", f"the {figure.kind} is {figure.colour}.")
        turns = (colour, Turn("is it large or small?", f"it is {size_word(figure)}."))
        return Sample("", scene, turns=turns, extra=(("topic", topic),))
    if topic == "describe":
        return Sample("", scene, turns=(described,), extra=(("topic", topic),))
    count = "there is one shape." if len(parts) == 1 else f"there are {NUMBER[len(parts)]} shapes."
    return Sample("", scene, turns=(Turn("how many shapes are there?", count), described), extra=(("topic", topic),))


def _expressions(scene: Scene) -> list[tuple[str, str, list[Figure]]]:
    """What can be said of a shape: the kind of expression, the expression, and the shapes that it fits."""
    figures = scene.figures
    said: list[tuple[str, str, list[Figure]]] = []
    for one in figures:
        colour, kind, size = one.colour, one.kind, size_word(one)
        fits = {
            "colour": (f"the {colour} shape", [f for f in figures if f.colour == colour]),
            "kind": (f"the {kind}", [f for f in figures if f.kind == kind]),
            "both": (f"the {colour} {kind}", [f for f in figures if (f.colour, f.kind) == (colour, kind)]),
            "size": (f"the {size} {kind}", [f for f in figures if (size_word(f), f.kind) == (size, kind)]),
            "tint": (f"the {size} {colour} shape", [f for f in figures if (size_word(f), f.colour) == (size, colour)]),
        }
        said += [(form, text, named) for form, (text, named) in fits.items()]
        if [f.kind for f in figures].count(kind) == 1:
            for side, axis, sign in SIDES:
                beyond = [f for f in figures if sign * (f.centre[axis] - one.centre[axis]) > 0]
                near = [f for f in figures if f is not one and abs(f.centre[axis] - one.centre[axis]) < CLEAR]
                said.append(("side", f"the shape {side} the {kind}", beyond if not near else []))
    return said


def _grounding(rng: random.Random, number: int) -> Sample:
    """The box of the one shape that an expression fits, among two to four, some of the same colour or kind."""
    count = 2 + int(rng.random() * 3)
    hues, kinds = shuffled(rng, tuple(COLOURS))[:3], shuffled(rng, KINDS)[:3]
    looks = shuffled(rng, [(hue, kind) for hue in hues for kind in kinds])[:count]
    sizes = lambda: [SMALL if rng.random() < 0.6 else LARGE for _ in looks]  # noqa: E731
    scene = _drawn(rng, [hue for hue, _ in looks], [kind for _, kind in looks], sizes)
    fitting = [found for found in _expressions(scene) if len(found[2]) == 1]
    if not fitting:
        return _grounding(rng, number)
    form = pick(rng, sorted({form for form, _, _ in fitting}))
    _, text, (figure,) = pick(rng, [found for found in fitting if found[0] == form])
    left, top, right, bottom = (edge / (CANVAS * UNIT) for edge in figure.box)
    return Sample("", scene, question=text, boxes=((left, top, right, bottom),), extra=(("form", form),))


#: By the name that a task's description has for it (`spec.builtin`).
_MAKERS: dict[str, Callable[[random.Random, int], Sample]] = {
    "vqa": _vqa,
    "vqa_pairs": _vqa_pairs,
    "captioning": _captioning,
    "retrieval": _retrieval,
    "classification": _classification,
    "instruct": _instruct,
    "segmentation": _segmentation,
    "grounding": _grounding,
}
SETS = tuple(_MAKERS)
_DISTINCT = ("retrieval",)  # sets in whose evaluation and test no two samples share a caption


def build(name: str, split: str, size: int, seed: int) -> list[Sample]:
    """Samples of a built-in set.

    Args:
        name: "vqa", "vqa_pairs", "captioning", "retrieval", "classification", "instruct", "segmentation" or "grounding".
        split: "train", "eval" or "test". No two splits share a scene; in retrieval no two samples of eval, or of test,
            share a caption.
        size: number of samples. A longer list begins with a shorter one.
        seed: another seed gives other scenes.

    Raises:
        ValueError: unknown set or split.
    """
    if name not in SETS:
        raise ValueError(f"the built-in data has no set {name!r}; it has {', '.join(SETS)}")
    if split not in SPLITS:
        raise ValueError(f"the built-in data has no split {split!r}; it has {', '.join(SPLITS)}")
    samples: list[Sample] = []
    said: set[str] = set()
    attempt = 0
    while len(samples) < size:
        rng = random.Random(f"{name}/{split}/{seed}/{attempt}")  # seeded by text: the same on every machine
        attempt += 1
        identifier = f"{split}-{len(samples)}"
        sample = replace(_MAKERS[name](rng, len(samples)), id=identifier, source=f"shapes:{identifier}")
        if name in _DISTINCT and split != "train":
            if said & set(sample.captions):  # an image must be told from the others by its captions
                continue
            said.update(sample.captions)
        samples.append(sample)
    return samples
