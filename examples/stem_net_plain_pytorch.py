"""STEM-Net in a plain PyTorch script: torch and stem_torchrec.nn, on random data.

python examples/stem_net_plain_pytorch.py
"""

import torch
from torch import Tensor, nn

from stem_torchrec.nn import Inputs, StemNet, StemNetOptions, labelled, task_losses

ROWS = {"user_id": 100, "item_id": 50}
INPUTS = Inputs({"user_id": "user", "item_id": "item"}, dim=8, tasks=("click", "like"), num_dense=1)
OPTIONS = StemNetOptions(expert_widths=(32,), gate_widths=(16,), tower_widths=(16,))


class Recommender(nn.Module):
    """A table per owner and feature, and the model on what is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.model = StemNet(INPUTS, OPTIONS)
        self.tables = nn.ModuleDict(
            {
                owner: nn.ModuleDict({name: nn.Embedding(ROWS[name], INPUTS.dim) for name in names})
                for owner, names in self.model.owners.items()
            }
        )

    def forward(self, ids: dict[str, Tensor], dense: Tensor) -> Tensor:
        pooled = {
            owner: torch.cat([table(ids[name]) for name, table in tables.items()], dim=1)
            for owner, tables in self.tables.items()
        }
        return self.model(pooled, dense)


def main(steps: int = 200) -> Tensor:
    """Train; the losses of the last step, (T,)."""
    torch.manual_seed(0)
    recommender = Recommender()
    optimizer = torch.optim.Adam(recommender.parameters(), lr=0.01)
    ids = {name: torch.randint(rows, (512,)) for name, rows in ROWS.items()}
    dense = torch.randn(512, 1)
    labels = torch.stack([ids["user_id"] % 2, (ids["user_id"] + ids["item_id"]) % 2], dim=1).float()
    labels[::3, 1] = torch.nan  # a like is not always observed
    target = labelled(labels, sample_weights=None)
    for step in range(steps):
        losses = task_losses(recommender(ids, dense), target, target.weights.sum(dim=0))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: losses {losses.tolist()}")
    return losses.detach()


if __name__ == "__main__":
    main()
