"""Reports in a real browser: Debian's Chromium, driven by the package playwright. Skipped where one of them is missing.

One run of each task, a sweep and a folder are trained for a moment and opened: sorted, filtered, images seen, by keyboard, in light
and dark, and as wide as a phone. Nothing may be asked of a network, and the console stays silent.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command, tiny_run
from vlatrain.config.folder import conf_dir, options_of
from vlatrain.verbs.report import report

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or ""
BACKBONES = {
    "retrieval": "tiny_clip",
    "classification": "tiny_vit",
    "segmentation": "tiny_vit",
    "instruct": "tiny_composite",
}
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="no package playwright")
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a page; at the end its console and what it has asked for are looked at."""
    said: list[str] = []
    contexts = []

    def open_page(path: Path, scheme: str = "light", size: dict[str, int] = DESK) -> Any:
        context = browser.new_context(color_scheme=scheme, viewport=size)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        page.goto(path.resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def seen(page: Any) -> int:
    """How many images are there, all of them decoded."""
    images = page.locator(".samples img")
    assert images.evaluate_all("(all) => all.every((one) => one.complete && one.naturalWidth > 0)")
    return int(images.count())


@pytest.mark.parametrize("task", options_of(conf_dir())["task"])
def test_a_run_of_each_task(task: str, tmp_path: Path, opened: Open) -> None:
    method = ["adapter=linear_probe"] if task == "segmentation" else []
    run = tiny_run(tmp_path / "run", task, f"model={BACKBONES.get(task, 'tiny_blip')}", *method)
    report([f"run={run}"])
    page = opened(run / "report.html")
    assert seen(page) >= 10
    assert page.locator("main svg[role=img]").count() >= 5
    cards = page.locator(".samples li")
    total = cards.count()
    for order in page.locator("[name=sort] option").all_text_contents():
        page.select_option("[name=sort]", label=order)
        assert cards.count() == total
    for choice in page.locator("[name=outcome] option").all_text_contents():
        page.select_option("[name=outcome]", label=choice)
        assert cards.count() <= total
    page.select_option("[name=outcome]", label="all")
    page.fill("[name=search]", "no sample says this")
    assert cards.count() == 0
    page.fill("[name=search]", "")
    assert cards.count() == total
    assert (page.locator(".legend li").count() > 2) == (task == "segmentation")
    for scheme, size in (("dark", DESK), ("light", PHONE), ("dark", PHONE)):
        other = opened(run / "report.html", scheme, size)
        assert other.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert seen(other) >= 10


def test_scores_are_sorted_filters_narrow_and_keys_move(tmp_path: Path, opened: Open) -> None:
    run = tiny_run(tmp_path / "run", "vqa")
    report([f"run={run}"])
    page = opened(run / "report.html")
    cards = page.locator(".samples li")
    page.select_option("[data-filter=topic]", index=1)
    chosen = page.locator("[data-filter=topic] option").nth(1).text_content()
    assert 0 < cards.count() < 10
    assert all(chosen in text for text in page.locator(".samples .id").all_text_contents())
    page.select_option("[data-filter=topic]", index=0)
    page.select_option("[name=sort]", label="surest first")
    sure = [float(text.split()[-2]) for text in page.locator(".samples .sure").all_text_contents()]
    assert sure == sorted(sure, reverse=True)
    page.locator(".samples button").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    before = dialog.locator(".id").text_content()
    page.keyboard.press("ArrowRight")
    assert dialog.locator(".id").text_content() != before
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    assert page.evaluate("document.activeElement.className") == "sample"
    dark = opened(run / "report.html", "dark")
    backgrounds = [one.evaluate("getComputedStyle(document.body).backgroundColor") for one in (page, dark)]
    assert backgrounds[0] != backgrounds[1]
    inks = [
        one.locator("#curves svg text").first.evaluate("(text) => getComputedStyle(text).fill") for one in (page, dark)
    ]
    assert inks[0] != inks[1]


PAPER = {"width": 696, "height": 1000}  # what A4 has between its margins
SAID = "h1, h2, h3, th, td, dt, dd, figcaption, .sub, .refs, .ask, .legend li, .note"


def printed(opened: Open, path: Path, folder: Path) -> str:
    """A page as its PDF says it, printed from a dark screen; nothing of it is cut off, or white on white."""
    page = opened(path, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size(PAPER)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colours = "(one) => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]"
    assert page.locator("body").evaluate(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    for text in page.locator("svg text").evaluate_all("(all) => all.map((one) => getComputedStyle(one).fill)"):
        assert sum(map(int, re.findall(r"\d+", text)[:3])) < 400, f"{text} on white"
    page.pdf(path=folder / "page.pdf", format="A4")
    words = {word for text in page.locator(SAID).all_inner_texts() for word in text.split()}
    text = subprocess.run(["pdftotext", folder / "page.pdf", "-"], capture_output=True, text=True, check=True).stdout
    assert len(words) > 40
    assert {word for word in words if re.fullmatch(r"[\w.,%]{1,30}", word) and word not in text} == set()
    return text


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no poppler-utils on this machine")
def test_what_is_printed_is_whole_and_black_on_white(tmp_path: Path, opened: Open) -> None:
    run = tiny_run(tmp_path / "runs" / "a", "segmentation", "model=tiny_vit", "adapter=linear_probe")
    report([f"run={run}"])
    text = printed(opened, run / "report.html", tmp_path)
    for shown in ("Predictions", "10 of 10", "background", "reference:"):
        assert shown in text
    assert "Search" not in text, "what is to be typed into is not printed"
    for number, rate in enumerate(("0.001", "0.002")):
        name = f"a_run_with_a_rather_long_name_{number}"
        words = (f"optim.lr={rate}", f"seed={number}", f"adapter.dim={4 + number}", f"optim.clip={1 + number}")
        tiny_run(tmp_path / "runs" / name, "vqa", *words)
    report([f"run={tmp_path / 'runs'}"])
    assert "Score against cost" in printed(opened, tmp_path / "runs" / "report.html", tmp_path)


def test_captions_are_filtered_by_confidence(tmp_path: Path, opened: Open) -> None:
    run = tiny_run(tmp_path / "run", "captioning")
    report([f"run={run}"])
    page = opened(run / "report.html")
    cards = page.locator(".samples li")
    total, parts = cards.count(), []
    for choice in page.locator("[name=sure] option").all_text_contents():
        page.select_option("[name=sure]", label=choice)
        parts.append(cards.count())
    assert parts[0] == total == sum(parts[1:])
    page.select_option("[name=sure]", label="any")
    page.select_option("[name=sort]", label="least sure first")
    sure = [float(text.split()[-2]) for text in page.locator(".samples .sure").all_text_contents()]
    assert sure == sorted(sure)
    assert len(sure) == total


def test_a_sweep_and_a_folder(tmp_path: Path, opened: Open) -> None:
    sizes = ["data.train_size=24", "data.eval_size=10", "trainer.max_steps=3", "trainer.batch_size=8"]
    words = ["-m", "adapter=bottleneck,none", "seed=0,1", *sizes, f"run.dir={tmp_path / 'runs'}"]
    assert command(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}") == 0
    for folder in (tmp_path / "sweep", tmp_path / "runs"):
        report([f"run={folder}"])
        page = opened(folder / "report.html")
        table = page.locator("#runs table")
        assert table.locator("tbody tr").count() == 4
        heads = table.locator("th button")
        place = heads.all_text_contents().index("score")
        heads.nth(place).press("Enter")
        scores = [
            float(text.split()[0]) for text in table.locator(f"tbody tr > :nth-child({place + 1})").all_text_contents()
        ]
        assert scores == sorted(scores)
        assert page.locator("section svg[role=img]").count() >= 6
        assert page.locator("table.methods tbody tr").count() == 2
        with page.expect_download() as download:
            page.locator("a[download]").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == 5
        phone = opened(folder / "report.html", "dark", PHONE)
        assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
