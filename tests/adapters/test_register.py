"""A design from outside the package: the example of vlatrain/adapters/README.md, taken from there and run as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vlatrain import adapters
from vlatrain.adapters import Adapter, Bottleneck, register

README = Path(adapters.__file__).with_name("README.md")
ROOT = README.parents[2]


def blocks() -> tuple[dict[str, str], list[str]]:
    """The example's files by name, each block with the name in front of it, and its command lines."""
    text = README.read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w./]+)`: [^`]*?\n\n```\w+\n(.*?)```", text, re.MULTILINE | re.DOTALL))
    (commands,) = re.findall(r"```bash\n(python .*?)```", text, re.DOTALL)
    return files, commands.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("example")
    for name, content in blocks()[0].items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(content)
    return made


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_example_has_its_files_and_commands() -> None:
    files, commands = blocks()
    assert set(files) == {"my_train.py", "my_conf/adapter/swish.yaml", "my_load.py"}
    assert len(commands) == 3


@pytest.mark.slow
def test_the_example_trains_evaluates_inspects_and_loads(folder: Path) -> None:
    train, *others = (shlex.split(line)[1:] for line in blocks()[1])
    ran = run(folder, *train, "trainer.max_steps=2", "data.train_size=16", "data.eval_size=8")
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((folder / "my_run" / "metrics.json").read_text())
    assert (metrics["adapter"], metrics["training"]["steps"]) == ("swish", 2)
    points = json.loads((folder / "my_run" / "adapter" / "adapter_config.json").read_text())["points"]
    assert metrics["parameters"]["trainable"] == len(points) * (Bottleneck.count(128, 8) + 1)
    for words in others:
        done = run(folder, *words)
        assert done.returncode == 0, done.stderr
    loaded = run(folder, "my_load.py")
    assert loaded.stdout == f"{len(points)} adapters of ours\n", loaded.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapter.options.gamma=1"], "adapter=swish: has no option gamma; it has dim, scaling, beta"),
        (["adapter.dim=0"], "adapter.dim=0"),
        pytest.param(["adapter.activation=gelu"], "adapter=swish: ", marks=pytest.mark.slow),
        (["adapter.points=[vision.99.*]"], "matches nothing"),
    ],
)
def test_wrong_options_are_a_users_error(folder: Path, words: list[str], said: str) -> None:
    ran = run(folder, "my_train.py", "--config-dir", "my_conf", "adapter=swish", "experiment=smoke", *words)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_without_its_registration_it_is_refused_by_name(folder: Path) -> None:
    ran = run(folder, "-m", "vlatrain", "--config-dir", "my_conf", "adapter=swish", "experiment=smoke")
    assert ran.returncode == 2
    assert "adapter.name=swish is unknown" in ran.stderr


def test_a_name_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "DESIGNS", dict(adapters.DESIGNS))

    class Mine(Adapter):
        pass

    register("mine", Mine)
    register("mine", Mine)  # again does nothing
    with pytest.raises(ValueError, match="there is a design 'bottleneck' already: Bottleneck"):
        register("bottleneck", Mine)


def test_options_are_a_dataclass() -> None:
    class Untold(Adapter):
        Options = dict

    with pytest.raises(ValueError, match=r"Untold\.Options: must be a dataclass"):
        register("untold", Untold)
