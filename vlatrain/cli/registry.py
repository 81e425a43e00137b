"""The schemas, and a finished run's values, in Hydra's store; the YAML files extend them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from vlatrain.config.adapter import AdapterConfig
from vlatrain.config.data import DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.keys import problems_in
from vlatrain.config.logger import LoggerConfig
from vlatrain.config.model import ModelConfig, ModelTaskConfig
from vlatrain.config.optim import OptimConfig
from vlatrain.config.schema import (
    AS_TRAIN,
    CheckConfig,
    EvalConfig,
    ExportConfig,
    MergeConfig,
    PredictConfig,
    TrainConfig,
)
from vlatrain.config.spec import TaskSpec, described, with_shipped_specs
from vlatrain.config.task import TaskConfig
from vlatrain.config.trainer import TrainerConfig

SCHEMAS: dict[str, type[TrainConfig]] = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "predict": PredictConfig,
    "merge": MergeConfig,
    "export": ExportConfig,
    "inspect": TrainConfig,
    "check": CheckConfig,
}
GROUPS: dict[str, type] = {
    "task": TaskConfig,
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
}
FROM_RUN = "from_run"
OF_RUN = ("eval", "predict", "merge", "export")  # verbs whose groups are a finished run's


def _served(key: str, otherwise: Any = None, *, _root_: DictConfig) -> Any:
    """`${served:KEY}` in a YAML: what the model says about the task; the schema's default where it cannot do it.

    `${served:KEY,VALUE}`: the value where the model says nothing.
    """
    served = _root_.model.tasks.get(_root_.task.name) or _root_.model.tasks.get(_root_.task.spec.served_as)
    return getattr(served or ModelTaskConfig(), key) or otherwise


def _together(*lists: list[Any]) -> list[Any]:
    """`${together:LIST,LIST}` in a YAML: one list of all."""
    return [item for items in lists for item in items]


def _times(*factors: float) -> float:
    """`${times:A,B,...}` in a YAML: the product, whole where it is a whole number."""
    product = math.prod(factors)
    return int(product) if product == int(product) else product


def _slowest(*, _root_: DictConfig) -> float:
    """`${slowest:}` in a YAML: the least `rate` of the subtasks of a joint task."""
    subtasks = [(name, own) for name, own in (_root_.task.get("subtasks") or {}).items() if isinstance(own, Mapping)]
    rates = [own.get("rate", described(own.get("name", name)).get("rate", 1.0)) for name, own in subtasks]
    return float(min(rates, default=1.0))


def register_resolvers() -> None:
    """Make known what a YAML may write besides plain values."""
    OmegaConf.register_new_resolver("served", _served, replace=True)
    OmegaConf.register_new_resolver("together", _together, replace=True)
    OmegaConf.register_new_resolver("times", _times, replace=True)
    OmegaConf.register_new_resolver("slowest", _slowest, replace=True)


@cache
def register() -> None:
    """Put the schemas in Hydra's store, once: making nodes of them takes a third of a composition. The YAML files extend them."""
    register_resolvers()
    store = ConfigStore.instance()
    for verb, schema in SCHEMAS.items():
        if verb in AS_TRAIN:  # their YAML files extend that of train, and have these beside
            own = set(schema.__dataclass_fields__) - set(TrainConfig.__dataclass_fields__)
            store.store(name=f"{verb}_schema", node={name: getattr(schema, name) for name in sorted(own)})
            continue
        node = OmegaConf.structured(schema)
        node.task.spec = (
            TaskSpec()
        )  # that of the default task must not show through where a task of one's own says nothing
        store.store(name=f"{verb}_schema", node=node)
    for group, of_group in GROUPS.items():
        store.store(group=group, name=f"{group}_schema", node=of_group)


def register_run(values: dict[str, Any], source: str) -> None:
    """Make a finished run's configuration the default of every group (option `from_run`).

    Raises:
        UserError: keys or types that this version does not know.
    """
    if found := problems_in(TrainConfig, values, source=source):
        raise UserError(found)
    store = ConfigStore.instance()
    rest = {key: values[key] for key in ("seed", "run") if key in values}
    store.store(name=FROM_RUN, node=OmegaConf.create(rest))
    values = {**values, "task": with_shipped_specs(values.get("task", {}))}
    for group in GROUPS:
        # A description that happens to have such a key must not become Hydra's instruction.
        node = {key: value for key, value in values.get(group, {}).items() if key != "defaults"}
        store.store(group=group, name=FROM_RUN, node=OmegaConf.create(node))
