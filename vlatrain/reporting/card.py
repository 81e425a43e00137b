"""The model card of an adapter: what it is, what it scores, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlatrain.config import TrainConfig
from vlatrain.config.files import write_file
from vlatrain.config.joint import scores as score_specs
from vlatrain.config.methods import components
from vlatrain.injection.sources import TRUNK
from vlatrain.reporting.scores import shown_score
from vlatrain.reporting.summary import asking
from vlatrain.runs.baselines import beside_baseline

CARD = """---
library_name: peft
base_model: {backbone}
tags: [vlatrain, {task}, {design}]
---

# {design} adapter for {task} on {model}

Trained with vlatrain {version}: {trainable:,} parameters ({percent:.2f} % of {total:,}) in a frozen {model}
(`{architecture}`, {backbone}), {epochs:.4g} epochs of `data={data}`, seed {seed}.

| metric | value | baseline |
|---|---|---|
{scores}

## Load it

```python
import vlatrain  # makes the adapter's method known to PEFT
{load_from}
from transformers import {architecture}

backbone = {architecture}.from_pretrained("{backbone}"{revision})
model = {load}(backbone, "PATH/TO/THIS/FOLDER")
```
{components}{by_task}{trunk}
or ask it: {asked}.
"""


COMPONENTS = """
It has {components}, each in a folder of its own; `load` puts all of them in. Each is an adapter by itself, which
`PeftModel.from_pretrained` loads from its folder.
"""

COMPONENT = """---
library_name: peft
base_model: {backbone}
tags: [vlatrain, {task}, {design}]
---

# The component {component} ({design}) of an adapter for {task} on {model}

It was trained together with the other components; `../README.md` says how to load them all.
"""

BY_TASK = """
It has adapters of its own for each of {subtasks}; say whose a call is:

```python
from vlatrain.injection.context import for_task

with for_task(model, "SUBTASK"):
    ...
```
"""

IN_TRUNK = """
Weights of the trunk have trained with it: `trunk.safetensors` holds them, and they go into the backbone before the adapter does:

```python
from vlatrain.injection.trunk import load_trunk

load_trunk(backbone, "PATH/TO/THIS/FOLDER")
```
"""


def write_card(folder: Path, config: TrainConfig, metrics: Mapping[str, Any]) -> None:
    """Write `README.md` into the adapter's folder, in place of the generic one.

    Args:
        folder: the adapter's folder.
        config: the run's configuration.
        metrics: the content of its `metrics.json`.
    """
    named = components(config.adapter) if config.adapter.components else {}
    text = CARD.format(
        backbone=metrics["backbone"],
        revision=f', revision="{config.model.revision}"' if config.model.revision else "",
        task=config.task.name,
        design=config.adapter.name,
        model=config.model.name,
        architecture=config.model.tasks[config.task.name].architecture,
        version=metrics["versions"]["vlatrain"],
        data=config.data.name,
        seed=config.seed,
        epochs=metrics["training"]["epochs"],
        scores="\n".join(_row(config, metrics, name) for name in metrics["metrics"]),
        asked=", ".join(f"`{command}`" for command in asking(config, "RUN_FOLDER")),
        load_from=f"from {'vlatrain.injection.mixed import load' if named else 'peft import PeftModel'}",
        load="load" if named else "PeftModel.from_pretrained",
        components=COMPONENTS.format(
            components=" and ".join(f"{component.name} as `{name}`" for name, component in named.items())
        )
        if named
        else "",
        by_task=BY_TASK.format(subtasks=", ".join(config.task.subtasks)) if config.adapter.by_task else "",
        trunk=IN_TRUNK if (folder / TRUNK).is_file() else "",
        **metrics["parameters"],
    )
    write_file(folder / "README.md", text)
    for name, component in named.items():
        card = COMPONENT.format(
            component=name,
            design=component.name,
            backbone=metrics["backbone"],
            task=config.task.name,
            model=config.model.name,
        )
        write_file(folder / name / "README.md", card)


def _row(config: TrainConfig, metrics: Mapping[str, Any], name: str) -> str:
    known = score_specs(config.task)
    beaten = beside_baseline(metrics, name, known[name].higher_is_better if name in known else True)
    base = f"{shown_score(config, name, beaten.value)} ({beaten.name})" if beaten else ""
    return f"| {name} | {shown_score(config, name, metrics['metrics'][name])} | {base} |"
