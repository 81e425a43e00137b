"""Gathers what vlatrain needs and a GPU box lacks, as wheels that are carried there: `make gpu-wheels`.

    python scripts/gpu_wheels.py [--box scripts/gpu_box.txt] [--into build/gpu-wheels]

The box has no network; what it has says the file, with versions where they are known. Beginning with the dependencies in
pyproject.toml, everything that is not there is downloaded for its Python and platform, in the newest version whose own needs go
with what is there (constraints.txt has no say), and so on with what that needs. What has no wheel is built here, if it is pure
Python. At most 50 MB are gathered; extras that do not fit beside the rest are left out, which a line says.
"""

from __future__ import annotations

import argparse
import email
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
BOX = ROOT / "scripts" / "gpu_box.txt"
MOST_MB = 50
TRIES = 10  # versions of a package, newest first
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MARKERS = {  # of the box
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.3",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "extra": "",
}
EXTRAS = ("quantize",)  # of pyproject.toml: brought along if there is room


def read_box(file: Path) -> dict[str, str]:
    """What a box has: versions by package, empty where they are not known."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): version for name, _, version in pairs}


def wanted(extra: str = "") -> list[Requirement]:
    """The dependencies of vlatrain, or those of one of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [Requirement(line) for line in lines]


def incompatibilities(requirements: list[Requirement], box: dict[str, str]) -> list[str]:
    """The requirements that a box has in another version than is wanted."""
    there = ((requirement, box.get(canonicalize_name(requirement.name))) for requirement in requirements)
    return [
        f"{requirement} (there: {version})"
        for requirement, version in there
        if version and version not in requirement.specifier
    ]


def gather(requirements: list[Requirement], box: dict[str, str], folder: Path) -> list[Path]:
    """Download what requirements need beyond a box.

    Raises:
        SystemExit: something cannot be had in a version that goes with the box.
    """
    found: dict[str, Path] = {}
    asked: dict[str, SpecifierSet] = {}
    queue = list(requirements)
    while queue:
        requirement = queue.pop(0)
        name = canonicalize_name(requirement.name)
        if name in box:
            continue
        asked[name] = asked.get(name, SpecifierSet()) & requirement.specifier
        if name in found:
            if parse_wheel_filename(found[name].name)[1] in asked[name]:
                continue
            found[name].unlink()
        found[name], needs = fetch(name, asked[name], box, folder)
        queue += needs
    return [*found.values()]


def fetch(name: str, versions: SpecifierSet, box: dict[str, str], folder: Path) -> tuple[Path, list[Requirement]]:
    """The newest wheel of a package that goes with a box, and what it needs.

    Raises:
        SystemExit: there is none.
    """
    told: list[str] = []
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _download(f"{name}{versions}", Path(scratch))
            needs = needs_of(wheel)
            version = parse_wheel_filename(wheel.name)[1]
            if not (wrong := incompatibilities(needs, box)):
                folder.mkdir(parents=True, exist_ok=True)
                return Path(shutil.move(wheel, folder / wheel.name)), needs
            told.append(f"{name} {version} wants {', '.join(wrong)}")
            versions &= SpecifierSet(f"!={version}")
    sys.exit("\n".join(["nothing goes with what the box has:", *told]))


def needs_of(wheel: Path) -> list[Requirement]:
    """What a wheel's metadata says that it needs on the box."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (
            entry for entry in archive.namelist() if entry.count("/") == 1 and entry.endswith(".dist-info/METADATA")
        )
        said = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    needs = [Requirement(line) for line in said]
    return [need for need in needs if need.marker is None or need.marker.evaluate(MARKERS)]


def _download(requirement: str, scratch: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    where = (
        "--python-version",
        PYTHON,
        "--implementation",
        "cp",
        "--only-binary=:all:",
        *(f"--platform={p}" for p in PLATFORMS),
    )
    for command in (("download", *where, "-d", str(scratch)), ("wheel", "-w", str(scratch))):
        done = subprocess.run([*pip, *command, "--no-deps", requirement], capture_output=True, text=True)
        if not done.returncode:
            (wheel,) = scratch.glob("*.whl")
            if command[0] == "download" or wheel.name.endswith("-none-any.whl"):
                return wheel
            sys.exit(
                f"{requirement}: there is no wheel for the box, and what was built here is not pure Python ({wheel.name})"
            )
    sys.exit(f"{requirement} cannot be had:\n{done.stderr}")


def megabytes(files: list[Path]) -> float:
    """Size of files, in MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    """Gather, and say what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--box", type=Path, default=BOX, help="the packages that the box has")
    parser.add_argument(
        "--into", type=Path, default=ROOT / "build" / "gpu-wheels", help="folder of the wheels, made anew"
    )
    options = parser.parse_args()
    box = read_box(options.box)
    if wrong := incompatibilities(wanted(), box):
        sys.exit(f"the box has what vlatrain does not run with: {', '.join(wrong)}")
    shutil.rmtree(options.into, ignore_errors=True)
    files = gather(wanted(), box, options.into)
    if megabytes(files) > MOST_MB:
        sys.exit(
            f"{megabytes(files):.1f} MB are needed, at most {MOST_MB} can be carried: {', '.join(file.name for file in files)}"
        )
    for extra in EXTRAS:
        with tempfile.TemporaryDirectory() as scratch:
            more = gather(wanted(extra), box, Path(scratch))
            if megabytes([*files, *more]) > MOST_MB:
                print(
                    f"left out: {', '.join(file.name for file in more)} ({megabytes(more):.1f} MB; at most {MOST_MB} in all)"
                )
                continue
            files += [Path(shutil.move(file, options.into / file.name)) for file in more]
    for file in files:
        print(f"{megabytes([file]):6.1f} MB  {file.name}")
    print(f"{megabytes(files):6.1f} MB  in {options.into}")


if __name__ == "__main__":
    main()
