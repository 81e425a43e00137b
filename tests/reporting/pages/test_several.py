from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import pytest

from tests.reporting.pages.folders import answers, made_run
from vlatrain.reporting.pages.methods import markdown, methods_table
from vlatrain.reporting.pages.reading import Snapshot, select, snapshot
from vlatrain.reporting.pages.several import content, front, over_seeds, varied_keys


@pytest.fixture
def runs(tmp_path: Path) -> list[Snapshot]:
    """Two widths, two seeds; a larger width scores and costs more."""
    made = []
    for dim in (4, 16):
        for seed in (0, 1):
            folder = tmp_path / "runs" / f"{dim}-{seed}"
            score = {
                "metrics": {"accuracy": 40.0 + dim + 2 * seed},
                "parameters": {"percent": dim / 4, "trainable": dim, "total": 400},
            }
            made_run(
                folder,
                answers(wrong=(dim % 5, seed)),
                [f"adapter.dim={dim}", f"seed={seed}", f"run.name={dim}"],
                images=6,
                **score,
            )
            made.append(snapshot(folder))
    return made  # fmt: skip


@pytest.mark.parametrize(
    ("points", "higher", "expected"),
    [
        ([(1, 50), (2, 60), (3, 55), (2, 40)], True, [0, 1]),
        ([(1, 50), (1, 50), (1, 60)], True, [2]),
        ([(1, 5.0), (2, 4.0), (3, 4.5)], False, [0, 1]),
        ([(1, 50), (1, 50)], True, [0, 1]),
        ([], True, []),
    ],
)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]], higher: bool, expected: list[int]) -> None:
    assert front(points, higher) == expected


def test_what_was_varied_is_what_was_typed_and_differs(runs: list[Snapshot]) -> None:
    assert varied_keys(runs) == ["adapter.dim", "seed"]
    assert varied_keys(runs[:2]) == ["seed"]


def test_means_over_seeds(runs: list[Snapshot]) -> None:
    first, second = over_seeds(runs, varied_keys(runs))
    assert first == {"what": "adapter.dim=4", "mean": "45.00 %", "deviation": "1.41", "runs": 2}
    assert second["mean"] == "57.00 %"
    assert not [*over_seeds(runs, ["adapter.dim"])]


def test_the_page_of_several_has_all_of_them(runs: list[Snapshot], tmp_path: Path, undrawn: None) -> None:
    made_run(tmp_path / "runs" / "stopped", metrics=None)
    shown = content(select([tmp_path / "runs"]), tmp_path / "report.html")
    assert shown["states"] in ("4 finished, 1 stopped", "1 stopped, 4 finished")
    (group,) = shown["groups"]
    assert group["best"].endswith("58.00 %")
    assert len(group["fronts"]) == 3
    assert len(group["strips"]) == 2
    assert group["disagreements"]["said"].startswith("The 4 best runs disagree on 3 of 6 samples")
    address = shown["csv"].partition("base64,")[2]
    lines = [*csv.DictReader(io.StringIO(base64.b64decode(address).decode()))]
    assert {line["metrics.accuracy"] for line in lines} == {"44.0", "46.0", "56.0", "58.0", ""}
    assert {line["adapter.dim"] for line in lines if line["score"]} == {"4", "16"}


def test_the_table_of_methods(tmp_path: Path) -> None:
    for number, (method, score) in enumerate(
        [("none", 10.0), ("bottleneck", 30.0), ("bottleneck", 50.0), ("full", 80.0)]
    ):
        speed = {"samples_per_s": 0.0 if method == "none" else 12.4, "wall_s": 7.6}
        made_run(
            tmp_path / str(number), overrides=[f"adapter={method}", f"seed={number}"], time=f"2026-01-01T00:00:0{number}",
            metrics={"accuracy": score}, speed=speed,
        )  # fmt: skip
    tried = ["adapter=bottleneck", "optim.lr=1", "seed=4"]
    made_run(tmp_path / "4", overrides=tried, time="2026-01-01T00:00:04", metrics={"accuracy": 1.0})
    table = methods_table([snapshot(tmp_path / str(number)) for number in (4, 3, 2, 1, 0)])
    assert table == [  # without what was tried and is worse
        ["vqa", "none", "10.0", "12.5 %", "1.00 %", "-", "610", "8"],
        ["vqa", "bottleneck", "40.0", "50.0 %", "1.00 %", "12", "610", "8"],
        ["vqa", "full", "80.0", "100.0 %", "1.00 %", "12", "610", "8"],
    ]
    assert markdown(table).splitlines()[0].startswith("| task | method | metric | of full |")
    assert methods_table([snapshot(tmp_path / "1"), snapshot(tmp_path / "2")]) == []
