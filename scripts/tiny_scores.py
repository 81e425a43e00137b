"""Scores of the shipped tiny backbones on unseen generated scenes, through transformers' own classes and generate():

python scripts/tiny_scores.py blip vlatrain/assets/tiny_blip
python scripts/tiny_scores.py clip vlatrain/assets/tiny_clip
python scripts/tiny_scores.py gpt vlatrain/assets/tiny_gpt
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tiny_batches import SKILLS, new_scene, tell  # noqa: E402
from tiny_gpt import LENGTH, asked, window  # noqa: E402
from tiny_grammar import HUES, caption, question  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPModel,
    GPT2LMHeadModel,
    logging,
)  # fmt: skip

from vlatrain.data.scenes import KINDS, Scene  # noqa: E402

SEED = 777_000_000  # far from the seeds of pre-training


def percent(hits: list[bool]) -> float:
    """Share of hits in percent."""
    return round(100 * sum(hits) / max(len(hits), 1), 1)


@torch.inference_mode()
def answers(folder: str, number: int) -> dict[str, float]:
    """Exact-match accuracy by skill, `number` questions each, on scenes of one to three figures, and by figures."""
    model, processor = BlipForQuestionAnswering.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scores: dict[str, float] = {}
    alone: dict[bool, list[bool]] = {True: [], False: []}
    for skill in SKILLS:
        rng, asked = random.Random(SEED + SKILLS.index(skill)), []
        while len(asked) < number:
            scene = new_scene(rng, 3)
            if text := question(scene, rng, skill):
                asked.append((scene, text))
        hits: list[bool] = []
        for start in range(0, number, 100):
            part = asked[start : start + 100]
            inputs = processor(
                images=[scene.load() for scene, _ in part],
                text=[str(text) for _, text in part],
                padding=True,
                return_tensors="pt",
            )
            told = processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)
            right = [said.strip() == text.answer for said, (_, text) in zip(told, part, strict=True)]
            hits += right
            for (scene, _), hit in zip(part, right, strict=True):
                alone[len(scene.figures) == 1].append(hit)
        scores[skill] = percent(hits)
    return scores | {"one figure, all skills": percent(alone[True]), "two or three, all skills": percent(alone[False])}


def named(text: str) -> list[str]:
    """The figures that a caption names, sorted: ["black circle", "red star"]."""
    words = text.replace("grey", "gray").replace(",", " ").split()
    return sorted(f"{before} {word}" for before, word in pairwise(words) if word in KINDS)


@torch.inference_mode()
def captions(folder: str, number: int) -> dict[str, float]:
    """Share of captions that name exactly the scene's figures, free and after the prompt "a picture of"."""
    model, processor = (
        BlipForConditionalGeneration.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    rng = random.Random(SEED + 50)
    scenes = [new_scene(rng, 3) for _ in range(number)]
    pixels = processor(images=[scene.load() for scene in scenes], return_tensors="pt")
    prompt = processor(text=["a picture of"] * number, return_tensors="pt")
    scores = {}
    for name, extra in (("captions", {}), ("captions after a prompt", dict(prompt))):
        told = processor.batch_decode(model.generate(**pixels, **extra, max_new_tokens=20), skip_special_tokens=True)
        truth = [sorted(f"{f.colour} {f.kind}" for f in scene.figures) for scene in scenes]
        scores[name] = percent([named(said) == true for said, true in zip(told, truth, strict=True)])
    return scores


def gallery(number: int) -> tuple[list[Scene], list[str]]:
    """Scenes no two of which have the same caption content, and a caption of each."""
    rng, scenes, texts, seen = random.Random(SEED + 60), [], [], set()
    while len(scenes) < number:
        scene = new_scene(rng, 3)
        key = tuple(sorted((f.colour, f.kind) for f in scene.figures))
        if key not in seen:
            seen.add(key)
            scenes.append(scene)
            texts.append(str(caption(scene, rng)))
    return scenes, texts


def recall(scores: torch.Tensor) -> dict[str, float]:
    """R@1 and R@5 both ways of an images x texts score matrix with the truth on its diagonal."""
    found = {}
    for name, matrix in (("text", scores), ("image", scores.T)):
        rank = (matrix > matrix.diagonal()[:, None]).sum(1)
        found |= {f"to {name} R@{k}": percent((rank < k).tolist()) for k in (1, 5)}
    return found


@torch.inference_mode()
def blip_retrieval(folder: str, number: int) -> dict[str, float]:
    """Contrast alone among `number` images; matching-head re-ranking of the top 16; matching against hard negatives."""
    model, processor = BlipForImageTextRetrieval.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scenes, texts = gallery(number)
    inputs = processor(images=[scene.load() for scene in scenes], text=texts, padding=True, return_tensors="pt")
    contrast = model(**inputs, use_itm_head=False).itm_score
    scores = {f"contrast {name}": value for name, value in recall(contrast).items()}
    ranked = contrast.clone() - 100
    for place in range(number):
        top = contrast[place].topk(16).indices
        few = {name: inputs[name][top] for name in ("input_ids", "attention_mask")}
        pixels = inputs["pixel_values"][place : place + 1].expand(16, -1, -1, -1)
        ranked[place, top] = model(pixel_values=pixels, **few).itm_score.log_softmax(-1)[:, 1]
    scores |= {name.replace("to text", "re-ranked to text"): v for name, v in recall(ranked).items() if "text" in name}
    rng, stories = random.Random(SEED + 70), []
    for scene in scenes:
        stories += [(scene, str(text), not place) for place, text in enumerate(tell(scene, rng)[0])]
    inputs = processor(
        images=[s.load() for s, _, _ in stories], text=[t for _, t, _ in stories], padding=True, return_tensors="pt"
    )  # fmt: skip
    said = model(**inputs).itm_score.argmax(-1).bool().tolist()
    scores["matching, one word wrong"] = percent([a == true for a, (_, _, true) in zip(said, stories, strict=True)])
    return scores


@torch.inference_mode()
def clip_scores(folder: str, number: int) -> dict[str, float]:
    """Choosing the true caption: among those of `number` scenes, and between statements that differ in one thing."""
    from tiny_clip import statements

    model, processor = CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scenes, texts = gallery(number)
    inputs = processor(images=[scene.load() for scene in scenes], text=texts, padding=True, return_tensors="pt")
    scores = recall(model(**inputs).logits_per_image)
    rng = random.Random(SEED + 80)
    hits: dict[str, list[bool]] = {}
    for _ in range(number):
        scene = new_scene(rng, 3)
        choices = statements(scene, rng)
        flat = [str(text) for one in choices for text in one.texts]
        logits = model(
            **processor(images=[scene.load()], text=flat, padding=True, return_tensors="pt")
        ).logits_per_image[0]
        for one in choices:
            hits.setdefault(one.skill, []).append(int(logits[: len(one.texts)].argmax()) == 0)
            logits = logits[len(one.texts) :]
    return scores | {f"choose {skill}": percent(hit) for skill, hit in hits.items()}


@torch.inference_mode()
def gpt_scores(folder: str, number: int) -> dict[str, float]:
    """Perplexity on unseen windows against that of word frequencies; and answers, with nothing to read and with a caption.

    With nothing to read, the mean loss of an answer in nats cannot fall below the entropy of the answers, which is known
    where the grammar draws them evenly: yes or no, a colour, a shape. With a true caption in front it can fall to zero.
    """
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rng = random.Random(SEED + 90)
    windows = torch.tensor([window(rng)[0] for _ in range(number // 5)])
    counts = Counter(id for _ in range(number) for id in window(rng)[0])
    total = sum(counts.values())
    unigram = (
        -sum(math.log(max(counts[id], 1) / total) for id in windows[:, 1:].flatten().tolist()) / windows[:, 1:].numel()
    )
    loss = sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in windows.split(50)) / len(windows)
    scores = {f"perplexity, {LENGTH} tokens": math.exp(loss), "perplexity of word frequencies": math.exp(unigram)}
    for skill, entropy in {
        "existence": math.log(2),
        "colour": math.log(len(HUES)),
        "shape": math.log(len(KINDS)),
    }.items():
        losses: dict[bool, list[float]] = {False: [], True: []}
        hits: list[bool] = []
        while len(hits) < number:
            scene = new_scene(rng, 3)
            if not (text := question(scene, rng, skill)):
                continue
            start, answer = asked(rng, text.words, text.answer), tokenizer(text.answer).input_ids
            for read in (False, True):
                front = [*caption(scene, rng).words, "[SEP]", "[DEC]"] if read else []
                ids = tokenizer.convert_tokens_to_ids(["[DEC]", *front, *start[: len(start) - len(answer)]])
                logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                losses[read].append(-float(logits[range(len(answer)), answer].sum()))
            hits.append(logits.argmax(-1).tolist() == answer)
        scores[f"{skill}: entropy of its answers, nats"] = entropy
        scores[f"{skill}: loss with nothing to read"] = sum(losses[False]) / number
        scores[f"{skill}: loss after a caption"] = sum(losses[True]) / number
        scores[f"{skill}: right after a caption, percent"] = percent(hits)
    return {name: round(value, 3) for name, value in scores.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("blip", "clip", "gpt"))
    parser.add_argument("folder")
    parser.add_argument("--number", type=int, default=1000, help="questions a skill (a fifth as many images elsewhere)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fifth = args.number // 5
    if args.which == "clip":
        scores = clip_scores(args.folder, fifth)
    elif args.which == "gpt":
        scores = gpt_scores(args.folder, args.number)
    else:
        scores = answers(args.folder, args.number) | captions(args.folder, fifth) | blip_retrieval(args.folder, fifth)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
