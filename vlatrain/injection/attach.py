"""Putting a method on a backbone: one path for our adapters, PEFT's, full fine-tuning and none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn

from vlatrain.adapters import DESIGNS, Adapter, Facts, options_of
from vlatrain.config import AdapterConfig, UserError
from vlatrain.config.errors import Incompatible
from vlatrain.config.files import write_manifest
from vlatrain.config.keys import did_you_mean
from vlatrain.config.methods import BARE, PROBE, ROUTER, is_peft, others_having
from vlatrain.config.optim import Group
from vlatrain.injection.context import context_of, rows
from vlatrain.injection.merging.fuse import fill, fused_places
from vlatrain.injection.mixed import Mixed, in_order, load, refuse_overlap
from vlatrain.injection.peft_method import PARTS, VlatrainConfig
from vlatrain.injection.points import Place, Point, Sites, parse
from vlatrain.injection.saved import differences, load_peft, shapes_in, shapes_of
from vlatrain.injection.sources import read_sources
from vlatrain.injection.trunk import at_points, bare, chosen, load_trunk, save_trunk, train_in_place
from vlatrain.runs import refuse_changed

# a place that any design can be made for, to see whether it takes its options
EXAMPLE = Facts(width=64, other_width=64, tower="x", site="x", role="out", inputs=64)
FULL = "model.safetensors"  # the weights of a full fine-tuning, beside nothing: it is no adapter


def check(config: AdapterConfig) -> None:
    """Make sure that a method exists and takes its options, before anything loads.

    Raises:
        UserError: it does not.
    """
    if config.name in (*BARE, ROUTER):
        return
    if config.components:
        for component in in_order(config).values():
            check(component)
        return
    with _quiet_peft(), _as_user_error(config):
        if is_peft(config):
            kind = _peft_config_class(config)
            known = [field.name for field in fields(kind)]
            if unknown := [name for name in config.options if name not in known]:
                raise UserError(
                    f"adapter.options.{name}: adapter={config.name} (PEFT's {kind.__name__}) has no such option"
                    f"{did_you_mean(name, known) or others_having(name)}"
                    for name in unknown
                )
            kind(**{**config.options, "target_modules": ["x"]})
        else:
            design = _design(config)
            if config.share.what == "columns" and "columns" not in {field.name for field in fields(design.Options)}:
                raise _not_shareable(config)
            options = options_of(design, _options(config))
            with torch.device("meta"):
                unit = design(EXAMPLE, options)
            if PARTS.get(config.share.what, "") not in dict(unit.named_modules()):
                raise _not_shareable(config)


def _not_shareable(config: AdapterConfig) -> UserError:
    return UserError(f"adapter.share.what={config.share.what}: adapter={config.name} has none that could be shared")


def attach(model: nn.Module, config: AdapterConfig, sites: Sites, tasks: Sequence[str] = ()) -> nn.Module:
    """Put the method's modules into the model and make them trainable, with what trains beside them, and nothing else.

    Args:
        model: the frozen model; changed in place.
        config: the method.
        sites: where it goes, and the modules of the backbone that are new: they train with any method but `none`.
        tasks: names of the subtasks of a joint task: what `adapter.by_task` makes adapters for.

    Returns:
        A `PeftModel` around the model (`Mixed` for a mixed method), or the model itself for `full`, `none` and `linear_probe`.
        `full` trains everything, or what `adapter.points` selects if they are given.

    Raises:
        UserError: an unknown method, options that do not fit, or no point to put it.
    """
    if config.name == "none":
        return model
    if config.name == "full":
        own, wanted = dict(model.named_parameters()), _of_full(model, config, sites)
        for name in own if wanted is None else wanted:
            own[name].requires_grad_(True)
        return model
    if config.name == PROBE:
        train_in_place(model, _beside(model, config, sites))
        return model
    if not sites.places:
        raise UserError(
            "adapter.points selects no point: there is nothing to train (adapter=none evaluates the frozen model)"
        )
    context_of(model).dropped = config.drop_layers
    beside = _beside(model, config, sites)
    adapted = (_mixed if config.components else _single)(model, config, sites, tasks)
    train_in_place(adapted, beside)
    return adapted


def _of_full(model: nn.Module, config: AdapterConfig, sites: Sites) -> list[str] | None:
    """Names of what full fine-tuning trains where points are given; None: everything."""
    if config.points is None:
        return None
    if not sites.places:
        raise UserError("adapter.points selects no point: there is nothing to train")
    return at_points(model, sites)


def _beside(model: nn.Module, config: AdapterConfig, sites: Sites) -> list[str]:
    """Names of the trunk's parameters that train beside a method: those that are new, unless nothing may train."""
    return chosen(model, config.trunk, replace(sites, trained=()) if "frozen" in config.needs else sites)


def _single(model: nn.Module, config: AdapterConfig, sites: Sites, tasks: Sequence[str]) -> nn.Module:
    with _quiet_peft(), _as_user_error(config):
        adapted = get_peft_model(model, peft_config(config, sites, tasks), revision=_revision(model))
        if "sources" in config.needs:
            fill(adapted, read_sources(config.sources, "adapter.sources"))
        return adapted


def _mixed(model: nn.Module, config: AdapterConfig, sites: Sites, tasks: Sequence[str]) -> Mixed:
    ordered, mixed = in_order(config), Mixed(model)
    where = sites.divided({name: component.points for name, component in ordered.items()})
    configs: dict[str, PeftConfig] = {}
    for name, component in ordered.items():
        with _as_user_error(component):
            configs[name] = peft_config(component, where[name], tasks)
    with _quiet_peft(), _as_user_error(config):
        refuse_overlap(configs)
        for name, found in configs.items():
            mixed.add(name, lambda base, found=found: get_peft_model(base, found, revision=_revision(base)))  # type: ignore[misc]
    return mixed


def _revision(model: nn.Module) -> str | None:
    """The commit of the hub that a model was read from, where it was: the adapter's configuration says it beside the name."""
    found: str | None = getattr(getattr(model, "config", None), "_commit_hash", None)
    return found


def peft_config(config: AdapterConfig, sites: Sites, tasks: Sequence[str] = ()) -> PeftConfig:
    """The method as PEFT's configuration, in plain Python values."""
    heads = list(sites.heads) if config.heads else None
    if is_peft(config):
        kind, targets = _peft_config_class(config), _targets(config, sites)
        options = {**config.options, "target_modules": targets, "modules_to_save": heads}
        if "feedforward_modules" in {field.name for field in fields(kind)}:  # IA3 scales these at their input
            inside = {path for p, place in sites.places.items() if p.site == "ffn" for path in place.modules.values()}
            options["feedforward_modules"] = sorted(set(targets) & inside)
        return kind(**options)
    design = _design(config)
    places = {
        point: place
        for point, place in sites.at(design.at).items()
        if design.takes(place.role, config.settings, point.site.partition(":")[0])
    }
    if not places:
        raise ValueError("the points have no module that it goes to")
    options = _options(config)
    if "sources" in config.needs:
        sources = read_sources(config.sources, "adapter.sources")
        places = fused_places(sources, places)
        options["sources"] = [source.described() for source in sources]
    return VlatrainConfig(
        design=config.name,
        points={str(point): _plain(place) for point, place in places.items()},
        options=options,
        overrides=_overrides(config, sites, places),
        share=asdict(config.share) if config.share.what != "none" else {},
        tasks=list(tasks) if config.by_task else [],
        modules_to_save=heads,
    )


def _options(config: AdapterConfig) -> dict[str, Any]:
    """The design's options; the columns that are shared are one of them."""
    columns = {"columns": config.share.columns} if config.share.what == "columns" else {}
    return config.settings | columns


def _overrides(config: AdapterConfig, sites: Sites, places: dict[Point, Place]) -> dict[str, dict[str, Any]]:
    """By point, the options that differ there; a later pattern has the last word."""
    found: dict[str, dict[str, Any]] = {}
    for pattern, values in config.overrides.items():
        chosen = {(p.tower, p.layer, p.site) for p in parse(pattern).select(sites.stacks)} & {
            (p.tower, p.layer, p.site) for p in sites.places
        }
        for point in places:
            site = point.site.partition(":")[0]
            if any(
                tower == point.tower and layer == point.layer and site in (own, "layer") for tower, layer, own in chosen
            ):
                found[str(point)] = {**found.get(str(point), {}), **values}
    return found


def _plain(place: Place) -> dict[str, Any]:
    """A place as plain values, without those that say nothing."""
    return {key: value for key, value in asdict(place).items() if value}


def _design(config: AdapterConfig) -> type[Adapter]:
    if config.name not in DESIGNS:
        known = ", ".join([*DESIGNS, *BARE])
        raise UserError(
            f"adapter.name={config.name} is unknown; there are {known}, and PEFT's methods with adapter.targets=[...]"
        )
    return DESIGNS[config.name]


def _peft_config_class(config: AdapterConfig) -> type[PeftConfig]:
    kind = PeftType.__members__.get(config.name.upper())
    if kind is None:
        known = ", ".join(PeftType.__members__).lower()
        raise UserError(
            Incompatible(f"adapter.name={config.name}: PEFT {peft.__version__} has no such method; it has {known}")
        )
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]


def _targets(config: AdapterConfig, sites: Sites) -> list[str]:
    """Paths of the linear layers (or norms) that a method of PEFT changes.

    Raises:
        UserError: the points have none of these roles.
    """
    wanted = config.targets or []
    found = sites.targeted(wanted)
    if not found:
        roles = sorted({role for place in sites.places.values() for role in place.modules})
        raise UserError(f"adapter.targets={wanted}: the points have none of these; they have {', '.join(roles)}")
    return found


# what marks the parameters of our adapters and of PEFT's: the prefix of each of its methods
NEW_HEADS = ("box_head.", "head.", "location_words.")  # heads of a backbone that no checkpoint has
_PREFIXES = tuple({tuner.prefix for tuner in PEFT_TYPE_TO_TUNER_MAPPING.values() if getattr(tuner, "prefix", "")})


def group_of(name: str) -> Group:
    """Parameter group of a trainable parameter, by its name in the model."""
    if ".modules_to_save." in name:
        return "head"
    if any(part.startswith(_PREFIXES) for part in name.split(".")):
        return "adapter"
    return "head" if bare(name).startswith(NEW_HEADS) else "trunk"


@contextmanager
def mixed_rows(model: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Let each row of the batches in a call have its own adapter, as `model(..., adapter_names=[...])` does.

    Args:
        model: what `attach` returned, with several adapters loaded.
        adapters: name of each row's adapter, `__base__` for none.
    """
    peft_model: Any = model
    if not hasattr(type(getattr(model, "base_model", None)), "_enable_peft_forward_hooks"):
        raise ValueError("only vlatrain's own designs and PEFT's LoRA and RoAd mix adapters in a batch")
    # within PEFT's, which knows nothing of the calls to come: they may have any multiple of these rows
    with peft_model._enable_peft_forward_hooks(adapter_names=list(adapters)), rows(model, adapters):
        yield


def save(model: nn.Module, folder: Path) -> None:
    """Write what was trained: a PEFT adapter, weights of the trunk beside it, or the whole model's weights after full fine-tuning;
    for `none`, nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    save_trunk(model, folder)
    if isinstance(model, Mixed):
        with _quiet_peft():
            model.save_pretrained(folder)
    elif isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)
    elif not context_of(model).trunk and (
        trained := {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    ):
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in trained.items()}, str(folder / FULL))
    write_manifest(folder, leave_out=["README.md"])  # the card, which people complete


def restore(model: nn.Module, config: AdapterConfig, folder: Path, where: Sites | None = None) -> nn.Module:
    """Load what `save` wrote into a fresh backbone, for inference.

    Args:
        model: the backbone; changed in place.
        config: the method.
        folder: the adapter's folder.
        where: where it goes, and the modules of the backbone that are new: by it is known what of the trunk must be there; None: of
            the trunk, whatever is there is loaded.

    Raises:
        UserError: the folder does not hold it, or only in part, or holds that of another backbone.
    """
    if config.name == "none":
        return model
    if folder.is_dir():
        refuse_changed(folder)
    if config.name == PROBE:
        load_trunk(model, folder, _beside(model, config, where) if where else [])
        return model
    wanted = folder / (FULL if config.name == "full" else "adapter_config.json")
    for file in [folder / name / wanted.name for name in config.components] or [wanted]:
        if not file.is_file():
            raise UserError(
                f"{file.parent}: there is no {file.name}; the run has not finished, or is no adapter={config.name} run"
            )
    if config.name == "full":
        own = dict(model.named_parameters())
        names = _of_full(model, config, where) if where else None
        if names is None and config.points is not None:
            names = [*shapes_in(wanted)]
        if told := differences(
            shapes_in(wanted), shapes_of(own if names is None else {n: own[n] for n in names if n in own})
        ):
            raise UserError(f"{wanted} does not fit the backbone: {told}")
        model.load_state_dict(load_file(str(wanted)), strict=False)
        return model
    load_trunk(model, folder, _beside(model, config, where) if where else [])
    context_of(model).dropped = config.drop_layers
    with _quiet_peft():
        return load(model, folder) if config.components else load_peft(model, folder)


def merged(model: nn.Module) -> Any:
    """The backbone's model with the adapter in its weights; after full fine-tuning it is that already.

    Raises:
        UserError: the method cannot be merged.
    """
    if not isinstance(model, PeftModel):
        return model
    kind = PeftType(model.peft_config["default"].peft_type)
    try:
        with _quiet_peft():
            return model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"PEFT does not merge {kind.value} into the weights: {str(error).splitlines()[0]}") from error


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT's warnings that are none of the user's business."""
    with warnings.catch_warnings():
        # it still asks transformers by a name that goes in its next major release
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type .*LayerNorm")  # LN tuning: what it is for
        warnings.filterwarnings("ignore", message="Specified to not save")  # RandLoRA: on purpose
        # BOFT builds an extension where it can, and works without
        warnings.filterwarnings("ignore", message="Failed to load the CUDA extension|Setting boft_n_butterfly_factor")
        yield


@contextmanager
def _as_user_error(config: AdapterConfig) -> Iterator[None]:
    """What a design or PEFT says of its options, as the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"adapter={config.name}: {str(error).splitlines()[0]}") from error
