"""The one place where checkpoints are read: weights, tokenizers and image processors, from a hub or a folder.

A checkpoint's own code is never run (`trust_remote_code=False` in every call), and nothing that a checkpoint lacks is replaced in
silence: transformers makes an empty tokenizer where the vocabulary is missing, and takes a default where an image size is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import cached_file

from vlatrain.backbones.describe import ASSETS
from vlatrain.backbones.weights import READING, broken_file, reconcile, type_of, weight_files
from vlatrain.config import UserError
from vlatrain.config.model import TowerConfig

log = logging.getLogger("vlatrain")

# tokens of the smallest vocabulary that can be meant: an empty tokenizer may have one beside its special ones
FEWEST = 16
OWN_CODE = "custom code"  # what transformers calls it where it refuses to run it
WHOLE = "tokenizer.json"  # a whole tokenizer in one file; others are made from a vocabulary
IMAGES = ("preprocessor_config.json", "processor_config.json")  # where the settings of an image processor may be


def model_type(checkpoint: str) -> str:
    """The kind of model that a checkpoint is of, as its `config.json` says.

    Raises:
        OSError: it cannot be had.
    """
    return str(PretrainedConfig.get_config_dict(checkpoint)[0].get("model_type", ""))


def refuse_code(kind: type[PreTrainedModel], checkpoint: str) -> None:
    """Refuse a checkpoint of a model that transformers knows only by code that comes with it.

    Args:
        kind: the class that is to read it.
        checkpoint: hub name or folder.

    Raises:
        OSError: it cannot be had.
        UserError: it is one.
    """
    code, there = PretrainedConfig.get_config_dict(checkpoint)[0].get("auto_map"), model_type(checkpoint)
    assert kind.config_class is not None, "a class that reads checkpoints"
    if code and there not in (kind.config_class.model_type, *CONFIG_MAPPING):
        raise UserError(
            f"{checkpoint} is a {there or 'nameless'} model, which transformers {transformers.__version__} does not know: it "
            f"brings code of its own ({', '.join(map(str, dict(code).values()))}), which vlatrain never runs; use a checkpoint "
            f"of a {kind.config_class.model_type} model in transformers' own format"
        )


def refuse_family(kind: type[PreTrainedModel], checkpoint: str, named: str, chosen: str = "") -> None:
    """Refuse a checkpoint of another kind of model than a class reads: transformers takes defaults for what its settings lack.

    Args:
        kind: the class that is to read it.
        checkpoint: folder.
        named: what the configuration calls it, for the message.
        chosen: what the configuration calls the class, where it does.

    Raises:
        OSError: it cannot be had.
        UserError: it is one.
    """
    assert kind.config_class is not None, "a class that reads checkpoints"
    wanted, there = kind.config_class.model_type, model_type(checkpoint)
    if there and whole(there) != whole(wanted):
        raise UserError(
            f"{named} is a {there} model, and {chosen or kind.__name__} reads {whole(wanted)} models: choose "
            + (
                f"a checkpoint of one, or another {chosen.partition('=')[0]}"
                if chosen
                else "a model= that is of its kind"
            )
        )


def whole(kind: str) -> str:
    """The kind of model that a vision tower is of, which may be read from a checkpoint of the whole."""
    return kind.removesuffix("_vision_model")


def read_model(
    kind: type[PreTrainedModel],
    checkpoint: str,
    named: str,
    new: Iterable[str] = (),
    stored: bool = False,
    used: Callable[[], set[str] | None] = lambda: None,
) -> PreTrainedModel:
    """The weights of a checkpoint.

    Stored in 16 bit and read as they are stored, they lie in the file until they are used: in the memory of the machine once,
    for all its processes, and never in fp32.

    Args:
        kind: the class of the model.
        checkpoint: folder.
        named: what the configuration calls it, for the message.
        new: prefixes of weights that it need not have.
        stored: read them in the type that they are stored in, instead of fp32. What `config.json` says of a type is not believed.
        used: gives the names of the weights that a forward pass uses, see `vlatrain.backbones.weights.reconcile`.

    Raises:
        OSError: they cannot be had.
        UserError: some are missing in it, of another shape, or a file is broken.
    """
    files = weight_files(Path(checkpoint), named)
    if files[0].suffix != ".safetensors":
        log.info(
            "%s: its weights are in %s, no safetensors: as tensors alone, nothing in it is run", named, files[0].name
        )
    with _refused(named):
        try:
            loaded: Any = kind.from_pretrained(
                checkpoint,
                dtype=type_of(files) if stored else torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # it hides which; they are refused below
                trust_remote_code=False,
            )
        except READING as error:
            if len(files) == 1 and files[0].suffix != ".safetensors":
                raise UserError(broken_file(files[0], _one_line(error)[:200])) from error
            raise _problem(named, error) from error
    if Path(checkpoint).is_relative_to(ASSETS):
        loaded[1]["unexpected_keys"] = set()  # the heads of its other tasks
    reconcile(loaded[0], loaded[1], named, new, used)
    model: PreTrainedModel = loaded[0]
    return model


def read_tokenizer(checkpoint: str, subfolder: str = "", kind: Any = AutoTokenizer) -> Any:
    """The tokenizer of a checkpoint.

    Args:
        checkpoint: hub name or folder.
        subfolder: the folder in it, where it has several.
        kind: its class, where it is known.

    Raises:
        OSError, ImportError: it cannot be had.
        UserError: it has no vocabulary, or is the checkpoint's own code.
    """
    where = f"{checkpoint}/{subfolder}" if subfolder else checkpoint
    try:
        tokenizer = kind.from_pretrained(checkpoint, subfolder=subfolder, trust_remote_code=False)
        tokenizer("a")
    except (OSError, ImportError):
        raise
    except Exception as error:  # the tokenizers library has no other
        if OWN_CODE in str(error) or _has(checkpoint, subfolder, WHOLE):
            raise _problem(f"{where}: its tokenizer cannot be read", error) from error
        raise UserError(_without_vocabulary(where, f"no {WHOLE} there: {_one_line(error)[:100]}")) from error
    files = {key: name for key, name in tokenizer.vocab_files_names.items() if key != "tokenizer_file"}
    missing = [name for name in (WHOLE, *files.values()) if not _has(checkpoint, subfolder, name)]
    words = len(tokenizer.get_vocab().keys() - {str(token) for token in tokenizer.added_tokens_decoder.values()})
    # without its merges, BPE spells every word
    if words < FEWEST or {WHOLE, files.get("merges_file")} <= set(missing):
        raise UserError(
            _without_vocabulary(where, f"not there: {', '.join(missing)}" if missing else f"{words} tokens")
        )
    return tokenizer


def read_image_processor(checkpoint: str, kind: Any = None) -> Any:
    """The image processor of a checkpoint, on PIL: equal on every machine.

    Args:
        checkpoint: hub name or folder.
        kind: its class; None: what the checkpoint says.

    Raises:
        OSError: it cannot be had.
        UserError: the folder has none, or it is the checkpoint's own code.
    """
    if Path(checkpoint).is_dir() and not has_image_processor(checkpoint):
        raise UserError(
            f"{checkpoint} has no image processor: there is neither {' nor '.join(IMAGES)}; copy it from where the weights "
            "come from"
        )
    with _refused(checkpoint):
        if kind is not None:
            return kind.from_pretrained(checkpoint, trust_remote_code=False)
        return AutoImageProcessor.from_pretrained(checkpoint, backend="pil", trust_remote_code=False)


def has_image_processor(folder: str) -> bool:
    """Whether a folder has the settings of an image processor."""
    return any((Path(folder) / name).is_file() for name in IMAGES)


def refuse_tokens(tokenizer: Any, rows: int, checkpoint: str, padding: int | None = None) -> None:
    """Refuse a tokenizer whose tokens are beyond a model's word embeddings.

    Args:
        tokenizer: the tokenizer.
        rows: embeddings that the model has.
        checkpoint: where it comes from, for the message.
        padding: the token that texts are padded with, where it is the tokenizer's.

    Raises:
        UserError: it is for another model.
    """
    added = tokenizer.added_tokens_decoder
    ids = [number for number in tokenizer.get_vocab().values() if number not in added]
    ids += [*tokenizer("a")["input_ids"], padding or 0]  # special tokens that no text gets are no matter
    if max(ids) >= rows:
        raise UserError(
            f"{checkpoint}: its tokenizer has tokens up to {max(ids)}, but the model has embeddings for {rows}: they do not belong "
            "together; copy the tokenizer's files from where the weights come from"
        )


def refuse_images(model: Any, processor: Any, tower: TowerConfig, checkpoint: str) -> None:
    """Refuse an image processor whose images are not of the size that a model takes; say which of its settings are defaults.

    Args:
        model: the model.
        processor: its image processor.
        tower: its vision tower.
        checkpoint: where the processor comes from.

    Raises:
        UserError: the size is a default and not the model's, or the model takes no other than its own.
    """
    stated = ImageProcessingMixin.get_image_processor_dict(checkpoint)[0]
    pixels = processor(images=[Image.new("RGB", (64, 48))], return_tensors="pt")["pixel_values"]
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    if isinstance(side, int) and pixels.ndim > 3:  # others are patches, of an image of any size
        height, width = pixels.shape[-2:]
        embeddings = model.get_submodule(tower.embeddings).forward if tower.embeddings else None
        # where a call must ask for it, positions are not stretched to other images
        fixed = embeddings is not None and "interpolate_pos_encoding" in inspect.signature(embeddings).parameters
        told = "size" in stated
        if (fixed and (height, width) != (side, side)) or (not told and side not in (height, width)):
            raise UserError(
                f"{checkpoint}: its image processor makes images of {height}x{width}"
                f"{'' if told else ', a default, as it does not say a size'}; the model takes {side}x{side}: set size in its "
                f"{' or '.join(IMAGES)}"
            )
    if unsaid := [key for key in ("image_mean", "image_std") if processor.do_normalize and key not in stated]:
        log.warning(
            "%s: its image processor does not say %s: the defaults of %s are used, %s",
            checkpoint,
            " and ".join(unsaid),
            type(processor).__name__,
            " and ".join(str(getattr(processor, key)) for key in unsaid),
        )


def _has(checkpoint: str, subfolder: str, name: str) -> bool:
    """Whether a checkpoint has a file, as far as can be told from here."""
    return bool(_cached(checkpoint, subfolder, name))


def _cached(checkpoint: str, subfolder: str, name: str) -> str | None:
    """A file of a checkpoint, on this machine; None: it has none, or cannot be reached."""
    return cached_file(
        checkpoint,
        name,
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _without_vocabulary(where: str, why: str) -> str:
    return f"{where} has no whole vocabulary for its tokenizer ({why}); copy the tokenizer's files from where the weights come from"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _problem(where: str, error: Exception) -> UserError:
    """What transformers says of a checkpoint's files, as the user's to mend."""
    told = _one_line(error)
    if OWN_CODE in told:
        told = "its files ask for code of its own (auto_map), which vlatrain never runs; use one in transformers' own format"
    return UserError(f"{where}: {told[:300]}")


@contextmanager
def _refused(where: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise _problem(where, error) from error
