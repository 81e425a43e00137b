"""What many resident adapters cost: switching, loading one more, and a batch that mixes them. Ours against PEFT's own LoRA.

    python scripts/bench_switching.py [--residents 2 10 50] [--json FILE]

A BLIP of base depth for captions, 60 points: attention and feed-forward of 12 vision layers; attention, cross-attention and
feed-forward of 12 decoder layers. Its weights are random and it is thin: what switching costs does not depend on the width. Both
methods sit at the same modules and are asked through PEFT's own calls. Medians of milliseconds of CPU time in one thread, so that
it matters little what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import BlipConfig, BlipForConditionalGeneration

from vlatrain.injection.peft_method import VlatrainConfig

WIDTH, DEPTH, ROWS = 32, 12, 8
VISION = {"attn": "self_attn.projection", "ffn": "mlp.fc2"}
DECODER = {"attn": "attention.output.dense", "cross": "crossattention.output.dense", "ffn": "output.dense"}
POINTS = {
    f"{tower}.{i}.{site}": f"{layers}.{i}.{path}"
    for tower, layers, paths in (
        ("vision", "vision_model.encoder.layers", VISION),
        ("decoder", "text_decoder.bert.encoder.layer", DECODER),
    )
    for i in range(DEPTH)
    for site, path in paths.items()
}


def backbone() -> BlipForConditionalGeneration:
    """The frozen model, the same each time."""
    torch.manual_seed(0)
    thin = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
    config = BlipConfig(
        vision_config={**thin, "image_size": 32, "patch_size": 8},
        text_config={**thin, "encoder_hidden_size": WIDTH, "vocab_size": 100, "max_position_embeddings": 32},
    )
    return BlipForConditionalGeneration(config).eval()


def methods() -> dict[str, PeftConfig]:
    """Both, at the same modules."""
    return {
        "ours": VlatrainConfig(
            design="bottleneck", points={point: {"output": path} for point, path in POINTS.items()}, options={"dim": 4}
        ),
        "PEFT's LoRA": LoraConfig(r=4, target_modules=list(POINTS.values())),
    }


def median_ms(call: Callable[[int], Any], times: int, after: Callable[[int], Any] = lambda number: None) -> float:
    """Median CPU time of a call, which is given its number; `after` is not timed."""
    taken = []
    for number in range(times):
        start = time.process_time()
        call(number)
        taken.append(time.process_time() - start)
        after(number)
    return 1000 * statistics.median(taken)


def measure(model: Any, saved: Path, residents: int) -> dict[str, float]:
    """The costs with so many adapters resident; loads those that are missing."""
    names = list(model.peft_config)
    while len(names) < residents:
        names.append(f"a{len(names)}")
        model.load_adapter(str(saved), names[-1])
    inputs = {
        "pixel_values": torch.randn(ROWS, 3, 32, 32),
        "input_ids": torch.ones(ROWS, 6, dtype=torch.long),
        "attention_mask": torch.ones(ROWS, 6, dtype=torch.long),
    }
    mixed = [names[row % len(names)] for row in range(ROWS)]
    model.eval()
    with torch.no_grad():
        found = {
            "switch": median_ms(lambda number: model.set_adapter(names[number % len(names)]), 60),
            "load one more": median_ms(
                lambda number: model.load_adapter(str(saved), "more"), 7, lambda number: model.delete_adapter("more")
            ),
        }
        model.set_adapter(names[0])
        model.eval()
        model(**inputs)
        found["forward, one adapter"] = median_ms(lambda number: model(**inputs), 15)
        found["forward, rows mixed"] = median_ms(lambda number: model(**inputs, adapter_names=mixed), 15)
    return found


def run(counts: list[int]) -> list[dict[str, Any]]:
    """All measurements: a record for each method and number of residents."""
    records: list[dict[str, Any]] = []
    for name, config in methods().items():
        model: PeftModel = get_peft_model(backbone(), config)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            records += [
                {"method": name, "residents": count, "ms": measure(model, Path(folder), count)} for count in counts
            ]
    return records


def table(records: list[dict[str, Any]]) -> Table:
    """Each cost by the number of residents: in ms, as a multiple of that with the fewest, and ours over PEFT's."""
    ours, theirs = (name for name in methods())
    cost = {(r["method"], r["residents"], what): ms for r in records for what, ms in r["ms"].items()}
    counts = sorted({record["residents"] for record in records})
    made = Table("what", "residents", title=f"CPU ms; {len(POINTS)} points, batch {ROWS}, {os.cpu_count()} cores")
    for heading in (ours, f"/ with {counts[0]}", theirs, f"/ with {counts[0]}", f"{ours} / {theirs}"):
        made.add_column(heading, justify="right")
    for what in records[0]["ms"]:
        for count in counts:
            cells = [what if count == counts[0] else "", str(count)]
            for name in (ours, theirs):
                now = cost[name, count, what]
                cells += [f"{now:.1f}", f"{now / cost[name, counts[0], what]:.2f}"]
            made.add_row(*cells, f"{cost[ours, count, what] / cost[theirs, count, what]:.2f}")
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--residents", type=int, nargs="+", default=[2, 10, 50], help="numbers of adapters")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    records = run(sorted(arguments.residents))
    Console(width=150).print(table(records))
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
