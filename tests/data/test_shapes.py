"""The built-in data: deterministic pixels, disjoint splits, answers that the scene bears out."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections import Counter

import numpy as np
import pytest

from vlatrain.data import scenes, shapes

TASKS = ("vqa", "captioning", "retrieval", "classification", "instruct")


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_give_the_same_samples_and_a_longer_list_begins_with_a_shorter(task):
    assert shapes.build(task, "train", 30, 1) == shapes.build(task, "train", 40, 1)[:30]
    assert shapes.build(task, "train", 5, 1) != shapes.build(task, "train", 5, 2)


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for task in TASKS:
        for sample in shapes.build(task, "eval", 20, 0):
            digest.update(np.asarray(sample.image.load()).tobytes())
    assert digest.hexdigest()[:16] == "c83c3c40e54437ea"


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_picture_and_no_id(task):
    found = [shapes.build(task, split, 150, 0) for split in shapes.SPLITS]
    keys = [{sample.image.key for sample in samples} for samples in found]
    assert [len(each) for each in keys] == [150] * 3
    assert len(set().union(*keys)) == 450
    assert len({sample.id for samples in found for sample in samples}) == 450


def test_answers_are_borne_out_by_the_scene():
    topics = set()
    for sample in shapes.build("vqa", "train", 300, 0):
        said = sample.question.rstrip("?").replace(",", "").split()
        named = [f for f in sample.image.figures if f.kind in said or f.colour in said]
        assert len(named) == 1, "a question names exactly one shape"
        truths = {shapes.CORNERS.get(named[0].kind), shapes.TONE_OF.get(named[0].colour), shapes.size_word(named[0])}
        assert sample.answers[0] in truths
        topics.add(said[1] if said[0] == "how" else said[-1])
    assert topics == {"many", "cool", "small"}


def test_captions_name_every_shape_in_three_wordings():
    for sample in shapes.build("captioning", "train", 60, 0):
        assert len(sample.captions) == 3
        for figure in sample.image.figures:
            part = f"{shapes.size_word(figure)} {figure.kind} in {figure.colour}"
            assert all(part in caption for caption in sample.captions)


def test_the_class_is_the_one_large_shape_and_classes_are_equally_frequent():
    samples = shapes.build("classification", "train", 70, 0)
    for sample in samples:
        (large,) = [figure for figure in sample.image.figures if shapes.size_word(figure) == "large"]
        assert sample.label == shapes.HOUSE_KIND[large.kind]
    assert set(Counter(sample.label for sample in samples).values()) == {10}
    assert {len(sample.image.figures) for sample in samples} == {1, 2, 3}


def test_conversations_are_borne_out_by_the_scene():
    openings = Counter()
    for sample in shapes.build("instruct", "train", 150, 0):
        first, last = sample.turns[0], sample.turns[-1]
        figures = sample.image.figures
        parts = [f"a {shapes.size_word(figure)} {figure.colour} {figure.kind}" for figure in figures]
        if last.user == "tell me what you see.":
            found = [last.reply.index(part) for part in parts]
            assert [x for _, x in sorted(zip(found, [f.centre for f in figures], strict=True))] == sorted(
                figure.centre for figure in figures
            )
            assert len(last.reply) == sum(map(len, parts)) + (0, 1, 6, 8)[len(parts)], "and nothing else"
        if first.user == "how many shapes are there?":
            assert (
                first.reply
                == ("there is one shape.", "there are two shapes.", "there are three shapes.")[len(parts) - 1]
            )
        if first.user.startswith("what color"):
            (figure,) = [figure for figure in figures if figure.kind in first.user]
            assert first.reply == f"the {figure.kind} is {figure.colour}."
            assert (last.user, last.reply) == ("is it large or small?", f"it is {shapes.size_word(figure)}.")
        openings[first.user.split()[0], len(sample.turns)] += 1
    assert openings.keys() == {("tell", 1), ("how", 2), ("what", 2)}
    assert min(openings.values()) > 35


@pytest.mark.parametrize("split", ["eval", "test"])
def test_no_two_pictures_to_retrieve_share_a_caption(split):
    captions = [caption for sample in shapes.build("retrieval", split, 300, 0) for caption in sample.captions]
    assert len(set(captions)) == len(captions) == 600


def test_shapes_keep_apart_and_inside():
    rng = random.Random(0)
    for _ in range(100):
        scene = scenes.make_scene(rng, [("red", "star"), ("blue", "ring"), ("gray", "triangle")])
        parts = [scenes.cover(figure) for figure in scene.figures]
        assert all(part.sum() > 16 * 12 for part in parts)
        assert not (np.stack([part > 0 for part in parts]).sum(0) > 1).any()


def test_coverage_matches_the_area():
    square = scenes.Figure(
        "rectangle", "red", (255, 0, 0), (640, 640, 1280, 1280), ((640, 640), (1280, 640), (1280, 1280), (640, 1280))
    )
    disk = scenes.Figure("circle", "red", (255, 0, 0), (640, 640, 1920, 1920), radii=(640,))
    assert scenes.cover(square).sum() == 10 * 10 * 16
    assert scenes.cover(disk).sum() / 16 == pytest.approx(np.pi * 100, rel=0.01)
    assert tuple(scenes.render(scenes.Scene((square,), (9, 9, 9)))[15, 15]) == (255, 0, 0)


def test_a_scene_is_a_picture():
    scene = shapes.build("vqa", "train", 1, 0)[0].image
    again = pickle.loads(pickle.dumps(scene))
    assert again.key == scene.key
    assert (again.load().mode, again.load().size) == ("RGB", (64, 64))


def test_unknown_task_and_split_are_refused():
    with pytest.raises(ValueError, match="no set 'vqq'"):
        shapes.build("vqq", "train", 1, 0)
    with pytest.raises(ValueError, match="no split 'dev'"):
        shapes.build("vqa", "dev", 1, 0)


def test_one_of_two_pictures_leaves_the_answer_open():
    """Of the best that can be said of the first picture, or of the second, each topic's share is as documented."""
    chance = {"same number": 1 / 2, "same color": 1 / 2, "sum": 1 / 3, "color": 1 / 2, "kind": 1 / 2}
    by_topic = {topic: [] for topic in chance}
    for sample in shapes.build("vqa_pairs", "train", 2000, 0):
        by_topic[dict(sample.extra)["topic"]].append(sample)
    for topic, samples in by_topic.items():
        for number in (0, 1):
            right = Counter()
            for sample in samples:
                figures = sample.pictures[number].figures
                seen = {"color": {f.colour for f in figures}, "kind": {f.kind for f in figures}}
                answer = sample.answers[0]
                if topic in seen:
                    other = {f.colour if topic == "color" else f.kind for f in sample.pictures[1 - number].figures}
                    assert seen[topic] & other == {answer}
                    right[answer == sorted(seen[topic])[0]] += 1
                else:
                    key = figures[0].colour if topic == "same color" else len(figures)
                    right[key, answer] += 1
            if topic in ("color", "kind"):
                best = max(right.values()) / len(samples)
            elif topic == "same color":  # a colour says nothing of whether the other's is the same
                best = max(sum(n for (_, said), n in right.items() if said == one) for one in ("yes", "no")) / len(
                    samples
                )
            else:
                best = sum(max(n for (seen, _), n in right.items() if seen == count) for count in (1, 2, 3)) / len(
                    samples
                )
            assert abs(best - chance[topic]) < 0.09, (topic, number, best)
