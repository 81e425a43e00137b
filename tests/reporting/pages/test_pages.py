"""Whole pages, as text: tests/reporting/pages/test_browser.py opens them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.reporting.pages.folders import HOSTILE, answers, config_of, made_run
from vlatrain.config import UserError
from vlatrain.config.saved import typed
from vlatrain.data.masks import as_text
from vlatrain.data.sample import fingerprint
from vlatrain.data.subtasks import load_run
from vlatrain.reporting import pages
from vlatrain.reporting.pages import report_at_end, write_report

SHAPES = ("data.train_size=4", "data.eval_size=3")


def text_of(*folders: Path) -> str:
    path, _ = write_report([*folders], folders[0].parent / "page.html")
    return path.read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, object]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return dict(json.loads(text))


def test_a_page_needs_nothing_outside_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    page = text_of(made_run(tmp_path / "run", answers(), images=6))
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page.split("<script")[0])
    assert all(link.startswith(("data:", "#")) for link in links)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page
    assert "default-src &#39;none&#39;" in page


def test_what_models_say_stays_text(tmp_path: Path, undrawn: None) -> None:
    records = [
        {**record, "prediction": HOSTILE, "question": HOSTILE, "columns": {HOSTILE: HOSTILE}} for record in answers()
    ]
    page = text_of(made_run(tmp_path / HOSTILE.replace("/", "_"), records))
    assert "<script>alert" not in page
    assert data_of(page)["records"][0]["question"] == HOSTILE  # type: ignore[index]


def test_it_shows_scores_beside_what_they_beat(tmp_path: Path, undrawn: None) -> None:
    page = text_of(made_run(tmp_path / "run", answers(), frozen={"metrics": {"accuracy": 12.0}}))
    for shown in (
        "50.00 %",
        "40.00 to 60.00",
        "30.00 most frequent answer",
        "12.00",
        "always &#39;dog&#39;",
        "Trainable parameters",
    ):
        assert shown in page


def test_masks_have_a_legend_of_the_classes_in_them(tmp_path: Path, undrawn: None) -> None:
    mask = {"id": "a", "prediction": "sky", "references": ["sky"], "score": 70.0, "mask": as_text(np.diag([2, 0]))}
    about = {"classes": ["sky", "cat", "<dog>"], "spec": {"fields": ["mask"]}}
    made_run(tmp_path / "run", [mask])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["task"] |= about
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    legend = re.findall(r'--colour: ([^"]*)"></span>([^<]*)</li>', text_of(tmp_path / "run"))
    assert [name for _, name in legend] == ["sky", "&lt;dog&gt;"]
    assert legend[0][0].endswith("/ 0.00)")
    assert 'class="legend"' not in text_of(made_run(tmp_path / "other", answers()))


@pytest.mark.parametrize(
    "broken", ["metrics.json", "metrics.jsonl", "predictions.jsonl", "config.yaml", "run.json", "data.json"]
)
def test_a_damaged_run_has_its_page(broken: str, tmp_path: Path, undrawn: None) -> None:
    run = made_run(tmp_path / "run", answers())
    (run / broken).write_bytes(b'{"a": \xff\x00')
    page = text_of(run)
    assert broken == "data.json" or broken in page


def test_a_run_that_was_stopped_has_its_page(tmp_path: Path, undrawn: None) -> None:
    page = text_of(made_run(tmp_path / "run", metrics=None))
    assert "stopped at step 20 of 20" in page
    assert "There are no predictions" in page


def test_evaluations_without_adapters_of_low_layers_are_a_plot(tmp_path: Path, undrawn: None) -> None:
    run = made_run(tmp_path / "run")
    for dropped in (0, 1):
        made_run(
            run / "evaluations" / f"eval-{dropped}", overrides=[f"adapter.drop_layers={dropped}"],
            metrics={"accuracy": 50.0 - dropped}, speed={"samples_per_s": 100.0 + dropped, "wall_s": 1.0},
            split="eval", samples=6,
        )  # fmt: skip
    page = text_of(run)
    assert "AdapterDrop: speed against score" in page
    assert "adapter.drop_layers=1" in page


def test_images_that_are_no_files_are_made_again_if_they_are_the_same(tmp_path: Path, undrawn: None) -> None:
    samples = load_run(typed(config_of(*SHAPES), ""), ["eval"])["eval"]
    records = [{**record, "image": None, "id": sample.id} for record, sample in zip(answers(3), samples, strict=True)]
    same = made_run(tmp_path / "same", records, SHAPES, data={"eval": fingerprint(samples)})
    assert len(data_of(text_of(same))["thumbs"]) == 3  # type: ignore[arg-type]
    page = text_of(made_run(tmp_path / "another", records, SHAPES))
    assert data_of(page)["thumbs"] == []
    assert "no longer what it was scored on" in page


def test_without_its_packages_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "missing", lambda: ["matplotlib"])
    with pytest.raises(UserError, match=r"needs matplotlib: pip install 'vlatrain\[report\]'"):
        write_report([made_run(tmp_path / "run")])
    report_at_end(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


def test_at_the_end_of_a_run_it_is_a_warning_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = made_run(tmp_path / "run")
    monkeypatch.setattr(pages, "write_report", lambda *_, **__: 1 / 0)
    report_at_end(run)
    assert "No report was written (ZeroDivisionError" in caplog.text


@pytest.mark.slow
def test_a_large_run_stays_small(tmp_path: Path) -> None:
    import numpy as np

    count, noise = 3000, np.random.default_rng(0)
    records = [
        {**record, "question": "what " * 100, "references": ["word " * 100]} for record in answers(count, range(count))
    ]
    run = made_run(tmp_path / "run", records)
    (run / "images").mkdir()
    for number in range(count - 900, count):
        pixels = noise.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(run / "images" / f"{number}.png", compress_level=1)
    path, _ = write_report([run])
    assert path.stat().st_size < 20_000_000
    assert "of 3,000 predictions are shown" in path.read_text()
    assert "to keep the page small" in path.read_text()
