"""From a command line to checked overrides and a typed configuration. Hydra composes; everything wrong is found here, first.

Hydra reports one problem at a time, lets `+adapter.dmi=3` pass a schema and knows nothing of ranges. So every override is
checked on its own against the schema, for a sweep each of its choices; what is sound is composed, and the result validated. All
problems are raised together. Nothing here imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from vlatrain.config.adapter import AdapterConfig
from vlatrain.config.data import DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.folder import conf_dir, options_of
from vlatrain.config.keys import all_keys, did_you_mean, open_below, problems_in
from vlatrain.config.logger import LoggerConfig
from vlatrain.config.model import ModelConfig
from vlatrain.config.optim import OptimConfig
from vlatrain.config.paths import read_config
from vlatrain.config.schema import EvalConfig, PredictConfig, TrainConfig
from vlatrain.config.task import TaskConfig
from vlatrain.config.trainer import TrainerConfig
from vlatrain.config.validate import problems as value_problems

SCHEMAS: dict[str, type[TrainConfig]] = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "predict": PredictConfig,
    "inspect": TrainConfig,
}
GROUPS: dict[str, type] = {
    "task": TaskConfig,
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
}
FROM_RUN = "from_run"
MOST_COMPOSED = 16  # jobs of a sweep that are each composed beforehand; of a larger one, each choice once

Check = Callable[[TrainConfig], Iterable[str]]


@dataclass
class Request:
    """What was asked for.

    Attributes:
        verb: train, eval, predict or inspect.
        overrides: Hydra overrides, as typed.
        multirun: whether it is a sweep.
        config_dir: the user's own folder of YAML files.
        config_name: primary configuration; that of the verb by default.
    """

    verb: str
    overrides: list[str] = field(default_factory=list)
    multirun: bool = False
    config_dir: str | None = None
    config_name: str | None = None

    @property
    def schema(self) -> type[TrainConfig]:
        """Dataclass of the verb's configuration."""
        return SCHEMAS[self.verb]

    @property
    def primary(self) -> str:
        """Name of the primary YAML."""
        return (self.config_name or self.verb).removesuffix(".yaml")


def register() -> None:
    """Put the schemas in Hydra's store; the YAML files extend them."""
    store = ConfigStore.instance()
    for verb, schema in SCHEMAS.items():
        store.store(name=f"{verb}_schema", node=schema)
    for group, node in GROUPS.items():
        store.store(group=group, name=f"{group}_schema", node=node)


def register_run(values: dict[str, Any], source: str) -> None:
    """Make a finished run's configuration the default of every group (option `from_run`).

    Raises:
        UserError: keys or types that this version does not know.
    """
    if found := problems_in(TrainConfig, values, source=source):
        raise UserError(found)
    store = ConfigStore.instance()
    rest = {key: values[key] for key in ("seed", "run") if key in values}
    store.store(name=FROM_RUN, node=OmegaConf.create(rest))
    for group in GROUPS:
        # A description that happens to have such a key must not become Hydra's instruction.
        node = {key: value for key, value in values.get(group, {}).items() if key != "defaults"}
        store.store(group=group, name=FROM_RUN, node=OmegaConf.create(node))


@dataclass(frozen=True)
class Prepared:
    """A sound request.

    Attributes:
        overrides: overrides as Hydra takes them.
        swept: the keys with several values.
    """

    overrides: list[str]
    swept: tuple[str, ...] = ()


def prepare(request: Request, check: Check | None = None) -> Prepared:
    """Check a request and write its overrides in the form Hydra takes.

    Args:
        request: what was asked for.
        check: a further check of each composed configuration, returning problems.

    Raises:
        UserError: everything that is wrong with it.
    """
    register()
    texts = _aliased(request)
    with _hydra(request) as loader:
        choices, found = _checked_overrides(request, texts, loader)
        found += _own_files(request, choices)
        bad = bool(found)
        for job in itertools.islice(_jobs(choices), 1 if bad else None):
            try:
                found += [problem for problem in _composed_problems(request, job, check) if problem not in found]
            except (HydraException, OmegaConfBaseException) as error:
                if not bad:  # else it most likely repeats what was found
                    found.append(_explained(error, request.schema))
    found = list(dict.fromkeys(found))
    if found:
        raise UserError(found)
    swept = tuple(several[0].lstrip("+").partition("=")[0] for several in choices if len(several) > 1)
    return Prepared([_joined(alternatives) for alternatives in choices], swept)


def typed(config: DictConfig, schema: type[TrainConfig]) -> TrainConfig:
    """The dataclass of a composed configuration.

    Raises:
        UserError: unknown keys, wrong types or missing values.
    """
    try:
        if OmegaConf.get_type(config) is not schema:  # a primary of the user's own, not built on our schema
            values = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
            if found := problems_in(schema, values):
                raise UserError(found)
            config = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), values))
        elif found := list(_extra_keys(config, schema)):
            raise UserError(found)
        return cast(TrainConfig, OmegaConf.to_object(config))
    except (OmegaConfBaseException, HydraException) as error:
        raise UserError(_explained(error, schema)) from error


@contextmanager
def _hydra(request: Request) -> Iterator[ConfigLoader]:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="vlatrain"):
        yield GlobalHydra.instance().config_loader()


def _search_path(request: Request) -> list[str]:
    if request.config_dir is None:
        return []
    folder = Path(request.config_dir).absolute()
    if not folder.is_dir():
        raise UserError(f"--config-dir {request.config_dir}: no such folder")
    return [f"hydra.searchpath=['file://{folder}']"]


def quoted(value: str) -> str:
    """A text as a quoted value of Hydra's grammar, whatever it contains."""
    escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
    if escaped.endswith("\\"):
        escaped += "\\"
    return f"'{escaped}'"


# Free text: taken as typed, so that a question may hold commas, brackets and apostrophes.
_FREE_TEXT = {"eval": ("output",), "predict": ("image", "question", "text", "input", "output")}


def _aliased(request: Request) -> list[str]:
    """Overrides with `run=FOLDER` turned into `source=`, the run's configuration registered, and free text quoted."""
    if request.verb not in ("eval", "predict"):
        return list(request.overrides)
    texts: list[str] = []
    source: str | None = None
    for text in request.overrides:
        key, equals, value = text.partition("=")
        if key in ("run", "source") and equals:
            source = value.strip("'\"")
            texts.append(f"source={quoted(source)}")
        elif key in _FREE_TEXT[request.verb] and value != "null" and value[:1] not in ("'", '"') and not request.multirun:
            texts.append(f"{key}={quoted(value)}")
        elif key == "texts" and value[:1] not in ("[", "$"):
            texts.append(f"texts=[{quoted(value)}]")
        else:
            texts.append(text)
    if source is None:
        raise UserError(f"{request.verb} needs run=FOLDER, the folder of a finished run")
    register_run(read_config(source), f"{source}/config.yaml")
    return texts


def _checked_overrides(
    request: Request, texts: Sequence[str], loader: ConfigLoader
) -> tuple[list[list[str]], list[str]]:
    """The sound overrides, each with its choices as single overrides, and the problems of the others."""
    parser = OverridesParser.create(config_loader=loader)
    groups = _groups(request)
    sound: list[list[str]] = []
    found: list[str] = []
    multirun = request.multirun or any(text.startswith("hydra.mode=") for text in texts)
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException:
            found.append(f"{text}: not of the form key=value; put a value with spaces, commas or brackets in quotes")
            continue
        if override.is_sweep_override() and not multirun:
            found.append(f"{text}: several values; -m sweeps over them")
            continue
        alternatives: list[str] = []
        for single in _singles(override, parser, groups):
            problems = _override_problems(single, request.schema, groups, loader)
            found += problems
            if not problems:
                alternatives.append(_opened(single, request.schema, groups))
        if alternatives:
            sound.append(alternatives)
    return sound, found


def _singles(override: Override, parser: OverridesParser, groups: dict[str, list[str]]) -> Iterator[Override]:
    if not override.is_discrete_sweep():
        yield override
        return
    key = override.get_key_element()
    for value in override.sweep_string_iterator():
        # Globs also find the schemas, which are no options.
        if override.key_or_group not in groups or value in groups[override.key_or_group]:
            yield parser.parse_override(f"{key}={value}")
        elif "glob(" not in str(override.input_line):
            yield parser.parse_override(f"{key}={value}")


def _override_problems(
    override: Override, schema: type[TrainConfig], groups: dict[str, list[str]], loader: ConfigLoader
) -> list[str]:
    key, value = override.key_or_group, override.value()
    text = str(override.input_line)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or override.package is not None:
        return []
    if key in groups and not isinstance(value, dict):
        options = groups[key]
        if override.is_delete() or (key == "experiment" and value is None):
            return []
        if override.is_add() and key != "experiment":
            return [f"{text}: {key} is there already; leave out the +"]
        wrong = [name for name in (value if isinstance(value, list) else [value]) if name not in options]
        return [
            f"{key}={name}: there is no such {key}; there are {', '.join(options)}{did_you_mean(str(name), options)}"
            for name in wrong
        ]
    if "/" in key:
        return [f"{text}: there is no group {key}{did_you_mean(key, [*groups])}"]
    found = problems_in(schema, None if override.is_delete() else value, key)
    if found and "there is no key" in found[0] and not isinstance(value, dict):
        return [f"{text}: there is no key {key}{did_you_mean(key, [*all_keys(schema), 'experiment'])}"]
    if override.is_delete():
        return [f"{text}: a single key cannot be taken out"] if not found else []
    if not found and override.is_add() and not open_below(schema, key):
        return [f"{text}: {key} is there already; leave out the +"]
    return found


def _opened(override: Override, schema: type[TrainConfig], groups: dict[str, list[str]]) -> str:
    """The override as text; with `++` where the user chooses the keys, as Hydra asks for it."""
    text = str(override.input_line)
    key = override.key_or_group
    if key in groups or key.startswith("hydra") or text[0] in "+~" or not open_below(schema, key):
        return text
    return f"++{text}"


def _joined(alternatives: list[str]) -> str:
    """Single overrides of one key as one override: `key=a,b`."""
    first, *others = alternatives
    if not others:
        return first
    return ",".join([first, *(other.partition("=")[2] for other in others)])


def _groups(request: Request) -> dict[str, list[str]]:
    """Options of each group, those of the user's folder included."""
    names = {group: list(options) for group, options in options_of(conf_dir()).items()}
    if request.config_dir is not None:
        _search_path(request)
        for group, options in options_of(Path(request.config_dir)).items():
            names[group] = sorted({*names.get(group, []), *options})
    if request.verb in ("eval", "predict"):
        names = {group: [*options, FROM_RUN] for group, options in names.items()}
    return names


def _own_files(request: Request, choices: list[list[str]]) -> list[str]:
    """Problems in those YAML files of the user's folder that the request uses, all of them; Hydra would stop at the first."""
    if request.config_dir is None:
        return []
    folder = Path(request.config_dir)
    files = [(folder / f"{request.primary}.yaml", "")]
    for single in itertools.chain(*choices):
        key, _, value = single.lstrip("+").partition("=")
        names = [name.strip(" '\"") for name in value.strip("[]").split(",")]
        files += [(folder / key / f"{name}.yaml", key) for name in names]
    return [problem for file, group in files if file.is_file() for problem in _file_problems(file, group, request.schema)]


def _file_problems(file: Path, group: str, schema: type[TrainConfig]) -> list[str]:
    text = file.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"{file}: not readable as YAML: {' '.join(str(error).split())}"]
    if values is None:
        return []
    if not isinstance(values, dict):
        return [f"{file}: expected keys and values"]
    whole = any(line.startswith("#") and "@package _global_" in line for line in text.splitlines())
    kept = {key: value for key, value in values.items() if key not in ("defaults", "hydra")}
    key = "" if whole or group in ("", "experiment") else group
    return problems_in(schema, kept, key, source=str(file))


def _jobs(choices: list[list[str]]) -> Iterator[list[str]]:
    """The combinations to compose: every job of a sweep, or, where there are very many, every choice once."""
    count = 1
    for alternatives in choices:
        count *= len(alternatives)
    if count <= MOST_COMPOSED:
        yield from (list(job) for job in itertools.product(*choices))
        return
    base = [alternatives[0] for alternatives in choices]
    yield base
    for place, alternatives in enumerate(choices):
        for other in alternatives[1:]:
            yield [*base[:place], other, *base[place + 1 :]]


def _composed_problems(request: Request, job: list[str], check: Check | None) -> list[str]:
    composed = compose(request.primary, overrides=[*job, *_search_path(request)], return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    with read_write(composed), open_dict(composed):
        del composed["hydra"]
    try:
        config = typed(composed, request.schema)
    except UserError as error:
        if isinstance(error.__cause__, InterpolationResolutionError):
            return []  # such as ${hydra:job.num}, known only in the job; checked again there
        return error.problems
    found = value_problems(config)
    if not found and check is not None:
        found = list(check(config))
    return found


def _extra_keys(config: DictConfig, schema: type, prefix: str = "") -> Iterator[str]:
    values = OmegaConf.to_container(config, resolve=False)
    yield from (problem for problem in problems_in(schema, values) if "there is no key" in problem)


def _explained(error: Exception, schema: type) -> str:
    """Hydra's or OmegaConf's message in one line, and what was probably meant."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    key = getattr(cause or error, "full_key", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = list(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
    message = "; ".join(line for line in lines if not line.startswith(("full_key", "reference_type", "object_type")))
    if cause is not None:
        message += f": {str(cause).splitlines()[0]}"
    if key and "not in" in message:
        return f"there is no key {key}{did_you_mean(str(key), all_keys(schema))} ({message})"
    if key and "Missing mandatory value" in message:
        return f"{key}: a value is missing"
    return f"{key}: {message}" if key else message
