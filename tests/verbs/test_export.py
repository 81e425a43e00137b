"""What is handed on: as a folder and over a hub, bit for bit, in each form, with a card whose code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.commands import command, small_model, tiny_run
from tests.conftest import adapter_config, model_config
from tests.loopback import TOKEN, Hub, copy
from vlatrain.backbones.describe import ASSETS
from vlatrain.config import TrainConfig
from vlatrain.config.files import write_json
from vlatrain.injection.sources import TRUNK
from vlatrain.runs import local_run, save_config

AT_HAND = ("trainer.threads=1",)


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def predictions(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


def run_code_of(card: Path) -> list[dict[str, Any]]:
    """Execute each block of Python in a card by itself; what each has defined."""
    blocks = re.findall(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    defined = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, str(card), "exec"), names)
        defined.append(names)
    return defined


@pytest.mark.slow
def test_over_the_hub_and_back_bit_for_bit(server: Hub, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "vqa")
    written = (run / "config.yaml").read_text()
    (run / "manifest.json").unlink()  # as whoever changes a file of a run on purpose
    (run / "config.yaml").write_text(written.replace("logger:\n  name: none", "logger:\n  name: wandb"))
    assert command("export", f"run={run}", "to=hub:me/doors", "license=mit", "private=true") == 0
    assert server.repositories["models/me/doors"].private
    assert command("predict", "run=hub:me/doors", "image=photo.jpg", "question=what is it?", *AT_HAND) == 0
    (fetched,) = (tmp_path / "outputs" / "hub").iterdir()
    assert re.fullmatch(r"me--doors@\w{12}", fetched.name)
    sent, back = contents(run / "adapter"), contents(fetched)
    for name, data in sent.items():
        assert name in ("README.md", "manifest.json") or back[name] == data, name
    listed = json.loads(back["manifest.json"])["files"]
    assert {*sent, "config.yaml", "metrics.json", "baselines.json"} - {*listed} == {"README.md", "manifest.json"}
    for name in ("metrics.json", "baselines.json"):
        assert back[name] == (run / name).read_bytes()
    assert back["config.yaml"].decode() == written, "others' evaluations are not logged where the training was"
    assert {*back} - {*sent} <= {"config.yaml", "metrics.json", "baselines.json", "run.log"}, "no predictions, no data"
    card = ModelCard.load(fetched / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "visual-question-answering")
    assert 'vlatrain.load("hub:me/doors")' in card.text


@pytest.mark.slow
def test_eval_sources_and_merge_take_the_hub_s(server: Hub, tmp_path: Path) -> None:
    runs = {name: tiny_run(tmp_path / name, "vqa", "optim.lr=0.05", f"data.seed={name == 'b':d}") for name in "ab"}
    for name, run in runs.items():
        assert command("export", f"run={run}", f"to=hub:me/{name}") == 0
    assert command("eval", "run=hub:me/a", *AT_HAND, f"output={tmp_path / 'again'}") == 0
    assert predictions(tmp_path / "again") == predictions(runs["a"])
    tiny_run(tmp_path / "fusion", "vqa", "adapter=fusion", "adapter.sources=[hub:me/a,hub:me/b]")
    assert command("merge", "sources=[hub:me/a,hub:me/b]", f"output={tmp_path / 'mean'}") == 0
    local = ",".join(str(run) for run in runs.values())
    assert command("merge", f"sources=[{local}]", f"output={tmp_path / 'same'}") == 0
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "mean" / weights).read_bytes() == (tmp_path / "same" / weights).read_bytes()
    # what was merged has no scores; and an exported one is exported again
    assert command("export", f"run={tmp_path / 'mean'}", "to=mean_of_two") == 0
    assert command("export", "run=mean_of_two", "to=hub:me/mean") == 0
    assert command("eval", "run=hub:me/mean", *AT_HAND) == 0


@pytest.mark.slow
def test_an_earlier_export_is_replaced(server: Hub, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "vqa", "adapter=lora")
    assert command("export", f"run={run}", "to=hub:me/it") == 0
    assert command("export", f"run={run}", "to=hub:me/it", "form=merged") == 0
    repository = server.repositories["models/me/it"]
    there = {file.name for file in repository.commits[repository.refs["main"]].iterdir()}
    assert "model.safetensors" in there
    assert not there & {"adapter_model.safetensors", "config.yaml", "metrics.json"}


#: Each kind of backbone, and each thing that a card says in words of its own.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shipped": ("vqa", ()),
    "shipped, of two towers": ("retrieval", ("model=tiny_clip",)),
    "of a local folder": ("captioning", ("model.checkpoint={folder}",)),
    "of the hub": ("vqa", ("model.checkpoint=you/tiny",)),
    "composite": ("instruct", ("model=tiny_composite",)),
    "a tower with a head": ("segmentation", ("model=tiny_vit",)),
    "the head alone": ("classification", ("model=tiny_vit", "adapter=linear_probe")),
    "boxes by a head": ("grounding", ()),
    "joint, an adapter each": ("joint", ("adapter.by_task=true",)),
    "several methods": ("vqa", ("adapter=mixed",)),
    "with the trunk's norms": ("vqa", ("adapter.trunk=[norms]",)),
    "of the hub, with the trunk's norms": ("vqa", ("adapter.trunk=[norms]", "model.checkpoint=you/tiny")),
    "full fine-tuning": ("vqa", ("adapter=full",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_each_card_runs(kind: str, server: Hub, tmp_path: Path) -> None:
    task, words = KINDS[kind]
    server.add("you/tiny", ASSETS / "tiny_blip")
    folder = copy(ASSETS / "tiny_blip", tmp_path / "backbone")
    words = tuple(word.format(folder=folder) for word in words)
    run = tiny_run(Path("run"), task, *words)
    if (card := run / "adapter" / "README.md").is_file():
        run_code_of(card)
    assert command("export", f"run={run}", "to=handed on") == 0
    assert command("export", f"run={run}", "to=hub:me/handed") == 0
    for card in (Path("handed on/README.md"), Path(local_run("hub:me/handed")) / "README.md"):
        defined = run_code_of(card)
        assert defined[0]["model"]
        about = ModelCard.load(card).data
        assert about.base_model == ("you/tiny" if "of the hub" in kind else None)
        assert about.eval_results
    assert (len(defined) > 1) == (kind not in NOT_BY_PEFT), "by PEFT, where transformers has all of the backbone"


NOT_BY_PEFT = ("composite", "a tower with a head", "the head alone", "boxes by a head", "full fine-tuning")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("vqa", ("adapter=lora", "optim.lr=0.05")),
        ("captioning", ("adapter=loha", "optim.lr=0.05")),
        ("vqa", ("adapter=full", "optim.lr=0.001")),
        ("vqa", ("adapter=bitfit", "optim.lr=0.05")),
        ("vqa", ("adapter=task_lora", "model=tiny_composite", "optim.lr=0.05")),
        ("vqa", ("adapter=lora", "model=tiny_composite", "optim.lr=0.05")),
        ("classification", ("adapter=lora", "model=tiny_vit", "optim.lr=0.05")),
    ],
)
def test_a_merged_one_is_a_backbone_that_does_the_same(
    task: str, words: tuple[str, ...], server: Hub, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path / "run", task, *words)
    assert command("export", f"run={run}", "to=hub:me/merged", "form=merged") == 0
    model = next((word for word in words if word.startswith("model=")), "model=tiny_blip")
    repository = server.repositories["models/me/merged"]
    folder = repository.commits[repository.refs["main"]]
    same = tiny_run(tmp_path / "same", task, model, "adapter=none", "model.checkpoint=me/merged")
    assert predictions(same) == predictions(run)
    card = folder / "README.md"
    assert ModelCard.load(card).data.library_name == "transformers"
    names = run_code_of(card)
    assert names[0]["run"].metrics["metrics"] if model != "model=tiny_blip" else names[0]["model"]


@pytest.mark.slow
def test_a_tower_of_the_hub_without_a_head_is_refused_before_its_weights(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("you/tower", ASSETS / "tiny_clip")
    words = ("task=classification", "model=tiny_vit", "model.checkpoint=you/tower", "adapter=none")
    assert command(*words, "data.train_size=24", "data.eval_size=10", f"run.dir={tmp_path / 'run'}") == 2
    assert "error adapter=none: the head of model=tiny_vit is new" in capsys.readouterr().err
    assert not server.sent.get("model.safetensors")


@pytest.mark.slow
def test_a_lora_needs_peft_alone(server: Hub, tmp_path: Path) -> None:
    server.add("you/tiny", ASSETS / "tiny_blip")
    run = tiny_run(tmp_path / "run", "vqa", "adapter=lora", "optim.lr=0.05", "model.checkpoint=you/tiny")
    assert command("export", f"run={run}", "to=hub:me/lora", "form=peft-lora") == 0
    repository = server.repositories["models/me/lora"]
    folder = repository.commits[repository.refs["main"]]
    assert {file.name for file in folder.iterdir()} == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert contents(folder)["adapter_model.safetensors"] == contents(run / "adapter")["adapter_model.safetensors"]
    assert "import vlatrain" not in (folder / "README.md").read_text()
    (names,) = run_code_of(folder / "README.md")
    assert type(names["model"]).__name__ == "PeftModel"


def made_up(folder: Path, method: str, model: str = "tiny_blip", **adapter: Any) -> Path:
    """What the files of a finished run say, without one."""
    config = TrainConfig(model=model_config(model), adapter=adapter_config(method))
    save_config(config, folder)
    if adapter:
        write_json(folder / "adapter" / "adapter_config.json", adapter)
        (folder / "adapter" / "adapter_model.safetensors").touch()
    return folder


OURS = {"peft_type": "VLATRAIN", "design": "bottleneck"}
LORA, LOHA = ({"peft_type": kind} for kind in ("LORA", "LOHA"))


@pytest.mark.parametrize(
    ("method", "adapter", "words", "said"),
    [
        ("bottleneck", OURS, ("form=merged",), "is no change of weights, so that no checkpoint does the same; form=adapter"),
        ("bottleneck", OURS, ("form=peft-lora",), "adapter=bottleneck is no LoRA of PEFT's; form=adapter can"),
        ("task_lora", {**OURS, "design": "task_lora"}, ("form=peft-lora",), "PEFT's; form=merged can, a whole checkpoint, and"),
        ("bitfit", {**OURS, "design": "bitfit", "tasks": ["a"]}, ("form=merged",), "adapters for each task (adapter.by_task=true)"),
        ("loha", LOHA, ("form=peft-lora",), "is no LoRA; form=adapter can, which PEFT itself loads, and form=merged"),
        ("mixed", {}, ("form=merged",), "several methods, which cannot all go into the weights; form=adapter can"),
        ("mixed", {}, ("form=peft-lora",), "has several methods; form=adapter can"),
        ("full", {}, ("form=peft-lora",), "has trained weights where they are; form=merged can"),
        ("none", {}, (), "adapter=none has trained nothing that could be exported"),
        ("lora", LORA, ("form=zip",), "form=zip: must be one of adapter, merged, peft-lora"),
        ("lora", LORA, ("to=hub:doors",), "to=hub:doors: a repository of the hub is hub:OWNER/NAME"),
        ("lora", LORA, ("to=run",), "to=run: there is something already"),
        ("lora", LORA, ("private=true",), "private=true: a folder has no owner"),
        ("lora", LORA, ("optim.lr=1",), "vlatrain export takes no optim.lr"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(
    method: str,
    adapter: dict[str, str],
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up(Path("run"), method, **adapter)
    to = () if any(word.startswith("to=") for word in words) else ("to=new",)
    assert command("export", "run=run", *to, *words) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error "))
    assert said in line
    assert not Path("new").exists()


@pytest.mark.slow
def test_a_lora_that_is_not_all_of_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up(Path("composed"), "lora", "tiny_composite", **LORA)
    made_up(Path("beside"), "lora", **LORA)
    (Path("beside") / "adapter" / TRUNK).touch()
    for run, said in (
        ("composed", "transformers has no class that is all of"),
        ("beside", "weights of the trunk, too"),
    ):
        assert command("export", f"run={run}", "to=new", "form=peft-lora") == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_hub_that_does_not_take_it_says_why(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", "vqa")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    assert command("export", f"run={run}", "to=hub:me/doors") == 2
    assert "to=hub:me/doors: " in (said := capsys.readouterr().err)
    assert "log in with hf auth login, or set HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert command("export", f"run={run}", "to=hub:me/doors", "license=nonsense") == 2
    assert '"license" must be one of the list' in capsys.readouterr().err


@pytest.mark.slow
def test_a_random_backbone_goes_with_its_processor(server: Hub, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "vqa", *small_model(tmp_path / "conf", "vilt"))
    assert command("export", f"run={run}", "to=hub:me/random") == 0
    assert command("eval", "run=hub:me/random", *AT_HAND, f"output={tmp_path / 'again'}") == 0
    assert predictions(tmp_path / "again") == predictions(run)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_what_has_changed_since_is_refused(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = tmp_path / "exported", tiny_run(tmp_path / "run", "vqa", "adapter=lora")
    assert command("export", f"run={run}", f"to={folder}", f"form={form}") == 0
    words = ["eval", f"run={folder}", *AT_HAND]
    if form == "merged":
        words = [
            "task=vqa",
            "adapter=none",
            f"model.checkpoint={folder}",
            "data.eval_size=4",
            f"run.dir={tmp_path / 'new'}",
        ]
    for file in [
        file for file in folder.iterdir() if file.name not in ("README.md", "manifest.json", ".gitattributes")
    ]:
        before = file.read_bytes()
        file.write_bytes(before.replace(b"0", b"1", 1) if b"0" in before else before + b" ")
        assert command(*words) == 2, file.name
        said = capsys.readouterr().err
        assert (said.count("error"), f"{file.name}: has changed" in said or f"{file.name} has changed" in said) == (
            1,
            True,
        )
        file.write_bytes(before)
    assert command(*words) == 0


@pytest.mark.slow
def test_a_lora_of_an_exported_run_has_nothing_of_the_run(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "vqa", "adapter=lora")
    for source, name, *form in (("run", "exported"), ("exported", "lora", "form=peft-lora")):
        assert command("export", f"run={tmp_path / source}", f"to={tmp_path / name}", *form) == 0
    assert {*contents(tmp_path / "lora")} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (tmp_path / "lora" / "adapter_config.json").read_text() == (
        run / "adapter" / "adapter_config.json"
    ).read_text()


@pytest.mark.slow
def test_an_exported_run_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", "vqa")
    assert command("export", f"run={run}", f"to={tmp_path / 'exported'}") == 0
    before = contents(tmp_path / "exported")
    assert command("task=vqa", f"run.dir={tmp_path / 'exported'}", "resume=auto") == 2
    assert "holds an exported run, which is not continued" in capsys.readouterr().err
    assert contents(tmp_path / "exported") == before
