"""Whether vlatrain is right on a GPU, and how fast: on a box that has neither a network nor all packages.

    python3 scripts/gpu_check.py [--device cuda|cpu] [--tiny] [--stages losses,runs] [--out FOLDER] [--wheels FOLDER]

What the box lacks comes as wheels (`make gpu-wheels`), which are unpacked into a temporary folder: nothing is installed. Each
stage is a process of its own of at most eight minutes and writes FOLDER/STAGE.json; after one that fails, the next begins. The end
is a table; the exit status is 1 if a stage has failed. `--device cpu --tiny` rehearses all of it in minutes, at sizes of which the
figures tell nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 480  # seconds of a stage
OUTPUT = 4000  # characters of a failed stage's output that are kept


@dataclass(frozen=True)
class Stage:
    """A function of its name in a script.

    Attributes:
        script: the script.
        tells: what is known once it has passed.
    """

    script: str
    tells: str


STAGES = {  # in the order in which they run: what is wrong first, then what is slow
    "losses": Stage(
        "gpu_stages.py", "losses and adapter gradients of every family in each precision, against fp32 on the CPU"
    ),
    "runs": Stage("gpu_stages.py", "every task, one backbone a family, bf16 and fp16: trained, scored again, asked"),
    "cache": Stage("gpu_stages.py", "a kept prefix, in memory and on disk, gives the losses and scores of none"),
    "compile": Stage("gpu_stages.py", "compiled and recomputed layers give the losses of plain ones"),
    "negatives": Stage("gpu_stages.py", "contrast over several passes gives the losses of one pass"),
    "resume": Stage("gpu_stages.py", "a stopped run that goes on ends with the bits of one that was left alone"),
    "packed": Stage("gpu_stages.py", "trunks in 8 and 4 bits train, and what was trained is saved"),
    "fits": Stage(
        "gpu_stages.py", "passes that memory has room for: predicted, tried, kept on resume; and workers by timing"
    ),
    "captioning": Stage("gpu_speed.py", "speed against PEFT's LoRA with Trainer and full fine-tuning"),
    "vqa": Stage("gpu_speed.py", "the same"),
    "retrieval": Stage("gpu_speed.py", "the same"),
    "language_7b": Stage("gpu_speed.py", "a multimodal language model of 7B in bf16: tokens/s, peak memory"),
}


def unpack(wheels: Path, into: Path) -> list[Path]:
    """Make wheels importable: each, a file or already a folder, becomes an entry of `sys.path`.

    Args:
        wheels: folder of wheels.
        into: where files are unpacked: packages read files of their own, which they cannot in an archive.

    Raises:
        SystemExit: there is no such folder.
    """
    if not wheels.is_dir():
        sys.exit(f"--wheels {wheels}: no such folder; `make gpu-wheels` makes one where there is a network")
    for file in sorted(wheels.glob("*.whl")):
        if file.is_file():
            with zipfile.ZipFile(file) as archive:
                archive.extractall(into)
    folders = [entry for entry in sorted(wheels.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "__"))]
    installed_into = any((entry / "__init__.py").is_file() for entry in folders)  # by pip, as with --target
    return [into, *([wheels] if installed_into else folders)]


def environment(paths: list[Path], device: str, scratch: Path) -> dict[str, str]:
    """Variables of the stages' processes, and of those that they start."""
    found = {**os.environ, "VLATRAIN_CACHE": str(scratch / "kept"), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found["PYTHONPATH"] = os.pathsep.join([*(str(path.resolve()) for path in paths), str(ROOT), *before])
    found["PYTHONUNBUFFERED"] = "1"  # the last words of a stage that is killed are in its file
    found.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one: `Trainer` would take them all
    if device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def run(name: str, options: argparse.Namespace, variables: dict[str, str]) -> dict[str, Any]:
    """Run a stage in a process of its own, and write its file.

    Returns:
        what the file holds: `status` (passed, failed or skipped), `problems`, `seconds`, and the stage's own figures.
    """
    file = (options.out / f"{name}.json").resolve()
    file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "scripts" / STAGES[name].script), name, options.device, str(file)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            [*command, *(["--tiny"] if options.tiny else [])],
            cwd=scratch, env=variables, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        try:
            process.wait(LONGEST)
            ended = f"it ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"it took more than {LONGEST} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
        said.seek(0)
        output = said.read()
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    problems = found.get("problems", [])
    if not found.get("status"):  # a stage that has come to its end says one
        found |= {"status": "failed", "problems": [*problems, ended]}
    found |= {
        "stage": name,
        "device": options.device,
        "tiny": options.tiny,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if found["status"] == "failed":
        found["output"] = output[-OUTPUT:]
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def chosen(text: str) -> list[str]:
    """Names of stages, from a list with commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"there is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return names


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {name:12} {stage.tells}" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"stages:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to rehearse the script itself")
    parser.add_argument("--stages", type=chosen, default=[*STAGES], help="some of them, with commas; all, unless given")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="folder of the stages' files")
    parser.add_argument(
        "--wheels", type=Path, help="folder of what `make gpu-wheels` has gathered; without it nothing is added"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run stages; 0 if none has failed."""
    options = parse(words)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        paths = unpack(options.wheels, scratch / "site") if options.wheels else []
        variables = environment(paths, options.device, scratch)
        for stage in options.stages:
            print(f"{stage}: {STAGES[stage].tells}", flush=True)
            found = run(stage, options, variables)
            rows.append(f"{stage:12} {found['status']:8} {found['seconds']:6.1f} s  {found.get('told', '')}".rstrip())
            rows += [f"{'':14}{problem}" for problem in found["problems"]]
            print(*rows[-1 - len(found["problems"]) :], sep="\n", flush=True)
    failed = sum(" failed " in row for row in rows if not row.startswith(" "))
    print("", *rows, f"{len(options.stages)} stages, {failed} failed; files in {options.out}", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stage outlives it
    sys.exit(main())
