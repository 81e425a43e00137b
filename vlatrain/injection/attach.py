"""Putting a method on a backbone: one path for our adapters, PEFT's, full fine-tuning and none."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlatrain.adapters import DESIGNS
from vlatrain.config import AdapterConfig, UserError
from vlatrain.injection.peft_method import VlatrainConfig
from vlatrain.injection.points import Sites

FULL = "model.safetensors"  # the weights of a full fine-tuning, beside nothing: it is no adapter


def attach(model: nn.Module, config: AdapterConfig, sites: Sites) -> nn.Module:
    """Put the method's modules into the model and make them, and nothing else, trainable.

    Args:
        model: the frozen model; changed in place.
        config: the method.
        sites: where it goes.

    Returns:
        A `PeftModel` around the model, or the model itself for `full` and `none`.

    Raises:
        UserError: an unknown method, or no point to put it.
    """
    if config.name == "none":
        return model
    if config.name == "full":
        model.requires_grad_(True)
        return model
    if not sites.outputs:
        raise UserError(
            "adapter.points selects no point: there is nothing to train (adapter=none evaluates the frozen model)"
        )
    with warnings.catch_warnings():  # PEFT still asks transformers by a name that goes in its next major release
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(model, peft_config(config, sites))


def peft_config(config: AdapterConfig, sites: Sites) -> PeftConfig:
    """The method as PEFT's configuration, in plain Python values."""
    heads = list(sites.heads) if config.heads else None
    if config.name == "lora":
        return LoraConfig(
            r=config.dim,
            lora_alpha=max(1, round(config.scaling * config.dim)),
            lora_dropout=config.dropout,
            target_modules=sorted({path for paths in sites.linears.values() for path in paths}),
            modules_to_save=heads,
        )
    if config.name in DESIGNS:
        return VlatrainConfig(
            design=config.name,
            points={str(point): path for point, path in sites.outputs.items()},
            options={
                "dim": config.dim,
                "activation": config.activation,
                "dropout": config.dropout,
                "scaling": config.scaling,
                "bias": config.bias,
                "init": config.init,
                "init_std": config.init_std,
            },
            modules_to_save=heads,
        )
    raise UserError(f"adapter.name={config.name} is unknown; there are {', '.join([*DESIGNS, 'lora', 'full', 'none'])}")


def group_of(name: str) -> str:
    """Parameter group of a trainable parameter, by its name in the model: adapter, head or trunk."""
    if ".modules_to_save." in name:
        return "head"
    return "adapter" if "vlatrain_" in name or "lora_" in name else "trunk"


def save(model: nn.Module, folder: Path) -> None:
    """Write what was trained: a PEFT adapter, or the whole model's weights after full fine-tuning; for `none`, nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)
    elif trained := {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in trained.items()}, str(folder / FULL))


def restore(model: nn.Module, config: AdapterConfig, folder: Path) -> nn.Module:
    """Load what `save` wrote into a fresh backbone, for inference.

    Raises:
        UserError: the folder does not hold it.
    """
    if config.name == "none":
        return model
    wanted = folder / (FULL if config.name == "full" else "adapter_config.json")
    if not wanted.is_file():
        raise UserError(
            f"{folder}: there is no {wanted.name}; the run has not finished, or is no adapter={config.name} run"
        )
    if config.name != "full":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            return PeftModel.from_pretrained(model, str(folder))
    weights: dict[str, Tensor] = load_file(str(wanted))
    outcome: Any = model.load_state_dict(weights, strict=False)
    if outcome.unexpected_keys:
        raise UserError(
            f"{wanted}: weights that the backbone does not have: {', '.join(outcome.unexpected_keys[:3])}, ..."
        )
    return model
