"""Data sets in the hub's layout, from local folders; and a hub that is not there."""

from __future__ import annotations

import io
import json
import pickle
import sys

import pytest

datasets = pytest.importorskip("datasets")

import fsspec  # noqa: E402
from PIL import Image  # noqa: E402

from tests.data.writing import load_train, pixels_of, problems_of, write_images, write_records  # noqa: E402
from vlatrain.config import ColumnsConfig, DataConfig, TaskConfig  # noqa: E402
from vlatrain.data import BytesPicture, FilePicture, load  # noqa: E402
from vlatrain.data.sample import Turn  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Prepared data sets go to a folder of the test's; the hub is off."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def png(red, mode="RGB", size=(4, 4)):
    buffer = io.BytesIO()
    Image.new(mode, size, red if mode == "L" else (red, 0, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """A folder as `push_to_hub` makes it: data/<split>-*.parquet, encoded images, class labels as numbers."""
    features = datasets.Features(
        image=datasets.Image(),
        question=datasets.Value("string"),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        answers=datasets.List({"answer": datasets.Value("string"), "answer_id": datasets.Value("int32")}),
    )
    (tmp_path / "vqa" / "data").mkdir(parents=True)
    for split, count in (("train", 12), ("validation", 4)):
        rows = {
            "image": [{"bytes": png(index // 2), "path": "x.png"} for index in range(count)],
            "question": [f"{split} {index}?" for index in range(count)],
            "label": [index % 2 for index in range(count)],
            "answers": [[{"answer": "a", "answer_id": 1}, {"answer": "b", "answer_id": 2}]] * count,
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "vqa" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "vqa"


def hub(path, **settings):
    settings["columns"] = ColumnsConfig(**settings.get("columns", {}))
    return DataConfig(name="hub", path=str(path), **{"train": "train", "eval_fraction": 0.0, **settings})


def test_parquet_folder(parquet):
    found = load(hub(parquet, eval="validation"), TaskConfig("vqa"), ["train", "eval"])
    assert {split: len(samples) for split, samples in found.items()} == {"train": 12, "eval": 4}
    sample = found["train"][3]
    assert (sample.id, sample.source) == ("vqa:train[3]", f"{parquet}:train[3]")
    assert (sample.question, sample.answers) == ("train 3?", ("a", "b"))
    assert sample.image.load().getpixel((0, 0)) == (1, 0, 9)
    assert sample.image.key == BytesPicture(png(1)).key == found["train"][2].image.key != found["train"][4].image.key
    copy = pickle.loads(pickle.dumps(sample))
    assert copy == sample
    assert copy.image.load().tobytes() == sample.image.load().tobytes()


def test_class_labels_become_their_names(parquet):
    samples = load_train(hub(parquet, columns={"answers": "label"}))
    assert [s.answers for s in samples[:3]] == [("cat",), ("dog",), ("cat",)]
    assert [s.label for s in load_train(hub(parquet), "classification")[:3]] == ["cat", "dog", "cat"]


def test_what_is_not_labelled_is_told(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(2)], "label": [1, -1]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    for streaming in (False, True):
        config = hub(tmp_path, streaming=streaming, train_size=2, eval_size=1)
        assert f"{tmp_path}:train[1]: empty label (column 'label')" in problems_of(config, "classification")


def test_conversations(tmp_path):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(2)], "messages": [said] * 2}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert [s.turns for s in load_train(hub(tmp_path), "instruct")] == [(Turn("a", "b"),)] * 2


def saved(tmp_path, rows, **features):
    dataset = datasets.Dataset.from_dict(rows)
    for name, feature in features.items():
        dataset = dataset.cast_column(name, feature)
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_list_of_one_image(streaming, tmp_path):
    rows = {"images": [[{"bytes": png(i), "path": None}] for i in range(4)], "caption": ["x"] * 4}
    folder = saved(tmp_path, rows, images=datasets.List(datasets.Image()))
    sizes = {"train_size": 4, "eval_size": 1} if streaming else {}
    found = load_train(hub(folder, streaming=streaming, **sizes), "captioning")
    seen = {sample.image.load().getpixel((0, 0))[0] for sample in found}
    assert len(seen) == (3 if streaming else 4)  # one is split off the stream
    assert isinstance(found[0].image, BytesPicture) == streaming


def test_several_images_are_named_once(tmp_path):
    rows = {"images": [[{"bytes": png(i), "path": None}] * (1 + i % 2) for i in range(4)], "caption": ["x"] * 4}
    rows["images"][3] = [{"bytes": png(8), "path": None}, {"bytes": png(9), "path": None}]
    folder = saved(tmp_path, rows, images=datasets.List(datasets.Image()))
    assert problems_of(hub(folder, max_images=1), "captioning") == [
        f"{folder}:train[3]: 2 images: data.max_images=1 is the most of a sample: set a larger one, or leave such rows out"
    ]


def test_conversations_as_trainers_write_them(tmp_path):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "a"}]
    rows = {
        "images": [[{"bytes": png(i), "path": None}] for i in range(2)],
        "prompt": [[{"role": "user", "content": content}]] * 2,
        "completion": [[{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]] * 2,
    }
    folder = saved(tmp_path, rows, images=datasets.List(datasets.Image()))
    assert [s.turns for s in load_train(hub(folder), "instruct")] == [(Turn("a", "b"),)] * 2


def test_keys_below_columns_and_choices(tmp_path, caplog):
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(2)],
        "sentences": [[{"raw": "a"}, {"raw": "b"}]] * 2,
        "question": ["q"] * 2,
        "choices": [["red", "blue"]] * 2,
        "answer": [1, 0],
    }
    folder = saved(tmp_path, rows, image=datasets.Image())
    found = load_train(hub(folder, columns={"captions": "sentences.raw"}), "captioning")
    assert [s.captions for s in found] == [("a", "b")] * 2
    with caplog.at_level("INFO", "vlatrain"):
        assert [s.answers for s in load_train(hub(folder))] == [("blue",), ("red",)]
    assert "answers are the options in 'choices'" in caplog.text


def test_conversations_without_an_image_are_learned_dropped_or_refused(tmp_path):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = {"image": [{"bytes": png(0), "path": None}, None, None], "messages": [said] * 3}
    folder = saved(tmp_path, rows, image=datasets.Image())
    assert problems_of(hub(folder, text_only="refuse"), "instruct") == [
        f"{folder}:train[1]: a conversation without an image, and 1 more, and data.text_only=refuse: give it one, or set "
        "data.text_only to train or drop"
    ]
    assert len(load_train(hub(folder), "instruct")) == 3
    assert len(load_train(hub(folder, text_only="drop"), "instruct")) == 1


def test_a_saved_data_set(tmp_path):
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(2)], "caption": ["x"] * 2}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, validation=dataset).save_to_disk(tmp_path / "both")
    assert len(load_train(hub(tmp_path / "one"), "captioning")) == 2
    found = load(hub(tmp_path / "both", eval="validation"), TaskConfig("captioning"), ["train", "eval"])
    assert len(found["train"]) == len(found["eval"]) == 2
    (problem,) = problems_of(hub(tmp_path / "one", eval="validation"), "captioning", ["train", "eval"])
    assert "the folder holds a single data set, which goes by the name of train" in problem


def test_split_by_image_and_slices(parquet):
    found = load(hub(parquet, eval_fraction=0.5), TaskConfig("vqa"), ["train", "eval"])
    assert {len(found["train"]), len(found["eval"])} == {6}
    assert not {s.image.key for s in found["train"]} & {s.image.key for s in found["eval"]}
    assert len(load_train(hub(parquet, train="train[:25%]"))) == 3


def test_captions_of_equal_images_are_grouped(parquet):
    samples = load_train(hub(parquet, columns={"captions": "question"}), "captioning")
    assert len(samples) == 6
    assert samples[1].captions == ("train 2?", "train 3?")


def test_image_folder_with_metadata(tmp_path):
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        names = write_images(folder / split, 3)
        lines = [json.dumps({"file_name": name, "caption": f"{split} {name}"}) for name in names]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    found = load(hub(folder, test="test"), TaskConfig("captioning"), ["train", "test"])
    assert [s.captions for s in found["test"]] == [("test 0.png",), ("test 1.png",), ("test 2.png",)]
    assert found["test"][2].image.load().getpixel((0, 0)) == (2, 0, 9)
    assert isinstance(found["test"][0].image, FilePicture)


def test_paths_in_a_jsonl_folder_are_below_the_folder_or_the_root(tmp_path):
    write_images(tmp_path / "set" / "images", 2)
    records = [{"image": f"images/{index}.png", "caption": "x"} for index in range(2)]
    write_records(tmp_path / "set" / "train.jsonl", records)
    assert len(load_train(hub(tmp_path / "set"), "captioning")) == 2
    (tmp_path / "other").mkdir()
    (problem,) = problems_of(hub(tmp_path / "set", root=str(tmp_path / "other")), "captioning")
    assert f"(the first is {tmp_path}/set:train[0]: {tmp_path}/other/images/0.png)" in problem


def test_16_bit_images_are_scaled_as_from_files(tmp_path):
    import numpy as np

    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 32896, 65535]], "uint16")).save(buffer, "PNG")
    (tmp_path / "set").mkdir()
    data = {"image": [{"bytes": buffer.getvalue(), "path": None}], "caption": ["x"]}
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    (sample,) = load_train(hub(tmp_path / "set"), "captioning")
    assert pixels_of(sample.image.load()) == [(0,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.parametrize("eval_split", [None, "validation"])
def test_streaming_takes_the_first_so_many(parquet, eval_split):
    config = hub(parquet, streaming=True, train_size=6, eval_size=2, eval=eval_split)
    found = load(config, TaskConfig("vqa"), ["train", "eval"])
    assert (len(found["train"]), len(found["eval"])) == (6, 2)
    taken = {s.question for s in found["train"] + (found["eval"] if eval_split is None else [])}
    assert taken == {f"train {index}?" for index in range(6 if eval_split else 8)}
    assert found["train"][0].image.load().getpixel((1, 1))[2] == 9
    if eval_split is None:
        assert not {s.image.key for s in found["train"]} & {s.image.key for s in found["eval"]}


def test_streaming_takes_whole_groups_of_captions(parquet):
    config = hub(parquet, streaming=True, train_size=3, eval_size=1, columns={"captions": "question"})
    samples = load_train(config, "captioning")
    assert [s.captions for s in samples] == [(f"train {2 * i}?", f"train {2 * i + 1}?") for i in range(3)]


def test_bad_rows_and_images_are_named(parquet, tmp_path):
    (tmp_path / "set").mkdir()
    data = {
        "image": [{"bytes": png(1), "path": None}, {"bytes": png(2)[:40], "path": None}, None],
        "question": ["q", "q", "q"],
        "answer": ["", "a", "a"],
    }
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    found = problems_of(hub(tmp_path / "set"))
    assert found[:2] == [
        f"{tmp_path}/set:train[0]: no answer (column 'answer')",
        f"{tmp_path}/set:train[2]: column 'image': empty image",
    ]
    assert found[2:] == [f"{tmp_path}/set:train[1]: not an image (no format that can be read)"]


def test_absent_columns_and_splits_and_folders(parquet):
    (problem,) = problems_of(hub(parquet, columns={"answers": "labels"}))
    assert problem == (
        f"{parquet}:train: no column 'labels' (data.columns.answers=labels); the columns are image, question, label, "
        "answers; did you mean data.columns.answers=label?"
    )
    (problem,) = problems_of(hub(parquet, train="trian"))
    assert problem.startswith(f"data set '{parquet}', split 'trian' cannot be loaded (")
    assert "'validation'" in problem
    assert problems_of(hub("./nowhere", eval="validation"), splits=["train", "eval"]) == [
        "data.path=./nowhere: no such folder"
    ]


def test_a_hub_that_cannot_be_reached_is_one_line():
    (problem,) = problems_of(hub("user/name", subset="en", eval="validation"), "vqa", ["train", "eval"])
    assert problem.startswith(
        "no data set 'user/name', subset 'en', split 'train': https://huggingface.co does not answer, or "
    )
    assert problem.endswith("; set data.path=FOLDER to a local copy in the hub's layout, or data=files data.train=FILE")
    assert "\n" not in problem


def test_what_the_loader_cannot_do_is_told_with_its_reason(parquet, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: exec("raise RuntimeError('no\\nway')"))
    (problem,) = problems_of(hub(parquet))
    assert problem == (
        f"data set '{parquet}', split 'train' cannot be loaded (no way): "
        "check data.path, data.subset and the names of the splits"
    )


def test_a_data_set_that_the_hub_does_not_have(monkeypatch):
    def absent(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'user/nmae' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    monkeypatch.setattr("vlatrain.data.hub._refusal", lambda config: None)
    (problem,) = problems_of(hub("user/nmae"))
    assert problem.startswith(
        "the hub has no readable data set 'user/nmae', split 'train' (Dataset 'user/nmae' doesn't"
    )


def test_without_the_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert problems_of(hub("user/name")) == ["data=hub needs the datasets package: pip install datasets"]


def test_streamed_images_elsewhere_are_fetched(monkeypatch):
    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(png(7))
    rows = [{"image": {"bytes": None, "path": "memory://pictures/a.png"}, "caption": "x"}]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    (sample,) = load_train(hub("user/name", streaming=True, train_size=1, eval="test", eval_size=1), "captioning")
    assert sample.image.load().getpixel((0, 0)) == (7, 0, 9)


def test_an_empty_stream_is_an_empty_split(monkeypatch):
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    stream = datasets.IterableDataset.from_generator(lambda: iter([]), features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    config = hub("user/name", streaming=True, train_size=1, eval="test", eval_size=1)
    assert problems_of(config, "captioning") == ["data.train: no samples"]


def splitting(folder, values, names=("train", "val", "test")):
    """A data set of one split, with a column that says ours."""
    features = datasets.Features(
        image=datasets.Image(),
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        split=datasets.ClassLabel(names=list(names)),
        fold=datasets.Value("string"),
    )
    count = len(values)
    rows = {
        "image": [{"bytes": png(index), "path": "x.png"} for index in range(count)],
        "question": [f"{index}?" for index in range(count)],
        "answer": ["a"] * count,
        "split": list(values),
        "fold": [f"fold{index % 3}" for index in range(count)],
    }
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def asked(samples):
    return [sample.question for sample in samples]


def test_a_split_column_makes_the_splits_as_that_of_files_does(tmp_path, caplog):
    path = splitting(tmp_path / "set", [0, 1, 0, 2, 0, 1])
    with caplog.at_level("INFO", "vlatrain"):
        found = load(hub(path), TaskConfig("vqa"), ["train", "eval"])
    assert {split: asked(samples) for split, samples in found.items()} == {
        "train": ["0?", "2?", "4?"],
        "eval": ["1?", "5?"],
        "test": ["3?"],
    }
    assert f"{path}:train: split by its column 'split': 3 train, 2 eval, 1 test" in caplog.text
    assert [sample.id for sample in found["eval"]] == ["set:train[1]", "set:train[5]"]
    for index, sample in zip((1, 5), found["eval"], strict=True):
        assert sample.image.load().getpixel((0, 0)) == (index, 0, 9), "each row has its own image"


def test_other_columns_and_values_of_splits(tmp_path):
    path = splitting(tmp_path / "set", [0] * 6)
    folds = hub(path, columns={"split": "fold"})
    folds.split.train, folds.split.eval = ["fold0", "fold1"], ["fold2"]
    found = load(folds, TaskConfig("vqa"), ["train", "eval"])
    assert [asked(found[split]) for split in ("train", "eval")] == [["0?", "1?", "3?", "4?"], ["2?", "5?"]]
    assert "test" not in found
    whole = load(hub(path, columns={"split": ""}, eval_fraction=0.5), TaskConfig("vqa"), ["train", "eval"])
    assert sorted(asked(whole["train"] + whole["eval"])) == [f"{index}?" for index in range(6)]
    (problem,) = problems_of(hub(path, columns={"split": "folds"}))
    assert "no column 'folds', which would say the split; the columns are" in problem


def test_a_stream_is_taken_as_it_comes(tmp_path, caplog):
    path = splitting(tmp_path / "set", [0, 1, 0, 1])
    config = hub(path, streaming=True, train_size=2, eval_size=1)
    with caplog.at_level("WARNING", "vlatrain"):
        found = load(config, TaskConfig("vqa"), ["train", "eval"])
    assert sum(map(len, found.values())) == 3
    assert "a stream is taken as it comes, whatever its column 'split' says" in caplog.text
