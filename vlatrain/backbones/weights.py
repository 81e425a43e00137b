"""The weights of a checkpoint: which files they are, whether they are whole, and how they fit a model.

What a model needs and a checkpoint lacks is refused by name. What no forward pass touches may be missing: it is zero then, which is
said, as is what a checkpoint has and the model does not.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open

from vlatrain.config import UserError, hub
from vlatrain.config.keys import few

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("vlatrain")

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # behind these names: which of several files has which tensor
OTHERS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".ckpt",
    ".npz",
)  # weights, as a rule
POINTER = b"version https://git-lfs"  # how a file begins that git-lfs has not fetched
NAMED = 10  # tensors that a message names
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors calls them


def weight_names(names: Iterable[str], index: Callable[[str], str]) -> list[str]:
    """The files of a checkpoint that transformers takes its weights from; empty: there are none that it reads.

    Args:
        names: its files.
        index: gives the text of one of them.

    Raises:
        ValueError: the list of its files cannot be read.
    """
    there = set(names)
    for name in (SAFE, PICKLED):
        if name in there:
            return [name]
        if name + INDEX in there:
            return [name + INDEX, *sorted(set(json.loads(index(name + INDEX))["weight_map"].values()))]
    return []


def weight_files(folder: Path, named: str) -> list[Path]:
    """The files in a folder that weights are taken from, each of them looked at: that it is there, and is what it is called.

    Args:
        folder: the folder.
        named: what the configuration calls it, for the message.

    Raises:
        UserError: there are none, one is missing or broken.
    """
    try:
        names = weight_names((file.name for file in folder.iterdir()), lambda name: (folder / name).read_text("utf-8"))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{named}: the list of its files of weights cannot be read ({error}); {_again(folder)}"
        ) from error
    if not names:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in OTHERS)
        there = f"there are {few(others, NAMED)}, which it does not read" if others else "there are no weights"
        raise UserError(f"{named}: neither {SAFE} nor {PICKLED}, nor the {INDEX[1:]} of several such files: {there}")
    files = [folder / name for name in names if not name.endswith(INDEX)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{named}: {len(missing)} of the {len(files)} files of its weights are missing ({few(missing, NAMED)}); "
            + (
                "run it again with the hub in reach"
                if hub.in_cache(folder)
                else "copy them from where the others come from"
            )
        )
    for file in files:
        if why := _broken(file):
            raise UserError(broken_file(file, why))
    return files


def broken_file(file: Path, why: str) -> str:
    """What is said of a file of a checkpoint that cannot be read."""
    return f"{file} is broken ({why}); {_again(file)}"


def _broken(file: Path) -> str:
    """Why a file of weights cannot be read; empty: it can. Only its head is looked at."""
    with file.open("rb") as opened:
        head = opened.read(len(POINTER))
    if head == POINTER:
        return "a pointer of git-lfs in its place: run git lfs pull"
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt"):
                return ""
        if not is_zipfile(file):  # the pickle of torch before 1.6, or nothing
            return "" if head[:1] == b"\x80" else "no file of PyTorch"
    except (SafetensorError, OSError) as error:
        return " ".join(str(error).split())
    return ""


def _again(file: Path) -> str:
    """What to do about a broken file."""
    blob = file.resolve()
    if hub.in_cache(file):
        return f"delete {blob if blob.is_file() else file}, and the next run downloads it anew"
    return "copy it again from where the checkpoint comes from"


def type_of(files: Sequence[Path]) -> torch.dtype:
    """The floating-point type that all weights in some files are stored in; fp32 where they differ."""
    found: set[torch.dtype] = set()
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as weights:
                kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118, it is no mapping
            # others than floats are counters of a batch norm
            found |= {HALVES.get(kind, torch.float32) for kind in kinds if not kind.startswith(("I", "U", "BOOL"))}
        else:
            tensors = torch.load(file, map_location="meta", weights_only=True)
            found |= {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    kind = found.pop() if len(found) == 1 else torch.float32
    return kind if kind in HALVES.values() else torch.float32


def reconcile(
    model: PreTrainedModel,
    report: Mapping[str, Any],
    named: str,
    new: Iterable[str] = (),
    used: Callable[[], set[str] | None] = lambda: None,
) -> None:
    """Refuse weights that do not fit a model; say what is missing that nobody uses, and what is left over.

    Args:
        model: the model that was read.
        report: what transformers says of its reading: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        named: what the configuration calls the checkpoint, for messages.
        new: key prefixes of weights that it need not have.
        used: gives the names of the weights that a forward pass uses, None where that cannot be told; asked where some do not fit.

    Raises:
        UserError: some that are used are missing, or have another shape.
    """
    own = tuple(new)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(own))
    others = {key: (there, wanted) for key, there, wanted in report["mismatched_keys"]}
    needed = used() if missing or others else None
    unused = [key for key in (*missing, *others) if needed is not None and key not in needed]
    if lacking := [key for key in missing if key not in unused]:
        raise UserError(
            f"{named} lacks {len(lacking)} of the weights of {type(model).__name__}: {few(lacking, NAMED)}: it is no checkpoint "
            "for it"
        )
    if shapes := [
        f"{key} {_by(there)} instead of {_by(wanted)}"
        for key, (there, wanted) in sorted(others.items())
        if key not in unused
    ]:
        raise UserError(
            f"{named} has {len(shapes)} of the weights of {type(model).__name__} in another shape: {few(shapes, NAMED)}: its "
            "config.json is not of these weights, or it is a checkpoint of another model"
        )
    if unused:
        with torch.no_grad():
            for key in unused:
                _tensor(model, key).zero_()
        log.info("%s lacks %s, which nothing uses here: zero", named, few(unused, NAMED))
    if drawn := sorted(key for key in report["missing_keys"] if key.startswith(own)):
        log.info("%s has no %s: drawn anew, to be trained", named, few(drawn, NAMED))
    if extra := sorted(key for key in report["unexpected_keys"] if not key.startswith(own)):
        log.info("%s has %d tensors that %s does not: %s", named, len(extra), type(model).__name__, few(extra))


def _tensor(model: PreTrainedModel, key: str) -> torch.Tensor:
    owner, _, name = key.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(owner), name)
    return tensor


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "()"


READING = (
    SafetensorError,
    RuntimeError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    pickle.UnpicklingError,
    EOFError,
)
"""What transformers passes on of a checkpoint that is not what it says."""
