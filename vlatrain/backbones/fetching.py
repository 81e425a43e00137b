"""Checkpoints of the hub as folders of this machine: fetched once, kept in the client's cache, and read from there.

What is fetched are the settings, the tokenizer and processors, and one set of weights: safetensors, else PyTorch's own. Everything
after this reads folders.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub import errors as hub_errors

from vlatrain.backbones.describe import checkpoints_of, revisions_of
from vlatrain.backbones.weights import weight_names
from vlatrain.config import ModelConfig, UserError, hub, hub_client
from vlatrain.config.keys import few

log = logging.getLogger("vlatrain")

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")  # what is fetched before any weights
LEFT_OUT = ("onnx/*", "openvino/*", "coreml/*", "flax/*", "tf/*", "*/checkpoint-*")  # copies in other formats


def located(config: ModelConfig, task: str, weights: bool = True) -> ModelConfig:
    """A description with folders of this machine in the place of names of the hub: what they name is fetched.

    Args:
        config: the description.
        task: the task.
        weights: fetch the weights, too.

    Raises:
        OSError: it cannot be had, with one line that says why.
        UserError: it has no weights.
    """
    revisions, found = revisions_of(config, task), config
    for submodel, name in checkpoints_of(config, task).items():
        folder = name if Path(name).is_dir() else str(fetch(name, revisions[submodel], weights))
        found = _with(found, config, submodel, checkpoint=folder)
    return found


def _with(model: ModelConfig, asked: ModelConfig, submodel: str, **values: Any) -> ModelConfig:
    """A description with values of one of its checkpoints: a submodel's, or the model's where it is `asked` for as a whole."""
    if submodel not in asked.submodels or asked.checkpoint:
        return replace(model, **values)
    return replace(model, submodels={**model.submodels, submodel: replace(model.submodels[submodel], **values)})


def commits_of(config: ModelConfig, task: str) -> dict[str, str]:
    """The commit of each checkpoint that comes from the hub, by submodel as in `checkpoints_of`, as it is in the cache now."""
    revisions = revisions_of(config, task)
    found = {
        submodel: hub.cached(name, revisions[submodel])
        for submodel, name in checkpoints_of(config, task).items()
        if not Path(name).is_dir()
    }
    return {submodel: folder.name for submodel, folder in found.items() if folder is not None}


def pinned(config: ModelConfig, task: str) -> ModelConfig:
    """A description with the commits that its checkpoints of the hub have now as their revisions: what a run keeps."""
    if config.random_init:
        return config
    found = config
    for submodel, commit in commits_of(config, task).items():
        found = _with(found, config, submodel, revision=commit)
    return found


def fetch(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder in the cache with what is read of a repository of models; what is there is not fetched again.

    Args:
        name: `owner/name`.
        revision: a branch, a tag or a commit; None: the main branch.
        weights: fetch the weights, too.

    Raises:
        OSError: it cannot be had, with one line that says why.
        UserError: it is no name of a repository.
    """
    with _explained(name, revision), hub_client.without_bar():
        folder = Path(_snapshot(name, revision, SETTINGS))
    if weights and _missing(folder, [file.name for file in folder.iterdir()]) != []:
        # what is there may be the list of files in another format than the best
        with _explained(name, revision, "the weights of "):
            if missing := _missing(folder, HfApi().list_repo_files(name, revision=folder.name)):
                log.info("Fetching %s of %s from %s", few(missing, 10), name, hub.endpoint())
                _snapshot(name, folder.name, missing)
    return folder


@contextmanager
def _explained(name: str, revision: str | None, what: str = "") -> Iterator[None]:
    """What the hub's client raises as one line; `what` of the repository is fetched."""
    try:
        with hub_client.watched():
            yield
    except hub_errors.HFValidationError as error:
        raise UserError(f"model.checkpoint={name}: it is neither a folder nor a name of the hub, OWNER/NAME") from error
    except Exception as error:  # it passes on whatever its transport raises
        said = hub_client.reason(error, name, revision, what)
        raise OSError(said or f"{hub.endpoint()} does not give {name} ({_one_line(error)})") from error


def _missing(folder: Path, names: Iterable[str]) -> list[str] | None:
    """The files of weights among some names that are not in a folder yet; None: no name is one of weights."""
    wanted = weight_names(names, lambda file: (folder / file).read_text(encoding="utf-8"))
    return [own for own in wanted if not (folder / own).is_file()] if wanted else None


def _snapshot(name: str, revision: str | None, files: Iterable[str]) -> str:
    found: str = snapshot_download(name, revision=revision, allow_patterns=[*files], ignore_patterns=[*LEFT_OUT])
    return found


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
