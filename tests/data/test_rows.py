"""Which column holds what, which rows are one sample, and every way a row can be wrong."""

from __future__ import annotations

import pytest

from tests.data.writing import FORMATS, files, load_train, problems_of, write_images, write_records
from vlatrain.config import TaskConfig
from vlatrain.data import load, load_inputs
from vlatrain.data.sample import fingerprint, texts_of


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 3)
    return tmp_path


def vqa(**changes):
    """A good row, with changes; None leaves a column out."""
    record = {"image": "0.png", "question": "q?", "answer": "a"} | changes
    return {key: value for key, value in record.items() if value is not None}


def write(folder, *records):
    return write_records(folder / "d.jsonl", records)


def caption(image, *captions, **more):
    return {"image": f"{image}.png", "captions": list(captions), **more}


@pytest.mark.parametrize(
    ("records", "columns", "expected"),
    [
        ([vqa()], {}, ("q?", ("a",), ())),
        ([vqa(answer=None, answers=["a", "b"])], {}, ("q?", ("a", "b"), ())),
        ([vqa(answers=["never looked at"])], {}, ("q?", ("a",), ())),
        ([vqa(answers=["b"])], {"answers": "answers"}, ("q?", ("b",), ())),
        ([vqa(question=" q?\n", text="t")], {"question": "text"}, ("t", ("a",), ())),
        ([vqa(answer=3)], {}, ("q?", ("3",), ())),
        ([vqa(answer=True)], {}, ("q?", ("yes",), ())),
        ([vqa(answer=["a", "", "b"], weights=[1, 2, 3])], {}, ("q?", ("a", "b"), (1.0, 3.0))),
        (
            [vqa(answer=[{"answer": "a", "weight": 0.6}, {"answer": "b", "weight": 0.4}])],
            {},
            ("q?", ("a", "b"), (0.6, 0.4)),
        ),
        ([vqa(image=None, img="0.png")], {"image": "img"}, ("q?", ("a",), ())),
    ],
)
def test_vqa_rows(records, columns, expected, folder):
    (sample,) = load_train(files(write(folder, *records), columns=columns))
    assert (sample.question, sample.answers, sample.weights) == expected
    assert sample.captions == ()
    assert sample.id == "d.jsonl:1"


def test_rows_of_one_image_share_the_picture_but_stay_samples(folder):
    first, second = load_train(files(write(folder, vqa(), vqa(question="r?"))))
    assert first.image is second.image
    assert (first.question, second.question) == ("q?", "r?")


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_rows_of_one_image_become_one_sample_with_several_captions(task, folder):
    train = write(
        folder, caption(0, "x"), caption(1, "y", "z"), {"image": "./sub/../0.png", "captions": "w"}, caption(0, "v")
    )
    found = [(s.id, s.captions) for s in load_train(files(train), task)]
    assert found == [("d.jsonl:1", ("x", "w", "v")), ("d.jsonl:2", ("y", "z"))]


def test_id_column(folder):
    train = write(
        folder, caption(0, "x", id=7, key="a"), caption(1, "y", id=8, key="b"), caption(0, "z", id=7, key="a")
    )
    for columns, ids in (({}, ["7", "8"]), ({"id": "key"}, ["a", "b"]), ({"id": ""}, ["d.jsonl:1", "d.jsonl:2"])):
        assert [s.id for s in load_train(files(train, columns=columns), "captioning")] == ids


def test_image_root(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    train = write(elsewhere, vqa(), vqa(image=str(folder / "1.png")))
    images = [s.image.path for s in load_train(files(train, root=str(folder)))]
    assert images == [str(folder / "0.png"), str(folder / "1.png")]


def test_all_absent_columns_at_once(folder):
    train = write(folder, {"x": 1})
    assert [p.split("'")[1] for p in problems_of(files(train))] == ["image", "question", "answer"]


ROWS = [
    (vqa(question=" "), "empty question (column 'question')"),
    (vqa(question=None), "empty question (column 'question')"),
    (vqa(question=["q"]), "column 'question': expected text, found a list"),
    (vqa(answer=""), "no answer (column 'answer')"),
    (vqa(answer=[]), "no answer (column 'answer')"),
    (vqa(answer=["", " "]), "no answer (column 'answer')"),
    (
        vqa(answer={"text": "a"}),
        "column 'answer': an object without 'answer'; data.columns.answers=answer.text takes the 'text' in it",
    ),
    (vqa(weights=[1, 2]), "column 'weights': 2 weights for 1 answers"),
    (vqa(weights=-1), "column 'weights': weights must be 0 or more, and not all 0, found [-1.0]"),
    (vqa(image=""), "column 'image': empty image"),
    (vqa(image=None), "column 'image': empty image"),
    (vqa(image=3), "column 'image': expected an image's path, found int"),
    (
        vqa(image="https://x.org/a.png"),
        "column 'image': 'https://x.org/a.png' is a URL, and images are read from disk: download them first",
    ),
    (vqa(id=["x"]), "column 'id': expected text, found a list"),
    (vqa(id=""), "empty id (column 'id')"),
    (vqa(id="one"), "id 'one' is taken by {train}:1; data.columns.id= takes the place in the file instead"),
]


@pytest.mark.parametrize(("record", "message"), ROWS)
def test_bad_rows_are_named(record, message, folder):
    good = vqa(weights=1)  # has every column, so that only the cell is wrong
    train = write(folder, good | {"id": "one"}, {"id": "two"} | record)
    assert problems_of(files(train)) == [f"{train}:2: " + message.format(train=train)]


LISTED = [  # what a string holds, and what it is in CSV
    ("[12, 20, 30, 40]", ("12", "20", "30", "40")),
    ('["cat", "dog"]', ("cat", "dog")),
    ("['cat', 'dog']", ("cat", "dog")),
]


@pytest.mark.parametrize(("cell", "items"), LISTED)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_string_is_a_text_where_the_format_has_lists(kind, cell, items, folder):
    expected = items if kind in ("csv", "tsv") else (cell,)
    answered = write_records(folder / f"a.{kind}", [vqa(answer=cell)])
    captioned = write_records(folder / f"c.{kind}", [{"image": "0.png", "caption": cell}])
    assert load_train(files(answered))[0].answers == expected
    assert load_train(files(captioned), "captioning")[0].captions == expected


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_in_a_string_are_weights_in_every_format(kind, folder):
    train = write_records(folder / f"d.{kind}", [vqa(answer=["a", "b"], weights="[1, 2]")])
    assert load_train(files(train))[0].weights == (1.0, 2.0)


def test_a_list_of_bare_numbers_in_csv_is_told_once(folder, caplog):
    rows = [vqa(answer=cell) for cell in ("red", "[12, 20, 30, 40]", '["5", "6"]', "[1]", "[unclear]", "[2.5, 3]")]
    train = write_records(folder / "d.csv", rows)
    with caplog.at_level("WARNING", "vlatrain"):
        load_train(files(train))
    (message,) = caplog.messages
    assert message.startswith(f"{train}:3: column 'answer': [12, 20, 30, 40] is read as a list")
    assert "2 more cells" in message
    assert "JSONL" in message
    caplog.clear()
    load_inputs(str(train), files("unused"), TaskConfig("vqa"))  # answers are not looked at
    load_train(files(write_records(folder / "d.jsonl", rows)))
    assert not caplog.messages


def test_empty_captions_are_named(folder):
    train = write(folder, caption(0, "x"), caption(1), caption(2, " "))
    expected = [f"{train}:{line}: no caption (column 'captions')" for line in (2, 3)]
    assert problems_of(files(train), "captioning") == expected


def test_captions_must_be_texts(folder):
    bad = {"image": "0.png", "captions": [{"tokens": ["x"], "raw": "x"}]}
    remedy = "data.columns.captions=captions.raw takes the 'raw' in it"
    train = write(folder, bad, caption(1, "x"))
    assert problems_of(files(train), "captioning") == [
        f"{train}:1: column 'captions': expected text, found an object; {remedy}"
    ]
    train = write(folder, bad, bad)
    assert problems_of(files(train), "captioning") == [
        f"{train}: column 'captions': expected texts, found objects; {remedy}"
    ]


@pytest.mark.parametrize(
    ("kind", "path"), [("jsonl", "sentences.raw"), ("parquet", "sentences.raw"), ("json", "sentences.0.raw")]
)
def test_a_key_below_a_column(kind, path, folder):
    records = [{"image": {"path": "0.png"}, "sentences": [{"raw": "a"}, {"raw": "b"}]}]
    train = write_records(folder / f"d.{kind}", records)
    columns = {"image": "image.path", "captions": path}
    (sample,) = load_train(files(train, columns=columns), "captioning")
    assert sample.captions == (("a",) if ".0." in path else ("a", "b"))
    assert problems_of(files(train, columns=columns | {"captions": "sentences.rwa"}), "captioning") == [
        f"{train}{'[0]' if kind != 'jsonl' else ':1'}: column 'sentences.rwa': an object without 'rwa'; it has raw"
    ]


def test_a_cell_is_clipped_wherever_a_message_shows_it(folder):
    long = "x" * 500
    rows = [
        vqa(id=long),
        vqa(id=long),
        vqa(answer=[{"answer": "a", "weight": long}]),
        vqa(image=f"https://x.org/{long}.png"),
    ]
    rows += [vqa(image=f"{long}.png"), vqa(answer=["a"], weights=[1, float("inf")] * 90)]
    for problem in problems_of(
        files(write(folder, *[{**row, "id": row.get("id", str(n))} for n, row in enumerate(rows)]))
    ):
        assert long not in problem
        assert len(problem.removeprefix(str(folder))) < 400


def test_mapped_ids_must_be_unique_over_images_too(folder):
    train = write(folder, caption(0, "x", key="k"), caption(1, "y", key="k"), caption(0, "z", key="k"))
    assert problems_of(files(train, columns={"id": "key"}), "retrieval") == [f"{train}:2: id 'k' is taken by {train}:1"]


def test_a_row_wrong_in_several_ways_says_all(folder):
    train = write(folder, vqa(), vqa(question="", answer="", image="gone.png"))
    assert problems_of(files(train)) == [
        f"{train}:2: empty question (column 'question')",
        f"{train}:2: no answer (column 'answer')",
        f"{train}:2: no such image: {folder}/gone.png",
    ]


def test_inputs_need_no_references_and_are_not_grouped(folder):
    path = write(folder, vqa(answer=None), vqa(answer=None, question="r?"))
    assert [s.question for s in load_inputs(str(path), files("unused"), TaskConfig("vqa"))] == ["q?", "r?"]
    assert [s.captions for s in load_inputs(str(path), files("unused"), TaskConfig("captioning"))] == [(), ()]
    of_the_run = files("unused", columns={"answers": "label", "id": "key"})
    assert [s.id for s in load_inputs(str(path), of_the_run, TaskConfig("vqa"))] == ["d.jsonl:1", "d.jsonl:2"]
    with pytest.raises(ValueError, match=r"no column 'query' \(data\.columns\.question=query\)"):
        load_inputs(str(path), files("unused", columns={"question": "query"}), TaskConfig("vqa"))
    with pytest.raises(ValueError, match=r"input=nowhere\.jsonl: no such file"):
        load_inputs("nowhere.jsonl", files("unused"), TaskConfig("vqa"))


def test_labels(folder):
    train = write(
        folder, {"image": "0.png", "label": "cat"}, {"image": "1.png", "label": 3}, {"image": "0.png", "label": "d"}
    )
    assert [s.label for s in load_train(files(train), "classification")] == ["cat", "3", "d"]
    bad = write(folder, {"image": "0.png", "label": " "}, {"image": "1.png", "label": ["a", "b"]}, {"image": "2.png"})
    assert problems_of(files(bad), "classification") == [
        f"{bad}:1: empty label (column 'label')",
        f"{bad}:2: column 'label': expected text, found a list",
        f"{bad}:3: empty label (column 'label')",
    ]
    other = write(folder, {"image": "0.png", "category": "cat"})
    assert problems_of(files(other), "classification") == [
        f"{other}: no column 'label'; the columns are image, category; did you mean data.columns.label=category?"
    ]
    assert [s.label for s in load_inputs(str(other), files("unused"), TaskConfig("classification"))] == [""]


def test_unknown_task(folder):
    with pytest.raises(ValueError, match="no description of the samples of task 'dance'"):
        load_train(files(write(folder, vqa())), "dance")


@pytest.mark.parametrize("kind", FORMATS)
def test_evaluated_samples_keep_the_other_columns_and_their_groups(kind, folder):
    rows = [vqa(type="yes/no", n=3, note="x" * 2000), vqa(image="1.png", type="other", n=4, note="short")]
    train, held = (write_records(folder / f"{name}.{kind}", rows) for name in ("train", "eval"))
    config = files(train, eval=str(held), groups=["type"])
    found = load(config, TaskConfig("vqa"), ["train", "eval"])
    assert [(sample.extra, sample.groups) for sample in found["train"]] == [((), ())] * 2
    numbers = ("3", "4") if kind in ("csv", "tsv") else (3, 4)
    assert [dict(sample.extra) for sample in found["eval"]] == [
        {"type": "yes/no", "n": numbers[0]},
        {"type": "other", "n": numbers[1], "note": "short"},
    ]
    assert {sample.groups for sample in found["eval"]} == {("type",)}
    before = load(files(train, eval=str(held)), TaskConfig("vqa"), ["eval"])["eval"]
    assert fingerprint(found["eval"]) == fingerprint(before), "nothing is learned from them"


def test_a_column_of_the_task_may_be_a_group_and_one_that_is_not_there_is_named(folder):
    rows = [vqa(image=f"{place}.png", question=f"q{place}?") for place in range(3)]
    path = write(folder, *rows)
    (sample,) = load(files(path, eval=str(write(folder, rows[0])), groups=["question"]), TaskConfig("vqa"), ["eval"])[
        "eval"
    ]
    assert (sample.extra, sample.groups) == ((("question", "q0?"),), ("question",))
    problems = problems_of(files(path, eval=str(path), groups=["qestion", "type"]), splits=("train", "eval"))
    assert problems == [
        f"{path}: no column 'qestion' (data.groups); the columns are image, question, answer; did you mean question?",
        f"{path}: no column 'type' (data.groups); the columns are image, question, answer",
    ]


def test_split_off_samples_keep_them_too_and_the_rest_does_not(folder):
    path = write(folder, *(vqa(image=f"{place}.png", type="t") for place in range(3)))
    found = load(files(path, groups=["type"], eval_fraction=0.4), TaskConfig("vqa"), ["train", "eval"])
    assert [sample.groups for sample in found["train"]] == [()] * len(found["train"])
    assert [dict(sample.extra) for sample in found["eval"]] == [{"type": "t"}] * len(found["eval"])


TWO = {"image": None, "images": ["0.png", "1.png"]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (vqa(**TWO), ("q?", ["0.png", "1.png"])),
        (vqa(image=["1.png", "0.png"]), ("q?", ["1.png", "0.png"])),
        (vqa(images=["0.png"]), ("q?", ["0.png"])),  # named twice, and one
        (vqa(**TWO, question="<image> or <image>?"), ("<image> or <image>?", ["0.png", "1.png"])),
        (vqa(question="<image> is a tag?"), ("<image> is a tag?", ["0.png"])),
    ],
)
def test_several_images_keep_their_order(record, expected, folder):
    (found,) = load_train(files(write(folder, record), eval_fraction=0.0), "vqa")
    assert (found.question, [one.path.rpartition("/")[2] for one in found.pictures]) == expected


@pytest.mark.parametrize(
    ("record", "changes", "problem"),
    [
        (
            vqa(**TWO),
            {"max_images": 1},
            "2 images: data.max_images=1 is the most of a sample: set a larger one, or leave such rows out",
        ),
        (
            vqa(**TWO, question="<image>?"),
            {},
            "2 images, and 1 place marked by <image>: mark the place of each, or none",
        ),
        (
            {**vqa(**TWO), "image": "2.png"},
            {},
            "column 'image', 'images': two places of the row have different images: put all of them into one",
        ),
    ],
)
def test_what_is_wrong_with_several_images(record, changes, problem, folder):
    file = write(folder, vqa(), record)
    assert problems_of(files(file, **changes)) == [f"{file}:2: {problem}"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [{"from": "human", "value": "<image>\nor <image>?"}, {"from": "gpt", "value": "a"}],
            [("<image>\nor <image>?", "a")],
        ),
        (
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "this?"}]},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image"}]},
                {"role": "assistant", "content": "b"},
            ],
            [("<image>\nthis?", "a"), ("and\n<image>", "b")],
        ),
        ([{"from": "human", "value": "which?"}, {"from": "gpt", "value": "a"}], [("which?", "a")]),
    ],
)
def test_several_images_keep_their_places_in_a_conversation(messages, expected, folder):
    file = write(folder, {"images": ["0.png", "1.png"], "conversations": messages})
    found = load_inputs(str(file), files(file), TaskConfig("instruct"))
    assert [(turn.user, turn.reply) for turn in found[0].turns] == expected
    assert len(found[0].pictures) == 2


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("vqa", {"question": "q" * 50_000_000}),
        ("vqa", {"answer": ["a", "b" * 300_000]}),
        ("captioning", {"captions": ["c" * 300_000]}),
        ("classification", {"label": "d" * 300_000}),
        ("instruct", {"conversations": [{"from": "human", "value": "e" * 300_000}, {"from": "gpt", "value": "f"}]}),
    ],
)
def test_a_text_that_no_model_reads_is_cut_before_it_is_tokenised_and_told(task, changes, folder, caplog):
    good = vqa(
        captions=["a"], label="a", conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    )
    file = write(folder, good, good | {"image": "1.png"} | changes, good | {"image": "2.png"} | changes)
    found = (
        load_inputs(str(file), files(file), TaskConfig(task)) if task == "instruct" else load_train(files(file), task)
    )
    assert max(len(text) for text in texts_of(found)) == 200_000
    assert f"{file}:2: a text of over 200,000 characters, and 1 more: cut to these before it is read" in caplog.text
