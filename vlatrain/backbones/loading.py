"""Loading a backbone: pre-trained weights from a hub or a folder, or the architecture with random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vlatrain.backbones import reuse
from vlatrain.backbones.architecture import quiet
from vlatrain.backbones.base import Backbone
from vlatrain.backbones.box_head import add_box_head, see_whole
from vlatrain.backbones.describe import checkpoint_of, checkpoints_of, settings_of
from vlatrain.backbones.families.blip import Blip
from vlatrain.backbones.families.blip2 import Blip2
from vlatrain.backbones.families.chat_turns import ChatConverser
from vlatrain.backbones.families.composite_kinds import CausalComposite, Seq2SeqComposite
from vlatrain.backbones.families.dual import Dual
from vlatrain.backbones.families.qformer_lm import Prefix, Seq2Seq
from vlatrain.backbones.families.vilt import Vilt
from vlatrain.backbones.families.vision_tower import VisionTower
from vlatrain.backbones.fetching import commits_of, located
from vlatrain.backbones.location_words import add_location_words
from vlatrain.backbones.quantise import keep_others_exact, layers_of, quantise
from vlatrain.backbones.reuse import Source
from vlatrain.backbones.weights import broken_file
from vlatrain.config import ModelConfig, UserError
from vlatrain.config.families import VISION_TOWERS
from vlatrain.config.files import has_manifest
from vlatrain.runs import RunFolder, refuse_changed

FAMILIES: dict[str, type[Backbone]] = {
    "blip": Blip,
    "clip": Dual,  # what runs of earlier versions call it
    "dual": Dual,
    "vilt": Vilt,
    "causal_composite": CausalComposite,
    "seq2seq_composite": Seq2SeqComposite,
    "blip2": Blip2,
    "chat": ChatConverser,
    "prefix": Prefix,
    "seq2seq": Seq2Seq,
    "vision_tower": VisionTower,
}


def load(
    config: ModelConfig,
    task: str,
    *,
    texts: Iterable[str] = (),
    seed: int = 0,
    run: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The backbone for a task, on the CPU, in eval mode, nothing trainable. A quantised one is on its device.

    Args:
        config: its description.
        task: the task.
        texts: `random_init`: what its tokenizer is made from.
        seed: seed of weights that no checkpoint has; the same seed gives the same weights.
        run: `random_init`: a run folder whose processor is used instead of making one.
        device: `quantize`: where it is to go; None: it stays on the CPU.
        dtype: type that the frozen weights will be computed in. In a lower one than fp32 they are read as they are stored, for
            `cast_trunk` or packing to cast them.

    Raises:
        UserError: the weights cannot be had, or are not for this task.
    """
    checkpoints_of(config, task)  # a task that it does not serve
    # what is packed is read as it is stored: layer by layer it is unpacked, so that no machine holds it in fp32
    stored = dtype != torch.float32 or bool(config.quantize)
    texts = list(texts) if config.random_init else ()

    def read() -> Source:
        with torch.random.fork_rng(devices=[]):
            if config.random_init:
                return _random(config, task, texts, seed, run)
            return _pretrained(config, task, seed, stored)

    def key() -> str:
        return reuse.key_of(config, task, texts, run, stored)

    source = read() if config.quantize else reuse.kept_or(read, key, seed)
    backbone = family_of(config)(config, task, source.model, source.processor, source.name)
    backbone.model.requires_grad_(False).eval()
    if config.quantize:
        layers = layers_of(backbone.model, config, task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            quantise(backbone.model, layers, config.quantize, device or torch.device("cpu"), dtype)
        keep_others_exact(backbone.model)
        backbone.model.requires_grad_(False).eval().to(device)
    return backbone


def fetch_settings(config: ModelConfig, task: str) -> None:
    """Have the settings of a checkpoint of the hub here, before its weights, which take long.

    Raises:
        UserError: they cannot be had.
    """
    with _read_from(config, task, weights=False):
        pass


def load_without_weights(config: ModelConfig, task: str, texts: Iterable[str] = ()) -> Backbone:
    """The backbone for a task with its tokenizer and image processor, and its model on the meta device: for looking at data.

    Args:
        config: its description.
        task: the task.
        texts: `random_init`: what its tokenizer is made from.

    Raises:
        UserError: the processor cannot be had.
    """
    family, settings = family_of(config), settings_of(config, task)
    if config.random_init:
        processor = family.make_processor(config, settings, texts)
        settings, source = family.with_tokens(config, settings, processor), "random weights"
    else:
        source = checkpoint_of(config, task)
        with _read_from(config, task, weights=False) as local, quiet():
            processor = family.processor_of(local, task, checkpoint_of(local, task))
        settings = settings_of(config, task)  # the checkpoint's, which may only now be here
    with torch.device("meta"):
        model = _with_head(family.build(config, task, settings), processor, config, task)
    return family(config, task, model, processor, source)


def write(backbone: Backbone, model: PreTrainedModel, folder: Path) -> None:
    """Write a checkpoint in the hub's layout: a model with the backbone's processor."""
    with quiet():
        for part in (model, backbone.processor):
            part.save_pretrained(str(folder))


def meta_model(config: ModelConfig, task: str) -> PreTrainedModel:
    """The architecture without weights, on the meta device: for counting, in a moment, with no network."""
    with torch.device("meta"):
        return _with_head(family_of(config).build(config, task, settings_of(config, task)), None, config, task)


def family_of(config: ModelConfig) -> type[Backbone]:
    """The code that runs a kind of model.

    Raises:
        UserError: there is none of that name.
    """
    if config.family not in FAMILIES:
        raise UserError(f"model.family={config.family} is unknown; there are {', '.join(FAMILIES)}")
    return FAMILIES[config.family]


def _pretrained(config: ModelConfig, task: str, seed: int, stored: bool) -> Source:
    family = family_of(config)
    with _read_from(config, task) as local, quiet():
        torch.manual_seed(seed)  # of what the checkpoint does not have: a composite's projection
        before = torch.random.get_rng_state()
        model, processor = family.read(local, task, checkpoint_of(local, task), stored)
        model = _with_head(model, processor, config, task, checkpoint_of(local, task))
    drawn = not torch.equal(before, torch.random.get_rng_state())
    names = config.checkpoint or config.tasks[task].checkpoint
    names = names or " + ".join(submodel.checkpoint for submodel in config.submodels.values() if submodel.checkpoint)
    if list(checkpoints_of(config, task)) == [""]:
        model.name_or_path = model.config.name_or_path = names  # and not where it lies in the cache
        model.config._commit_hash = commits_of(config, task).get("")
    return Source(model, processor, names, seed if drawn else None)


@contextmanager
def _read_from(config: ModelConfig, task: str, weights: bool = True) -> Iterator[ModelConfig]:
    """The description with folders of this machine for the checkpoints; what keeps them from being had or read as a `UserError`.

    Args:
        config: the description.
        task: the task.
        weights: whether weights are read, too.
    """
    local, checkpoint = config, checkpoint_of(config, task)
    try:
        local = located(config, task, weights)
        for folder in checkpoints_of(local, task).values() if weights else ():
            if has_manifest(Path(folder)):  # of `vlatrain export`
                refuse_changed(Path(folder), missing=False)
        yield local
    except OSError as error:
        raise UserError(_broken_settings(local, task) or _unreachable(config, task, local, error)) from error
    except ImportError as error:  # SigLIP's tokenizer is read by sentencepiece
        said = " ".join(str(error).split())
        package = re.search(r"requires the (\S+) library", said)
        way = f"pip install {package[1].lower()}" if package else said
        raise UserError(f"model={config.name}: transformers needs a package to read {checkpoint}; {way}") from error
    except UserError as error:  # by the names that were asked for, but for files, which are where they are
        if broken := _broken_settings(local, task):
            raise UserError(broken) from error
        folders = zip(checkpoints_of(local, task).values(), checkpoints_of(config, task).values(), strict=True)
        there = [(re.compile(rf"{re.escape(folder)}(?!/\w+\.)"), name) for folder, name in folders if folder != name]
        raise UserError(_renamed(problem, there) for problem in error.problems) from error


def _broken_settings(local: ModelConfig, task: str) -> str:
    """What is said of a file of settings that is no JSON, as where a download was cut, or answered by somebody else."""
    folders = [Path(name) for name in checkpoints_of(local, task).values()]
    for file in (file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return broken_file(file, str(error))
    return ""


def _renamed(problem: str, names: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, name in names:
        problem = pattern.sub(lambda _, name=name: name, problem)  # type: ignore[misc]
    return problem


def _random(config: ModelConfig, task: str, texts: Iterable[str], seed: int, run: Path | None) -> Source:
    family, settings = family_of(config), settings_of(config, task)
    if run is not None and (saved := RunFolder(run).processor).is_dir():
        refuse_changed(saved, missing=False)
        processor = family.read_processor(str(saved))
    else:
        processor = family.make_processor(config, settings, texts)
    # a model that is to be quantised is drawn then, layer by layer
    with torch.device("meta" if config.quantize else "cpu"):
        torch.manual_seed(seed)
        model = family.build(config, task, family.with_tokens(config, settings, processor))
        model = _with_head(model, processor, config, task)
    return Source(model, processor, f"random weights (seed {seed})", seed)


def _with_head(
    model: PreTrainedModel, processor: Any, config: ModelConfig, task: str, checkpoint: str = ""
) -> PreTrainedModel:
    """A model with the head for boxes, or words for them, if its description names such, and its processor made fit for that."""
    add_box_head(model, config, task, family_of(config).box_towers, checkpoint)
    add_location_words(model, processor, config, task, family_of(config).writes_at)
    see_whole(processor, config, task)
    return model


def _unreachable(config: ModelConfig, task: str, local: ModelConfig, error: OSError) -> str:
    """What is said of a checkpoint that cannot be had; `local`: the description with folders in place of names, if these were."""
    checkpoint, said = checkpoint_of(config, task), str(error).splitlines()[0]
    if local is not config or Path(checkpoint).is_dir():
        return f"model.checkpoint={checkpoint}: {said}"
    keys = [f"model.submodels.{name}.checkpoint=FOLDER" for name in checkpoints_of(config, task) if name]
    if not keys or config.family in VISION_TOWERS:
        keys = ["model.checkpoint=FOLDER"]
    tiny = "tiny_vit" if config.family in VISION_TOWERS else "tiny_composite" if config.submodels else "tiny_blip"
    return (
        f"cannot load {checkpoint} for task={task}: it is no folder here, and {said}; set {' and '.join(keys)} to a local copy, "
        f"model.random_init=true for the architecture with random weights, or model={tiny}"
    )
