"""From a command line to a typed configuration. Hydra composes; what is wrong is found here, first.

Hydra reports one problem at a time, lets `+adapter.dmi=3` pass a schema and knows nothing of ranges. So every override
is checked on its own against the schema, for a sweep each of its choices; what is sound is composed, and the result
validated. All problems are raised together. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from vlatrain.cli.overrides import Checked, Request, aliased, joined, keys_in, swept
from vlatrain.cli.overrides import check as check_overrides
from vlatrain.cli.registry import register
from vlatrain.config import joint
from vlatrain.config.checks.owners import unread
from vlatrain.config.checks.settings import problems as value_problems
from vlatrain.config.errors import Incompatible, UserError, all_incompatible
from vlatrain.config.folder import conf_dir
from vlatrain.config.keys import all_keys, did_you_mean, leaves, problems_in, unknown_keys
from vlatrain.config.methods import ROUTER, completed
from vlatrain.config.schema import CheckConfig, EvalConfig, ExportConfig, MergeConfig, PredictConfig, TrainConfig
from vlatrain.config.sweep import FIGURES
from vlatrain.injection.routes import routed
from vlatrain.runs import local_run

MOST_COMPOSED = 16  # jobs of a sweep that are each composed beforehand; of a larger one, each choice once

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"

Check = Callable[[TrainConfig], Iterable[str]]


@dataclass(frozen=True)
class Prepared:
    """A sound request.

    Attributes:
        overrides: overrides as Hydra takes them.
        swept: the keys with several values.
        folder: the sweep's folder, if it was chosen.
        notes: what is to be said before a sweep begins.
        planned: what each job varies, in their order; empty where the sweeper decides.
        objectives: what the sweeper goes by; empty: the headline metric.
    """

    overrides: list[str]
    swept: tuple[str, ...] = ()
    folder: str = ""
    notes: tuple[str, ...] = ()
    planned: tuple[tuple[str, ...], ...] = ()
    objectives: tuple[str, ...] = ()


def with_files(request: Request) -> Request:
    """The request, and what the user's YAML files say of a sweep: `hydra.mode`, and the values that `hydra.sweeper.params` varies,
    unless the command line has the key. The latter become words of the command line, which are checked, counted and named."""
    typed = {word.lstrip("+").partition("=")[0] for word in request.overrides}
    multirun, params = request.multirun, dict[str, str]()
    for file, group in _files(request, request.overrides):
        with suppress(UserError, AttributeError):  # a file that cannot be read is told of with the others
            if not _read(file, group)[1]:
                settings = _yaml(file).get("hydra", {})
                multirun = multirun or settings.get("mode") == "MULTIRUN"
                params |= settings.get("sweeper", {}).get("params") or {}
    words = [f"{key}={value}" for key, value in params.items() if key not in typed]
    emptied = ["hydra.sweeper.params=null"] if params else []  # Hydra's sweeper would vary them once more
    return dataclasses.replace(
        request, multirun=multirun, overrides=[*words, *request.overrides, *emptied] if multirun else request.overrides
    )


def prepare(request: Request, check: Check | None = None, whole: bool = True) -> Prepared:
    """Check a request and write its overrides in the form Hydra takes.

    Args:
        request: what was asked for.
        check: a further check of each composed configuration, returning problems.
        whole: whether sound overrides are composed here, too; a single job finds its problems itself, and composing costs
            a third of a second.

    Raises:
        UserError: everything that is wrong with it.
    """
    register()
    search = _search_path(request)
    texts = aliased(request)
    with _hydra(search):
        checked = check_overrides(request, texts, GlobalHydra.instance().config_loader())
        choices, found = checked.choices, checked.problems
        used = _files(request, itertools.chain(*choices))
        found += [problem for file, group in used for problem in _file_problems(file, group, request)]
        if whole or found:
            refused = {problem.partition("=")[0] for problem in checked.problems}  # and so left out of what is composed
            found += [
                problem
                for problem in _of_jobs(request, checked, check, bool(found))
                if not (" is missing" in problem and any(f"{key}=" in problem for key in refused))
            ]
        if found:
            raise UserError(dict.fromkeys(found))
        overrides = [*map(joined, choices), *checked.passed]
        several = [swept(alternatives) for alternatives in choices if len(alternatives) > 1]
        several += [swept([text]) for text in checked.passed]
        prepared = Prepared(overrides, tuple(several))
        return _sweep(request, checked, prepared) if request.sweeps else prepared


def run(request: Request, overrides: list[str], function: Callable[[DictConfig], Any]) -> None:
    """Compose a single job and call a function with it. Hydra's own main composes twice, to see whether it is a sweep.

    Raises:
        HydraException: it cannot be composed.
    """
    with _hydra(_search_path(request)) as hydra:
        hydra.run(request.primary, function, overrides)


def composed(
    verb: str, overrides: Sequence[str], check: Check | None = None, config_dir: str | None = None
) -> TrainConfig:
    """The configuration that a command line of one job stands for, checked as it is.

    Args:
        verb: the word in front.
        overrides: the others.
        check: a further check.
        config_dir: a folder of YAML files of one's own.

    Raises:
        UserError: everything that is wrong with it.
    """
    request = Request(verb, list(overrides), config_dir=config_dir)
    job = prepare(request, check, whole=False).overrides
    try:
        with _hydra(_search_path(request)):
            config = typed(_job(request, job), request.schema)
            if found := problems_of(config, request, job, check):
                raise UserError(dict.fromkeys(found))
            return config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error, request.schema)) from error


def _sweep(request: Request, checked: Checked, prepared: Prepared) -> Prepared:
    """What Hydra's sweeper needs beside: its folder, the same in all jobs, and which scores are the better ones.

    Raises:
        UserError: a range, and a sweeper that draws nothing from it; objectives that there are not.
    """
    first = [alternatives[0] for alternatives in checked.choices]
    chosen = {text.partition("=")[0].lstrip("+") for text in first}
    try:
        config = typed(_job(request, first), request.schema)
        settings = HydraConfig.get()
        folder = str(settings.sweep.dir) if "hydra.sweep.dir" in chosen else ""
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error, request.schema)) from error
    if config.resume == "auto" and not (folder or config.run.name or config.run.dir):
        raise UserError("resume=auto: say which sweep with hydra.sweep.dir=FOLDER, such as outputs/sweeps/NAME")
    basic = settings.sweeper._target_ == BASIC
    if checked.passed and basic:
        raise UserError(
            f"{text}: a range, and the sweeper only tries values one by one, as in {swept([text])}=A,B; one that draws from "
            "ranges is hydra/sweeper=optuna (pip install 'vlatrain[sweep]')"
            for text in checked.passed
        )
    objectives = tuple(config.sweep.objectives)
    if len(objectives) > 1 and basic:
        raise UserError(
            f"sweep.objectives=[{','.join(objectives)}]: Hydra's own sweeper goes by none; hydra/sweeper=optuna does "
            "(pip install 'vlatrain[sweep]')"
        )
    prepared = dataclasses.replace(prepared, folder=folder, objectives=objectives)
    if basic:
        varying = [place for place, alternatives in enumerate(checked.choices) if len(alternatives) > 1]
        jobs = itertools.product(*checked.choices)
        return dataclasses.replace(prepared, planned=tuple(tuple(job[place] for place in varying) for job in jobs))
    better = {name: score.higher_is_better for name, score in joint.scores(config.task).items()}
    better |= {name: figure.higher_is_better for name, figure in FIGURES.items()}
    ways = ["maximize" if better[name] else "minimize" for name in objectives or [config.task.metric]]
    added, notes = [], []
    if "direction" in settings.sweeper and "hydra.sweeper.direction" not in chosen:
        added.append(f"hydra.sweeper.direction={ways[0] if len(ways) == 1 else '[' + ','.join(ways) + ']'}")
        notes.append(f"{added[0]}: the sweeper is given each run's {' and '.join(objectives) or config.task.metric}")
    if "max_failure_rate" in settings.sweeper and "hydra.sweeper.max_failure_rate" not in chosen:
        added.append("hydra.sweeper.max_failure_rate=1.0")  # a failed job is a failed trial, and the others go on
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # all processes must choose the same trials
        sampler = settings.sweeper.get("sampler") or {}
        if "seed" not in sampler:
            raise UserError(
                f"hydra/sweeper: {settings.sweeper._target_} has no sampler.seed, and the {os.environ['WORLD_SIZE']} processes "
                "would try different values: start one process"
            )
        if sampler["seed"] is None:
            added.append(f"hydra.sweeper.sampler.seed={config.seed}")
            notes.append(f"{added[-1]}: all processes choose the same trials")
    return dataclasses.replace(prepared, overrides=[*prepared.overrides, *added], notes=tuple(notes))


def typed(config: DictConfig, schema: type[TrainConfig]) -> TrainConfig:
    """The dataclass of a composed configuration.

    Raises:
        UserError: unknown keys, wrong types or missing values.
    """
    try:
        kind = OmegaConf.get_type(config)
        # a primary of the user's own, not built on our schema
        if kind is not schema and (kind, schema) != (TrainConfig, CheckConfig):
            values = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
            if found := problems_in(schema, values):
                raise UserError(found)
            config = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), values))
        elif found := list(_extra_keys(config, schema)):
            raise UserError(found)
        made = cast(TrainConfig, OmegaConf.to_object(config))
        if type(made) is not schema:  # check's keys were beside those of train
            made = schema(**vars(made))
        adapter = dataclasses.replace(made.adapter, sources=[local_run(source) for source in made.adapter.sources])
        made = dataclasses.replace(made, adapter=completed(adapter), task=joint.completed(made.task))
        if (
            made.adapter.name == ROUTER
            and made.adapter.sources
            and not isinstance(made, (EvalConfig, PredictConfig, MergeConfig, ExportConfig))
        ):
            return routed(made)  # task, data and backbone are those of its runs
        return dataclasses.replace(
            made, model=dataclasses.replace(made.model, tasks={**made.model.tasks, **joint.served(made)})
        )
    except (OmegaConfBaseException, HydraException) as error:
        raise UserError(explained(error, schema)) from error


def problems_of(config: TrainConfig, request: Request, job: list[str], check: Check | None = None) -> list[str]:
    """What is wrong with a typed configuration.

    Args:
        config: the configuration.
        request: what was asked for.
        job: the overrides of this job of it.
        check: a further check, asked only about an otherwise sound configuration.
    """
    written = list(_written(request, job))
    if request.sweeps:  # whatever the verb, it goes on with the sweep's jobs
        written = [(key, file) for key, file in written if key != "resume"]
    found = [*unread(config, request.verb, written), *value_problems(config, _folders(), request.sweeps)]
    if not request.sweeps:
        found += [f"{key}: is for a sweep's jobs; -m makes one" for key, _ in written if key.startswith("sweep.")]
    return list(check(config)) if check is not None and not found else found


def _folders() -> list[Path]:
    """The user's folders of YAML files: where Hydra composes, what `--config-dir` adds."""
    path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    found = [element.path or "" for element in path]
    return [Path(place.removeprefix("file://")) for place in found if place.startswith("file://")]


def _written(request: Request, job: list[str]) -> Iterator[tuple[str, str]]:
    """The keys that the user wrote, each with its file; empty: the command line. A whole configuration as a run saves it is a
    file, too, so that of a file what is as by default says nothing."""
    yield from ((key, "") for key in keys_in(job))
    defaults = leaves(dataclasses.asdict(TrainConfig()))
    for file, group in _files(request, job):
        yield from (
            (key, str(file)) for key, value in leaves(*_read(file, group)).items() if defaults.get(key) != value
        )


def _search_path(request: Request) -> ConfigSearchPath:
    """Where YAML files are looked for: as Hydra's own main has it, `--config-dir` after ours."""
    path = create_config_search_path(str(conf_dir()))
    if request.config_dir is not None:
        folder = Path(request.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {request.config_dir}: no such folder")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return path


@contextmanager
def _hydra(path: ConfigSearchPath) -> Iterator[Hydra]:
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("vlatrain", path)
    finally:
        GlobalHydra.instance().clear()


def _files(request: Request, overrides: Iterable[str]) -> list[tuple[Path, str]]:
    """The YAML files of the user's folder that overrides use, each with its group."""
    if request.config_dir is None:
        return []
    folder = Path(request.config_dir)
    files = [(folder / f"{request.primary}.yaml", "")]
    for single in overrides:
        key, _, value = single.lstrip("+").partition("=")
        names = [name.strip(" '\"") for name in value.strip("[]").split(",")]
        files += [(folder / key / f"{name}.yaml", key) for name in names]
    return [(file, group) for file, group in files if file.is_file()]


def _file_problems(file: Path, group: str, request: Request) -> list[str]:
    """What is wrong in a YAML file of the user's: all of it, where Hydra would stop at one."""
    try:
        values, key = _read(file, group)
    except UserError as error:
        return error.problems
    return problems_in(request.schema, values, key, source=str(file))


def _read(file: Path, group: str) -> tuple[dict[str, Any], str]:
    """The values in a YAML file, and the dotted key that they lie below.

    Raises:
        UserError: it does not hold any.
    """
    kept = {key: value for key, value in _yaml(file).items() if key not in ("defaults", "hydra")}
    header = re.search(r"^#\s*@package\s+(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    package = header[1] if header else group.replace("/", ".")
    return kept, "" if package in ("", "_global_", "experiment") else package


def _yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values")
    return values


def _of_jobs(request: Request, checked: Checked, check: Check | None, bad: bool) -> list[str]:
    """What is wrong with the composed jobs. A sweep leaves out those that do not fit, unless none is left."""
    choices = checked.choices

    def problems(job: list[str]) -> list[str]:
        try:
            return _composed_problems(request, job, checked.passed, check)
        except (HydraException, OmegaConfBaseException) as error:
            return [] if bad else [explained(error, request.schema)]  # most likely repeats what was found

    first = [alternatives[0] for alternatives in choices]
    if bad:
        return problems(first)
    few = math.prod(map(len, choices)) <= MOST_COMPOSED
    if few:
        found = [problems(list(job)) for job in itertools.product(*choices)]
    else:  # every choice once, beside others that go together
        base = next((job for job in _variations(first, choices) if not all_incompatible(problems(job))), first)
        found = [problems(job) for job in _variations(base, choices)]
    runs = any(not any(isinstance(problem, Incompatible) for problem in of_job) for of_job in found)
    return [
        problem
        for of_job in found
        for problem in of_job
        if not (request.sweeps and runs and isinstance(problem, Incompatible))
    ]


def _variations(base: list[str], choices: list[list[str]]) -> Iterator[list[str]]:
    """A job, and those that differ from it in one choice."""
    yield base
    for place, alternatives in enumerate(choices):
        for other in alternatives:
            if other != base[place]:
                yield [*base[:place], other, *base[place + 1 :]]


def _job(request: Request, job: list[str]) -> DictConfig:
    """The configuration of a job, composed; Hydra's own part is where Hydra looks for it."""
    composed = compose(request.primary, overrides=job, return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    with read_write(composed), open_dict(composed):
        del composed["hydra"]
    return composed


def _composed_problems(request: Request, job: list[str], passed: list[str], check: Check | None) -> list[str]:
    composed = _job(request, job)
    try:
        config = typed(composed, request.schema)
    except UserError as error:
        if isinstance(error.__cause__, InterpolationResolutionError):
            return []  # such as ${hydra:job.num}, known only in the job; checked again there
        return error.problems
    return problems_of(config, request, [*job, *passed], check)


def _extra_keys(config: DictConfig, schema: type[TrainConfig]) -> Iterator[str]:
    values = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    for key in unknown_keys(schema, values):
        yield f"there is no key {key}{did_you_mean(key, all_keys(schema))}"


def explained(error: Exception, schema: type) -> str:
    """Hydra's or OmegaConf's message in one line, and what was probably meant."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    key = getattr(cause or error, "full_key", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = list(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
    message = "; ".join(line for line in lines if not line.startswith(("full_key", "reference_type", "object_type")))
    if cause is not None:
        message += f": {str(cause).splitlines()[0]}"
    if named := re.match(r"Could not override '(\w+)/(\w+)'", message):
        group, name = named.groups()
        return f"{group}/{name}: the chosen {group} has no submodels; {group}=composite has"
    if named := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", message):
        group, name = named.groups()
        return f"hydra/{group}={name}: there is no such {group}; plugins bring others: pip install hydra-{name}-{group}"
    if key and "not in" in message:
        return f"there is no key {key}{did_you_mean(str(key), all_keys(schema))} ({message})"
    if key and "Missing mandatory value" in message:
        return f"{key}: a value is missing"
    return f"{key}: {message}" if key else message
