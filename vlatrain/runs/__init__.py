"""Run folders: their names, their files, and what is read from them. No torch here.

The room stands just above the configuration, as all above it read or write run folders: sources of adapters, checkpoints, cards.
"""

from vlatrain.runs.folder import COMMAND, Command, RunFolder, steps_in, versions
from vlatrain.runs.hub import hub_name, local_run, upload
from vlatrain.runs.naming import evaluation_named, job_name, named, new_name, run_folder, within
from vlatrain.runs.reading import (
    STATE,
    Run,
    config_text,
    find_config,
    is_run,
    list_runs,
    plain_text,
    read_config,
    refuse_changed,
    refuse_changed_file,
    runs_below,
    save_config,
    saved_config,
)
from vlatrain.runs.sweep import Outcome, SweepFolder

__all__ = [
    "COMMAND",
    "STATE",
    "Command",
    "Outcome",
    "Run",
    "RunFolder",
    "SweepFolder",
    "config_text",
    "evaluation_named",
    "find_config",
    "hub_name",
    "is_run",
    "job_name",
    "list_runs",
    "local_run",
    "named",
    "new_name",
    "plain_text",
    "read_config",
    "refuse_changed",
    "refuse_changed_file",
    "run_folder",
    "runs_below",
    "save_config",
    "saved_config",
    "steps_in",
    "upload",
    "versions",
    "within",
]  # fmt: skip
