"""The commands in `conf/launch/`, as they stand, with processes on a CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlatrain.config.folder import conf_dir

LAUNCH = conf_dir() / "launch"
TINY = ["data.train_size=32", "data.eval_size=8", "trainer.batch_size=4", "trainer.max_steps=3", "trainer.cache=off"]
WORDS = [*TINY, "trainer.device=cpu", "run.name=launched"]


def started(script: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A command of `conf/launch/` that runs in a folder."""
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {**os.environ, "PATH": path, "PYTHONPATH": str(LAUNCH.parents[1]), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        ["sh", str(LAUNCH / script), *WORDS],
        cwd=folder,
        env=known,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def processes_of(folder: Path) -> int:
    found: int = json.loads((folder / "outputs/vqa/tiny_blip/launched/metrics.json").read_text())["machine"][
        "processes"
    ]
    return found


@pytest.mark.slow
def test_one_node(tmp_path: Path) -> None:
    process = started("one_node.sh", tmp_path, PROCESSES="2")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert processes_of(tmp_path) == 2


@pytest.mark.slow
def test_two_nodes(tmp_path: Path) -> None:
    """Both are this machine."""
    shared = {"NODES": "2", "FIRST": "127.0.0.1", "PORT": free_port(), "PROCESSES": "1"}
    nodes = [started("nodes.sh", tmp_path, NODE=number, **shared) for number in ("0", "1")]
    ended = [(node.communicate(timeout=300)[0], node.returncode) for node in nodes]
    assert [status for _, status in ended] == [0, 0], ended
    assert processes_of(tmp_path) == 2


@pytest.mark.slow
def test_nodes_of_a_cluster(tmp_path: Path) -> None:
    """Slurm's own commands are played by scripts: one names this machine, one starts the task of each node."""
    for name, line in (
        ("scontrol", "echo 127.0.0.1"),
        ("srun", 'SLURM_PROCID=1 "$@" & SLURM_PROCID=0 "$@"; status=$?; wait; exit $status'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "PORT": free_port(), "PROCESSES": "1"}
    process = started("slurm.sh", tmp_path, **slurm)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert processes_of(tmp_path) == 2


@pytest.mark.slow
def test_a_sweep_for_a_cluster_is_composed(tmp_path: Path) -> None:
    """Its jobs are run on this machine by another launcher of the plugin, see `tests/test_sweeps.py`."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the submitit launcher is not installed")
    words = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "--cfg", "hydra"]
    ran = subprocess.run(
        [sys.executable, "-m", "vlatrain", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    launcher = yaml.safe_load(ran.stdout)["hydra"]["launcher"]
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher["partition"], launcher["gpus_per_node"], launcher["tasks_per_node"]) == ("gpu", 1, 1)
