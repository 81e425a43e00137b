"""A run's saved configuration as the dataclass that it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlatrain.config import joint
from vlatrain.config.errors import UserError
from vlatrain.config.keys import problems_in
from vlatrain.config.methods import completed
from vlatrain.config.schema import TrainConfig
from vlatrain.config.spec import with_shipped_specs


def typed(values: Mapping[str, Any], source: str) -> TrainConfig:
    """The configuration of a run.

    Args:
        values: plain values, as its file has them.
        source: the file, for messages.

    Raises:
        UserError: keys or types that this version does not know.
    """
    values = {**values, "task": with_shipped_specs(values.get("task", {}))}
    if wrong := problems_in(TrainConfig, values, source=source):
        raise UserError(wrong)
    try:
        made: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), values))
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from error
    made = dataclasses.replace(made, adapter=completed(made.adapter), task=joint.completed(made.task))
    served = {**made.model.tasks, **joint.served(made)}
    config: TrainConfig = dataclasses.replace(made, model=dataclasses.replace(made.model, tasks=served))
    return config
