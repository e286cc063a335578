"""Small collectives, and the training metrics over them."""

import pytest
import torch

from stem_torchrec.config import DistributedConfig
from stem_torchrec.distributed.dense_step import DenseOutput
from stem_torchrec.distributed.ranks import check_devices
from stem_torchrec.errors import UserError
from stem_torchrec.nn.losses import labelled, task_losses
from stem_torchrec.training.metrics import TrainMetrics


def collectives(ranks, sizes):
    rows = torch.arange(sizes[ranks.rank] * 2, dtype=torch.float64).view(-1, 2) + 100 * ranks.rank
    local = torch.tensor([1.0, 10.0]) * (1 + ranks.rank)
    mean = ranks.rank_mean(local)()
    said = ranks.on_first(lambda: f"rank {ranks.rank}")
    ranks.barrier()
    return ranks.gather_rows(rows), mean, local, said, ranks.is_first


@pytest.mark.parametrize("sizes", [(3, 2), (0, 2), (2, 0), (0, 0)])
def test_two_ranks(pair, sizes):
    first, second = pair.run(collectives, sizes)
    expected = [
        torch.arange(size * 2, dtype=torch.float64).view(-1, 2) + 100 * rank
        for rank, size in enumerate(sizes)
    ]
    assert torch.equal(first[0], torch.cat(expected))
    assert second[0] is None
    for rank, (_, mean, local, said, is_first) in enumerate((first, second)):
        assert mean.tolist() == [1.5, 15]
        assert local.tolist() == [1 + rank, 10 * (1 + rank)]
        assert said == "rank 0"
        assert is_first == (rank == 0)


def test_one_rank(alone):
    rows, mean, *_ = collectives(alone, (3,))
    assert rows.shape == (3, 2)
    assert mean.tolist() == [1, 10]


def refuse(ranks):
    def fail():
        raise UserError(f"data.path: said by rank {ranks.rank}")

    try:
        ranks.on_first(fail)
    except UserError as error:
        return str(error)


def test_a_users_error_of_the_first_rank_is_raised_on_all(pair):
    assert pair.run(refuse) == ["data.path: said by rank 0"] * 2


def stream(step, rank):
    generator = torch.Generator().manual_seed(10 * step + rank)
    logits = torch.randn(8, 2, generator=generator)
    labels = torch.randint(0, 2, (8, 2), generator=generator).float()
    labels[torch.rand(8, 2, generator=generator) < 0.1 + 0.5 * rank] = float("nan")
    return logits, labels


def figures(ranks, parts):
    """Train metrics of three steps; ``parts`` gives a rank's logits and labels of a step."""
    metrics = TrainMetrics(
        ("click", "like"),
        batch_size=16 // ranks.world_size,
        window=10_000,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=torch.device("cpu"),
    )
    for step in range(3):
        logits, labels = parts(step, ranks.rank)
        target = labelled(labels, None)
        total = ranks.rank_mean(target.weights.sum(0))()
        metrics.update(DenseOutput(task_losses(logits, target, total), logits, target, total))
    return metrics.compute()


def both(step, rank):
    return tuple(torch.cat(pair) for pair in zip(stream(step, 0), stream(step, 1), strict=True))


def test_train_metrics_of_two_ranks_equal_those_of_one(pair, alone):
    expected = figures(alone, both)
    first, second = pair.run(figures, stream)
    assert first.keys() == expected.keys()
    for name, values in expected.items():
        assert first[name] == pytest.approx(values, rel=1e-5), name
    assert second["loss"] == first["loss"]


def test_more_ranks_than_devices_is_the_users_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(DistributedConfig(device="cuda"), 2)
    check_devices(DistributedConfig(device="cpu"), 16)
    with pytest.raises(UserError, match="3 ranks on this node, but it has 2 CUDA devices"):
        check_devices(DistributedConfig(device="cuda"), 3)
