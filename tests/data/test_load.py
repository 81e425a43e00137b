"""Loading whole data sets: splits, caps, and everything that is wrong in one report."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.data.writing import files, load_train, problems_of, write_images, write_records
from vlatrain.config import DataConfig, TaskConfig
from vlatrain.data import load


@pytest.fixture
def train(tmp_path):
    """40 questions about 10 images."""
    names = write_images(tmp_path, 10)
    records = [{"image": names[index % 10], "question": f"q{index}", "answer": "a"} for index in range(40)]
    return write_records(tmp_path / "train.jsonl", records)


def ids(samples):
    return [sample.id for sample in samples]


def test_one_file_is_split_by_image(train):
    found = load(files(train, eval_fraction=0.2), TaskConfig("vqa"), ["train", "eval"])
    assert {split: len(samples) for split, samples in found.items()} == {"train": 32, "eval": 8}
    assert not {s.image.path for s in found["train"]} & {s.image.path for s in found["eval"]}
    line = {split: [int(name.split(":")[1]) for name in ids(samples)] for split, samples in found.items()}
    assert line["train"] == sorted(line["train"])
    assert line["eval"] == sorted(line["eval"])


def test_the_split_is_the_same_whatever_is_asked_for(train):
    config = files(train, eval_fraction=0.2, seed=3)
    both = load(config, TaskConfig("vqa"), ["train", "eval"])
    assert load(config, TaskConfig("vqa"), ["train"])["train"] == both["train"]
    assert load(config, TaskConfig("vqa"), ["eval"]) == {"eval": both["eval"]}
    assert load(files(train, eval_fraction=0.2, seed=4), TaskConfig("vqa"), ["eval"])["eval"] != both["eval"]


def test_caps_nest_and_leave_the_split_alone(train):
    def loaded(train_size, eval_size):
        config = files(train, eval_fraction=0.2, train_size=train_size, eval_size=eval_size)
        found = load(config, TaskConfig("vqa"), ["train", "eval"])
        return ids(found["train"]), ids(found["eval"])

    all_train, all_eval = loaded(None, None)
    some_train, some_eval = loaded(10, 3)
    fewer_train, _ = loaded(5, 100)
    assert (len(some_train), len(some_eval), len(fewer_train)) == (10, 3, 5)
    assert set(fewer_train) < set(some_train) < set(all_train)
    assert set(some_eval) < set(all_eval)
    assert some_train == [name for name in all_train if name in some_train] != all_train[:10]


def test_files_of_their_own_for_every_split(train, tmp_path):
    for name in ("val", "test"):
        write_records(tmp_path / f"{name}.csv", [{"image": "0.png", "question": name, "answer": "a"}])
    config = files(train, eval=str(tmp_path / "val.csv"), test=str(tmp_path / "test.csv"))
    found = load(config, TaskConfig("vqa"), ["train", "eval", "test"])
    assert [(split, len(samples), samples[0].question) for split, samples in found.items()] == [
        ("train", 40, "q0"),
        ("eval", 1, "val"),
        ("test", 1, "test"),
    ]


def test_everything_wrong_is_reported_at_once(train, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:45])
    rows = [
        '{"image": "0.png", "question": "q", "answer": ""}',
        "oops",
        '{"image": "gone.png", "question": "q", "answer": "a"}',
        '{"image": "gone.png", "question": "again", "answer": "a"}',
        '{"image": "text.png", "question": "q", "answer": "a"}',
        '{"image": "cut.png", "question": "q", "answer": "a"}',
    ]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(rows))
    empty = tmp_path / "test.tsv"
    empty.write_text("image\tquestion\tanswer\n")
    found = problems_of(files(bad, eval=str(tmp_path / "val.jsonl"), test=str(empty)), "vqa", ["train", "eval", "test"])
    cut = found.pop()
    assert found == [
        f"{bad}:2: not JSON: Expecting value at column 1",
        f"{bad}:1: no answer (column 'answer')",
        f"data.eval={tmp_path}/val.jsonl: no such file; the data files in that folder are bad.jsonl, test.tsv, "
        "train.jsonl",
        f"data.test={empty}: no samples in this file",
        f"{bad}:3: no such image: {tmp_path}/gone.png",
        f"{bad}:5: not an image (no format that can be read): {tmp_path}/text.png",
    ]
    assert cut.startswith(f"{bad}:6: image ")
    assert cut.endswith(f": {tmp_path}/cut.png")


def test_sizes_are_reported_with_the_rest(train, tmp_path):
    test = write_records(tmp_path / "test.jsonl", [{"image": "gone.png", "question": "q", "answer": "a"}])
    assert problems_of(files(train, test=str(test)), "vqa", ["train", "test"], batch_size=64) == [
        "data.train: 40 samples, fewer than one batch of 64: set trainer.batch_size=40 or less",
        f"{test}:1: no such image: {tmp_path}/gone.png",
    ]
    assert len(load_train(files(train), batch_size=40)) == 40


def test_the_cap_counts_for_the_batch(train):
    (problem,) = problems_of(files(train, train_size=1), batch_size=2)
    assert problem == "data.train: 1 sample, fewer than one batch of 2: set trainer.batch_size=1 or less"


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [
        ("retrieval", "train", "data.train: 1 sample, and retrieval needs 2: contrast needs other images"),
        ("retrieval", "eval", "data.eval: 1 sample, and retrieval needs 2: one image is always ranked first"),
        (
            "captioning",
            "eval",
            "data.eval: 1 sample, and captioning needs 2: CIDEr is 0 over a single image by its definition",
        ),
        ("captioning", "train", None),
    ],
)
def test_too_few_images(task, split, message, tmp_path):
    write_images(tmp_path, 1)
    path = str(write_records(tmp_path / "a.jsonl", [{"image": "0.png", "caption": text} for text in "xy"]))
    if message:
        assert problems_of(files(path, eval=path), task, [split]) == [message]
    else:
        assert len(load_train(files(path), task)) == 1


def test_what_is_split_off_is_enough_for_the_task(tmp_path):
    rows = [{"image": name, "caption": "x"} for name in write_images(tmp_path, 12)]
    path = write_records(tmp_path / "a.jsonl", rows)
    found = load(files(path, eval_fraction=0.01), TaskConfig("captioning"), ["train", "eval"])
    assert {split: len(samples) for split, samples in found.items()} == {"train": 10, "eval": 2}


def test_nothing_to_split_off(tmp_path):
    write_images(tmp_path, 1)
    path = write_records(tmp_path / "a.jsonl", [{"image": "0.png", "question": q, "answer": "a"} for q in "xy"])
    assert problems_of(files(path, eval_fraction=0.5), "vqa", ["train", "eval"]) == [
        "data.train: all samples share one image, so none can be split off for evaluation: set data.eval"
    ]


def test_nothing_is_said_of_the_split_where_rows_are_wrong(tmp_path):
    write_images(tmp_path, 2)
    rows = [{"image": f"{index}.png", "question": "q", "answer": "" if index else "a"} for index in range(2)]
    path = write_records(tmp_path / "a.jsonl", rows)
    assert problems_of(files(path, eval_fraction=0.5), "vqa", ["train", "eval"]) == [
        f"{path}:2: no answer (column 'answer')"
    ]


def test_no_image_where_the_root_says(train, tmp_path):
    (tmp_path / "empty").mkdir()
    found = problems_of(files(train, root=str(tmp_path / "empty")))
    assert found == [
        f"none of the 10 images was found below {tmp_path}/empty (the first is {train}:1: {tmp_path}/empty/0.png): set data.root "
        "to the folder their paths start from"
    ]


def broken(folder, count, missing):
    """A file of so many rows, of which the images of some are missing, and those of as many again are no images."""
    names = write_images(folder, count)
    for name in names[:missing]:
        (folder / name).unlink()
    for name in names[missing : 2 * missing]:
        (folder / name).write_text("no image")
    records = [{"image": name, "question": "q", "answer": "a", "caption": name, "label": name[:1]} for name in names]
    return write_records(folder / "a.jsonl", records)


@pytest.mark.parametrize("task", ["vqa", "captioning", "retrieval", "classification"])
def test_a_share_of_broken_images_is_left_out_and_listed(task, tmp_path, caplog):
    path = broken(tmp_path, 100, 1)
    with caplog.at_level("DEBUG", "vlatrain"):
        found = load_train(files(path, skip_broken=0.02), task)
    assert len(found) == 98
    warned, *listed = caplog.messages
    assert warned.startswith(
        "data.train: 2 of 100 samples (2.00 %) are left out, as their images are missing or broken"
    )
    assert f"{path}:1: no such image: {tmp_path}/0.png; {path}:2: not an image" in warned
    assert [line.partition(": ")[2].partition(": ")[0] for line in listed] == [f"{path}:1", f"{path}:2"]


def test_a_greater_share_is_refused_with_its_count(tmp_path):
    path = broken(tmp_path, 100, 1)
    first, *listed = problems_of(files(path, skip_broken=0.01))
    assert first == (
        "data.train: 2 of 100 samples (2.00%) have missing or broken images, and data.skip_broken=0.01 allows 1.00%"
    )
    assert len(listed) == len(problems_of(files(path))) == 2


def test_what_is_left_must_be_enough(tmp_path):
    path = broken(tmp_path, 4, 1)
    assert problems_of(files(path, skip_broken=0.5), batch_size=4) == [
        "data.train: 2 samples, fewer than one batch of 4: set trainer.batch_size=2 or less"
    ]


def test_each_split_has_its_own_share(tmp_path):
    path = broken(tmp_path, 40, 1)
    config = files(path, skip_broken=0.1, eval_fraction=0.5)
    found = load(config, TaskConfig("vqa"), ["train", "eval"])
    assert len(found["train"]) + len(found["eval"]) == 38


def test_many_problems_are_counted_by_kind(tmp_path):
    write_images(tmp_path, 1)
    records = [{"image": f"gone/{index}.png", "question": "q", "answer": "a"} for index in range(1000)]
    records += [{"image": "0.png", "question": "", "answer": "a"} for _ in range(500)]
    found = problems_of(
        files(write_records(tmp_path / "a.jsonl", [*records, {"image": 3, "question": "q", "answer": "a"}]))
    )
    assert len(found) == 22  # 20 in full, two kinds counted
    assert sum("empty question (" in line for line in found) == 10
    assert "... and 490 more: empty questions" in found
    assert "... and 991 more: missing images" in found
    assert any(line.endswith("expected an image's path, found int") for line in found)


SETTINGS = [
    (
        DataConfig(name="files"),
        ["train", "eval", "test"],
        ["data.train is not set: set data.train=FILE", "data.test is not set: set data.test=FILE"],
    ),
    (
        DataConfig(name="files", train="a.jsonl", eval_fraction=0),
        ["eval"],
        [
            "data.train=a.jsonl: no such file",
            "data.eval is not set and data.eval_fraction=0: set data.eval=FILE, or the share of "
            "data.train to split off",
        ],
    ),
    (
        DataConfig(name="files", train="a.xml", train_size=0, eval_fraction=1.5, root="nowhere"),
        ["train"],
        [
            "data.train_size=0: must be 1 or more, or null for all",
            "data.eval_fraction=1.5: must be 0 or more, and below 1",
            "data.root=nowhere: no such folder",
            "data.train=a.xml: no such file",
        ],
    ),
    (DataConfig(name="cloud"), ["train"], ["data.name=cloud: unknown source; there are shapes, files and hub"]),
    (
        DataConfig(name="hub", streaming=True, train_size=5),
        ["train"],
        [
            "data.path is not set: name a data set of the hub, or a local folder in its layout",
            "data.streaming=true needs data.eval_size: how many samples to take",
            "data.train is not set: set data.train=SPLIT",
        ],
    ),
]


@pytest.mark.parametrize(("config", "splits", "expected"), SETTINGS)
def test_settings(config, splits, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems_of(config, "vqa", splits) == expected


def test_no_images_are_checked_that_a_cap_leaves_out(tmp_path):
    write_images(tmp_path, 200)
    records = [{"image": f"{index}.png", "question": "q", "answer": "a"} for index in range(200)]
    config = files(write_records(tmp_path / "a.jsonl", records), train_size=5)
    used = {sample.image.path for sample in load_train(config)}
    for index in range(200):
        if str(tmp_path / f"{index}.png") not in used:
            (tmp_path / f"{index}.png").unlink()
    assert {sample.image.path for sample in load_train(config)} == used


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    write_images(tmp_path, 100)
    line = '{"image": "%d.png", "question": "q%d", "answer": "a"}'
    (tmp_path / "a.jsonl").write_text("\n".join(line % (index % 100, index) for index in range(100_000)))
    start = time.process_time()
    found = load(files(tmp_path / "a.jsonl", eval_fraction=0.1), TaskConfig("vqa"), ["train", "eval"])
    assert len(found["train"]) + len(found["eval"]) == 100_000
    assert time.process_time() - start < 8  # about 1 s; quadratic work would take minutes


@pytest.mark.parametrize("task", ["vqa", "captioning", "retrieval"])
def test_built_in_data(task):
    config = DataConfig(name="shapes", train_size=6, eval_size=3, seed=1)
    found = load(config, TaskConfig(task), ["train", "eval", "test"], batch_size=6)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 6, "eval": 3, "test": 3}
    assert load(config, TaskConfig(task), ["eval"])["eval"] == found["eval"] != found["test"]
    assert problems_of(config, task, batch_size=7) == [
        "data.train: 6 samples, fewer than one batch of 7: set trainer.batch_size=6 or less"
    ]


@pytest.mark.parametrize("name", ["shapes", "files", "hub"])
def test_the_yaml_of_every_source_gives_the_defaults_of_the_schema(name):
    yaml = OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / f"{name}.yaml")
    assert yaml.pop("defaults") == ["data_schema", "_self_"]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), yaml))
    sizes = {"train_size": yaml.train_size, "eval_size": yaml.eval_size}
    own = {"shapes": sizes, "files": {}, "hub": {"train": "train"}}[name]
    assert config == DataConfig(name=name, **own)


@pytest.mark.skipif("VLATRAIN_EASY_VQA" not in os.environ, reason="set VLATRAIN_EASY_VQA to the folder of easy-VQA")
def test_easy_vqa():
    folder = os.environ["VLATRAIN_EASY_VQA"]
    start = time.monotonic()
    config = DataConfig(name="files", train=f"{folder}/train.jsonl", test=f"{folder}/test.jsonl")
    found = load(config, TaskConfig("vqa"), ["train", "eval", "test"], batch_size=64)
    assert time.monotonic() - start < 10
    assert len(found["train"]) + len(found["eval"]) == 38_575
    assert len(found["test"]) == 9_673
    assert len({sample.image.path for samples in found.values() for sample in samples}) == 5_000
    assert len({answer for sample in found["test"] for answer in sample.answers}) == 13
    assert found["test"][0].image.load().mode == "RGB"
