"""Each layout of a folder, from a fixture of its own to samples."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.data.writing import files, load_train, problems_of, write_images
from vlatrain.config import TaskConfig
from vlatrain.data import load

ROW = {"image": "0.png", "question": "what?", "answer": "blue"}


def labels(samples):
    return [(sample.id, sample.label) for sample in samples]


def test_class_folders_at_any_depth(tmp_path, caplog):
    root = tmp_path / "set"
    write_images(root / "cat" / "Imgs" / "a", 1)
    write_images(root / "dog", 2)
    with caplog.at_level("INFO", "vlatrain"):
        found = load_train(files(root), "classification")
    assert labels(found) == [("set/cat/Imgs/a/0.png", "cat"), ("set/dog/0.png", "dog"), ("set/dog/1.png", "dog")]
    assert found[0].source == f"{root}/cat/Imgs/a/0.png"
    assert caplog.messages == [f"{root}: class folders"]


def test_masks_beside_images_are_left_out_and_told(tmp_path, caplog):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 2)
        (tmp_path / name / "1.png").rename(tmp_path / name / "0_mask.png")
        write_images(tmp_path / name / "GT", 1)
        (tmp_path / name / "notes.xml").write_text("<a/>")
    write_images(tmp_path / "mask", 1)  # a class may be called so
    with caplog.at_level("INFO", "vlatrain"):
        found = load_train(files(tmp_path), "classification")
    assert [sample.label for sample in found] == ["cat", "dog", "mask"]
    assert caplog.messages[0] == f"{tmp_path}: 4 masks beside images are left out, such as cat/0_mask.png"


def test_class_folders_by_split(tmp_path):
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, count)
    found = load(files(tmp_path), TaskConfig("classification"), ["train", "eval"])
    assert {split: len(samples) for split, samples in found.items()} == {"train": 4, "eval": 2, "test": 2}
    assert {sample.label for sample in found["eval"]} == {"cat", "dog"}


def test_a_json_file_for_each_sample(tmp_path):
    write_images(tmp_path / "img", 1)
    (tmp_path / "each").mkdir()
    for number in range(2):
        (tmp_path / "each" / f"{number}.json").write_text(json.dumps(ROW))
    found = load_train(files(tmp_path / "each", root=str(tmp_path / "img")))
    assert [sample.id for sample in found] == ["each/0.json", "each/1.json"]
    (tmp_path / "each" / "2.json").write_text("[")
    (tmp_path / "each" / "3.json").write_text("3")
    found = problems_of(files(tmp_path / "each", root=str(tmp_path / "img")))
    assert found[0].startswith(f"{tmp_path}/each/2.json: not JSON: Expecting value")
    assert found[1] == f"{tmp_path}/each/3.json: expected an object {{...}}, found int"


def test_json_files_may_stand_beside_their_images(tmp_path):
    for name in write_images(tmp_path, 2):
        (tmp_path / name).with_suffix(".json").write_text(json.dumps({"question": "q", "answer": "a"}))
    assert [sample.image.path for sample in load_train(files(tmp_path))] == [f"{tmp_path}/0.png", f"{tmp_path}/1.png"]


def test_json_files_may_have_their_images_in_a_folder(tmp_path):
    write_images(tmp_path / "images", 2)
    for number in range(2):
        (tmp_path / f"{number}.json").write_text(json.dumps({**ROW, "image": f"images/{number}.png"}))
    assert len(load_train(files(tmp_path))) == 2


def test_a_text_beside_each_image(tmp_path):
    for name in write_images(tmp_path, 2):
        (tmp_path / name).with_suffix(".txt").write_text("a card\n\none card\n")
    found = load_train(files(tmp_path), "captioning")
    assert [sample.captions for sample in found] == [("a card", "one card")] * 2


def test_a_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = write_images(tmp_path, 2)
    features = datasets.Features(image=datasets.Value("string"), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = datasets.Dataset.from_dict({"image": names, "label": [1, 0]}, features=features)
    datasets.disable_progress_bars()
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "both")
    assert labels(load_train(files(tmp_path / "one", root=str(tmp_path)), "classification")) == [
        ("one[0]", "dog"),
        ("one[1]", "cat"),
    ]
    found = load(files(tmp_path / "both", root=str(tmp_path)), TaskConfig("classification"), ["train", "eval"])
    assert {split: labels(samples)[0] for split, samples in found.items()} == {
        "train": ("both:train[0]", "dog"),
        "eval": ("both:validation[0]", "dog"),
    }
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    shutil.copy(arrow, tmp_path / "stream.arrow")
    assert labels(load_train(files(tmp_path / "stream.arrow"), "classification"))[1] == ("stream.arrow[1]", "cat")
    (tmp_path / "one" / "state.json").write_text("{}")
    assert problems_of(files(tmp_path / "one"), "classification") == [
        f"{tmp_path}/one: read as a data set saved by save_to_disk, and cannot be: '_data_files'"
    ]


def test_two_layouts_are_both_named(tmp_path):
    for name in write_images(tmp_path, 2):
        (tmp_path / name).with_suffix(".json").write_text("{}")
        (tmp_path / name).with_suffix(".txt").write_text("x")
    assert problems_of(files(tmp_path), "captioning") == [
        f"{tmp_path}: could be read as a JSON file for each sample and as a text beside each image: put what is not meant "
        "elsewhere, or write a JSONL file of samples"
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("train.jsonl", "name a file in it (train.jsonl)"),
        ("metadata.jsonl", "it has the hub's, set data=hub data.path={folder}"),
        ("notes.md", "name a file of samples"),
    ],
)
def test_a_folder_without_a_layout(name, remedy, tmp_path):
    (tmp_path / name).write_text("x")
    assert problems_of(files(tmp_path)) == [
        f"{tmp_path}: a folder without a layout of samples (class folders, a JSON file for each sample, a text beside each image, "
        f"a data set saved by save_to_disk, Pascal VOC's annotations): {remedy.format(folder=tmp_path)}"
    ]
