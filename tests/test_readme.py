"""The READMEs: their size, their links and paths, their tables, what they show as output, and every command line in them."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_compose import served
from tests.commands import tiny_run
from vlatrain.cli import main as cli
from vlatrain.cli.call import resolved
from vlatrain.cli.compose import composed, prepare
from vlatrain.cli.overrides import Request
from vlatrain.config.checks import queries
from vlatrain.config.folder import RECIPES, conf_dir, options_of
from vlatrain.reporting.console import Console
from vlatrain.runs import baselines, save_config
from vlatrain.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GUIDES = [README, ROOT / "CONTRIBUTING.md", *(ROOT / name / "README.md" for name in ("conf", "scripts"))]
GUIDES += sorted((ROOT / "vlatrain").rglob("README.md"))
NAMES = [path.relative_to(ROOT).as_posix() for path in GUIDES]
#: What stands for a choice of the reader's.
PLACEHOLDERS = {
    "model=NAME": "model=blip", "adapter=NAME": "adapter=bottleneck", "prune=NAME": "prune=all",
    "adapter.points=[decoder.A-B]": "adapter.points=[decoder.1-2]",
}  # fmt: skip


def blocks(path: Path, language: str = "") -> list[str]:
    """The blocks of code in a file that are in a language; without one, what is shown as output."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for written, block in found if written == language]


def prose(path: Path) -> str:
    """A file without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# Size, links, tables


def test_the_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []
    assert [line.split("#")[0].strip() for line in blocks(README, "bash")[0].splitlines()] == ["make run", "make test"]


def anchors(path: Path) -> set[str]:
    """What the headings of a file are reached by."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_and_paths_are_there(name: str) -> None:
    path = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for named in re.findall(r"`((?:conf|vlatrain|tests|scripts|\.ci)/[\w./*-]*)`", prose(path)):
        if not re.search(r"[A-Z]{4}\.(?:py|yaml)$", named):  # NAME.yaml is to be made
            assert list(ROOT.glob(named.rstrip("/"))), named


@pytest.mark.parametrize("group", ["task", "model", "adapter"])
def test_its_tables_have_every_choice(group: str) -> None:
    row = r"^\| (.*?) \|" if group != "adapter" else r"^\| [^|`]*\| (.*?) \|"
    (table,) = re.findall(rf"^\| (?:[a-z]+ \| )?`{group}=`.*?\n\n", README.read_text(), re.MULTILINE | re.DOTALL)
    cells = re.findall(row, table, re.MULTILINE)
    shown = {choice for cell in cells for choice in re.findall(r"`(\w+)`", cell)}
    assert shown == set(options_of(conf_dir())[group])


def test_its_table_of_backbones_says_what_they_do() -> None:
    (table,) = re.findall(r"^\| `model=`.*?\n\n", README.read_text(), re.MULTILINE | re.DOTALL)
    tasks = options_of(conf_dir())["task"]
    for models, cell in re.findall(r"^\| (`.*?`) \| (.*?) \|$", table.partition("\n")[2], re.MULTILINE):
        shown = {task for task in tasks if re.search(rf"\b{task}\b", cell.lower())}
        for model in re.findall(r"`(\w+)`", models):
            beside = {"instruct"} if "composite" in model else set()  # of the language model, in a file of its own
            assert shown == {*served(model), *beside}, model


def test_scripts_and_targets_named_are_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make ([\w-]+)", all_commands(), re.MULTILINE)) <= set(targets)
    for script in re.findall(r"^python3? (scripts/\S+)", all_commands(), re.MULTILINE):
        assert (ROOT / script).is_file(), script


# What is shown as output


def shape(text: str) -> list[str]:
    """Lines of output without numbers, names of runs, and widths; of progress told several times, one line."""
    text = re.sub(r"\d{8}-\d{6}-\w{4}", "NAME", text)
    text = re.sub(r"\b\d+ (?:min \d+ s|s) left", "TIME left", text)
    text = re.sub(r"\d[\d,]*(?:\.\d+)?", "0", text)
    lines = [re.sub(r"([━─])\1*", r"\1", re.sub(r"\s+", " ", line)).strip() for line in text.splitlines()]
    lines = [
        line for line in lines if not line.endswith("left") or re.match("training.* samples/s", line)
    ]  # known later
    return list(dict.fromkeys(line for line in lines if line))


def test_the_first_command_says_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reports: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Console, "__init__", functools.partialmethod(Console.__init__, interval=0.0))
    monkeypatch.setattr(baselines, "CLOSE", -1000.0)  # as after a whole training, the score is above its baseline
    sizes = [
        "data.train_size=16",
        "data.eval_size=4",
        "trainer.max_steps=4",
        "trainer.batch_size=4",
        "trainer.device=cpu",
    ]
    assert cli.main(sizes) == 0
    told = capsys.readouterr()
    shown = shape(blocks(README)[0])
    real = shape(told.err + told.out)
    assert shown == real[: len(shown)]
    run = next((tmp_path / "outputs" / "vqa" / "tiny_blip").iterdir())
    listed = re.findall(r"^  ([\w.]+) {2,}\S", told.out, re.MULTILINE)
    assert {*listed, "checkpoints", "manifest.json", "run.json"} == {path.name for path in run.iterdir()}
    guide = (ROOT / "vlatrain" / "training" / "README.md").read_text(encoding="utf-8")
    for path in run.iterdir():
        assert f"| `{path.name}{'/' * path.is_dir()}` |" in guide


@pytest.mark.parametrize("name", ["README.md", "conf/README.md"])
def test_a_typo_is_refused_as_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in blocks(ROOT / name) if block.startswith("$ vlatrain"))
    line, *shown = block.splitlines()
    assert cli.main(shlex.split(line)[2:]) == 2
    assert capsys.readouterr().err.splitlines() == shown


def test_shown_counts_are_those_of_the_audit() -> None:
    audit = (ROOT / "scripts" / "audit.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^vlatrain inspect experiment=\S*/(\w+) +# +([\d,]+).*published ([\d.]+)", all_commands(), re.M)
    assert len(found) == 3
    for recipe, count, published in found:
        rows = re.findall(rf"recipe: {recipe}\b(.*?)(?:- \{{|- name|- title|\Z)", audit, re.DOTALL)
        assert any(f"trainable: {count.replace(',', '')}" in row and published in row for row in rows), recipe


# Command lines


def all_commands() -> str:
    return "\n".join(block for path in GUIDES for block in blocks(path, "bash"))


def lines_of(path: Path) -> Iterator[str]:
    """The command lines in a file, those in its prose, too, where they are whole."""
    spans = [" ".join(span.split()) for span in re.findall(r"`(vlatrain [^`]*=[^`]*)`", prose(path))]
    for line in [*"".join(blocks(path, "bash")).splitlines(), *spans]:
        if line.startswith("vlatrain ") and "..." not in line and not line.endswith("run=FOLDER"):
            yield line


def cells() -> list[object]:
    """Each command line once, as its words."""
    found: dict[tuple[str, ...], object] = {}
    for path, name in zip(GUIDES, NAMES, strict=True):
        for number, line in enumerate(lines_of(path)):
            words = tuple(shlex.split(line, comments=True)[1:])
            marks = [] if path == README and number in (2, 4) else [pytest.mark.slow]
            found.setdefault(words, pytest.param(words, id=f"{name}-{number}", marks=marks))
    return list(found.values())


def run_of(folder: Path, words: list[str]) -> None:
    """The configuration of a finished run, for a command line that asks about it."""
    keys = {word.partition("=")[0] for word in words}
    task = "joint" if "subtask" in keys else "retrieval" if keys & {"text", "texts"} else "vqa"
    if "draw" in keys:
        task = "grounding"
    elif "image" in keys and not keys & {"question", "text", "texts", "subtask"}:
        task = "classification"
    config = composed("train", [f"task={task}", f"run.dir={folder}", "trainer.batch_size=4", "trainer.accumulate=1"])
    save_config(resolved("train", config), folder)


def finished(name: str) -> None:
    """A finished run in the working folder, of the method that its name tells of."""
    if name == "FUSION":
        finished("RUN1")
        finished("RUN2")
    method = {"FUSION": ["adapter=fusion", "adapter.sources=[RUN1,RUN2]"], "LORA_RUN": ["adapter=lora"]}
    method["RUN2"] = ["seed=1"]  # a router refuses two runs with the same adapter
    tiny_run(Path(name), "vqa", *method.get(name, []))


@pytest.mark.parametrize("shown", cells())
def test_command_lines_compose(
    shown: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queries, "is_conversation", lambda config: config.asks_nothing)  # as in a terminal
    words = [PLACEHOLDERS.get(word, word) for word in shown]
    for group, base in (("adapter", "bottleneck"), ("model", "blip")):
        (tmp_path / "my_conf" / group).mkdir(parents=True)
        (tmp_path / "my_conf" / group / "mine.yaml").write_text(json.dumps({"defaults": [base, "_self_"]}))
    for word in words:
        value = word.partition("=")[2]
        for file in re.findall(r"[\w/]+\.(?:jsonl?|jpg|csv)\b", value):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        if value.endswith("/") or re.fullmatch(r"data\.root=[\w/]+", word):
            (tmp_path / value).mkdir(parents=True)
        elif re.fullmatch(r"data\.(?:train|eval)=\w+/\w+", word):  # class folders
            (tmp_path / value / "rose").mkdir(parents=True)
            (tmp_path / value / "rose" / "1.jpg").touch()
        if word.startswith("run=") and words[0] in ("merge", "export"):
            finished(value)
        elif word.startswith("run="):
            run_of(Path(value), words)
        for source in re.findall(r"\b[A-Z_]+\d?\b", value) if "sources" in word else ():
            finished(source)
    verb, rest = cli.split_verb(words)
    if VERBS[verb].plain or "--cfg" in rest:
        assert cli.main(words) == 0
        return
    arguments, _ = cli._parsed(rest)
    request = Request(verb, list(arguments.overrides), arguments.multirun, arguments.config_dir)
    prepare(request, cli._check_compatibility)


def test_every_recipe_named_exists() -> None:
    known = set(options_of(conf_dir())[RECIPES])
    assert {name for path in GUIDES for name in re.findall(r"experiment=([a-z_/\d]+)", path.read_text())} <= known
