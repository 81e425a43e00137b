"""Routers from the command line: trained, scored again, asked, and refused where a run is not what it was."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vlatrain
from tests.commands import asked, command, tiny_run
from tests.loopback import Hub
from vlatrain.config.methods import ROUTER
from vlatrain.data.images import FilePicture
from vlatrain.data.sample import Sample
from vlatrain.data.shapes import build
from vlatrain.injection.routes import WEIGHTS
from vlatrain.runs import local_run
from vlatrain.training.routing.hosts import Routed
from vlatrain.training.routing.router import Router
from vlatrain.verbs.routed import RoutedPredictor

AT = ("adapter.points=[decoder]", "optim.lr=0.05")
MANY = ("vqa", "captioning", "classification", "grounding")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"a": tiny_run(folder / "a", "vqa", *AT), "b": tiny_run(folder / "b", "vqa", *AT, "data.seed=1")}
    made["lora"] = tiny_run(folder / "lora", "vqa", "adapter=lora", *AT, "data.seed=2")
    return made | {task: tiny_run(folder / task, task) for task in MANY}


def router(folder: Path, sources: list[Path], *overrides: str) -> Path:
    words = (f"adapter.sources=[{','.join(map(str, sources))}]", "trainer.threads=1")
    assert command("adapter=router", *words, f"run.dir={folder}", *overrides) == 0
    return folder


@pytest.fixture(scope="module")
def one_task(runs: dict[str, Path]) -> Path:
    return router(runs["a"].parent / "one_task", [runs["a"], runs["b"]], "adapter.options.k=2")


@pytest.fixture(scope="module")
def tasks(runs: dict[str, Path]) -> Path:
    return router(runs["a"].parent / "tasks", [runs[task] for task in MANY])


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def loaded(run: Path) -> Router:
    predictor = vlatrain.load(run)
    assert isinstance(predictor, RoutedPredictor)
    return predictor.router


@pytest.mark.slow
def test_it_is_a_run_like_any_other(tasks: Path, runs: dict[str, Path]) -> None:
    found = metrics(tasks)
    assert found["router"]["accuracy"] > 90, "questions, expressions and requests tell tasks apart"
    for task in MANY:
        own = metrics(runs[task])
        headline = f"{task}/{own['metric']}"
        assert found["router"]["oracle"][headline] == pytest.approx(own["metrics"][own["metric"]])
        assert found["router"]["singles"][task][headline] == pytest.approx(own["metrics"][own["metric"]])
    others = found["router"]["singles"]["captioning"]
    assert [others[f"{task}/accuracy"] for task in ("vqa", "classification", "grounding")] == [0.0] * 3
    note = json.loads((tasks / "adapter" / "router.json").read_text())
    assert [own["name"] for own in note["sources"]] == [*MANY]
    assert {line["routed"] for line in map(json.loads, (tasks / "predictions.jsonl").open())} <= {*MANY}
    assert found["router"]["reads"]["again_for"], "image towers have adapters in their first layer"


@pytest.mark.slow
def test_it_is_handed_on_with_its_runs_bit_for_bit(
    server: Hub, tmp_path: Path, reports: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what was handed on, in a folder or over the hub, needs nothing of where it was trained."""
    runs = {task: tiny_run(tmp_path / "before" / task, task) for task in ("vqa", "captioning")}
    run = router(tmp_path / "before" / "run", [*runs.values()])
    assert "choice of run" in (run / "report.html").read_text()
    about = ("image=photo.jpg", "question='what is it?'", "trainer.threads=1")
    said = asked(tmp_path / "said.jsonl", f"run={run}", *about)
    for to in ("handed_on", "hub:me/router"):
        assert command("export", f"run={run}", f"to={to}") == 0
    (tmp_path / "before").rename(tmp_path / "gone")
    run = tmp_path / "gone" / "run"
    assert command("export", f"run={run}", "to=new") == 2
    assert f"adapter.sources: {tmp_path}/before/vqa: the run is gone" in capsys.readouterr().err
    assert command("export", "run=handed_on", "to=new", "form=merged") == 2
    assert "adapter=router picks among other runs; form=adapter can, which carries them" in capsys.readouterr().err
    for number, here in enumerate(("handed_on", "hub:me/router")):
        again = tmp_path / f"again_{number}"
        assert command("eval", f"run={here}", f"output={again}", "trainer.threads=1") == 0
        assert metrics(again)["metrics"] == metrics(run)["metrics"]
        records, own = ((folder / "predictions.jsonl").read_text() for folder in (again, run))
        assert records == own
        assert asked(tmp_path / f"said_{number}.jsonl", f"run={here}", *about) == said
        folder = Path(local_run(here))
        assert (folder / WEIGHTS).read_bytes() == (run / "adapter" / WEIGHTS).read_bytes()
        for task in runs:
            weights = "adapter_model.safetensors"
            before = (tmp_path / "gone" / task / "adapter" / weights).read_bytes()
            assert (folder / "sources" / task / weights).read_bytes() == before
        assert str(tmp_path) not in "".join(file.read_text() for file in folder.rglob("*.json")), (
            "no paths of a machine"
        )
        for block in re.findall(
            r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL
        ):
            exec(compile(block, here, "exec"), {})
    # what was handed on is handed on again
    assert command("export", "run=handed_on", "to=twice") == 0
    assert (Path("twice") / "router.json").read_bytes() == (Path("handed_on") / "router.json").read_bytes()


@pytest.mark.slow
def test_it_scores_the_same_again_and_after_training_anew(tasks: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    assert command("eval", f"run={tasks}", f"output={tmp_path / 'again'}", "trainer.threads=1") == 0
    again = metrics(tmp_path / "again")
    assert again["metrics"] == metrics(tasks)["metrics"]
    assert again["router"]["confusion"] == metrics(tasks)["router"]["confusion"]
    before = load_file(tasks / "adapter" / "router.safetensors")
    router(tasks, [runs[task] for task in MANY], "resume=auto")
    after = load_file(tasks / "adapter" / "router.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_rows_of_any_task_are_asked_about_together(tasks: Path, images: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "red.png", "question": "how many corners does the red shape have?"},
        {"image": "green.png", "question": "describe the picture"},
        {"image": "blue.png", "question": "which kind is it"},
        {"image": "red.png", "question": "the shape left of the ring"},
        {"image": "red.png"},
    ]
    (images / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = asked(
        tmp_path / "out.jsonl", f"run={tasks}", f"input={images / 'rows.jsonl'}", f"draw={tmp_path / 'drawn'}"
    )
    assert [record["routed"] for record in found[:4]] == [*MANY]
    assert found[4]["routed"] in ("captioning", "classification"), "nothing is said, so that no question is answered"
    assert found[3]["hits"][0]["box"]
    assert len([*(tmp_path / "drawn").iterdir()]) == 5
    (alone,) = asked(
        tmp_path / "one.jsonl", f"run={tasks}", f"image={images / 'red.png'}", f"question={rows[0]['question']}"
    )
    assert alone["prediction"] == found[0]["prediction"]
    (hit,) = vlatrain.load(tasks).predict(str(images / "red.png"), question=rows[0]["question"])
    assert hit.text == found[0]["prediction"]


@pytest.mark.slow
def test_a_mixed_batch_goes_in_one_pass_and_answers_as_each_run_does(one_task: Path, runs: dict[str, Path]) -> None:
    found = loaded(one_task)
    assert len(found.hosts) == 1, "one model"
    assert not found.reads_again, "adapters are in the decoder alone"
    asked_about = build("vqa", "eval", 10, 0)
    calls: list[int] = []
    found.hosts[0].setup.backbone.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    names = ["a", "b"] * 5
    mixed = found.answers(asked_about, [Routed(name, {name: 1.0}) for name in names])
    assert len(calls) == 1
    for name in ("a", "b"):
        alone = vlatrain.load(runs[name])
        own = [place for place, one in enumerate(names) if one == name]
        hits = [*alone.ask([asked_about[place] for place in own])]
        assert [mixed[place][0][0] for place in own] == [hit[0].text for hit in hits]
        scores = torch.tensor([hit[0].score for hit in hits])
        torch.testing.assert_close(torch.tensor([mixed[place][0][1] for place in own]), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_runs_word_questions_and_options_each_in_its_own_way(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = {
        "letter": ("task.answers=letter", "task.prompt='{question} {options}'", "data.seed=3"),
        "topic": ("task.prompt='{topic}: {question}'", "data.seed=4"),
    }
    made = {"a": runs["a"]} | {name: tiny_run(tmp_path / name, "vqa", *AT, *way) for name, way in ways.items()}
    folder = router(tmp_path / "router", [*made.values()])
    oracle = metrics(folder)["router"]["oracle"]
    for name, run in made.items():
        assert oracle[f"{name}/accuracy"] == pytest.approx(metrics(run)["metrics"]["accuracy"])
    said = {name: next(map(json.loads, (run / "predictions.jsonl").open())) for name, run in made.items()}
    routed = {line["id"]: line for line in map(json.loads, (folder / "predictions.jsonl").open())}
    for name, own in said.items():
        line = routed[f"{name}/{own['id']}"]
        assert line["question"] == own["question"] or line["routed"] != name
    found = loaded(folder)
    pictures, words = [images / "red.png"] * 3, ("is it red?", ("red", "blue"), (("topic", "tone"),))
    rows = [{"image": str(one), "question": words[0], "options": [*words[1]], "topic": "tone"} for one in pictures]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert {
        one["routed"] for one in asked(tmp_path / "o.jsonl", f"run={folder}", f"input={tmp_path / 'rows.jsonl'}")
    } <= {*made}
    sample = Sample("x", FilePicture(pictures[0]), words[0], options=words[1], extra=words[2])
    for name, run in made.items():
        (mixed,) = found.answers([sample], [Routed(name, {name: 1.0})])
        own = asked(tmp_path / f"{name}.jsonl", f"run={run}", f"input={tmp_path / 'rows.jsonl'}")
        assert mixed[0][0] == own[0]["prediction"]
    bare = replace(sample, options=(), extra=())
    (only,) = found.choose([bare], [bare.question], found.seen([bare]))
    assert only.best == "a", "the others need options, or a topic"
    assert command("predict", f"run={folder}", f"image={pictures[0]}", "question=is it red?", "texts=[red,blue]") == 0
    lettered = router(
        tmp_path / "lettered", [made["letter"], tiny_run(tmp_path / "l2", "vqa", *AT, *ways["letter"][:2])]
    )
    capsys.readouterr()
    assert command("predict", f"run={lettered}", f"image={pictures[0]}", "question=is it red?") == 2
    assert "have options: set texts=[...] to them" in capsys.readouterr().err
    with pytest.raises(vlatrain.UserError, match="no run of this router can be asked, for lack of options"):
        vlatrain.load(lettered).predict(str(pictures[0]), question="is it red?")
    (hit,) = vlatrain.load(lettered).predict(str(pictures[0]), question="is it red?", texts=["red", "blue"])
    assert hit.text in ("red", "blue")


@pytest.mark.slow
def test_states_that_were_read_once_give_the_same_answers(one_task: Path) -> None:
    found, samples = loaded(one_task), build("vqa", "eval", 9, 0)
    routed = [*found.ask(samples)]
    again = found.answers(samples, [chosen for chosen, _ in routed])
    assert [best for _, best in routed] == again
    assert found.hosts[0].setup.backbone.cache is None


@pytest.mark.slow
def test_lora_and_our_own_have_models_of_their_own_on_the_same_weights(runs: dict[str, Path], tmp_path: Path) -> None:
    run = router(
        tmp_path / "mixed", [runs["a"], runs["lora"]], "adapter.router=prototype", "adapter.options.abstain=0.2"
    )
    found = loaded(run)
    assert len(found.hosts) == 2
    weights = [host.setup.backbone.model.vision_model.embeddings.class_embedding.data_ptr() for host in found.hosts]
    assert weights[0] == weights[1]
    assert metrics(run)["router"]["oracle"]["lora/accuracy"] == pytest.approx(
        metrics(runs["lora"])["metrics"]["accuracy"]
    )
    frozen = tiny_run(tmp_path / "none", "vqa", "adapter=none")
    samples = build("vqa", "eval", 10, 0)
    answers = found.answers(samples, [Routed(name, {name: 1.0}, True) for name in ["a", "lora"] * 5])
    said = [record["prediction"] for record in map(json.loads, (frozen / "predictions.jsonl").open())]
    assert [best[0][0] for best in answers] == said


@pytest.mark.slow
def test_what_cannot_be_is_refused_in_a_line(
    one_task: Path, runs: dict[str, Path], tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, pair = f"image={images / 'red.png'}", f"adapter.sources=[{runs['a']},{runs['b']}]"
    for words, said in (
        (("predict", f"run={one_task}", picture), 'set question="..."'),
        (("predict", f"run={one_task}", picture, "question=?", "subtask=a"), "adapter=router chooses by itself"),
        (("predict", f"run={one_task}", picture, "text=x"), "a router has no run of that"),
        (("adapter=router", pair, "task=captioning"), "adapter=router takes no task, which its runs say"),
        (("adapter=router", pair, "data.train_size=4"), "adapter=router takes no data.train_size"),
        (("adapter=router", pair, "adapter.router=tree"), "adapter.router=tree: must be one of"),
        (("adapter.router=linear",), "adapter=bottleneck has no such option"),
        (("inspect", "adapter=router", pair), "adapter=router puts nothing into the backbone"),
        (("check", "adapter=router", pair), "adapter=router has the data of its runs"),
        (("eval", f"run={runs['a']}", f"adapter.sources=[{runs['b']}]"), "takes no adapter.sources"),
    ):
        assert command(*words) == 2, words
        assert said in capsys.readouterr().err, words


@pytest.mark.slow
def test_a_run_that_is_gone_or_has_changed_is_refused_and_one_that_moved_can_be_named(
    runs: dict[str, Path], tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [shutil.copytree(runs[name], tmp_path / name) for name in ("a", "b")]
    run = router(tmp_path / "router", kept)
    words = ("predict", f"run={run}", f"image={images / 'red.png'}", "question=is it red?")
    kept[1].rename(tmp_path / "elsewhere")
    assert command(*words) == 2
    assert "b: the run is gone; put it back, or set adapter.sources" in capsys.readouterr().err
    assert command(*words, f"adapter.sources=[{kept[0]},{tmp_path / 'elsewhere'}]") == 0
    assert command(*words, f"adapter.sources=[{kept[0]},{runs['lora']}]") == 2
    assert "its adapter is not the one that the router was trained for" in capsys.readouterr().err


@pytest.mark.slow
def test_vision_towers_and_dual_encoders_have_routers(tmp_path: Path) -> None:
    for model in ("tiny_clip", "tiny_vit"):
        made = [
            tiny_run(tmp_path / f"{model}{seed}", "classification", f"model={model}", f"data.seed={seed}")
            for seed in (0, 1)
        ]
        run = router(tmp_path / f"{model}-router", made)
        assert metrics(run)["adapter"] == ROUTER
        oracle = metrics(run)["router"]["oracle"]
        for folder in made:
            own = metrics(folder)["metrics"]["accuracy"]
            assert oracle[f"{folder.name}/accuracy"] == pytest.approx(own)


@pytest.mark.slow
def test_runs_about_several_images_are_chosen_among(images: Path, tmp_path: Path) -> None:
    """On a composite, in whose image tower adapters begin; rows with one image and two."""
    about = ("model=tiny_composite", "data.pairs=true", "adapter.points=[vision.2.*,decoder]", "optim.lr=0.05")
    names = {
        "one": tiny_run(tmp_path / "one", "vqa", *about),
        "two": tiny_run(tmp_path / "two", "vqa", *about, "data.seed=1"),
    }
    folder = router(tmp_path / "router", [*names.values()], "adapter.options.samples=20")
    found = loaded(folder)
    pairs, single = build("vqa_pairs", "eval", 4, 0), build("vqa", "eval", 2, 0)
    asked_about = [*pairs, *single]
    chosen = [Routed(name, {name: 1.0}) for name in ("one", "two", "two", "one", "one", "two")]
    mixed = found.answers(asked_about, chosen)
    for name, run in names.items():
        own = [place for place, one in enumerate(chosen) if one.best == name]
        hits = [*vlatrain.load(run).ask([asked_about[place] for place in own])]
        assert [mixed[place][0][0] for place in own] == [hit[0].text for hit in hits]
        scores = torch.tensor([hit[0].score for hit in hits])
        torch.testing.assert_close(torch.tensor([mixed[place][0][1] for place in own]), scores, rtol=1e-4, atol=1e-5)
    routed = [*found.ask(asked_about)]
    assert found.answers(asked_about, [chosen for chosen, _ in routed]) == [best for _, best in routed]
    both = f"images=[{images / 'red.png'},{images / 'green.png'}]"
    (told,) = asked(tmp_path / "out.jsonl", f"run={folder}", both, f"question={pairs[0].question}")
    assert told["routed"] in names
