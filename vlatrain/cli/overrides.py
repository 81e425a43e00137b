"""Overrides as typed on the command line: read one by one, checked against the schema, rewritten as Hydra wants them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from vlatrain.cli.registry import FROM_RUN, OF_RUN, SCHEMAS, register_run
from vlatrain.config.checks.owners import takes_no
from vlatrain.config.errors import UserError
from vlatrain.config.folder import conf_dir, options_of, subgroups_of
from vlatrain.config.keys import all_keys, did_you_mean, is_open, leaves, open_below, problems_in
from vlatrain.config.schema import TrainConfig
from vlatrain.runs import local_run, read_config

GONE = {
    "trainer=gpu": "there is none any more: trainer.batch_size=auto, the default, takes what a GPU has room for; leave it out, or "
    "set trainer.epochs=5 trainer.patience=2, which it had besides",
}
"""Options that there were, and what to do instead."""


@dataclass
class Request:
    """What was asked for.

    Attributes:
        verb: train, eval, predict, merge, export, inspect or check.
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
    def sweeps(self) -> bool:
        """Whether it is a sweep, by `-m` or by Hydra's own setting."""
        return self.multirun or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def schema(self) -> type[TrainConfig]:
        """Dataclass of the verb's configuration."""
        return SCHEMAS[self.verb]

    @property
    def primary(self) -> str:
        """Name of the primary YAML."""
        return (self.config_name or self.verb).removesuffix(".yaml")


@dataclass
class Checked:
    """Overrides after checking.

    Attributes:
        choices: the sound ones, each as its choices: single overrides, one unless it is swept over.
        passed: those that only a sweeper understands, such as `optim.lr=interval(1e-4,1e-2)`; left as they are.
        problems: what is wrong with the others.
    """

    choices: list[list[str]] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check(request: Request, texts: list[str], loader: ConfigLoader) -> Checked:
    """Check overrides one by one; of a sweep, every choice.

    Args:
        request: the request they belong to.
        texts: the overrides, from `aliased`.
        loader: Hydra's, which knows what globs match.
    """
    parser = OverridesParser.create(config_loader=loader)
    groups = _groups(request)
    checked = Checked()
    multirun = request.sweeps
    for text in texts:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            checked.problems.append(
                f"{text}: not of the form key=value; put a value with spaces, commas or brackets in quotes"
            )
            continue
        if override.is_sweep_override() and not multirun:
            key, _, value = text.partition("=")
            whole = f'; if it is one path, quote it: "{key}={quoted(value)}"' if _PATHS.fullmatch(key) else ""
            checked.problems.append(f"{text}: several values; -m sweeps over them{whole}")
            continue
        if override.is_sweep_override() and not override.is_discrete_sweep():
            checked.passed.append(text)
            continue
        alternatives: list[str] = []
        for single in _singles(override, parser, groups):
            problems = _problems(single, request, groups)
            checked.problems += problems
            if not problems:
                alternatives.append(_opened(single, request.schema, groups))
        if alternatives:
            checked.choices.append(alternatives)
    return checked


def keys_in(texts: Iterable[str]) -> Iterator[str]:
    """The dotted keys that overrides set, each in a mapping by itself; a null sets none, and a choice of an option its group."""
    for override in OverridesParser.create().parse_overrides(list(texts)):
        key, ours = override.key_or_group.partition("/")[0], not override.key_or_group.startswith("hydra")
        if ours and override.package is None and not override.is_delete():
            yield from leaves(override.value(), key)


def joined(alternatives: list[str]) -> str:
    """Single overrides of one key as one override: `key=a,b`."""
    first, *others = alternatives
    return ",".join([first, *(other.partition("=")[2] for other in others)])


def swept(alternatives: list[str]) -> str:
    """The key of an override."""
    return alternatives[0].lstrip("+").partition("=")[0]


def quoted(value: str) -> str:
    """A text as a quoted value of Hydra's grammar, whatever it contains."""
    # Hydra takes a backslash literally, except in front of a quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


def literal(value: str) -> str:
    """A text as a value of Hydra's that is taken as it is: quoted, and without interpolation."""
    return quoted(value.replace("${", "\\${"))


# Free text: taken as typed, so that a question may hold commas, brackets and apostrophes.
_FREE_TEXT = {
    "eval": ("output",),
    "predict": ("image", "question", "text", "input", "output"),
    "merge": ("output",),
    "export": ("to", "license"),
}


# Paths: taken as typed, too, but for a quoted one, `null`, and what Hydra would put in (`${oc.env:HOME}/a.jsonl`).
_PATHS = re.compile(
    r"data\.(?:subtasks\.[^.=]+\.)?(?:train|eval|test|(?:eval_|test_)?annotations|root|path)|model\.checkpoint|run\.dir"
)


def _path_as_typed(text: str, parser: OverridesParser, multirun: bool) -> str:
    """An override with a path, in the form that Hydra takes as it is; of a sweep, each of the paths that it would not read."""
    key, equals, value = text.partition("=")
    if not (equals and value and _PATHS.fullmatch(key)) or value == "null" or value[0] in "'\"" or "${" in value:
        return text
    several = "," in value and not Path(value).expanduser().exists()
    if not (multirun or several):
        return f"{key}={literal(value)}"
    return text if _readable(text, parser) else f"{key}={','.join(map(literal, value.split(',')))}"


def _readable(text: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(text)
    except HydraException:
        return False
    return True


def _is_free_text(request: Request, key: str, value: str) -> bool:
    quoted_or_null = value == "null" or value[:1] in ("'", '"')
    return key in _FREE_TEXT[request.verb] and not quoted_or_null and not request.multirun


def aliased(request: Request) -> list[str]:
    """The overrides with `run=FOLDER` turned into `source=`, the run's configuration registered, and free text and paths quoted.

    Raises:
        UserError: a verb that needs a run without one, or a folder that is none.
    """
    parser = OverridesParser.create()
    overrides = [_path_as_typed(text, parser, request.sweeps) for text in request.overrides]
    if request.verb not in OF_RUN:
        return overrides
    texts: list[str] = []
    source: str | None = None
    for text in overrides:
        key, equals, value = text.partition("=")
        if request.verb == "merge" and key in ("run", "sources") and equals:
            folders = [local_run(folder) for folder in _folders(value)]
            source = folders[0] if folders else None
            texts.append(f"sources=[{','.join(map(literal, folders))}]")
        elif key in ("run", "source") and equals:
            source = local_run(value.strip("'\""))
            texts.append(f"source={literal(source)}")
        elif _is_free_text(request, key, value):
            texts.append(f"{key}={literal(value)}")
        elif key == "texts" and value[:1] not in ("[", "$"):
            texts.append(f"texts=[{literal(value)}]")
        else:
            texts.append(text)
    if source is None:
        several = "sources=[FOLDER,FOLDER], the folders of finished runs"
        needed = several if request.verb == "merge" else "run=FOLDER, the folder of a finished run, or hub:OWNER/NAME"
        raise UserError(f"{request.verb} needs {needed}")
    if request.verb == "merge":
        texts.append(f"source={literal(source)}")
    register_run(read_config(source), f"{source}/config.yaml")
    return texts


def _folders(value: str) -> list[str]:
    """The folders in `[A,B]` or `A`, each in quotes or not; blanks belong to a name."""
    found = re.findall(r"""'([^']*)'|"([^"]*)"|([^,'"\[\]]+)""", value)
    return [folder for folder in ("".join(parts).strip() for parts in found) if folder]


def _singles(override: Override, parser: OverridesParser, groups: dict[str, list[str]]) -> Iterator[Override]:
    if not override.is_sweep_override():
        yield override
        return
    key = override.get_key_element()
    options = groups.get(override.key_or_group)
    glob = override.value_type == ValueType.GLOB_CHOICE_SWEEP  # finds the schemas too, which are no options
    for value in override.sweep_string_iterator():
        if not (glob and options and value not in options):
            yield parser.parse_override(f"{key}={value}")


def _problems(override: Override, request: Request, groups: dict[str, list[str]]) -> list[str]:
    schema, key, value = request.schema, override.key_or_group, override.value()
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
            f"{key}={name}: {gone}"
            if (gone := GONE.get(f"{key}={name}"))
            else f"{key}={name}: there is no such {key}; there are {', '.join(options)}{did_you_mean(str(name), options)}"
            for name in wrong
        ]
    if "/" in key:
        return [f"{text}: there is no group {key}{did_you_mean(key, [*groups])}"]
    if override.is_delete():
        return [f"{text}: only a group can be taken out, such as ~logger"]
    found = problems_in(schema, value, key)
    able = [verb for verb, other in SCHEMAS.items() if key in other.__dataclass_fields__]
    if able and request.verb not in able:
        return [takes_no(f"vlatrain {request.verb}", key, [f"vlatrain {verb}" for verb in able])]
    if found and "there is no key" in found[0] and not isinstance(value, dict):
        return [f"{text}: there is no key {key}{did_you_mean(key, [*all_keys(schema), 'experiment'])}"]
    if not found and override.is_add() and not open_below(schema, key):
        return [f"{text}: {key} is there already; leave out the +"]
    return found


def _opened(override: Override, schema: type[TrainConfig], groups: dict[str, list[str]]) -> str:
    """The override as text; with `++` where the user chooses the keys, as Hydra asks for it."""
    text = str(override.input_line)
    key = override.key_or_group
    if key in groups or key.startswith("hydra") or text[0] in "+~":
        return text
    adds = is_open(schema, key) and isinstance(override.value(), dict)
    return f"++{text}" if adds or open_below(schema, key) else text


def _groups(request: Request) -> dict[str, list[str]]:
    """Options of each group, those of the user's folder included."""
    names: dict[str, list[str]] = {}
    for folder in (conf_dir(), *([Path(request.config_dir)] if request.config_dir is not None else [])):
        for group, options in {**options_of(folder), **subgroups_of(folder)}.items():
            names[group] = sorted({*names.get(group, []), *options})
    if request.verb in OF_RUN:
        names = {group: [*options, FROM_RUN] for group, options in names.items()}
    return names
