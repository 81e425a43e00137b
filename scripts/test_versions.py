"""The contract tests at both ends of the ranges in pyproject.toml, and under other arithmetic: `make test-versions`.

    python scripts/test_versions.py [PART ...]

The parts are `oldest` and `newest`, each an environment of its own in `.venv-versions/` with the contract tests and a smoke run of
the command line, and `arithmetic`, which runs the numeric tests here as other processors and other numbers of threads compute.
Without a name, all three run. `torch` is for once, by hand: the oldest torch and the other Pythons, for which registries have CUDA
builds of several GB only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-versions"
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
CONTRACT = (  # what depends on PEFT, transformers, datasets and accelerate
    "tests/adapters/test_register.py",
    "tests/backbones",
    "tests/data/test_hub.py",
    "tests/injection",
    "tests/training/test_precision.py",
)
NUMERIC = (
    "tests/adapters",
    "tests/backbones",
    "tests/training/prefix_cache/test_compute.py",
    "tests/training/test_loop.py",
    "tests/training/test_resume.py",
)
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub", "tokenizers", "numpy")
VERSIONS = (
    f"import sys; from importlib.metadata import version as of; print(sys.version, *((p, of(p)) for p in {PACKAGES}))"
)


@dataclass(frozen=True)
class Environment:
    """What to install.

    Attributes:
        constraints: file of the versions.
        python: the interpreter.
        instead: packages whose version is another than in the file.
    """

    constraints: str
    python: str = sys.executable
    instead: dict[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    "oldest": Environment("tests/versions/oldest.txt"),
    "newest": Environment("constraints.txt"),
    "torch-2.11": Environment("tests/versions/oldest.txt", "python3.12", {"torch": "2.11.0"}),
    "python-3.13": Environment("constraints.txt", "python3.13"),
}
PARTS = {
    "oldest": ["oldest"],
    "newest": ["newest"],
    "arithmetic": ["arithmetic"],
    "torch": ["torch-2.11", "python-3.13"],
}
ARITHMETIC = (
    {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
)


def main(names: list[str]) -> int:
    """Run parts; 0 if all pass."""
    if unknown := [name for name in names if name not in PARTS]:
        print(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    steps = [step for name in names or ["oldest", "newest", "arithmetic"] for step in PARTS[name]]
    passed = {step: arithmetic() if step == "arithmetic" else ends(step) for step in steps}
    print("", *(f"{step}: {'passed' if ok else 'FAILED'}" for step, ok in passed.items()), sep="\n")
    return 0 if all(passed.values()) else 1


def ends(name: str) -> bool:
    """Install an environment, and run the contract tests and the command line in it."""
    environment = ENVIRONMENTS[name]
    if not run(environment.python, "--version"):
        print(f"{name}: there is no {environment.python} on the path")
        return False
    folder = FOLDER / name
    python = install(folder, environment)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return (
        python is not None
        and run(python, "-c", VERSIONS)
        and tests(python, *CONTRACT, OMP_NUM_THREADS="1")
        and run("bash", "scripts/smoke.sh", PATH=path)
    )


def install(folder: Path, environment: Environment) -> str | None:
    """Put the package, editable, and what the tests need into an environment; its interpreter, or None where that failed."""
    python = str(folder / "bin" / "python")
    if not Path(python).exists() and not run(environment.python, "-m", "venv", str(folder)):
        return None
    pins = (ROOT / environment.constraints).read_text(encoding="utf-8").splitlines()
    kept = [pin for pin in pins if pin.partition("==")[0] not in environment.instead]
    constraints = folder / "constraints.txt"
    instead = [f"{package}=={version}" for package, version in environment.instead.items()]
    constraints.write_text("\n".join([*kept, *instead]) + "\n", encoding="utf-8")
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints))
    return python if run(*pip, "-e", ".", *TOOLS) else None


def arithmetic() -> bool:
    """The numeric tests in this environment, as processors of other widths and other numbers of threads compute."""
    passed = [tests(sys.executable, *NUMERIC, **settings) for settings in ARITHMETIC]
    return all(passed)


def tests(python: str, *paths: str, **variables: str) -> bool:
    """Whether tests pass."""
    return run(python, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", *paths, **variables)


def run(*command: str, **variables: str) -> bool:
    """Run a command in the checkout, with variables of the environment; whether it succeeded."""
    print("\n$", *(f"{name}={value}" for name, value in variables.items() if name != "PATH"), *command, flush=True)
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
