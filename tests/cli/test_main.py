from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.hydra import Hydra

from tests.conftest import model_config
from vlatrain import verbs
from vlatrain.cli import main as cli
from vlatrain.cli.help import WIDEST
from vlatrain.config import EvalConfig, PredictConfig, TrainConfig, UserError
from vlatrain.config.folder import conf_dir, options_of
from vlatrain.config.spec import shipped_spec
from vlatrain.runs import named, run_folder, save_config
from vlatrain.verbs import VERBS, Verb

METHODS = options_of(conf_dir())["adapter"]

METRICS = {
    "metric": "accuracy",
    "metrics": {"accuracy": 81.25},
    "parameters": {"percent": 2.5},
    "speed": {"samples_per_s": 123.4},
    "memory": {"peak_mb": 812.0},
}


class Calls:
    """Stands for training, inference and reporting: records the configurations it is called with."""

    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.act: Callable[[Any], None] = lambda config: None

    def __call__(self, config: Any) -> Any:
        self.configs.append(config)
        folder = run_folder(named(config))
        if type(config) is TrainConfig:
            trainer = replace(config.trainer, batch_size=4, accumulate=1)  # as a training has found them
            save_config(replace(config, trainer=trainer), folder)
        self.act(config)
        return types.SimpleNamespace(folder=folder, metrics=METRICS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    made = Calls()
    module = types.ModuleType("fake_calls")
    module.call = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_calls", module)
    monkeypatch.setattr(verbs, "VERBS", dict.fromkeys(verbs.VERBS, Verb("", "fake_calls.call")))
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    return made


def problems(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The problems that a command line is refused with."""
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return [line.removeprefix("error ") for line in told.splitlines()]


# Verbs and dispatch


@pytest.mark.parametrize(
    ("argv", "verb", "rest"),
    [
        ([], "train", []),
        (["task=vqa"], "train", ["task=vqa"]),
        (["-m", "task=vqa"], "train", ["-m", "task=vqa"]),
        (["~logger"], "train", ["~logger"]),
        (["+experiment=smoke"], "train", ["+experiment=smoke"]),
        (["train"], "train", []),
        (["eval", "run=x"], "eval", ["run=x"]),
    ],
)
def test_the_verb_leads(argv: list[str], verb: str, rest: list[str]) -> None:
    assert cli.split_verb(argv) == (verb, rest)


def test_an_unknown_verb_is_refused_with_what_was_meant(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(capsys, "trian") == [
        "trian: no such verb; there are train, eval, predict, merge, export, inspect, check, report, cache; did you mean train?"
    ]


def test_training_gets_a_typed_configuration_and_a_name(calls: Calls, tmp_path: Path) -> None:
    assert cli.main(["adapter.dim=32", "task=captioning", "optim.groups.head=1e-4"]) == 0
    (config,) = calls.configs
    assert type(config) is TrainConfig
    assert (config.adapter.dim, config.task.name, config.optim.groups) == (32, "captioning", {"head": 1e-4})
    assert run_folder(config).parent == Path("outputs/captioning/tiny_blip")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]  # Hydra leaves nothing of its own
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["captioning"]


def test_a_single_run_is_composed_once(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    composed, compose = [], Hydra.compose_config
    monkeypatch.setattr(
        Hydra, "compose_config", lambda *args, **words: composed.append(words) or compose(*args, **words)
    )
    assert cli.main(["seed=3"]) == 0
    assert len(composed) == len(calls.configs) == 1


def test_full_fine_tuning_has_its_own_rate_and_the_user_the_last_word(calls: Calls) -> None:
    for argv in (["adapter=full"], ["adapter=full", "optim.lr=3e-5"], []):
        assert cli.main(argv) == 0
    assert [config.optim.lr for config in calls.configs] == [3e-4, 3e-5, 3e-3]


def test_inspect_takes_what_train_takes(calls: Calls, tmp_path: Path) -> None:
    assert cli.main(["inspect", "model=blip", "adapter=lora"]) == 0
    assert (calls.configs[0].model.name, calls.configs[0].adapter.name) == ("blip", "lora")


@pytest.mark.slow
def test_flags_may_stand_between_overrides(calls: Calls) -> None:
    assert cli.main(["adapter.dim=1,2", "-m", "seed=3"]) == 0
    assert [(config.adapter.dim, config.seed) for config in calls.configs] == [(1, 3), (2, 3)]


# Everything wrong is told


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["adapter.dmi=3", "+adapter.dmi=3", "++adapter.dmi=3", "lr=3", "adaptr=lora", "+foo=3"],
            [
                "adapter.dmi=3: there is no key adapter.dmi; did you mean adapter.dim?",
                "+adapter.dmi=3: there is no key adapter.dmi; did you mean adapter.dim?",
                "++adapter.dmi=3: there is no key adapter.dmi; did you mean adapter.dim?",
                "did you mean optim.lr?",
                "did you mean adapter?",
                "there is no key foo",
            ],
        ),
        (
            ["adapter.dim=abc", "adapter={dmi:3,bias:5x}", "adapter.dim=[1,2", "adapter.rank=1,2"],
            [
                "adapter.dim=abc: expected a whole number",
                "adapter.dmi",
                "adapter.bias=5x",
                "not of the form key=value",
                "-m sweeps",
            ],
        ),
        (
            ["+adapter.dim=3", "+model=blip", "~adapter.dim", "adapter/extra=x"],
            ["leave out the +", "leave out the +", "only a group", "there is no group adapter/extra"],
        ),
        (
            ["task=vqq", "adapter=null", "trainer=gpu"],
            [
                "instruct, joint, retrieval, segmentation, vqa; did you mean vqa?",
                f"there are {', '.join(METHODS)}",
                "trainer=gpu: there is none any more: trainer.batch_size=auto",
            ],
        ),
        (["adapter=from_run"], [f"there are {METHODS[0]}"]),
        (["adapter=adapter_schema"], [f"there are {METHODS[0]}"]),
        (["adapter.dim=0"], ["adapter.dim=0: must be 1 or more"]),
        (["model=clip", "task=captioning"], ["it can do retrieval"]),
        (["adapter.points=[vision.99.attn]"], ["'vision.99.attn' matches nothing"]),
        (["adapter.points=[visin.*.attn,a.b.c.d]"], ["'visin.*.attn'", "'a.b.c.d'"]),
        (["--config-dir", "nowhere"], ["--config-dir nowhere: no such folder"]),
        (["--nonsense"], ["unrecognized arguments: --nonsense"]),
        (["-m", "adapter.dim=16,64,abc,0"], ["adapter.dim=abc"]),
        (["-m", "adapter.dim=16,64,0"], ["adapter.dim=0: must be"]),
        (
            ["-m", "model=clip", "task=instruct,captioning"],
            ["task=instruct: model=clip", "task=captioning: model=clip"],
        ),
        (["-m", "model=tiny_blip,clip", "task=vqa", "optim.lr=0,1"], ["optim.lr=0"]),
        (["adapter=mixed", "adapter.dim=3"], ["adapter.dim: adapter=mixed has no such option"]),
        (["adapter=mixed", "adapter.components.vision.dim=0"], ["adapter.components.vision.dim=0: must be 1 or more"]),
        (["adapter=mixed", "adapter.components.rest.rank=3"], ["adapter.components.rest: there is no key rank"]),
        (
            ["adapter=mixed", "adapter.components.vision.bias=true"],
            ["adapter.components.vision.bias: adapter=lora has no such"],
        ),
        (
            ["adapter=mixed", "adapter.components.rest.points=[fusion]", "adapter.points=[vision]"],
            ["every component has points"],
        ),
        (["adapter=mixed", "adapter.points=[vision]"], ["the other components leave it no point"]),
        (["data=files", "data.train=a,b.jsonl"], ["quote it: \"data.train='a,b.jsonl'\""]),
        (["eval"], ["run=FOLDER"]),
        (["eval", "run=nowhere"], ["there is no such folder"]),
        (
            ["adapter.dmi=3", "task=vqq", "optim.lr=-1", "trainer.precision=fp8", "seed=x"],
            ["adapter.dmi", "task=vqq", "seed=x", "optim.lr=-1.0", "trainer.precision=fp8"],
        ),
    ],
)
def test_wrong_input_is_refused(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], said: list[str]
) -> None:
    found = problems(capsys, *argv)
    assert len(found) == len(said), found
    for problem, part in zip(found, said, strict=True):
        assert part in problem
    assert calls.configs == []
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_yaml_is_checked_whole(calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "adapter").mkdir(parents=True)
    (own / "experiment").mkdir()
    (own / "adapter" / "mine.yaml").write_text("name: bottleneck\ndmi: 3\nbias: perhaps\n")
    (own / "experiment" / "big.yaml").write_text("# @package _global_\ntrainer: {batch_sise: 4}\n")
    found = problems(capsys, "--config-dir", str(own), "adapter=mine", "experiment=big")
    assert len(found) == 3
    assert "mine.yaml: there is no key adapter.dmi; did you mean adapter.dim?" in found[0]
    assert "adapter.bias=perhaps" in found[1]
    assert "big.yaml: there is no key trainer.batch_sise; did you mean trainer.batch_size?" in found[2]

    (own / "adapter" / "mine.yaml").write_text("name: bottleneck\ndim: 5\n")
    (own / "experiment" / "big.yaml").write_text("# @package _global_\ntrainer: {batch_size: 4}\n")
    assert cli.main(["--config-dir", str(own), "adapter=mine", "experiment=big"]) == 0
    assert (calls.configs[0].adapter.dim, calls.configs[0].trainer.batch_size) == (5, 4)


def test_a_primary_of_the_users_own_is_typed_too(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text("defaults: [task: vqa, model: tiny_blip, _self_]\nadapter: {dim: 7}\n")
    assert cli.main(["--config-dir", str(own), "-cn", "mine"]) == 0
    assert (type(calls.configs[0]), calls.configs[0].adapter.dim) == (TrainConfig, 7)
    (own / "mine.yaml").write_text("defaults: [train, _self_]\nadapter: {dmi: 7}\nseed: later\n")
    assert len(problems(capsys, "--config-dir", str(own), "-cn", "mine")) == 2


def test_hydras_values_resolve_in_the_job(calls: Calls) -> None:
    assert cli.main(["run.name=job-${hydra:job.name}"]) == 0
    assert calls.configs[0].run.name.startswith("job-")


# Errors while running


def test_a_users_error_is_told_without_a_traceback(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    def act(config: Any) -> None:
        raise UserError(["first", "second [with brackets]"])

    calls.act = act
    assert problems(capsys) == ["first", "second [with brackets]"]


def test_a_bug_keeps_its_traceback_and_the_log_has_it(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    def act(config: Any) -> None:
        raise ZeroDivisionError("a bug")

    calls.act = act
    assert cli.main(["run.name=x"]) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: a bug" in told
    assert "ZeroDivisionError: a bug" in Path("outputs/vqa/tiny_blip/x/run.log").read_text()


@pytest.mark.slow
def test_ctrl_c_and_a_stopped_training_give_their_status(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    class Stopped(Exception):  # noqa: N818
        exit_status = 143

    def interrupt(config: Any) -> None:
        raise KeyboardInterrupt

    def stop(config: Any) -> None:
        raise Stopped("saved; continue with resume=auto")

    calls.act = interrupt
    assert cli.main([]) == 130
    calls.act = stop
    assert cli.main([]) == 143
    assert "continue with resume=auto" in capsys.readouterr().err
    assert cli.main(["-m", "seed=1,2"]) == 143
    assert len(calls.configs) == 3  # the sweep ended at its first run


# Sweeps


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_and_ends_with_a_table(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def act(config: Any) -> None:
        if config.adapter.dim == 64:
            raise UserError("too wide")
        if config.adapter.dim == 65:
            raise RuntimeError("broken")

    calls.act = act
    assert cli.main(["-m", "adapter.dim=16,64,65", "task=vqa,captioning", "run.name=s"]) == 1
    assert len({run_folder(config) for config in calls.configs}) == 6
    told = capsys.readouterr().out
    assert "failed: too wide" in told
    assert "failed: RuntimeError: broken" in told
    assert "4 of 6 runs failed" in told
    (file,) = (tmp_path / "outputs" / "sweeps").glob("*/sweep.json")
    rows = json.loads(file.read_text())
    assert [row["failure"] for row in rows] == [None, None, *["too wide"] * 2, *["RuntimeError: broken"] * 2]
    assert rows[1]["varied"] == {"adapter.dim": "16", "task": "captioning"}


@pytest.mark.slow
def test_a_glob_sweeps_over_options_and_not_over_schemas(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["-m", "adapter=glob([c*,f*])"]) == 0
    expected = {name for name in METHODS if name[0] in "cf"}
    out = {job.partition("=")[2] for job in left_out(capsys, tmp_path)}
    assert len(calls.configs) + len(out) == len(expected)
    assert {"full", "cross_modal", "compacter"} <= {config.adapter.name for config in calls.configs}
    assert out == {"clip_adapter", "fusion"}


def left_out(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, str]:
    """The jobs that the last sweep says it left out, and why: on the terminal, and the same in its file."""
    told = capsys.readouterr().out.splitlines()
    lines = [line.removeprefix("left out: ") for line in told if line.startswith("left out:")]
    (file,) = (folder / "outputs" / "sweeps").glob("*/sweep.json")
    rows = [row for row in json.loads(file.read_text()) if row["left_out"]]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.endswith(f": {row['left_out']}")
        assert row["failure"] is None
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.slow
def test_a_sweep_leaves_out_what_does_not_fit(calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # more jobs than are each composed beforehand
    assert cli.main(["-m", "model=clip,tiny_blip", "task=captioning,retrieval", "seed=1,2,3,4,5"]) == 0
    ran = {(config.model.name, config.task.name) for config in calls.configs}
    assert ran == {("clip", "retrieval"), ("tiny_blip", "captioning"), ("tiny_blip", "retrieval")}
    assert len(calls.configs) == 15
    found = left_out(capsys, tmp_path)
    assert len(found) == 5
    assert "task=captioning: model=clip cannot do it" in found["model=clip task=captioning seed=1"]


@pytest.mark.slow
def test_what_a_large_sweep_first_tries_may_not_fit(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    told = problems(capsys, "-m", "model=clip,tiny_blip", "task=captioning,retrieval", "adapter.points=[vision.99.attn]",
                    "seed=1,2,3,4,5")  # fmt: skip
    assert all("'vision.99.attn' matches nothing" in line for line in told)
    assert calls.configs == []


# Finished runs


@pytest.fixture
def run(calls: Calls) -> str:
    assert cli.main(["run.name=x", "adapter.dim=48", "seed=7", r"model.config.note='\${oc.env:HOME}'"]) == 0
    calls.configs.clear()
    return "run=outputs/vqa/tiny_blip/x"


def test_eval_takes_the_runs_own_groups(calls: Calls, run: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").touch()
    assert cli.main(["eval", run, "data=files", "data.eval=x.jsonl", "task.decode.num_beams=4"]) == 0
    (config,) = calls.configs
    assert type(config) is EvalConfig
    assert (config.source, config.adapter.dim, config.seed) == ("outputs/vqa/tiny_blip/x", 48, 7)
    assert (config.data.name, config.data.train_size, config.task.decode.num_beams) == ("files", None, 4)
    assert config.model.config["note"] == "${oc.env:HOME}"  # text, not an interpolation


def test_a_run_from_before_the_descriptions_has_the_shipped_one(calls: Calls, run: str) -> None:
    file = Path("outputs/vqa/tiny_blip/x/config.yaml")
    saved = yaml.safe_load(file.read_text())
    del saved["task"]["spec"]
    saved["task"] |= {"name": "captioning", "metric": "cider_d", "points": ["decoder.*.*"]}
    saved["model"] = asdict(model_config("tiny_blip"))
    file.write_text(yaml.safe_dump(saved, sort_keys=False))
    assert cli.main(["eval", run]) == 0
    assert calls.configs[0].task.spec == shipped_spec("captioning")


def test_eval_checks_overrides_as_train_does(calls: Calls, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = problems(capsys, "eval", run, "trainer.batchsize=3", "split=tst")
    assert [problem.split(":")[0] for problem in found] == ["trainer.batchsize=3", "split=tst"]


def test_a_runs_file_with_unknown_keys_is_refused(calls: Calls, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("outputs/vqa/tiny_blip/x/config.yaml")
    file.write_text(file.read_text() + "_target_: os.system\n")
    assert "config.yaml: there is no key _target_" in problems(capsys, "eval", run)[0]


def test_predict_takes_text_as_typed(calls: Calls, run: str, tmp_path: Path) -> None:
    (tmp_path / "a photo (1), red.png").touch()
    question = "what's it, [really]? ${seed} = 'red'"
    assert cli.main(["predict", run, "image=a photo (1), red.png", f"question={question}", "top_k=2"]) == 0
    (config,) = calls.configs
    assert type(config) is PredictConfig
    assert (config.image, config.question, config.top_k) == ("a photo (1), red.png", question, 2)


# Help, Hydra's own flags, and speed


def test_help_tells_verbs_groups_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    for part in (
        "train ",
        "eval ",
        "predict ",
        "inspect ",
        "tiny_blip",
        "--config-dir",
    ):
        assert part in told
    assert ", ".join(METHODS) in " ".join(told.split())
    examples = told.split("examples\n")[1].split("\n\n")[0].splitlines()
    assert sum(line.startswith("  vlatrain") for line in examples) == 5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def told(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main([verb, "--help"]) == 0
        return capsys.readouterr().out

    wide, narrow = told(300), told(60)
    assert f"vlatrain {verb}".replace(" train", " [train]") in wide
    assert wide.split("\n\n")[1].split() == narrow.split("\n\n")[1].split()
    assert max(map(len, wide.splitlines())) <= WIDEST
    assert max(len(line) for line in narrow.splitlines() if "=[" not in line) <= 60  # but what has no spaces

    def commands(text: str) -> list[list[str]]:
        examples = text.split("examples\n")[1].split("\n\n")[0].replace("\\\n", "")
        return [words for line in examples.splitlines() if (words := shlex.split(line, comments=True))]

    assert commands(narrow) == commands(wide)


def test_printing_the_configuration(calls: Calls, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["--cfg", "job", "adapter.dim=3"]) == 0
    assert "\n  dim: 3\n" in capsys.readouterr().out
    assert cli.main(["eval", run, "--cfg", "job", "-p", "adapter"]) == 0
    assert "\ndim: 48\n" in capsys.readouterr().out
    assert calls.configs == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (
            "vlatrain task=",
            "task=captioning task=classification task=grounding task=grounding_words task=instruct task=joint task=retrieval "
            "task=segmentation task=vqa",
        ),
        ("vlatrain adapter.d", "adapter.dim= adapter.drop_layers= adapter.drop_random= adapter.dropout="),
        ("vlatrain eval spl", "split="),
        ("vlatrain predict ques", "question="),
    ],
)
def test_shell_completion(
    calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, offered: str
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert cli.main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.strip() == offered


def test_answers_without_importing_torch(tmp_path: Path) -> None:
    """In one interpreter, line after line: what any of them imports stays loaded."""
    misfit = ["adapter=cross_modal", "task=captioning", "adapter.points=[vision.*.ffn]"]
    lines = [["--help"], ["--cfg", "job"], ["adapter.dmi=3", "adapter.points=[a.1.b]"], misfit]
    code = (
        "import sys; from vlatrain.cli import main as cli\n"
        f"for line in {lines}:\n"
        "    status = cli.main(line)\n"
        "    loaded = {'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "    print('loaded', sorted(loaded), 'status', status)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in ran.stdout.splitlines() if line.startswith("loaded ")]
    assert told == [f"loaded [] status {status}" for status in (0, 0, 2, 2)]
