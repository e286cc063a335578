"""STEM-Net (Su et al., AAAI 2024): shared and task-specific tables, AFTB gates.

B rows, D embedding dimension, N dense features, T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.errors import UserError
from stem_torchrec.hints import did_you_mean
from stem_torchrec.nn.extraction import ExtractionStack
from stem_torchrec.nn.gates import Reach
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import GATED, Model
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class StemNet(Model):
    """Experts per owner, one gate and one tower per task.

    A task's loss reaches the shared tables and experts and its own, never another task's
    (``layers`` = 1; in a stacked block the shared stream reads all experts, as in the paper).
    """

    settings = GATED | {
        "num_task_experts",
        "layers",
        "gate_input",
        "stop_gradient",
        "task_specific_features",
    }
    unspecific_columns: Tensor

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.tasks = schema.task_names
        names = tuple(f.name for f in schema.sparse)
        specific = task_specific_features(config, schema)
        self.owners = {SHARED: names} | {task: specific for task in self.tasks if specific}
        rest = [i for i, name in enumerate(names) if name not in specific]
        columns = (torch.tensor(rest, dtype=torch.long)[:, None] * dim + torch.arange(dim)).ravel()
        self.register_buffer("unspecific_columns", columns, persistent=False)

        inputs = Inputs.of(schema, dim)
        reach: Reach = "forward" if config.stop_gradient else "all"
        self.stack = ExtractionStack(config, self.tasks, inputs, reach, config.gate_input)
        self.towers = Towers(len(schema.tasks), self.stack.width_out, config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.stack.trunk.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        def task_streams(shared_by_task: Tensor) -> Tensor:
            """e^t: the task's own features, and the shared ones of those it has no table for."""
            streams = []
            for task, features in zip(self.tasks, shared_by_task, strict=True):
                parts = [pooled[task]] if task in pooled else []
                if len(self.unspecific_columns):
                    parts.append(features.index_select(1, self.unspecific_columns))
                streams.append(torch.cat([*parts, dense], dim=1))
            return torch.stack(streams)

        shared = torch.cat([pooled[SHARED], dense], dim=1)
        return self.towers(self.stack(self.fork, shared, task_streams))


def task_specific_features(config: ModelConfig, schema: Schema) -> tuple[str, ...]:
    """Names of the features that have a table per task.

    Raises:
        UserError: a listed feature is not an id or bag feature of the data.
    """
    wanted = config.task_specific_features
    if wanted == "all":
        return tuple(f.name for f in schema.sparse)
    if wanted == "none":
        return ()
    if wanted in ("user", "item"):
        return tuple(f.name for f in schema.sparse if f.side == wanted)
    known = [f.name for f in schema.sparse]
    if unknown := [name for name in wanted if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise UserError(
            f"model.task_specific_features: unknown feature {unknown[0]!r}{hint}; "
            f"allowed: all, none, user, item, or some of {', '.join(known)}"
        )
    return tuple(name for name in known if name in wanted)
