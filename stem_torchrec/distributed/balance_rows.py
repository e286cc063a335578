"""Inner products of the tasks' gradients of shared table rows, over all ranks.

B rows of the local batch, F features, D_f embedding dimension of feature f, D the largest of them,
T tasks, W ranks.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.balancing.gradients import inner_products
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.dense_step import RankMean


class RowGradients:
    """Sums the gradients that samples of all ranks send to one row, before taking products.

    Each table belongs to one rank (in turn), which gets its features' ids and pooled gradients in
    an all-to-all, as a table-wise sharded backward does.

    Args:
        widths: feature -> D_f.
        num_owners: owners that share their tables between tasks; each has all features.
        rank_mean: collective mean over ranks.
        group: process group of the exchange.
    """

    def __init__(
        self,
        schema: Schema,
        widths: Mapping[str, int],
        num_owners: int,
        *,
        world_size: int,
        rank_mean: RankMean,
        group: dist.ProcessGroup | None,
    ) -> None:
        tables = list(dict.fromkeys(f.table_name for f in schema.sparse))
        owner = {table: index % world_size for index, table in enumerate(tables)}
        names = [f.name for f in schema.sparse]
        self._by_rank = [
            [names.index(f.name) for f in schema.sparse if owner[f.table_name] == r]
            for r in range(world_size)
        ]
        self._table_of = [tables.index(f.table_name) for f in schema.sparse]
        self._rows_per_table = max(f.num_embeddings or 0 for f in schema.sparse)
        self._is_mean = torch.tensor(
            [f.kind == "bag" and f.pooling == "mean" for f in schema.sparse]
        )
        self._widths, self._num_owners = [widths[name] for name in names], num_owners
        self._world_size = world_size
        self._rank_mean = rank_mean
        self._group = group

    def gram(self, features: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """(T, T) from gradients (T, B, I) of the shared features and their ids. Collective."""
        width = sum(self._widths)
        by_owner = features[..., : self._num_owners * width].split(width, dim=-1)
        local = torch.stack([self._of_owner(part, sparse) for part in by_owner]).sum(dim=0)
        # A rank's gradient is W times its share; the mean over ranks takes one W of the two.
        return self._rank_mean(local / self._world_size)()

    def _of_owner(self, pooled: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """This rank's part (T, T) from gradients (T, B, sum of D_f) of an owner's features."""
        num_tasks, batch, _ = pooled.shape
        num_features = len(self._table_of)
        by_feature = self._padded(pooled).transpose(1, 2)
        lengths = sparse.lengths().view(num_features, batch).to(torch.int64)
        keys = sparse.values() + self._row_offsets(lengths)
        scale = torch.where(
            self._is_mean.to(lengths.device)[:, None],
            lengths.clamp(min=1),
            torch.ones_like(lengths),
        )
        samples = (by_feature / scale[:, :, None, None]).reshape(num_features, batch, -1)
        if self._world_size > 1:
            lengths, keys, samples = self._exchange(lengths, keys, samples)
        return self._products(lengths.flatten(), keys, samples.flatten(0, 1), num_tasks)

    def _padded(self, pooled: Tensor) -> Tensor:
        """(T, B, sum of D_f) -> (F, T, B, D); zeros add nothing to an inner product."""
        most = max(self._widths)
        parts = pooled.split(self._widths, dim=-1)
        return torch.stack([pad(part, (0, most - part.shape[-1])) for part in parts])

    def _row_offsets(self, lengths: Tensor) -> Tensor:
        """What makes an id unique over tables, per id."""
        offsets = torch.tensor(self._table_of, device=lengths.device) * self._rows_per_table
        return offsets.repeat_interleave(lengths.sum(dim=1))

    def _products(self, lengths: Tensor, keys: Tensor, samples: Tensor, num_tasks: int) -> Tensor:
        rows, row_of_id = keys.unique(return_inverse=True)
        per_id = samples.repeat_interleave(lengths, dim=0)
        sums = samples.new_zeros(len(rows), samples.shape[1]).index_add_(0, row_of_id, per_id)
        return inner_products(sums.view(len(rows), num_tasks, -1).transpose(0, 1))

    def _exchange(
        self, lengths: Tensor, keys: Tensor, samples: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each rank's part of lengths (F, B), ids and samples (F, B, T * D) of every rank."""
        order = [index for part in self._by_rank for index in part]
        per_feature = [int(n) for n in lengths.sum(dim=1)]
        id_parts = keys.split(per_feature)
        sent_ids = [sum(per_feature[i] for i in part) for part in self._by_rank]
        sent_rows = [len(part) * lengths.shape[1] for part in self._by_rank]
        counts = torch.tensor([sent_ids, sent_rows], device=keys.device).t().contiguous()
        got = torch.empty_like(counts)
        dist.all_to_all_single(got, counts, group=self._group)
        got_ids, got_rows = got.t().tolist()
        return (
            self._send(lengths[order].flatten(), sent_rows, got_rows),
            self._send(torch.cat([id_parts[i] for i in order]), sent_ids, got_ids),
            self._send(samples[order].flatten(0, 1), sent_rows, got_rows).unsqueeze(0),
        )

    def _send(self, values: Tensor, sent: list[int], got: list[int]) -> Tensor:
        received = values.new_empty(sum(got), *values.shape[1:])
        dist.all_to_all_single(received, values.contiguous(), got, sent, group=self._group)
        return received
