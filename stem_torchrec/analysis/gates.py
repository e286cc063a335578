"""Which experts each gate reads, over the seeds of each model (STEM, AAAI 2024, gate analysis).

G gates, K experts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.runs import Model, Run
from stem_torchrec.analysis.spread import Spread
from stem_torchrec.errors import UserError
from stem_torchrec.training.finished_run import MeanGates


class Gate(NamedTuple):
    """One gate of one model.

    Attributes:
        place: of the gates in the model.
        name: the gate's, as a rule a task.
        shares: group of experts -> summed weight of its experts, over the model's seeds.
    """

    model: str
    place: str
    name: str
    shares: dict[str, Spread]


def analyse(
    models: Sequence[Model], mean_gates: Callable[[Run], Mapping[str, MeanGates]]
) -> list[Gate]:
    """Every gate of every model.

    Raises:
        UserError: a model has no gates.
    """
    found = []
    for model in models:
        by_seed = [mean_gates(run) for run in model.runs]
        if not by_seed[0]:
            run = model.runs[0]
            raise UserError(
                f"--runs: {run.path} is of model.name {run.config.model.name}, without gates"
            )
        for place, gates in by_seed[0].items():
            for index, name in enumerate(gates.gates):
                per_seed = [group_shares(of_seed[place], index) for of_seed in by_seed]
                shares = {g: Spread(tuple(seed[g] for seed in per_seed)) for g in per_seed[0]}
                found.append(Gate(model.name, place, name, shares))
    return found


def group_shares(gates: MeanGates, index: int) -> dict[str, float]:
    """Group -> sum of one gate's mean weights over the group's experts."""
    shares = dict.fromkeys(gates.groups, 0.0)
    for group, weight in zip(gates.groups, gates.weights[index], strict=True):
        shares[group] += float(weight)
    return shares


def gate_table(found: Sequence[Gate]) -> Table:
    """One row per gate, one column per group of experts."""
    groups = list(dict.fromkeys(group for gate in found for group in gate.shares))
    rows = []
    for gate in found:
        cells = [gate.shares[g].text() if g in gate.shares else "" for g in groups]
        rows.append([gate.model, gate.place, gate.name, *cells])
    return Table(["model", "gates", "gate", *groups], rows)


def report(found: Sequence[Gate], split: str, origin: str) -> Report:
    """Table, plot and figures."""
    text = (
        f"Weight that each gate gives to each group of experts: mean over the rows of the {split} "
        "split, summed over the group's experts; mean ± standard deviation over seeds. A row sums "
        "to 1."
    )
    data = {
        "split": split,
        "gates": [
            gate._asdict() | {"shares": {g: s.record() for g, s in gate.shares.items()}}
            for gate in found
        ],
    }
    sections = [
        Section("Weights", text, gate_table(found)),
        Section("Shares", plot=_plot(found)),
    ]
    return Report("What the gates read", sections, data, origin)


def _plot(found: Sequence[Gate]) -> Figure:
    """A bar per gate, cut into groups."""
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(found)), layout="constrained")
    axis = figure.subplots()
    labels = [f"{gate.model}: {gate.name} ({gate.place})" for gate in found]
    starts = [0.0] * len(found)
    for group in dict.fromkeys(group for gate in found for group in gate.shares):
        means = [gate.shares[group].mean or 0.0 if group in gate.shares else 0.0 for gate in found]
        axis.barh(range(len(found)), means, left=starts, label=group)
        starts = [start + mean for start, mean in zip(starts, means, strict=True)]
    axis.set_yticks(range(len(found)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the gate's weight")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
