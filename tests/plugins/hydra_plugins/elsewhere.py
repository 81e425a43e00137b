"""A launcher whose jobs are processes of their own, and a sweeper that goes by scores: what plugins such as
hydra-joblib-launcher and hydra-optuna-sweeper are to Hydra, with fakes in place of training."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

HERE = "hydra_plugins.elsewhere"
ROOT = Path(__file__).resolve().parents[3]


class Elsewhere(Launcher):
    """Runs all jobs at once, each in a new process, with a pickled copy of the function and of what Hydra's store holds."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            state = Singleton.get_state()["instances"]
            given = (number, list(overrides), self.hydra_context, self.config, self.task_function, state)
            Path(f"{number}.job").write_bytes(pickle.dumps(given))
            command = [sys.executable, "-m", HERE, str(number)]
            jobs.append(subprocess.Popen(command, env=environment))
        for job in jobs:
            job.wait()
        if any(job.returncode for job in jobs):
            raise RuntimeError("a worker process was terminated")
        return [pickle.loads(Path(f"{number}.back").read_bytes()) for number in range(len(jobs))]


class Scored(BasicSweeper):
    """Tries one value after the other, and keeps the scores in `scores.json` of the working folder."""

    def __init__(self, direction: str, max_batch_size: int | None = None, params: Any = None) -> None:
        super().__init__(max_batch_size, params)
        self.direction = direction

    def sweep(self, arguments: list[str]) -> Any:
        found = [job.return_value for batch in super().sweep(arguments) for job in batch]
        Path("scores.json").write_text(json.dumps([self.direction, *found]))


def run(number: int) -> None:
    """One job, in its process."""
    from vlatrain import verbs
    from vlatrain.verbs import Verb

    index, overrides, context, config, function, state = pickle.loads(Path(f"{number}.job").read_bytes())
    setup_globals()
    Singleton._instances = state
    verbs.VERBS = dict.fromkeys(verbs.VERBS, Verb("", f"{HERE}.train"))
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = str(index), index
    HydraConfig.instance().set_config(job)
    back = run_job(
        hydra_context=context, config=job, task_function=function, job_dir_key="hydra.sweep.dir", job_subdir_key=None
    )
    Path(f"{number}.back").write_bytes(pickle.dumps(back))


def train(config: Any) -> Any:
    """Stands for training: seed 2 fails, seed 3 is killed."""
    from vlatrain.runs import run_folder

    folder = run_folder(config)
    folder.mkdir(parents=True)
    if config.seed == 2:
        raise RuntimeError("broken")
    if config.seed == 3:
        os._exit(9)
    return SimpleNamespace(folder=folder, metrics={"metric": "accuracy", "metrics": {"accuracy": 81.25}})


store = ConfigStore.instance()
store.store(group="hydra/launcher", name="elsewhere", node={"_target_": f"{HERE}.Elsewhere"})
store.store(group="hydra/sweeper", name="scored", node={"_target_": f"{HERE}.Scored", "direction": "minimize"})

if __name__ == "__main__":
    run(int(sys.argv[1]))
