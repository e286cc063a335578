"""What each task loses when a feature tells it nothing: its values permuted over the rows.

Permutation importance (Breiman, Machine Learning, 2001), over the seeds of each model.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.runs import Model, Run
from stem_torchrec.analysis.spread import Spread, signed
from stem_torchrec.errors import UserError
from stem_torchrec.training.permutation import Permuted


class Importance(NamedTuple):
    """One feature for one task of one model.

    Attributes:
        auc_lost: AUC as it is minus AUC with the feature permuted, per seed and repetition.
        ne_gained: NE with the feature permuted minus NE as it is, alike.
    """

    model: str
    task: str
    feature: str
    auc_lost: Spread
    ne_gained: Spread


def chosen_features(runs: Sequence[Run], names: Sequence[str] | None) -> list[str]:
    """The named features, or all that the runs have.

    Raises:
        UserError: a run does not have one of them, or one is named twice.
    """
    for run in runs:
        of_run = [feature.name for feature in run.schema.features]
        if names is None:
            return of_run
        for name in names:
            if name not in of_run:
                raise UserError(
                    f"--features: {name!r} is not a feature of {run.path}, which has "
                    f"{', '.join(of_run)}"
                )
            if names.count(name) > 1:
                raise UserError(f"--features: {name!r} is given twice")
    return list(names or [])


def analyse(models: Sequence[Model], permuted: Callable[[Run], Permuted]) -> list[Importance]:
    """Every feature for every task of every model, the most important first."""
    found = []
    for model in models:
        by_seed = [permuted(run) for run in model.runs]
        of_model = [
            Importance(
                *(model.name, task, feature),
                _changes(by_seed, feature, "auc", task, -1.0),
                _changes(by_seed, feature, "ne", task, 1.0),
            )
            for task in model.runs[0].tasks
            for feature in by_seed[0].by_feature
        ]
        tasks = list(model.runs[0].tasks)
        found += sorted(of_model, key=lambda one: (tasks.index(one.task), -_size(one)))
    return found


def _changes(
    by_seed: Sequence[Permuted], feature: str, metric: str, task: str, sign: float
) -> Spread:
    """Of a metric, per seed and repetition; None where the labels do not define it."""
    values: list[float | None] = []
    for of_seed in by_seed:
        before = of_seed.as_it_is[metric][task]
        for metrics in of_seed.by_feature[feature]:
            after = metrics[metric][task]
            known = before is not None and after is not None
            values.append(sign * (after - before) if known else None)
    return Spread(tuple(values))


def _size(one: Importance) -> float:
    return one.auc_lost.mean or 0.0


def importance_table(found: Sequence[Importance]) -> Table:
    """One row per model, task and feature."""
    rows = [
        [one.model, one.task, one.feature, one.auc_lost.text(signed), one.ne_gained.text(signed)]
        for one in found
    ]
    return Table(["model", "task", "feature", "AUC lost", "NE gained"], rows)


def report(found: Sequence[Importance], split: str, repeats: int, origin: str) -> Report:
    """Table, plot and figures."""
    text = (
        f"What each task loses on the {split} split when a feature's values are permuted over all "
        f"rows: mean ± standard deviation over seeds and {repeats} permutations. About 0: the "
        "model, as it is trained, can do without it. Features that tell the same stand in for each "
        "other: drop one at a time, and train again."
    )
    spreads = ("auc_lost", "ne_gained")
    data = {
        "split": split,
        "repeats": repeats,
        "features": [
            one._asdict() | {name: getattr(one, name).record() for name in spreads} for one in found
        ],
    }
    sections = [
        Section("Features", text, importance_table(found)),
        Section("AUC lost", plot=_plot(found)),
    ]
    return Report("What the features are worth", sections, data, origin)


def _plot(found: Sequence[Importance]) -> Figure:
    """A panel per model and task, a bar per feature."""
    panels = list(dict.fromkeys((one.model, one.task) for one in found))
    height = 0.8 + 0.25 * len({one.feature for one in found})
    figure = Figure(figsize=(7, height * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        bars = [one for one in found if (one.model, one.task) == panel]
        errors = [one.auc_lost.std or 0.0 for one in bars]
        axis.barh([one.feature for one in bars], [_size(one) for one in bars], xerr=errors)
        axis.invert_yaxis()
        axis.set_title(f"{panel[0]}: {panel[1]}", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("AUC lost")
    return figure
