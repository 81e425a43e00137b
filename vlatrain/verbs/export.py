"""`vlatrain export`: what a finished run has trained, for others: a folder or a repository of the hub, with a model card."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vlatrain.backbones.describe import sites
from vlatrain.backbones.loading import load, write
from vlatrain.config import ExportConfig, LoggerConfig
from vlatrain.config.files import files_in, replace_folder, write_file, write_json, write_manifest
from vlatrain.config.methods import ROUTER
from vlatrain.injection.attach import merged, restore
from vlatrain.injection.routes import NOTE, WEIGHTS, read_note, read_routes
from vlatrain.reporting.card import ADAPTER, MERGED, PEFT_LORA, Place, write_card
from vlatrain.reporting.snippets import words_of_backbone
from vlatrain.reporting.summary import asking
from vlatrain.runs import RunFolder, hub_name, plain_text, refuse_changed, refuse_changed_file, saved_config, upload
from vlatrain.tasks import prepare

CARD = "README.md"
SOURCES = "sources"  # of an exported router, the folder of its runs
_RUN = RunFolder(Path())
# what is of a run and no adapter
OF_RUN = {path.name for path in (_RUN.config, _RUN.metrics, _RUN.constants, _RUN.processor)}


@dataclass(frozen=True)
class Exported:
    """What `export` has made.

    Attributes:
        to: where it is: a folder, or `hub:OWNER/NAME`.
        address: the page of the repository; empty for a folder.
    """

    to: str
    address: str = ""


def export(config: ExportConfig, console: Console | None = None) -> Exported:
    """Hand on a run as the configuration says.

    Args:
        config: the run's configuration, with where and in which form.
        console: where to print.

    Raises:
        UserError: weights that cannot be had, or a hub that does not take them.
    """
    console = console or Console()
    if name := hub_name(config.to):
        with tempfile.TemporaryDirectory() as folder:
            _write(config, Path(folder))
            address = upload(Path(folder), name, config.private)
        exported = Exported(config.to, address)
    else:
        replace_folder(Path(config.to).expanduser(), lambda fresh: _write(config, fresh))
        exported = Exported(config.to)
    where = f"{exported.to} ({exported.address})" if exported.address else exported.to
    console.print(f"In [bold]{where}[/]: {_described(config)}, with a model card", soft_wrap=True)
    if commands := _next(config):
        console.print("Next:", *(f"  {command}" for command in commands), sep="\n", soft_wrap=True, markup=False)
    return exported


def _write(config: ExportConfig, folder: Path) -> None:
    """Write all that is handed on into an empty folder."""
    run = RunFolder(Path(config.source))
    if config.adapter.name == ROUTER:
        _copy_router(config, run, folder)
    elif config.form == MERGED:
        _write_merged(config, run, folder)
    else:
        _copy_adapter(run.adapter, folder)
        if config.form == ADAPTER:
            _copy_run(run, folder)
    if config.form != PEFT_LORA:  # which vlatrain does not read, and would take for a run
        write_manifest(folder, leave_out=[CARD])  # which people complete
    write_card(folder, config, _metrics(run), Place(config.to, config.to), config.form, config.license)


def _copy_adapter(adapter: Path, folder: Path) -> None:
    """The files of an adapter as they were written; where there is no list of them, as of earlier ones, all that is there."""
    try:
        names = files_in(adapter)
    except FileNotFoundError:
        names = [str(file.relative_to(adapter)) for file in adapter.rglob("*") if file.is_file() and file.name != CARD]
    own = [name for name in names if Path(name).parts[0] not in OF_RUN]  # of an exported run both are in one folder
    for name in own:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adapter / name, folder / name)


def _copy_router(config: ExportConfig, run: RunFolder, folder: Path) -> None:
    """A router and the runs that it chooses among, each exported in a folder below, by which the router knows it: so it can be read
    wherever it lies."""
    note = read_note(run.path)
    routes = read_routes(config.adapter.sources, note)
    inside = {route.name: f"{SOURCES}/{route.name}" for route in routes}
    for route in routes:
        source, own = RunFolder(route.folder), folder / inside[route.name]
        _copy_adapter(source.adapter, own)
        _copy_run(source, own)
        write_manifest(own, leave_out=[CARD])  # by which it is a run that was exported
    shutil.copyfile(run.adapter / WEIGHTS, folder / WEIGHTS)
    write_json(folder / NOTE, {**note, "sources": [{**one, "folder": inside[one["name"]]} for one in note["sources"]]})
    _copy_run(run, folder, [*inside.values()])


def _copy_run(run: RunFolder, folder: Path, sources: Sequence[str] | None = None) -> None:
    """What eval and predict need beside it. Predictions, the data report and logs stay, as they are of the data, and so does where
    the training was logged: others' evaluations do not go there.

    Args:
        run: the run.
        folder: where it goes.
        sources: of a router, its runs in that folder.
    """
    values = {**saved_config(run.path), "logger": dataclasses.asdict(LoggerConfig())}
    if sources is not None:
        values["adapter"] = {**values["adapter"], "sources": sources}
    write_file(RunFolder(folder).config, plain_text(values))
    for file in (run.metrics, run.constants):
        if file.is_file():
            refuse_changed_file(file)
            shutil.copyfile(file, folder / file.name)
    if run.processor.is_dir():
        refuse_changed(run.processor, missing=False)
        shutil.copytree(run.processor, folder / run.processor.name)


def _write_merged(config: ExportConfig, run: RunFolder, folder: Path) -> None:
    """A checkpoint in the hub's layout: model, tokenizer, image processor."""
    whole = dataclasses.replace(config.model, quantize=None)
    backbone = load(whole, config.task.name, seed=config.seed, run=run.path)
    prepare(config.task, backbone)
    where = sites(config.model, config.task.name, config.points)
    write(backbone, merged(restore(backbone.model, config.adapter, run.adapter, where)), folder)


def _metrics(run: RunFolder) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # one that `merge` has made has none
        return dict(json.loads(run.metrics.read_text(encoding="utf-8")))
    return {}


def _described(config: ExportConfig) -> str:
    form = config.form
    if config.adapter.name == ROUTER:
        return "the router with the runs that it chooses among"
    if form == MERGED:
        return "a checkpoint with the adapter in its weights"
    return "the adapter with what eval and predict need" if form == ADAPTER else "the LoRA, for PEFT alone"


def _next(config: ExportConfig) -> list[str]:
    if config.form == MERGED:
        return [f"vlatrain {' '.join(words_of_backbone(config, config.to))}"]
    return asking(config, config.to) if config.form == ADAPTER else []
