"""Print the test folders that mirror what has changed: `python scripts/changed_tests.py [BASE]`.

BASE is a commit; by default the one that this branch left the main one at. Uncommitted and new files count. A room of the package
is tested by the folder of its name, a file at its top by tests/test_FILE.py, the YAML files of conf/ by tests/config, and what
is written about them by tests/test_readme.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*words: str) -> list[str]:
    """The lines that a git command prints; none where it fails."""
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.splitlines() if ran.returncode == 0 else []


def base() -> str:
    """Where this branch left the main one; on it, the last commit."""
    for branch in ("origin/main", "main"):
        if found := git("merge-base", "HEAD", branch):
            return found[0]
    return "HEAD"


def mirrors(files: Iterable[str]) -> list[str]:
    """The tests of changed files, each folder or file once.

    Args:
        files: paths relative to the root.
    """
    found = {test for file in files for test in _mirror(Path(file)) if (ROOT / test).exists()}
    return sorted(test for test in found if not found & {parent.as_posix() for parent in Path(test).parents})


def _mirror(file: Path) -> Iterator[str]:
    top, *rest = file.parts
    if file.suffix == ".md":
        yield "tests/test_readme.py"
    if top == "tests":
        shared = file.suffix == ".py" and not file.name.startswith("test_")  # what several tests of the folder use
        yield (file.parent if shared or len(rest) > 1 else file).as_posix()
    elif top == "vlatrain" and file.suffix == ".py":
        yield "tests/test_architecture.py"
        yield f"tests/{rest[0]}" if len(rest) > 1 else f"tests/test_{file.name}"
    elif top == "conf":
        yield "tests/config"
    elif top in ("Makefile", "pyproject.toml", "CHANGELOG.md", ".pre-commit-config.yaml"):
        yield "tests/test_packaging.py"


if __name__ == "__main__":
    since = sys.argv[1] if len(sys.argv) > 1 else base()
    print(*mirrors([*git("diff", "--name-only", since), *git("ls-files", "--others", "--exclude-standard")]))
