"""MultiBalance in a plain PyTorch script: two tasks share an encoder and pull it apart.

python examples/multi_balance_own_model.py
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from stem_torchrec.balancing import MultiBalance


class TwoTasks(nn.Module):
    """A click to predict, and a watch time whose loss is a hundred times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.click, self.watch = nn.Linear(8, 1), nn.Linear(8, 1)
        self.balancer = MultiBalance(num_tasks=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_click, for_watch = self.balancer.fork(self.encoder(x))
        return self.click(for_click).squeeze(-1), self.watch(for_watch).squeeze(-1)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(256, 16, generator=generator)
    liking = x[:, :4].sum(dim=1)
    return x, (liking > 0).float(), 10.0 * (x[:, 4] - 0.5 * liking)


def main(steps: int = 200) -> list[float]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = TwoTasks()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        x, clicked, watched = batch(generator)
        click, watch = model(x)
        losses = [binary_cross_entropy_with_logits(click, clicked), mse_loss(watch, watched)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if step % 50 == 0:
            weights = ", ".join(f"{weight:.3f}" for weight in model.balancer.weights)
            cosine = float(model.balancer.cosines[0, 1])
            print(f"step {step}: weights {weights}, cosine of the gradients {cosine:.2f}")
    last = [loss.item() for loss in losses]
    print(f"losses of the last step: {last}")
    return last


if __name__ == "__main__":
    main()
