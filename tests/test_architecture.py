"""Imports point one way: what stands higher may import what stands lower, never the reverse, and nothing imports its neighbour."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vlatrain"

# from the top; a file stands in the room that it is named after
ROOMS = (
    "__main__",
    "cli",
    "verbs",
    "training",
    "reporting",
    "tasks",
    "backbones",
    "injection",
    "data",
    "adapters",
    "metrics",
    "runs",
    "config",
)
LEVEL = {room: len(ROOMS) - place for place, room in enumerate(ROOMS)}


def parsed() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each file of the package, and the modules it imports, wherever in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name != "__init__.py":
            yield name, tuple(modules(ast.parse(path.read_text(encoding="utf-8")), name))


def modules(tree: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "vlatrain" else (module,)


@pytest.fixture(scope="module")
def imports() -> dict[str, tuple[str, ...]]:
    """By file, the modules that it imports."""
    return dict(parsed())


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def offenders(imports: dict[str, tuple[str, ...]], rooms: set[str], packages: set[str]) -> list[str]:
    """Files of these rooms that import one of these packages."""
    return [
        f"{file} imports {module}"
        for file, found in imports.items()
        for module in found
        if room_of(file) in rooms and module.split(".")[0] in packages
    ]


def test_every_file_has_its_room(imports: dict[str, tuple[str, ...]]) -> None:
    assert len(imports) > 100
    assert {room_of(file) for file in imports} <= set(LEVEL)


def test_nothing_imports_upwards(imports: dict[str, tuple[str, ...]]) -> None:
    upwards = [
        f"{file} imports {module}"
        for file, found in imports.items()
        for module in found
        if module.startswith("vlatrain.")
        and LEVEL.get(module.split(".")[1], 0) > LEVEL[room_of(file)]  # the package's own names have no level
    ]
    assert not upwards


def test_the_science_stands_alone(imports: dict[str, tuple[str, ...]]) -> None:
    """`adapters/` are pure torch modules."""
    assert not offenders(imports, {"adapters"}, {"peft", "transformers", "accelerate", "hydra", "omegaconf"})
    for file, found in imports.items():
        if room_of(file) == "adapters":
            own = {module for module in found if module.split(".")[0] == "vlatrain"}
            assert all(module.startswith("vlatrain.adapters") for module in own), file


def test_the_configuration_needs_no_torch(imports: dict[str, tuple[str, ...]]) -> None:
    assert not offenders(imports, {"config"}, {"torch", "transformers", "peft", "accelerate"})


#: Where a task's name may stand in code: with the tasks themselves, and in these files for what bears the same name.
NAMES_TASKS = {
    "config/joint.py": {"joint"},  # the task that has subtasks
    "config/spec.py": {"captioning", "vqa", "instruct"},  # keys of `model.prompts`
    "config/task.py": {"vqa"},  # the default
    "data/columns.py": {"segmentation"},  # what a column of masks is often called
    "data/folders.py": {"segmentation"},  # and a folder of them
    "data/shapes.py": {
        "vqa",
        "captioning",
        "retrieval",
        "classification",
        "instruct",
        "segmentation",
        "grounding",
    },  # the built-in sets
}


def test_tasks_are_named_by_their_descriptions_alone() -> None:
    """What differs between tasks is in `conf/task/` and `tasks/`: no other file asks which one it is."""
    tasks = {file.stem for file in (PACKAGE.parent / "conf" / "task").glob("*.yaml")}
    assert len(tasks) > 5
    named: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        texts = {n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)}
        if room_of(file) != "tasks" and (found := texts & tasks):
            named[file] = found
    assert named == NAMES_TASKS


def test_hydra_stays_at_the_command_line(imports: dict[str, tuple[str, ...]]) -> None:
    """And no DictConfig goes beyond it: what the configuration reads with OmegaConf are YAML files."""
    assert not offenders(imports, set(LEVEL) - {"cli"}, {"hydra"})
    assert not offenders(imports, set(LEVEL) - {"cli", "config"}, {"omegaconf"})


# Words of before, and the field's word for each. With no other meaning they are no name at all, of nothing.
FORBIDDEN = {
    "rehearse": "loss_on_meta",
    "foresee": "run_frozen_towers",
    "keep_prefix": "cache_prefix",
    "Keeping": "PrefixReplay",
    "Kept": "CachedStates",
    "Keeper": "Checkpointer",
    "keeper": "checkpointer",
    "Bench": "TrainingSetup",
    "bench": "setup",
    "fresh": "new_setup",
    "finished": "load_setup",
    "misfits": "incompatibilities",
    "Unfit": "Incompatible",
    "told": "described",
    "tell": "describe",
    "owned": "group_index_of",
    "searched": "generation_kwargs",
    "hand": "provide",
    "bring": "restore",
    "hears": "reads_inputs",
    "adds": "residual",
    "wants": "requires",
    "alone": "exclusive",
    "attend": "register_hooks",
    "settle": "resolve",
    "pure": "cacheable_inputs",
    "ends": "output_towers",
}
MODULES = {
    "keeping": "resume",
    "filling": "sample_cache",
    "fit": "compatibility",
    "bridged": "qformer_lm",
    "joined": "composite_model",
    "answering": "vqa_classifier",
    "matching": "retrieval_matching",
    "script": "chat_template",
}
# Of a word with other meanings, where it stands for another: file, and qualified name.
ALLOWED = {
    "data/turns.py conversation.finished": "whether the last reply is there",
    "data/turns.py _turns.finished": "the same",
}
AMBIGUOUS = ("rows", "part", "parts", "prefix", "other", "left", "found", "recall", "owner", "fill", "kept")


def names(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, str]]:
    """Each function, class, method and parameter: its name, and its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            qualified = f"{inside}{node.name}"
            yield node.name, qualified
            if not isinstance(node, ast.ClassDef):
                given = node.args
                for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
                    yield argument.arg, f"{qualified}.{argument.arg}"
            yield from names(node, f"{qualified}.")
        else:
            yield from names(node, inside)


def named() -> Iterator[tuple[str, str]]:
    """The names in the package, each with file and qualified name; modules too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        yield path.stem, f"{file} module"
        for name, qualified in names(ast.parse(path.read_text(encoding="utf-8"))):
            yield name, f"{file} {qualified}"


def test_names_are_the_fields() -> None:
    bad = []
    for name, place in named():
        words = MODULES | FORBIDDEN if place.endswith(" module") else FORBIDDEN
        if (word := name.strip("_")) in words and place not in ALLOWED:
            bad.append(f"{place}: {words[word]} is the word")
    assert not bad, "\n".join(bad)


def test_ambiguous_names_stand_for_what_they_stood_for() -> None:
    """A new one is thought about: its field's word, or a line in the list beside this file."""
    known = set((Path(__file__).parent / "ambiguous_names.txt").read_text(encoding="utf-8").splitlines())
    found = {place for name, place in named() if name.strip("_") in AMBIGUOUS}
    assert found <= known, f"new: {sorted(found - known)}"
    assert known <= found, f"gone: {sorted(known - found)}"
