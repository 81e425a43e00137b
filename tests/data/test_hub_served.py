"""Data sets from a hub that answers, one that refuses, and one that falls silent."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")

from PIL import Image  # noqa: E402

from tests.data.writing import load_train, problems_of  # noqa: E402
from tests.loopback import TOKEN, Hub, client_of, serving  # noqa: E402
from vlatrain.config import DataConfig, hub_client  # noqa: E402

NAME = "me/cats"
Case = Callable[[Hub, Path, pytest.MonkeyPatch], DataConfig]


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(folder: Path, caption: str, count: int = 6) -> Path:
    """A folder as `push_to_hub` makes it."""
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "caption": [caption] * count}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def jsonl(folder: Path, caption: str, count: int = 6) -> Path:
    """A folder of images with their captions, without a card."""
    (folder / "train").mkdir(parents=True)
    for i in range(count):
        (folder / "train" / f"{i}.png").write_bytes(png(i))
    lines = [json.dumps({"file_name": f"{i}.png", "caption": caption}) for i in range(count)]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        client_of(found, tmp_path / "home", monkeypatch)
        for key, value in {"HF_ENDPOINT": found.address, "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(datasets.config, key, value)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
        datasets.disable_progress_bars()
        yield found


def config(**more: object) -> DataConfig:
    return DataConfig(name="hub", path=NAME, train="train", eval_fraction=0.0, **more)  # type: ignore[arg-type]


def captions(**more: object) -> set[str]:
    return {text for sample in load_train(config(**more), "captioning") for text in sample.captions}


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.slow
@pytest.mark.parametrize("form", [parquet, jsonl])
@pytest.mark.parametrize("streaming", [False, True])
def test_found(form: Callable[[Path, str], Path], streaming: bool, server: Hub, tmp_path: Path) -> None:
    server.add(NAME, form(tmp_path / "set", "a cat"), "datasets")
    more = {"streaming": True, "train_size": 4, "eval_size": 1} if streaming else {}
    found = load_train(config(**more), "captioning")
    assert {sample.captions for sample in found} == {("a cat",)}
    reds = {sample.image.load().getpixel((0, 0))[0] for sample in found}
    assert len(reds) == len(found) >= 3


@pytest.mark.slow
def test_a_revision(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = server.add(NAME, parquet(tmp_path / "one", "a cat"), "datasets")
    second = server.add(NAME, parquet(tmp_path / "two", "a dog"), "datasets", revision="v2")
    assert captions(revision="v2") == {"a dog"}
    offline(monkeypatch)
    assert captions(revision="v2") == captions(revision=second) == {"a dog"}
    (problem,) = problems_of(config(revision=first), "captioning")  # `datasets` would take what is there
    assert re.search(rf"the hub gives none of data\.revision={first}, and what the cache has is {second}", problem)


@pytest.mark.slow
def test_offline_with_a_filled_cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(NAME, parquet(tmp_path / "set", "a cat"), "datasets")
    captions()
    offline(monkeypatch)
    server.asked.clear()
    assert captions() == {"a cat"}
    assert not server.asked


def private(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    server.add(NAME, parquet(tmp_path / "set", "a cat"), "datasets", private=True)
    return config()


def gated(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    server.add(NAME, parquet(tmp_path / "set", "a cat"), "datasets", gated=True)
    return config()


def absent(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return config()


def no_revision(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    server.add(NAME, parquet(tmp_path / "set", "a cat"), "datasets")
    return config(revision="v7")


def no_split(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    server.add(NAME, parquet(tmp_path / "set", "a cat"), "datasets")
    found = config()
    found.train = "trian"
    return found


def not_cached(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    offline(monkeypatch)
    return config()


def silent(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(hub_client, "WAIT", 0.2)
    server.add(NAME, parquet(tmp_path / "set", "a cat"), "datasets")
    server.silent = ("/datasets", "/api")
    return config()


def stalls(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(hub_client, "WAIT", 0.2)
    server.add(NAME, parquet(tmp_path / "set", "a cat", 400), "datasets")
    server.stalls["data/train-00000-of-00001.parquet"] = 5000
    return config()


WANTED = r"no data set 'me/cats', split 'train': "
ELSEWHERE = r"; set data\.path=FOLDER to a local copy in the hub's layout, or data=files data\.train=FILE"
CASES: list[tuple[Case, str]] = [
    (private, WANTED + r"http://\S+ has no me/cats, or it is private: log in with hf auth login, or set HF_TOKEN" + ELSEWHERE),
    (absent, WANTED + r"http://\S+ has no me/cats, or it is private: .*" + ELSEWHERE),
    (gated, WANTED + r"me/cats is gated: ask for access at http://\S+/datasets/me/cats, and log in .*" + ELSEWHERE),
    (no_revision, WANTED + r"me/cats has no revision v7 \(data\.revision\)" + ELSEWHERE),
    (no_split, r"data set 'me/cats', split 'trian' cannot be loaded \(.*train.*\): check data\.path, data\.subset and .*"),
    (not_cached, WANTED + r"http://\S+ does not answer, or HF_HUB_OFFLINE is set, and the cache lacks me/cats \(.*\)" + ELSEWHERE),
    (silent, WANTED + r"http://\S+ (has stopped answering|does not answer).*" + ELSEWHERE),
    (stalls, WANTED + r"http://\S+ has stopped answering \(nothing has come for \d+ s\); .*" + ELSEWHERE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "line"),
    [pytest.param(*row, id=row[0].__name__, marks=() if row[0] is gated else pytest.mark.slow) for row in CASES],
)
def test_each_is_one_line(case: Case, line: str, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = problems_of(case(server, tmp_path, monkeypatch), "captioning")
    assert re.fullmatch(line, said), said


@pytest.mark.slow
@pytest.mark.parametrize("case", [private, gated])
def test_with_a_token_it_is_had(case: Case, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case(server, tmp_path, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert captions() == {"a cat"}


@pytest.mark.slow
def test_silence_with_a_filled_cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = silent(server, tmp_path, monkeypatch)
    server.silent = ()
    assert captions() == {"a cat"}
    server.silent = ("/datasets", "/api")
    assert len(load_train(wanted, "captioning")) == 6
