"""Images of a run's predictions that are no files: those of its data, read or generated again and proven to be the same."""

from __future__ import annotations

from pathlib import Path

from vlatrain.config import TrainConfig, UserError
from vlatrain.config.joint import subtasks
from vlatrain.data.sample import fingerprint
from vlatrain.data.subtasks import load_run
from vlatrain.reporting.console import collected
from vlatrain.reporting.pages.reading import Snapshot, lines
from vlatrain.reporting.pages.thumbnails import Pictures


def pictures_of(run: Snapshot) -> tuple[Pictures | None, str]:
    """The pictures of a run's evaluated samples by their ids.

    Args:
        run: the run; nothing is read where each of its predictions names a file.

    Returns:
        What finds them, None where there is nothing to find or they cannot be had; and why they cannot, empty where they can.
    """
    first = next(lines(run.files.predictions(), []), None)
    if first is None or first.get("image") or all(first.get("images") or [None]):
        return None, ""
    config, known = run.typed(), (run.metrics.get("data") or {}).get("eval")
    if config is None or not known or not _is_here(config):
        return (
            None,
            "its images are in no files of this machine (data.save_images=true writes them into the run folder)",
        )
    try:
        with collected():
            samples = load_run(config, ["eval"])["eval"]
    except (UserError, KeyError, OSError) as error:
        return None, f"the data of its images cannot be read again ({str(error).splitlines()[0]})"
    if fingerprint(samples) != known:
        return None, "its data is no longer what it was scored on, so no images are shown"
    by_id = {sample.id: sample.pictures for sample in samples}
    return lambda name: by_id.get(name, ()), ""


def _is_here(config: TrainConfig) -> bool:
    """Whether the data is generated, or in files: nothing is fetched for a report."""
    return all(one.data.name != "hub" or Path(one.data.path or "").is_dir() for one in subtasks(config).values())
