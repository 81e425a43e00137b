"""The typed configuration. Nothing below `cli/` sees a Hydra container: the rest takes these dataclasses."""

from vlatrain.config.adapter import AdapterConfig
from vlatrain.config.data import ColumnsConfig, DataConfig
from vlatrain.config.errors import UserError
from vlatrain.config.logger import LoggerConfig
from vlatrain.config.model import ModelConfig, ModelTaskConfig, SiteConfig, TowerConfig
from vlatrain.config.optim import OptimConfig
from vlatrain.config.schema import (
    CheckConfig,
    EvalConfig,
    ExportConfig,
    MergeConfig,
    PredictConfig,
    RunConfig,
    TrainConfig,
)
from vlatrain.config.task import DecodeConfig, TaskConfig
from vlatrain.config.trainer import TrainerConfig

__all__ = [
    "AdapterConfig", "CheckConfig", "ColumnsConfig", "DataConfig", "DecodeConfig", "EvalConfig", "ExportConfig",
    "LoggerConfig", "MergeConfig", "ModelConfig", "ModelTaskConfig", "OptimConfig", "PredictConfig", "RunConfig",
    "SiteConfig", "TaskConfig", "TowerConfig", "TrainConfig", "TrainerConfig", "UserError",
]  # fmt: skip
