"""Each layout of a JSON file, from a fixture of its own to samples; what two layouts match is refused."""

from __future__ import annotations

import json

import pytest

from tests.data.writing import files, load_train, problems_of, write_images
from vlatrain.config import TaskConfig
from vlatrain.data import load, load_inputs

KARPATHY = {
    "images": [
        {
            "filename": f"{number}.png",
            "split": split,
            "imgid": number,
            "sentences": [{"raw": f"a card {number}", "tokens": ["a", "card"]}, {"raw": "one card", "tokens": []}],
        }
        for number, split in enumerate(["train", "val", "restval", "test", "val", "train"])
    ],
    "dataset": "coco",
}
QUESTIONS = {
    "questions": [{"image_id": number, "question": "what?", "question_id": number * 10} for number in range(3)],
    "data_subtype": "val2014",
}
ANNOTATIONS = {
    "annotations": [
        {
            "image_id": number,
            "question_id": number * 10,
            "question_type": "what",
            "multiple_choice_answer": "blue",
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1} for answer in ("blue", "navy")],
        }
        for number in range(3)
    ]
}
ROW = {"image": "0.png", "question": "what?", "answer": "blue"}


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    return str(folder / name)


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 6)
    return tmp_path


def test_karpathys_splits_give_all_three(folder, caplog):
    config = files(write(folder, "k.json", KARPATHY))
    with caplog.at_level("INFO", "vlatrain"):
        found = load(config, TaskConfig("captioning"), ["train", "eval"])
    assert {split: [sample.id for sample in samples] for split, samples in found.items()} == {
        "train": ["k.json:images[0]", "k.json:images[2]", "k.json:images[5]"],
        "eval": ["k.json:images[1]", "k.json:images[4]"],
        "test": ["k.json:images[3]"],
    }
    assert found["train"][1].captions == ("a card 2", "one card")
    assert caplog.messages == [
        f"{config.train}: Karpathy's splits",
        f"{config.train}: split by its column 'split': 3 train, 2 eval, 1 test",
    ]


def test_karpathys_images_of_coco_are_in_a_folder_for_each_part(folder):
    write_images(folder / "val2014", 2)
    images = [{**image, "filepath": "val2014"} for image in KARPATHY["images"]]
    found = load_train(files(write(folder, "k.json", {"images": images})), "captioning")
    paths = [sample.image.path for sample in found]  # the second is not there and is looked for without its folder
    assert paths == [str(folder / "val2014" / "0.png"), str(folder / "2.png"), str(folder / "5.png")]


@pytest.mark.parametrize(
    "name", ["COCO_val2014_{:012d}.png", "{:012d}.png", "val2014/COCO_val2014_{:012d}.png", "{}.png"]
)
def test_vqa_v2_is_a_pair_of_files(name, folder):
    (folder / "img" / "val2014").mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").rename(folder / "img" / name.format(number))
    questions, annotations = write(folder, "q.json", QUESTIONS), write(folder, "a.json", ANNOTATIONS)
    config = files(questions, annotations=annotations, root=str(folder / "img"))
    found = load_train(config)
    assert [(sample.id, sample.question, sample.answers) for sample in found] == [
        (str(number * 10), "what?", ("blue", "navy")) for number in range(3)
    ]
    assert [sample.image.path for sample in found] == [str(folder / "img" / name.format(number)) for number in range(3)]
    asked = load_inputs(questions, files("unused", root=str(folder / "img")), TaskConfig("vqa"))
    assert [sample.question for sample in asked] == ["what?"] * 3


def test_pairs_of_other_splits_have_their_own_annotations(folder):
    questions, annotations = write(folder, "q.json", QUESTIONS), write(folder, "a.json", ANNOTATIONS)
    config = files(questions, annotations=annotations, eval=questions, eval_annotations=annotations)
    found = load(config, TaskConfig("vqa"), ["train", "eval"])
    assert len(found["train"]) == len(found["eval"]) == 3
    problems = problems_of(files(questions, annotations=annotations, eval=questions), "vqa", ["train", "eval"])
    assert problems == [
        f"data.eval={questions}: read as VQA v2's questions: set data.eval_annotations=FILE, the annotations with their answers"
    ]


def test_half_a_pair_says_the_other_half(folder):
    questions, annotations = write(folder, "q.json", QUESTIONS), write(folder, "a.json", ANNOTATIONS)
    assert problems_of(files(questions)) == [
        f"data.train={questions}: read as VQA v2's questions: set data.annotations=FILE, the annotations with their answers"
    ]
    assert problems_of(files(annotations)) == [
        f"data.train={annotations}: read as VQA v2's annotations: set data.train=FILE to the questions, and "
        f"data.annotations={annotations}"
    ]
    fewer = write(folder, "b.json", {"annotations": ANNOTATIONS["annotations"][:1]})
    assert problems_of(files(questions, annotations=fewer)) == [
        f"{questions}:questions[1]: question 10 has no annotation in {fewer}, and 1 more"
    ]
    rows = write(folder, "rows.json", [ROW])
    assert problems_of(files(rows, annotations=annotations)) == [
        f"{rows}: no column 'question_id', by which questions and annotations are joined; the columns are image, question, answer"
    ]
    assert problems_of(files(questions, annotations=str(folder / "gone.json")))[0].startswith(
        f"data.annotations={folder}/gone.json: no such file"
    )


def test_samples_by_id(folder, caplog):
    keyed = write(folder, "g.json", {"a": ROW, "b": {**ROW, "image": "1.png"}})
    with caplog.at_level("INFO", "vlatrain"):
        found = load_train(files(keyed))
    assert [(sample.id, sample.source) for sample in found] == [("a", f'{keyed}["a"]'), ("b", f'{keyed}["b"]')]
    assert caplog.messages == [f"{keyed}: samples by id"]


@pytest.mark.parametrize("column", ["imageId", "image_id", "img_id"])
def test_images_are_found_by_their_ids(column, folder, caplog):
    questions = {str(number): {column: str(number), "question": "q", "answer": "a"} for number in range(2)}
    train = write(folder, "g.json", questions)
    with caplog.at_level("INFO", "vlatrain"):
        assert [sample.image.path for sample in load_train(files(train))] == [
            str(folder / "0.png"),
            str(folder / "1.png"),
        ]
    assert caplog.messages == [f"{train}: samples by id; images called after '{column}', such as 0.png"]
    questions["9"] = {column: "9", "question": "q", "answer": "a"}
    assert problems_of(files(write(folder, "g.json", questions))) == [f'{train}["9"]: no such image: {folder}/9.png']
    (folder / "empty").mkdir()
    assert problems_of(files(train, root=str(folder / "empty"))) == [
        f"{train}: no column 'image' or 'images'; the columns are id, {column}, question, answer; no image is called after "
        f"'{column}': set data.root to their folder, or add a column of paths"
    ]


def test_a_list_for_each_split(folder):
    train = write(folder, "d.json", {"train": [ROW, ROW], "val": [ROW], "Test": [ROW]})
    found = load(files(train), TaskConfig("vqa"), ["train", "eval"])
    assert {split: len(samples) for split, samples in found.items()} == {"train": 2, "eval": 1, "test": 1}
    assert found["train"][1].source == f"{train}:train[1]"


AMBIGUOUS = [
    (
        {**KARPATHY, "annotations": [{"question_id": 1, "answers": []}]},
        "Karpathy's splits and as VQA v2's annotations",
    ),
    ({"data": [ROW], "samples": [ROW]}, "the list under 'data' and as the list under 'samples'"),
]


@pytest.mark.parametrize(("value", "names"), AMBIGUOUS)
def test_two_layouts_are_both_named(value, names, folder):
    train = write(folder, "d.json", value)
    assert problems_of(files(train), "captioning") == [
        f"{train}: could be read as {names}: put what is not meant elsewhere, or write a JSONL file of samples"
    ]


def test_what_is_no_sample_is_named_in_every_layout(folder):
    train = write(folder, "k.json", {"images": [KARPATHY["images"][0], 3]})
    assert problems_of(files(train), "captioning") == [f"{train}:images[1]: expected an object {{...}}, found int"]
