"""All sections of a run together."""

from pydantic import Field, SerializeAsAny, field_validator

from stem_torchrec.config.balance import BalanceConfig
from stem_torchrec.config.checkpoint import CheckpointConfig
from stem_torchrec.config.data import DataConfig, TasksConfig
from stem_torchrec.config.distributed import DistributedConfig
from stem_torchrec.config.model import ModelConfig
from stem_torchrec.config.optim import EmbeddingConfig, OptimConfig
from stem_torchrec.config.run import EvalConfig, RunConfig, TrainConfig
from stem_torchrec.config.section import Section


class Config(Section):
    """One run. ``config.yaml`` in a run folder is this, resolved."""

    run: RunConfig
    data: DataConfig
    tasks: TasksConfig = TasksConfig()
    model: SerializeAsAny[ModelConfig] = Field(
        default_factory=lambda: ModelConfig.model_validate({})
    )
    embedding: EmbeddingConfig = EmbeddingConfig()
    optim: OptimConfig = OptimConfig()
    balance: SerializeAsAny[BalanceConfig] = Field(
        default_factory=lambda: BalanceConfig.model_validate({})
    )
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()
    versions: dict[str, str] | None = Field(
        None, description="package versions of the run that wrote this file; not read back"
    )

    @property
    def metric(self) -> str:
        """The figure of the valid split by which one evaluation is better than another."""
        return self.eval.metric or self.checkpoint.keep_best or "valid/auc_mean"

    @property
    def waits_for_valid(self) -> bool:
        """Whether to train until the valid split, if there is one, no longer improves: nothing says
        how long to train, and days are not chosen."""
        open_ended = self.train.epochs is None and self.train.max_steps is None
        return open_ended and self.data.days is None

    @property
    def tests_best(self) -> bool:
        """Whether the checkpoint that ``keep_best`` keeps is tested, not the last weights."""
        return self.checkpoint.keep_best is not None and self.eval.test_checkpoint != "last"

    @field_validator("run", "data", mode="before")
    @classmethod
    def _missing_section(cls, value: object) -> object:
        return {} if value is None else value
