"""Every key of a run, with its unit, default and allowed values.

Sections are frozen; unknown keys are refused; nothing changes after validation. Reading YAML and
command-line overrides is in ``reading.py``.
"""

from stem_torchrec.config.balance import BalanceConfig
from stem_torchrec.config.checkpoint import CheckpointConfig, metric_direction
from stem_torchrec.config.config import Config
from stem_torchrec.config.data import DataConfig, TasksConfig
from stem_torchrec.config.distributed import DistributedConfig, PipelineName, TableConstraint
from stem_torchrec.config.model import ModelConfig, build_model, model_class
from stem_torchrec.config.optim import EmbeddingConfig, OptimConfig
from stem_torchrec.config.run import EvalConfig, RunConfig, TrainConfig
from stem_torchrec.config.section import Section

__all__ = [
    "BalanceConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EmbeddingConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimConfig",
    "PipelineName",
    "RunConfig",
    "Section",
    "TableConstraint",
    "TasksConfig",
    "TrainConfig",
    "build_model",
    "metric_direction",
    "model_class",
]
