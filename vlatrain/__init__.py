"""vlatrain: adapters for frozen vision-language models, trained from one configuration.

    import vlatrain

    run = vlatrain.train(vlatrain.compose("task=vqa", "adapter.dim=16"))
    vlatrain.load(run).predict("photo.jpg", question="what is it?")

Importing the package imports neither torch nor Hydra; the functions do when they are called. It also makes the adapter methods
known to PEFT, at once where PEFT is imported already, else as soon as it is: `import vlatrain` and then
`PeftModel.from_pretrained(backbone, "run/adapter")` works.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlatrain.config import TrainConfig, UserError
    from vlatrain.runs import Outcome, Run, list_runs
    from vlatrain.verbs.export import Exported
    from vlatrain.verbs.inspect import Inspection
    from vlatrain.verbs.predict import Predictor, RoutedPredictor

__version__ = "0.1.0"
__all__ = [
    "Outcome", "Predictor", "Run", "UserError", "check", "compose", "evaluate", "export", "inspect", "list_runs", "load", "predict",
    "sweep", "train",
]  # fmt: skip

LAZY = {
    "Outcome": "vlatrain.runs",
    "Predictor": "vlatrain.verbs.predict",
    "Run": "vlatrain.runs",
    "UserError": "vlatrain.config",
    "list_runs": "vlatrain.runs",
}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def compose(*overrides: str, config_dir: str | Path | None = None) -> TrainConfig:
    """The configuration of a training, composed and checked exactly as `vlatrain OVERRIDE ...` does it.

    Args:
        overrides: what stands on the command line: `task=vqa`, `adapter.dim=64`, one value each.
        config_dir: a folder of YAML files of your own, as `--config-dir`.

    Raises:
        UserError: everything that is wrong with it; its `problems` are a line each.
    """
    config: TrainConfig = _composed("train", overrides, config_dir)
    return config


def train(config: TrainConfig) -> Run:
    """Train as configured, evaluate, and write the run folder.

    Args:
        config: what `compose` returned, changed as you like.

    Raises:
        UserError: data, weights or a run folder that cannot be used; all that is wrong at once.
    """
    from vlatrain.cli.call import call, check

    check(config)
    run: Run = call("train", config)
    return run


def sweep(*overrides: str, config_dir: str | Path | None = None) -> list[Outcome]:
    """Train several times: `vlatrain -m OVERRIDE ...`. It prints a line for each job, and a table.

    Args:
        overrides: what stands on the command line: `adapter.dim=16,64` for several values, `hydra/launcher=joblib`.
        config_dir: a folder of YAML files of your own, as `--config-dir`.

    Returns:
        What came of each job: its `run`, its `score`, or its `failure`.

    Raises:
        UserError: everything that is wrong with it; a job that fails is no error of the sweep's.
        KeyboardInterrupt: a signal ended it; it goes on with `resume=auto`.
    """
    from vlatrain.cli.main import run_jobs

    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    words = [*folder, "-m", *overrides]
    jobs = run_jobs("train", words, ["vlatrain", *words])
    outcomes: list[Outcome] = jobs.outcomes() if jobs else []
    return outcomes


def evaluate(run: Run | str | Path, *overrides: str) -> Run:
    """Score a finished run again: `vlatrain eval run=RUN OVERRIDE ...`.

    Args:
        run: the run, or its folder.
        overrides: what is to differ: `data=files`, `data.eval=other.jsonl`, `split=test`.

    Returns:
        The evaluation: its `metrics` and `predictions`, in a folder of its own.

    Raises:
        UserError: data, weights or an adapter that cannot be had.
    """
    from vlatrain.cli.call import call

    evaluation: Run = call("eval", _composed("eval", [f"run={_quoted(run)}", *overrides]))
    return evaluation


def predict(run: Run | str | Path, *overrides: str) -> list[dict[str, Any]]:
    """Ask a finished run about files: `vlatrain predict run=RUN OVERRIDE ...`. `load` is for images in memory, or to ask often.

    Args:
        run: the run, or its folder.
        overrides: the query: `image=photo.jpg`, `question='what is it?'`, `input=samples.jsonl`.

    Returns:
        A record for each query.

    Raises:
        UserError: queries that do not fit the task, or files that cannot be read.
    """
    from vlatrain.cli.call import call

    records: list[dict[str, Any]] = call("predict", _composed("predict", [f"run={_quoted(run)}", *overrides]))
    return records


def export(run: Run | str | Path, to: str | Path, *overrides: str) -> Exported:
    """Hand a finished run on: `vlatrain export run=RUN to=TO OVERRIDE ...`.

    Args:
        run: the run, or its folder.
        to: a folder, new or empty; or `hub:OWNER/NAME`.
        overrides: what is to differ: `form=merged`, `license=mit`, `private=true`.

    Returns:
        Where it is.

    Raises:
        UserError: it cannot be handed on in this form, or the hub does not take it.
    """
    from vlatrain.cli.call import call

    exported: Exported = call("export", _composed("export", [f"run={_quoted(run)}", f"to={_quoted(to)}", *overrides]))
    return exported


def check(config: TrainConfig) -> dict[str, Any]:
    """What the data of a training is like, and what is likely wrong with it; it is printed, too. Loads no weights.

    Args:
        config: what `compose` returned.

    Returns:
        The report as JSON values: `subtasks` with facts by split, and `warnings`.

    Raises:
        UserError: everything that is wrong with the configuration or the data.
    """
    from vlatrain.cli import call
    from vlatrain.config import CheckConfig

    call.check(config)
    report: dict[str, Any] = call.call("check", CheckConfig(**vars(config)))
    return report


def inspect(config: TrainConfig) -> Inspection:
    """What a training would adapt and cost; it is printed, too. Loads no weights.

    Args:
        config: what `compose` returned.

    Raises:
        UserError: everything that is wrong with it.
    """
    from vlatrain.cli.call import call, check

    check(config)
    inspection: Inspection = call("inspect", config)
    return inspection


def load(run: Run | str | Path, *overrides: str, subtask: str = "") -> Predictor | RoutedPredictor:
    """A finished run with its weights, ready to be asked about images in memory or in files.

    Args:
        run: the run, or its folder.
        overrides: what is to differ from its configuration: `trainer.device=cpu`.
        subtask: name of the subtask that is asked, in a joint run.

    Returns:
        What answers; of a router, what picks the run that does.

    Raises:
        UserError: it is no finished run, or its weights cannot be had.
    """
    from vlatrain.config.methods import ROUTER
    from vlatrain.verbs.predict import Predictor, RoutedPredictor

    config = _composed("eval", [f"run={_quoted(run)}", *overrides])
    if config.adapter.name == ROUTER:
        return RoutedPredictor(config, Path(config.source))
    return Predictor(config, Path(config.source), subtask)


def _composed(verb: str, overrides: Sequence[str], config_dir: str | Path | None = None) -> Any:
    from vlatrain.backbones.compatibility import incompatibilities
    from vlatrain.cli.compose import composed

    return composed(verb, overrides, incompatibilities, str(config_dir) if config_dir is not None else None)


def _quoted(run: Run | str | Path) -> str:
    from vlatrain.cli.overrides import literal
    from vlatrain.runs import Run

    return literal(str(run.folder if isinstance(run, Run) else run))


class _RegisterWithPeft(importlib.abc.MetaPathFinder):
    """Finds PEFT once, as the import system would have, and registers our method when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if "vlatrain.injection.site" not in sys.modules:  # else it is imported from there, half-way
                    importlib.import_module("vlatrain.injection.peft_method")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    importlib.import_module("vlatrain.injection.peft_method")
else:
    sys.meta_path.insert(0, _RegisterWithPeft())
