"""Two and four processes evaluate in shares what one evaluates alone: the same predictions and scores, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_samples, small_config
from tests.gpu_free.ranks import ranks
from tests.tasks.talker import Talker, talker
from tests.tasks.test_joint import made as joint
from tests.tasks.test_joint import two_subtasks
from tests.training.conftest import captioning_with_adapters, make_config, make_loop
from vlatrain.backbones import loading
from vlatrain.config import DecodeConfig, TaskConfig, TrainConfig, TrainerConfig, UserError
from vlatrain.data.sample import Sample
from vlatrain.metrics import caption
from vlatrain.metrics.bootstrap import intervals
from vlatrain.tasks import Evaluation, Task, build, classification, prepare
from vlatrain.tasks.yardsticks import by_group
from vlatrain.training import rng
from vlatrain.training.batches import SharedBatches
from vlatrain.training.display import SILENT
from vlatrain.training.prefix_cache.compute import cache_prefix
from vlatrain.training.shares import ROUND, EvaluationStopped, _received, _Sent, _sent, shared
from vlatrain.training.signals import Interrupted
from vlatrain.training.validation import mean_loss

SAMPLES = make_samples()[:7]
ODD = [replace(sample, captions=sample.captions[: 1 + place % 2]) for place, sample in enumerate(SAMPLES)]
TEXTS = [text for s in make_samples() for text in (s.question, *s.answers, *s.captions, s.label)]
SHORT = DecodeConfig(max_new_tokens=5)


def on(model: str, name: str, **settings: Any) -> Task:
    """A task on a small backbone."""
    backbone = loading.load(small_config(model), name, texts=TEXTS)
    config = prepare(TaskConfig(name=name, decode=SHORT, **settings), backbone, SAMPLES)
    return build(config, backbone, SAMPLES)


CASES: dict[str, Callable[[], tuple[Task, Sequence[Sample]]]] = {
    "vqa, written": lambda: (on("blip", "vqa"), SAMPLES),
    "vqa, ranked": lambda: (on("blip", "vqa", answers="rank"), SAMPLES),
    "vqa, chosen": lambda: (on("vilt", "vqa"), SAMPLES),
    "captioning": lambda: (on("blip", "captioning"), ODD),
    "retrieval": lambda: (on("clip", "retrieval"), ODD),
    "retrieval, ranked again": lambda: (on("blip", "retrieval", rerank=3), ODD),
    "retrieval by queries": lambda: (on("blip2_itm", "retrieval", rerank=2), ODD),
    "retrieval by matching": lambda: (on("vilt", "retrieval"), ODD),
    "classification by features": lambda: (on("clip", "classification", metric="macro_f1"), SAMPLES),
    "classification by words": lambda: (on("blip", "classification"), SAMPLES),
    "instruct": lambda: (build(TaskConfig(name="instruct", max_length=60, decode=SHORT), talker()), SAMPLES),
    "joint": lambda: (joint()[2], two_subtasks(asked=5, told=3)),
}


@pytest.fixture(autouse=True)
def _talks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.FAMILIES, "talker", Talker)


def evaluated(task: Task, samples: Sequence[Sample], size: int) -> tuple[dict[str, Any], int]:
    """An evaluation, and how many batches were computed here."""
    batches = SharedBatches("cpu", size)
    own = 0

    class Counted(SharedBatches):
        def __call__(self, samples: Any, collate: Any, compute: Any) -> Any:
            def counting(batch: Any) -> Any:
                nonlocal own
                own += 1
                return compute(batch)

            return super().__call__(samples, collate, counting)

    with torch.no_grad():
        found = task.evaluate(samples, Counted(**vars(batches)))
        with rng.preserved():
            loss = mean_loss(task, samples, SharedBatches("cpu", 2))
        return plain(replace(found, loss=loss)), own


def plain(found: Evaluation) -> dict[str, Any]:
    """An evaluation as values that can be compared."""
    scores = {
        "intervals": intervals(found.statistics, found.strata),
        "groups": by_group(found.groupings, found.statistics),
    }
    return {
        "metrics": found.metrics,
        "settings": found.settings,
        "predictions": found.predictions,
        "loss": found.loss,
    } | scores


QUICK = ("vqa, written", "retrieval, ranked again", "joint")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "names"),
    [(2, QUICK), *(pytest.param(count, tuple(CASES), marks=pytest.mark.slow) for count in (2, 4))],
)
def test_processes_evaluate_in_shares_what_one_evaluates(
    count: int, names: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 3 of 7 samples: uneven shares of two processes, and none for one of four. Texts of classes are shared, too."""
    monkeypatch.setattr(classification, "TEXTS", 1)
    torch.manual_seed(0)
    made = {name: CASES[name]() for name in names}
    for task, _ in made.values():
        task.backbone.model.eval()
    alone = {name: evaluated(*case, size=3) for name, case in made.items()}

    def work(_: int) -> list[Any]:
        for task, _ in made.values():
            vars(task).update({"_kept": None} if "_kept" in vars(task) else {})  # features of classes
        shared = {name: evaluated(*case, size=3) for name, case in made.items()}
        wrong = [name for name, (found, _) in shared.items() if found != alone[name][0]]
        return [wrong, {name: own for name, (_, own) in shared.items()}]

    found = ranks(work, tmp_path, count=count)
    assert [wrong for wrong, _ in found] == [[]] * count
    for name, (_, whole) in alone.items():
        assert sum(own[name] for _, own in found) == whole, "each batch is computed once"
        assert max(own[name] for _, own in found) <= -(-whole // count) + 3, name


def test_results_come_in_order_as_they_are(tmp_path: Path) -> None:
    """Whatever the number of pieces; tensors with no more than their own numbers, in their type."""

    def work(rank: int) -> list[Any]:
        mine: list[int] = []

        def own(numbers: range) -> Any:
            rows = torch.arange(1000, dtype=torch.bfloat16).view(100, 10)
            for number in numbers:
                mine.append(number)
                yield {"row": (rows[number],), "name": f"{number}"}

        said = []
        for total in (0, 1, 2, 3 * ROUND, 3 * ROUND + 1, 31):
            found = list(shared(own, total))
            assert [one["name"] for one in found] == [str(number) for number in range(total)]
            rows = [one["row"][0] for one in found]
            assert all(row.dtype == torch.bfloat16 and row.untyped_storage().nbytes() == 20 for row in rows if rank)
            said.append([row.tolist() for row in rows])
        alone = list(shared(own, 5, local=True))
        assert len(alone) == 5
        assert mine[-5:] == [0, 1, 2, 3, 4]
        return [said, len(mine)]

    one, two, three = ranks(work, tmp_path, count=3)
    assert one[0] == two[0] == three[0]
    assert one[0][-1][30] == torch.arange(300, 310, dtype=torch.bfloat16).tolist()
    total = 0 + 1 + 2 + 3 * ROUND + 3 * ROUND + 1 + 31
    assert one[1] + two[1] + three[1] == total + 3 * 5


def test_what_was_on_an_accelerator_goes_to_one() -> None:
    sent = {"scores": [_sent(torch.ones(2)), _Sent(torch.ones(3), on_device=True)], "text": "a dog"}
    received = _received(sent, "meta")
    assert [one.device.type for one in received["scores"]] == ["cpu", "meta"]
    assert received["text"] == "a dog"


@pytest.mark.parametrize("what", ["signal", "refused"])
def test_what_stops_one_process_stops_all_after_a_few_pieces(what: str, tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        done = 0

        def own(numbers: range) -> Any:
            nonlocal done
            for number in numbers:
                if what == "refused" and rank and done == 2:
                    raise UserError("photo.jpg: truncated")
                done += 1
                yield number

        try:
            list(shared(own, 100, interrupted=lambda: what == "signal" and rank == 1 and done == 2))
        except EvaluationStopped:
            return done
        return "not stopped"

    expected = [ROUND, 2] if what == "signal" else [["photo.jpg: truncated (in process 1)"]] * 2
    assert ranks(work, tmp_path) == expected


@pytest.mark.parametrize("odd", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_in_one_process_during_an_evaluation_stops_both_and_both_go_on(odd: int, tmp_path: Path) -> None:
    def train(folder: Path, rank: int, stopped: bool = False) -> list[Any]:
        loop = make_loop(folder, make_config(max_steps=4, eval_every=2, batch_size=2, eval_batch_size=2, patience=2))
        evaluate = loop.task.evaluate

        def signalled(samples: Any, batches: Any) -> Any:
            loop.signals.received = signal.SIGTERM * (stopped and rank == odd and loop.progress.step == 2)
            return evaluate(samples, batches)

        loop.task.evaluate = signalled  # type: ignore[method-assign]
        try:
            result = loop.run()
        except Interrupted as error:
            return [str(error).partition(" of ")[0], loop.progress.step]
        weights = [parameter.double().sum().item() for parameter in loop.parameters.values()]
        return [result.best_step, result.evaluation and plain(result.evaluation), weights]

    def work(rank: int) -> list[Any]:
        whole = train(tmp_path / "whole", rank)
        stopped = train(tmp_path / "stopped", rank, stopped=True)
        return [whole == train(tmp_path / "stopped", rank), stopped, whole]

    one, two = ranks(work, tmp_path)
    assert one == two
    assert one[0], "it goes on as if nothing had been"
    assert one[1] == ["Stopped by SIGTERM after step 2", 2]


def test_kept_states_are_read_in_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATRAIN_CACHE", str(tmp_path / "kept"))
    task = captioning_with_adapters()
    task.config.decode.max_new_tokens = 5
    alone, _ = evaluated(task, SAMPLES, size=3)

    def work(_: int) -> Any:
        config = TrainConfig(
            task=task.config, model=task.backbone.config, trainer=TrainerConfig(cache="memory", batch_size=2)
        )
        cache = cache_prefix(task.backbone, config, {"eval": SAMPLES}, {"eval": 9.0}, "fp32", SILENT)
        assert cache is not None
        monkeypatch.setattr(type(SAMPLES[0].image), "load", lambda _: pytest.fail("an image is opened"))
        found, own = evaluated(task, SAMPLES, size=3)
        return [found == alone, own]

    assert ranks(work, tmp_path) == [[True, 2], [True, 1]]


def test_java_is_started_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = on("blip", "captioning", java_metrics=True)

    def work(rank: int) -> Any:
        monkeypatch.setattr(caption, "optional_scores", lambda *_: ({"meteor": 25.0 + rank}, {"spice": "too slow"}))
        found, _ = evaluated(task, ODD, size=3)
        return [found["metrics"]["meteor"], found["settings"]["skipped"]]

    assert ranks(work, tmp_path) == [[25.0, {"spice": "too slow"}]] * 2
