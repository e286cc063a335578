"""A balancing rule of your own: in a script, and by its import path in a config.

    python examples/own_rule.py
    stem-torchrec train --config mine.yaml --balance.rule examples.own_rule:InverseNorm \
        --balance.power 0.5
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing import Balancer, Options, Rule, Situation, State


@dataclass(frozen=True)
class InverseNormOptions(Options):
    power: Annotated[float, Ge(0), Le(1), Doc("0 leaves norms alone, 1 makes them equal")] = 1.0


class InverseNorm(Rule[InverseNormOptions]):
    """α_t = (mean norm / n_t)^power: a task with large gradients does not drown the others."""

    options_type = InverseNormOptions

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        gram, _, active = situation
        norms = gram.diagonal().sqrt()
        mean = norms.sum() / active.sum().clamp_min(1)
        return (mean / torch.where(active, norms, 1.0)) ** self.options.power, state


def main() -> Tensor:
    torch.manual_seed(0)
    encoder, heads = torch.nn.Linear(4, 8), [torch.nn.Linear(8, 1) for _ in range(3)]
    balancer = Balancer(InverseNorm(InverseNormOptions(power=0.5)), num_tasks=3)
    parts = balancer.fork(encoder(torch.randn(32, 4)))
    scales = (1.0, 10.0, 100.0)
    losses = [
        scale * head(part).square().mean()
        for scale, head, part in zip(scales, heads, parts, strict=True)
    ]
    sum(losses).backward()
    print(f"norms {balancer.metrics()['gradient_norm'].tolist()}")
    print(f"weights {balancer.weights.tolist()}")
    return balancer.weights


if __name__ == "__main__":
    main()
