"""Checkpoints that survive everything: a kill at any moment, a full disk, a damaged file.

A checkpoint is the folder `step_N`. It is written as `step_N.tmp`, every file and the folder are flushed to the disk,
and only then is it renamed; the manifest in it holds size and SHA-256 of each file, so damage shows when it is read.
`last.json` and `best.json` name the last and the best one for people and scripts; what `latest` finds does not depend
on them.

Tensors are in safetensors, everything else in JSON: nothing in a checkpoint can execute.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlatrain.config import UserError
from vlatrain.config.files import files_in, flush, remove_folder, replace_file, write_manifest
from vlatrain.runs import STATE, steps_in


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint, read.

    Attributes:
        step: its step.
        state: its JSON.
        tensors: its tensors, on the CPU, by file and name.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@dataclass
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        folder: where they are.
        keep: how many before the last are kept, beside the best.
    """

    folder: Path
    keep: int = 1
    _bests: dict[int, int | None] = field(default_factory=dict, repr=False)

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best: int | None = None
    ) -> None:
        """Write a checkpoint, then remove those no longer kept.

        Args:
            step: its step.
            tensors: tensors by file name (without ending) and name.
            state: JSON values.
            best: step of the best checkpoint so far (this one's, perhaps).

        Raises:
            UserError: it cannot be written (a full disk, say). The checkpoints before it are untouched.
        """
        unfinished = self.folder / f"step_{step}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_folder(unfinished)
            unfinished.mkdir()
            self._write(unfinished, tensors, {**state, "best_step": best})
            remove_folder(self.path(step))  # a damaged one, or one that a resume went back behind
            os.rename(unfinished, self.path(step))
            flush(self.folder)
            self._point("last", step)
            self._point("best", best)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            before = max(self.steps(), default=None)
            kept = "there is none before it" if before is None else f"the one of step {before} is whole"
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} could not be written ({error}); {kept}. "
                "Make room there, then continue with resume=auto and the same run.dir"
            ) from error
        self._bests[step] = best
        self._prune(step)

    def latest(self) -> tuple[Saved | None, list[str]]:
        """The last whole checkpoint, and what there is to say of damaged ones after it. Removes unfinished ones."""
        for unfinished in self.folder.glob("step_*.tmp"):
            remove_folder(unfinished)
        problems: list[str] = []
        for step in sorted(self.steps(), reverse=True):
            try:
                return self.load(step), problems
            except ValueError as error:
                problems.append(str(error))
        return None, problems

    def load(self, step: int) -> Saved:
        """Read a checkpoint.

        Raises:
            ValueError: it is damaged, or not there.
        """
        folder = self.path(step)
        try:
            names = files_in(folder)
            state = json.loads((folder / STATE).read_text())
            tensors = {Path(name).stem: load_file(folder / name) for name in names if name.endswith(".safetensors")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{folder} is damaged ({error})") from error
        self._bests[step] = state.get("best_step")
        return Saved(step, state, tensors)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there."""
        return steps_in(self.folder)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step_{step}"

    def _write(self, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        for name, group in tensors.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
            save_file(plain, folder / f"{name}.safetensors")
        (folder / STATE).write_text(json.dumps(state))
        write_manifest(folder)
        for path in (*folder.iterdir(), folder):
            flush(path)

    def _point(self, name: str, step: int | None) -> None:
        if step is None:
            return
        replace_file(self.folder / f"{name}.json", json.dumps({"step": step, "folder": self.path(step).name}) + "\n")

    def _prune(self, last: int) -> None:
        # those after the last are damaged ones that a resume went back behind; their turn to be replaced comes
        steps = sorted((step for step in self.steps() if step <= last), reverse=True)
        recent = steps[: self.keep + 1]
        # of every kept one the best too, so that falling back to it finds its best
        bests = {self._best_of(step) for step in recent}
        for step in steps:
            if step not in recent and step not in bests:
                remove_folder(self.path(step))

    def _best_of(self, step: int) -> int | None:
        if step not in self._bests:
            try:
                self._bests[step] = json.loads((self.path(step) / STATE).read_text()).get("best_step")
            except (OSError, ValueError):
                self._bests[step] = None
        return self._bests[step]
