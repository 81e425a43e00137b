"""The package from Python: what it exports, that importing it is quick, and the examples of its README."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import vlatrain
from tests.commands import tiny_run

ROOMS = {path.name.removesuffix(".py") for path in Path(vlatrain.__file__).parent.iterdir()}


def test_what_is_exported() -> None:
    assert all(getattr(vlatrain, name) for name in vlatrain.__all__)
    assert not set(vlatrain.__all__) & ROOMS, "a function and a room of one name would hide each other"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(vlatrain, "nothing")  # noqa: B009, it is the point


def test_importing_it_imports_little() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import vlatrain\n"
        "print({'torch', 'hydra', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.slow  # in `.ci/run` all the same
def test_the_examples_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(vlatrain.__file__).parent / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(code) == 8
    names: dict[str, object] = {}
    for example in code:
        exec(compile(example, "README.md", "exec"), names)
    assert names["run"] == names["newest"]
    assert [outcome.failure for outcome in names["outcomes"]] == ["", ""]
    assert len(names["answers"]) == 2
    assert names["record"]["prediction"] == names["hit"].text


def test_a_configuration_of_nothing_is_refused() -> None:
    from vlatrain.config import TrainConfig

    with pytest.raises(vlatrain.UserError, match=r"make it by vlatrain\.compose"):
        vlatrain.train(TrainConfig())
    config = vlatrain.compose("task=vqa")
    config.adapter.dim = 0
    config.optim.lr = -1.0
    with pytest.raises(vlatrain.UserError) as refused:
        vlatrain.train(config)
    assert len(refused.value.problems) == 2
    with pytest.raises(vlatrain.UserError, match=r"adapter\.dmi"):
        vlatrain.compose("adapter.dmi=3")


@pytest.mark.slow
def test_a_search_from_python(tmp_path: Path) -> None:
    predictor = vlatrain.load(tiny_run(tmp_path / "run", "retrieval", "model=tiny_clip"))
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "red.png")
    encoded = io.BytesIO()
    blue.save(encoded, "PNG")
    mixed = [tmp_path / "red.png", encoded.getvalue(), red]
    assert [hit.text for hit in predictor.predict(mixed, text="a ring", top_k=3)]
    one = predictor.predict(red, texts=["a ring", "a house"], top_k=2)
    assert {hit.text for hit in one} == {"a ring", "a house"}
    together = predictor.predict(mixed, texts=["a ring", "a house"], top_k=2)[2]
    assert [hit.text for hit in together] == [hit.text for hit in one]
    assert [hit.score for hit in together] == pytest.approx([hit.score for hit in one], abs=1e-5)
    for query, told in (
        ({}, "matches images and texts"),
        ({"question": "?", "text": "a"}, "question= is for"),
    ):
        with pytest.raises(vlatrain.UserError, match=told):
            predictor.predict(red, **query)
    for wrong, told in (
        (b"no image", "image 0"),
        ("no.png", "no such file"),
        (3, "a PIL image, bytes or a path is needed"),
    ):
        with pytest.raises(vlatrain.UserError, match=told):
            predictor.predict(wrong, texts=["a"])
