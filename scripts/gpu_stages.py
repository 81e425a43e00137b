"""The correctness stages of gpu_check.py, one a process: python gpu_stages.py STAGE DEVICE FILE [--tiny]

A stage is a function of its name. It notes figures and problems in a `Report`, and goes on after a problem where it can. The small
backbones are those of the tests, which lie beside this folder in a checkout.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

from gpu_report import Report, command, perform, question, read, read_lines, small_conf, train, unlike

PRECISIONS = ("bf16", "fp16")

# of the loss, and of all adapters' gradients: the largest relative distances from fp32 on the CPU
DISTANCES = {"fp32": (1e-3, 1e-2), "bf16": (0.05, 0.25), "bf16 low_norms": (0.05, 0.25), "fp16": (0.01, 0.05)}

# task and small backbone: every task, and one backbone of each family; the first of a task is the one of the rehearsal
RUNS = {
    "vqa": ("tiny_blip", "vilt", "blip2_t5", "qwen2_5_vl", "paligemma"),
    "captioning": ("tiny_composite", "blip2_opt", "florence2"),
    "retrieval": ("tiny_clip", "tiny_blip", "siglip", "blip2_itm"),
    "classification": ("tiny_clip",),
    "instruct": ("llava",),
    "joint": ("tiny_blip",),
}


def losses(report: Report) -> None:
    """Loss and gradients of adapters everywhere, in each precision on the device, against fp32 on the CPU."""
    from tests.gpu_free.families import NAMES

    worst = dict.fromkeys(DISTANCES, 0.0)
    for name in ("blip", "clip", "blip2_t5", "llava", "clip+gpt2") if report.tiny else NAMES:
        loss, gradient = _gradient(name, "cpu", "fp32")
        for precision, limits in DISTANCES.items():
            own, other = _gradient(name, report.device, precision)
            apart = (abs(own - loss) / abs(loss), ((other - gradient).norm() / gradient.norm()).item())
            near = all(distance <= limit for distance, limit in zip(apart, limits, strict=True))  # NaN is not
            figures = {"loss": own, "exact": loss, "loss_apart": apart[0], "gradient_apart": apart[1]}
            report.note(
                f"{name} {precision}", figures, f"apart by {apart[0]:.1e} and {apart[1]:.1e}" if not near else ""
            )
            worst[precision] = max(worst[precision], apart[1])
    report.told = "gradients apart by at most " + ", ".join(f"{value:.1e} ({key})" for key, value in worst.items())


def _gradient(name: str, device: str, way: str) -> tuple[float, Any]:
    """The loss of a batch, and the gradients of all adapters in one vector, as the loop computes them in a precision."""
    import torch

    from tests.conftest import adapter_config, make_samples
    from tests.gpu_free.families import config_of, set_up, task_of
    from vlatrain.backbones.describe import sites
    from vlatrain.injection.attach import attach
    from vlatrain.tasks import retrieval
    from vlatrain.tasks.base import move
    from vlatrain.training.modes import cast_trunk, keep_from_overflow, train_mode, trainable
    from vlatrain.training.precision import DTYPES, autocast

    def first(odds: torch.Tensor) -> torch.Tensor:
        return (odds > 0).long().argmax(dim=1)

    where = torch.device(device)
    precision, _, low_norms = way.partition(" ")
    torch.manual_seed(0)
    backbone, settings = set_up(config_of(name))
    model = attach(backbone.model, adapter_config("bottleneck", dim=4), sites(backbone.config, settings.name, ["*"]))
    for number, parameter in enumerate(trainable(model).values()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
    if precision == "fp16":
        keep_from_overflow(model)
    if precision != "fp32" and device != "cpu":
        cast_trunk(model, DTYPES[precision], bool(low_norms))
    task = task_of(backbone, settings)
    model.to(where)
    train_mode(model)
    batch = move(task.collate(make_samples()[:4]), where)
    # matching draws its wrong pairs, which each device does in its own way
    with mock.patch.object(retrieval, "drawn", first), autocast(where, precision):
        loss = task.loss(batch)
    scale = 1024.0 if precision == "fp16" else 1.0  # small gradients are zero in fp16, as training knows
    (loss.float() * scale).backward()
    gradients = [parameter.grad for parameter in trainable(model).values() if parameter.grad is not None]
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients]).float().cpu() / scale


def runs(report: Report) -> None:
    """Train, score again and ask, through the command line."""
    conf = small_conf(Path("conf"))
    asked = [(task, name, "bf16") for task, names in RUNS.items() for name in (names[:1] if report.tiny else names)]
    if report.device == "cuda":
        asked += [(task, names[0], "fp16") for task, names in RUNS.items()]
    for number, (task, name, precision) in enumerate(asked):
        folder = Path(f"run_{number}")
        words = ["--config-dir", str(conf), f"model={name if name.startswith('tiny') else 'small_' + name}"]
        words += [f"trainer.precision={precision}", "trainer.cache=auto"]
        problem, figures = "", {}
        try:
            figures = train(
                report, folder, task, *words, "trainer.max_steps=2" if report.tiny else "trainer.max_steps=4"
            )
            command("eval", f"run={folder}", report.where)
            again = read(folder / "evaluations" / "eval" / "metrics.json")["metrics"]
            if not all(
                math.isclose(again[key], value, rel_tol=1e-3, abs_tol=1e-2) for key, value in figures["metrics"].items()
            ):
                problem = f"scored again it is {again}, not {figures['metrics']}"
            command("predict", f"run={folder}", *question(task), report.where, f"output={folder}/answers.jsonl")
            figures["answer"] = read_lines(folder / "answers.jsonl")[0]
        except Exception as error:  # the other runs go on
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        report.note(f"{task} {name} {precision}", figures, problem)
    report.told = f"{len(asked)} runs"


def cache(report: Report) -> None:
    """The same run with nothing kept, with the prefix in memory, and on disk, where a second one finds it."""
    places = {"off": "off", "memory": "memory", "disk": "disk", "disk again": "disk"}
    limits = {"fp32": 0.0 if report.device == "cpu" else 1e-4, "bf16": 2e-2}
    models = {"captioning": "tiny_blip", "vqa": "tiny_blip", "retrieval": "tiny_clip"}
    if report.tiny:
        models = {"captioning": "tiny_blip"}
    for (task, model), (precision, limit) in product(models.items(), limits.items()):
        expected: dict[str, Any] = {}
        for place, setting in places.items():
            words = (
                f"model={model}",
                f"trainer.precision={precision}",
                f"trainer.cache={setting}",
                "trainer.max_steps=6",
            )
            figures = train(report, Path(f"{task}_{precision}_{place.replace(' ', '_')}"), task, *words)
            expected = expected or figures
            kept = figures["cache"]["where"]
            problem = unlike(figures, expected, limit) if kept == setting else f"kept: {kept}"
            report.note(f"{task} {precision} {place}", figures, problem)
    report.told = "kept and not, the losses agree"


def compile(report: Report) -> None:
    """The same run with plain, compiled and recomputed layers."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        report.skip("no C compiler here, which torch.compile needs")
        return
    switches = {
        "plain": (),
        "compiled": ("trainer.compile=true",),
        "recomputed": ("trainer.gradient_checkpointing=true",),
    }
    cells = [("retrieval", "tiny_clip", "fp32"), ("retrieval", "tiny_clip", "bf16"), ("vqa", "tiny_blip", "bf16")]
    more: list[str] = []
    if report.tiny:
        cells = [("retrieval", "small_clip", "fp32")]
        more = ["--config-dir", str(small_conf(Path("conf")))]
        more += [f"model.config.{tower}_config.num_hidden_layers=1" for tower in ("vision", "text")]
    for task, name, precision in cells:
        expected: dict[str, Any] = {}
        for switch, own in switches.items():
            words = (
                *more,
                f"model={name}",
                f"trainer.precision={precision}",
                "trainer.cache=off",
                "trainer.max_steps=3",
            )
            figures = train(report, Path(f"{name}_{precision}_{switch}"), task, *words, *own)
            expected = expected or figures
            limit = 1e-3 if precision == "fp32" else 5e-2
            report.note(f"{task} {name} {precision} {switch}", figures, unlike(figures, expected, limit))
    report.told = "compiled, recomputed and plain, the losses agree"


def negatives(report: Report) -> None:
    """The same contrast in one pass, and over micro-batches that are encoded twice; matching, which has its pairs, is off."""
    cuts = {"one pass": (16, 1), "four passes": (4, 4)}
    limits = {"fp32": 1e-4, "bf16": 5e-2} | ({"fp16": 2e-2} if report.device == "cuda" else {})
    for model, (precision, limit) in product(
        ("tiny_clip",) if report.tiny else ("tiny_clip", "tiny_blip"), limits.items()
    ):
        expected: dict[str, Any] = {}
        for cut, (batch, accumulate) in cuts.items():
            words = (
                f"model={model}",
                f"trainer.precision={precision}",
                f"trainer.batch_size={batch}",
                f"trainer.accumulate={accumulate}",
                "task.negatives_per_step=16",
                "task.matching=false",
                "trainer.cache=off",
                "trainer.max_steps=4",
            )
            figures = train(report, Path(f"{model}_{precision}_{batch}"), "retrieval", *words)
            expected = expected or figures
            report.note(f"{model} {precision} {cut}", figures, unlike(figures, expected, limit))
    report.told = "in one pass and in four, the losses agree"


def resume(report: Report) -> None:
    """The same seed twice, and a run that a signal stops and that goes on, against one left alone: adapters, bit for bit."""
    import vlatrain.verbs.train as door
    from vlatrain.training.loop import Loop

    class Stopping(Loop):
        def _step(self, *given: Any) -> None:
            super()._step(*given)
            if self.progress.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    for precision in ("fp32",) if report.device == "cpu" else ("fp32", *PRECISIONS):
        words = (f"trainer.precision={precision}", "trainer.max_steps=6", "trainer.save_every=2", "adapter.dropout=0.2")
        words = (*words, "trainer.deterministic=true")
        whole, broken, twice = (Path(f"{precision}_{name}") for name in ("whole", "broken", "twice"))
        figures = train(report, whole, "vqa", *words)
        train(report, twice, "vqa", *words)
        door.Loop = Stopping  # type: ignore[misc]
        try:
            train(report, broken, "vqa", *words, status=128 + signal.SIGTERM)
        finally:
            door.Loop = Loop  # type: ignore[misc]
        again = train(report, broken, "vqa", *words, "resume=auto")
        one, other, same = (
            (folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (whole, broken, twice)
        )
        report.note(f"{precision} twice", {}, "" if one == same else "the same seed gives another adapter")
        problem = (
            "" if one == other else f"the adapters differ; last losses {figures['losses'][-1]}, {again['losses'][-1]}"
        )
        if again["resumed_from"] != 3:
            problem = f"it went on from step {again['resumed_from']}, not 3"
        report.note(precision, again, problem)
    report.told = "the same bits"


def packed(report: Report) -> None:
    """A run on a packed trunk ends with an adapter and a finite loss."""
    if importlib.util.find_spec("bitsandbytes") is None:
        report.skip("no bitsandbytes here; it is among the wheels where it fits")
        return
    for bits, name in product((8, 4), ("tiny_blip",) if report.tiny else ("tiny_blip", "tiny_composite")):
        folder = Path(f"{name}_{bits}")
        words = (
            f"model={name}",
            f"model.quantize={bits}",
            "trainer.precision=bf16",
            "trainer.max_steps=2",
            "trainer.cache=off",
        )
        figures = train(report, folder, "captioning", *words)
        saved = (folder / "adapter" / "adapter_model.safetensors").is_file()
        report.note(f"{name} {bits} bits", figures, "" if saved else "no adapter was saved")
    report.told = "8 and 4 bits"


def fits(report: Report) -> None:
    """What `trainer.batch_size=auto` and `workers=auto` come to: the predicted peak against the measured one, a device that has
    room for less than was predicted, and a run that goes on with what it began with."""
    from vlatrain.training import fitting

    model = ("model=tiny_blip",) if report.tiny else ("model=blip", "model.random_init=true")
    moment = [*model, "data.train_size=64", "data.eval_size=8", "trainer.max_steps=2", "trainer.log_every=1"]
    moment += ["trainer.cache=off", report.where]
    passes: dict[str, Any] = {}
    for task in ("captioning",) if report.tiny else ("captioning", "vqa", "retrieval"):
        command(f"task={task}", f"run.dir={task}", *moment)
        passes[task] = came_to = read(Path(task, "run.json"))["starts"][-1]["resolved"]
        measured = read(Path(task, "metrics.json"))["memory"]["peak_mb"]
        ratio = came_to["predicted_peak_mb"] / measured if "predicted_peak_mb" in came_to else None
        off = report.device == "cuda" and (ratio is None or not 0.85 <= ratio <= 1.5)
        figures = {"resolved": came_to, "measured_mb": measured, "predicted_to_measured": ratio}
        report.note(task, figures, f"predicted {ratio} of what was measured" if off else "")

    size = passes["captioning"]["trainer.batch_size"]
    with room_for(report, size // 2), mock.patch.object(fitting, "room_on", return_value=math.inf):
        command("task=captioning", "run.dir=less", "trainer.save_every=1", *moment)
    less = read(Path("less", "run.json"))["starts"][-1]["resolved"]
    steps = [one["trainer.batch_size"] * one["trainer.accumulate"] for one in (less, passes["captioning"])]
    problem = f"{size} samples did not become fewer: {less}" if not less["trainer.batch_size"] < size else ""
    report.note("less room", less, problem or ("" if len(set(steps)) == 1 else f"samples a step changed: {steps}"))

    command("task=captioning", "run.dir=less", "trainer.save_every=1", *moment, "resume=auto")
    again = read(Path("less", "run.json"))["starts"][-1]["resolved"]
    same = again["trainer.batch_size"] == less["trainer.batch_size"]
    report.note("resumed", again, "" if same else f"it went on with {again['trainer.batch_size']} samples a pass")
    _says_what_fits(report, size, moment)
    report.told = ", ".join(
        f"{task} {one['trainer.batch_size']} x {one['trainer.accumulate']}" for task, one in passes.items()
    )


def _says_what_fits(report: Report, size: int, moment: list[str]) -> None:
    """A pass that has no room: refused with overrides, of which the first one runs with the same room."""
    import vlatrain

    words = ("task=captioning", *moment, f"trainer.batch_size={size}")
    # what is set is not tried beforehand
    with room_for(report, size // 2), mock.patch("vlatrain.verbs.train.tries_passes", return_value=False):
        try:
            vlatrain.train(vlatrain.compose(*words, "run.dir=without"))
            said = ""
        except vlatrain.UserError as error:
            said = str(error)
        named = [word for word in said.partition("have room: ")[2].split(" (")[0].split() if "=" in word]
        if named:
            command(*words[:-1], "run.dir=with", *named)
    report.note("no room", {"said": said}, "" if named else "no override was named that has room")


@contextmanager
def room_for(report: Report, size: int) -> Iterator[None]:
    """Let a pass of training have room for so many samples: on a GPU by leaving it three quarters of the memory that twice as many
    took, in a rehearsal by an error as the GPU's."""
    import torch

    from vlatrain.tasks.captioning import Captioning

    if report.device == "cuda":
        taken = 1e6 * read(Path("captioning", "metrics.json"))["memory"]["peak_mb"]
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.75 * taken / torch.cuda.get_device_properties(0).total_memory)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    own = Captioning.loss

    def loss(self: Captioning, batch: Any) -> Any:
        if batch["caption"].ids.device.type != "meta" and len(batch["ids"]) > size:
            raise torch.OutOfMemoryError
        return own(self, batch)

    with (
        mock.patch.object(Captioning, "loss", loss),
        mock.patch("vlatrain.verbs.train.tries_passes", return_value=True),
    ):
        yield


if __name__ == "__main__":
    perform({stage.__name__: stage for stage in (losses, runs, cache, compile, negatives, resume, packed, fits)})
