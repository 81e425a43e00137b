"""One side of the training benchmark, in a process of its own, so that each has its own imports and its own peak of memory.

    python scripts/bench_sides.py vlatrain|peft|full SPEC.json OUT.json

`bench_training.py` writes SPEC (a `Spec`) and reads OUT: samples/s (of the median step, without the first), peak memory in MB,
GFLOP a sample as torch's counter finds them in one step (forward and backward), and the seconds that this counting took.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

QUESTION, ANSWER = "what is the man in the red shirt holding?", "a tennis racket"
CAPTION = "a man in a red shirt is holding a tennis racket on a green court"


@dataclass(frozen=True)
class Spec:
    """What is trained.

    Attributes:
        model: the backbone.
        task: the task.
        points: where adapters and LoRA go.
        batch: samples in a step.
        epochs: passes through the data of a whole run; 0: steady state, of `steps`.
        widths: bottleneck widths, one a run; several: a sweep over them (of LoRA's ranks, an eighth of them).
        steps: optimizer steps of the steady state.
        data: folder of train.jsonl and eval.jsonl.
        overrides: more words of the command line about the model, such as smaller sizes.
    """

    model: str
    task: str
    points: list[str]
    batch: int = 8
    epochs: int = 0
    widths: Sequence[int] = (64,)
    steps: int = 0
    data: str = ""
    overrides: Sequence[str] = ()


def vlatrain(spec: Spec, adapter: str = "bottleneck") -> dict[str, float]:
    """The command line, through its real loop; what is cached it decides for itself."""
    import torch

    import vlatrain.verbs.train as run
    from vlatrain.cli.main import main
    from vlatrain.tasks.base import move
    from vlatrain.training.loop import Loop

    words = [
        f"task={spec.task}", f"model={spec.model}", "model.random_init=true", f"adapter={adapter}", "data=files",
        f"data.train={spec.data}/train.jsonl", f"data.eval={spec.data}/eval.jsonl", f"trainer.batch_size={spec.batch}",
        "trainer.accumulate=1", "trainer.log_every=1", "trainer.eval_every=100000",
        f"trainer.max_steps={spec.steps}" if spec.steps else f"trainer.epochs={spec.epochs}", *spec.overrides,
    ]  # fmt: skip
    if spec.task != "retrieval":
        written = 8 if spec.task == "vqa" else 2  # tokens; answers that cannot be written are refused
        words += [f"task.decode.max_new_tokens={written}", "task.decode.num_beams=1"]
    if torch.cuda.is_available():
        words += ["trainer.workers=8"]
    if adapter != "full":
        words += [f"adapter.points=[{','.join(spec.points)}]", f"adapter.dim={','.join(map(str, spec.widths))}"]
    loops: list[Loop] = []

    class Seen(Loop):
        """So that the FLOPs of what was trained can be counted afterwards."""

        def run(self) -> Any:
            loops[:] = [self]  # of a sweep the last: all its models at once would be a peak of memory of their own
            return super().run()

    run.Loop = Seen  # type: ignore[misc]
    if status := main([*(["-m"] if len(spec.widths) > 1 else []), *words]):
        sys.exit(status)
    (loop,) = loops
    for parameter in loop.parameters.values():
        parameter.requires_grad_(True)
    batch = move(loop.task.collate(loop.train[: spec.batch]), loop.device)
    log = (loop.folder / "metrics.jsonl").read_text(encoding="utf-8")
    records = [record for record in map(json.loads, log.splitlines()) if "loss" in record]

    def loss() -> Any:
        with loop.accelerator.autocast():
            return loop.task.loss(batch)

    return measured(spec, [spec.batch / record["samples_per_s"] for record in records[1:]], loss)


def peft(spec: Spec) -> dict[str, float]:
    """What a user would write instead: PEFT's LoRA in transformers' class, trained by `Trainer`."""
    import torch
    import transformers
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from vlatrain.backbones.describe import settings_of, sites
    from vlatrain.backbones.loading import family_of
    from vlatrain.cli.registry import register
    from vlatrain.config import ModelConfig
    from vlatrain.config.folder import conf_dir
    from vlatrain.tasks.base import move

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        more = [f"++{word}" for word in spec.overrides]  # sizes that the YAML leaves to transformers, too
        node = compose("train", [f"model={spec.model}", f"task={spec.task}", "model.random_init=true", *more]).model
    config: ModelConfig = OmegaConf.to_object(node)  # type: ignore[assignment]
    family, settings = family_of(config), settings_of(config, spec.task)
    processor = family.make_processor(config, settings, [QUESTION, ANSWER, CAPTION])
    settings = dict(family.with_tokens(config, settings, processor))
    architecture = getattr(transformers, config.tasks[spec.task].architecture)
    plain = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    targets = sites(config, spec.task, spec.points).targeted(["query", "value", "qkv", "ffn.inner", "ffn.out"])
    lines = [json.loads(line) for line in Path(spec.data, "train.jsonl").read_text(encoding="utf-8").splitlines()]

    def words(items: list[dict], key: str) -> Any:
        texts = [item[key] for item in items]
        return processor.tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")

    def collate(items: list[dict]) -> dict[str, Any]:
        images = [Image.open(Path(spec.data, item["image"])).convert("RGB") for item in items]
        found = dict(processor.image_processor(images=images, return_tensors="pt"))
        text = words(items, "question" if spec.task == "vqa" else "caption")
        found |= {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
        if spec.task == "vqa":
            found["labels"] = words(items, "answer")["input_ids"]
        elif spec.task == "captioning":
            found["labels"] = text["input_ids"]
        else:
            found["return_loss"] = True
        return found

    ends: list[float] = []

    class Times(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir="trainer", per_device_train_batch_size=spec.batch, remove_unused_columns=False, label_names=["labels"],
        use_cpu=not gpu, bf16=gpu, dataloader_num_workers=8 if gpu else 0, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True,
        **({"max_steps": spec.steps} if spec.steps else {"num_train_epochs": spec.epochs}),
    )  # fmt: skip
    for width in spec.widths:
        ends.clear()
        rank = max(1, width // 8)
        model = get_peft_model(architecture(plain), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
        trainer = Trainer(model, arguments, train_dataset=lines, data_collator=collate, callbacks=[Times()])  # type: ignore[arg-type]
        trainer.train()
    batch = move(collate(lines[: spec.batch]), trainer.args.device)
    return measured(spec, [after - before for before, after in pairwise(ends)], lambda: model(**batch).loss)


def measured(spec: Spec, seconds: list[float], loss: Callable[[], Any]) -> dict[str, float]:
    """The figures of a side that has trained, from the seconds of its steps; and then one step's FLOPs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vlatrain.training.precision import peak_memory_mb

    peak = peak_memory_mb(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    started = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return {
        "samples_per_s": spec.batch / statistics.median(seconds),
        "peak_mb": peak,
        "gflop": counter.get_total_flops() / spec.batch / 1e9,
        "counting_s": time.perf_counter() - started,
    }


SIDES: dict[str, Callable[[Spec], dict[str, float]]] = {
    "vlatrain": vlatrain,
    "peft": peft,
    "full": lambda spec: vlatrain(spec, "full"),
}


def main() -> None:
    """Run one side."""
    side, given, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).resolve()
    spec = Spec(**json.loads(given.read_text(encoding="utf-8")))
    os.chdir(out.parent)  # run folders are written here
    about = {key: value for key, value in asdict(spec).items() if key != "data"}
    out.write_text(json.dumps({**about, **SIDES[side](spec)}), encoding="utf-8")


if __name__ == "__main__":
    main()
