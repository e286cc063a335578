"""Training whose tasks are weighted in any place: plain PyTorch, the whole data in memory.

B rows of a batch, F features, D embedding dimension, T tasks, G groups of features whose gradients
have weights of their own.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from in_memory import Data, Rows
from torch import Tensor, nn

from stem_torchrec.balancing.report import balance_metrics
from stem_torchrec.balancing.rule import Rule, State, balance
from stem_torchrec.balancing.rules.equal import EqualRule
from stem_torchrec.config import Config, build_model
from stem_torchrec.distributed.optimizers import learning_rate_factor
from stem_torchrec.distributed.recommender import inputs_of
from stem_torchrec.nn import labelled, task_losses
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.training.evaluation import Predictions, evaluation

Record = dict[str, Any]
Place = Literal["everywhere", "tables", "features"]
"""What the weights apply to: tables and experts; tables alone; each feature's table, with weights
from the gradients of that feature's pooled values."""
TABLE_OPTIMIZERS = {
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
EVALUATED_ROWS = 8192
DENSE_OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Rates(NamedTuple):
    """Peak learning rates."""

    tables: float
    dense: float


class Balancing:
    """A rule with a state of its own for each of G groups."""

    def __init__(self, rule: Rule[Any], num_groups: int, num_tasks: int) -> None:
        self._rule = rule
        self._state: State = {
            name: value.expand(num_groups, *value.shape).clone()
            for name, value in rule.initial_state(num_tasks).items()
        }
        self.steps: list[dict[str, Tensor]] = []
        self._of_groups = torch.vmap(self._of_group, in_dims=(0, None, 0))

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        """(G, T, T) and (T,) -> multipliers (G, T)."""
        multipliers, self._state, metrics = self._of_groups(gram, losses, self._state)
        self.steps.append(metrics)
        return multipliers

    def _of_group(
        self, gram: Tensor, losses: Tensor, state: State
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        balanced = balance(self._rule, gram, losses, state, 0)
        return balanced.multipliers, balanced.state, balance_metrics(gram, balanced)

    def means(self) -> dict[str, list[float]]:
        """Figure -> by task, over steps and groups; ``lowest_cosine`` is of the group whose tasks
        conflict most. Then forgets the steps."""
        by_group = {
            name: torch.stack([step[name] for step in self.steps]).nanmean(dim=0)
            for name in ("weight", "cosine", "gradient_norm", "conflict_share")
        }
        self.steps.clear()
        means = {name: values.nanmean(dim=0).reshape(-1) for name, values in by_group.items()}
        means["lowest_cosine"] = by_group["cosine"].nanmean(dim=1).min().reshape(1)
        return {name: values.tolist() for name, values in means.items()}


class Learner:
    """Joined tables and a model without tables of the tasks' own, with what trains them."""

    def __init__(
        self,
        config: Config,
        data: Data,
        optimizers: tuple[str, str],
        rates: Rates,
        rule: Rule[Any],
        place: Place,
    ) -> None:
        torch.manual_seed(config.run.seed)
        embedding = config.embedding
        self.model = build_model(config.model, inputs_of(data.schema, embedding))
        self.table = nn.Parameter(torch.randn(data.num_rows, embedding.dim) * embedding.init_std)
        self._features, self._place = data.features, place
        self._weight_decay = embedding.weight_decay
        self._num_features, self._num_tasks = len(data.schema.sparse), len(data.schema.tasks)
        self.balancing = Balancing(
            rule, self._num_features if place == "features" else 1, self._num_tasks
        )
        self._balances = not isinstance(rule, EqualRule)
        self._shared = list(self.model.shared_parameters())
        shared = {id(parameter) for parameter in self._shared}
        self._own = [p for p in self.model.parameters() if id(p) not in shared]
        of_tables, of_dense = optimizers
        self.optimizers = (
            TABLE_OPTIMIZERS[of_tables]([self.table], lr=rates.tables),
            DENSE_OPTIMIZERS[of_dense](self.model.parameters(), lr=rates.dense),
        )
        self._peaks = rates

    def set_rates(self, factor: float) -> None:
        for optimizer, peak in zip(self.optimizers, self._peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor

    def step(self, batch: Rows) -> None:
        pooled = self.pooled(batch).requires_grad_()
        target = labelled(batch.labels, None)
        losses = task_losses(self._logits(pooled, batch), target, target.weights.sum(dim=0))
        combined = (
            self._balanced(losses, pooled) if self._balances else self._summed(losses, pooled)
        )
        combined = combined + self._weight_decay / len(pooled) * pooled.detach()
        self._set_table_gradient(combined, batch)
        for optimizer in self.optimizers:
            optimizer.step()

    def _summed(self, losses: Tensor, pooled: Tensor) -> Tensor:
        """Dense gradients set, and that of the pooled features (B, F, D), with equal weights."""
        parameters = self._own + self._shared
        of_pooled, *of_dense = torch.autograd.grad(losses.sum(), [pooled, *parameters])
        self._set_dense_gradients(parameters, of_dense)
        return of_pooled

    def _balanced(self, losses: Tensor, pooled: Tensor) -> Tensor:
        """As ``_summed``; what belongs to a task has its own gradient, unweighted, in any place."""
        by_task = torch.stack(  # (T, B, F, D)
            [torch.autograd.grad(loss, pooled, retain_graph=True)[0] for loss in losses]
        )
        gram = torch.einsum("sbfd,tbfd->fst", by_task, by_task)
        if self._place != "features":
            gram = gram.sum(dim=0, keepdim=True)
        weights = self.balancing(gram, losses.detach())
        if self._place == "everywhere":
            own = torch.autograd.grad(losses.sum(), self._own, retain_graph=True)
            shared = torch.autograd.grad(losses @ weights[0], self._shared)
            self._set_dense_gradients(self._own + self._shared, own + shared)
        else:
            parameters = self._own + self._shared
            self._set_dense_gradients(parameters, torch.autograd.grad(losses.sum(), parameters))
        return torch.einsum("ft,tbfd->bfd", weights.expand(self._num_features, -1), by_task)

    @staticmethod
    def _set_dense_gradients(parameters: list[nn.Parameter], gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def _set_table_gradient(self, of_pooled: Tensor, batch: Rows) -> None:
        of_slots = of_pooled[:, self._features] * batch.shares.unsqueeze(2)
        gradient = torch.zeros_like(self.table)
        self.table.grad = gradient.index_add_(0, batch.ids.flatten(), of_slots.flatten(0, 1))

    def pooled(self, batch: Rows) -> Tensor:
        """(B, F, D), without a graph."""
        looked_up = self.table.detach()[batch.ids] * batch.shares.unsqueeze(2)
        sums = looked_up.new_zeros(len(looked_up), self._num_features, looked_up.shape[2])
        return sums.index_add_(1, self._features, looked_up)

    @torch.no_grad()
    def evaluate(self, rows: Rows, tasks: tuple[str, ...], batch_size: int) -> Record:
        predictions = Predictions(len(tasks), has_groups=False)
        for start in range(0, len(rows.labels), batch_size):
            batch = rows.select(slice(start, start + batch_size))
            logits = self._logits(self.pooled(batch), batch)
            predictions.add(logits, labelled(batch.labels, None), None)
        return evaluation(tasks, predictions.joined(lambda all_rows: all_rows))

    def _logits(self, pooled: Tensor, batch: Rows) -> Tensor:
        return self.model({SHARED: pooled.flatten(1)}, batch.dense)


def learning_curve(config: Config, data: Data, learner: Learner) -> Iterator[Record]:
    """The eval record of the valid and the test split after each epoch, with ``balance``."""
    rows = data.splits["train"]
    order = torch.Generator().manual_seed(config.run.seed)
    size, epochs = config.train.batch_rows, config.train.epochs or 1
    steps = -(-len(rows.labels) // size)
    for epoch in range(epochs):
        batches = torch.randperm(len(rows.labels), generator=order).split(size)
        for step, chosen in enumerate(batches, epoch * steps):
            learner.set_rates(learning_rate_factor(config.optim, step, epochs * steps))
            learner.step(rows.select(chosen))
        means = {"balance": learner.balancing.means()} if learner.balancing.steps else {}
        for split in ("valid", "test"):
            found = learner.evaluate(data.splits[split], data.schema.task_names, EVALUATED_ROWS)
            place = {"split": split, "epoch": epoch + 1, "step": (epoch + 1) * steps}
            yield place | found | means
