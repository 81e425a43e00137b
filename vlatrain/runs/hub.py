"""Runs that lie on the hub: `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION`. They are fetched once, into `outputs/hub/`.

No torch here."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

from vlatrain.config import hub, hub_client
from vlatrain.config.errors import UserError
from vlatrain.config.files import replace_folder
from vlatrain.runs.folder import RunFolder
from vlatrain.runs.naming import ROOT

log = logging.getLogger("vlatrain")

#: What is fetched. Nothing of it can execute when it is read.
FILES = ("*.json", "*.yaml", "*.safetensors", "*.md", "*.txt", "*.model", "*.jinja")
_NAME = re.compile(rf"{hub.RUN}({hub.NAME})(?:@([\w./-]+))?")


def hub_name(run: str) -> str:
    """OWNER/NAME of a run of the hub; empty: it is a folder of this machine.

    Args:
        run: what stands behind `run=`.

    Raises:
        UserError: it begins as one of the hub's, and goes on otherwise.
    """
    if not run.startswith(hub.RUN):
        return ""
    if (found := _NAME.fullmatch(run)) is None:
        raise UserError(f"{run}: a run of the hub is hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
    return found[1]


def local_run(run: str) -> str:
    """The folder of a run: that of one of the hub is fetched, into `outputs/hub/`; any other is what it is.

    Args:
        run: a folder, or `hub:OWNER/NAME`.

    Raises:
        UserError: the hub does not give it, or it is no run.
    """
    return str(_fetched(run, Path.cwd())) if hub_name(run) else run


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Put a folder's files into a repository of models, which is made if it is not there, in place of those of an earlier export.

    Returns its address.

    Args:
        folder: the folder.
        name: OWNER/NAME.
        private: of a new repository, whether only its owner sees it.

    Raises:
        UserError: the hub does not take them.
    """
    from huggingface_hub import HfApi

    api, bars = HfApi(), nullcontext() if sys.stderr.isatty() else hub_client.without_bar()
    try:
        with bars:
            address = api.create_repo(name, private=private, exist_ok=True)
            # what an earlier export has left there goes; the history keeps it
            api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload by vlatrain", delete_patterns=[*FILES]
            )
    except Exception as error:  # the client passes on whatever its transport raises
        # what the hub finds wrong with the card is a ValueError of the client's
        said = None if isinstance(error, ValueError) else hub_client.reason(error, name, kind="run")
        raise UserError(f"to={hub.RUN}{name}: {said or ' '.join(str(error).split())[:300]}") from error
    return str(address)


@cache
def _fetched(run: str, here: Path) -> Path:
    """The folder of a run of the hub below the working folder, `here`; what was once asked for is not asked for again."""
    found = _NAME.fullmatch(run)
    assert found
    name, revision = found.groups()
    config = RunFolder(Path()).config.name
    hub.resolve()
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        with hub_client.watched(), hub_client.without_bar():
            snapshot = Path(hf_hub_download(name, config, revision=revision)).parent
            snapshot_download(name, revision=snapshot.name, allow_patterns=[*FILES])
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{run}: has no {config}, so it is no run; a whole model is model.checkpoint={name}") from error
    except Exception as error:  # the client passes on whatever its transport raises
        said = hub_client.reason(error, name, revision, kind="run")
        raise UserError(f"{run}: {said or ' '.join(str(error).split())[:300]}") from error
    folder = ROOT / "hub" / f"{name.replace('/', '--')}@{snapshot.name[:12]}"
    if not RunFolder(folder).config.is_file():
        replace_folder(folder, lambda fresh: shutil.copytree(snapshot, fresh, dirs_exist_ok=True))
        log.info("%s is in %s", run, folder)
    return folder
