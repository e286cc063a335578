"""The page of a search."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from stem_torchrec.analysis.origin import hardware, versions
from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.spread import NOTHING, plain, signed
from stem_torchrec.analysis.tune.plots import history, importance_bars, parallel_coordinates
from stem_torchrec.analysis.tune.space import Space, Value, own_values, text_of
from stem_torchrec.analysis.tune.study import FAILURE, LAST_VALUE, SECONDS, Study
from stem_torchrec.config import Config, metric_direction
from stem_torchrec.config.keys import by_key

IMPORTANCE = (
    "The share of the differences between finished trials that each key explains (fANOVA). Few "
    "trials tell large shares from small ones, and no more."
)
PARALLEL = (
    "A line per finished trial, the better the darker. Where dark lines meet on an axis, good "
    "trials agree on that key."
)


def make_report(study: Study, space: Space, base: Config, command: str) -> Report:
    """What the study has found so far; at least one of its trials has a value."""
    trials, importances = study.trials, study.importances()
    return Report(
        "Search",
        list(_sections(study, space, base, command, importances)),
        {
            "command": command,
            "metric": base.metric,
            "best": _record(_best(study)),
            "own": _record(own) if (own := own_trial(study, space, base)) else None,
            "importance": importances,
            "space": {name: part.record() for name, part in space.items()},
            "trials": [_record(trial) for trial in trials],
            "versions": versions(),
            "hardware": hardware(),
        },
        ", ".join([hardware(), *(f"{name} {v}" for name, v in versions().items())]),
    )


def own_trial(study: Study, space: Space, base: Config) -> FrozenTrial | None:
    """The finished trial that has the config's own values."""
    own = own_values(space, base)
    return next((trial for trial in study.finished if trial.params == own), None)


def _sections(
    study: Study, space: Space, base: Config, command: str, importances: dict[str, float]
) -> Iterable[Section]:
    finished, best = study.finished, _best(study)
    sign = metric_direction(base.metric)
    yield Section("Best values", _summary(study, space, base, command), _values(best, base))
    yield Section("Course", plot=history(finished, base.metric, sign))
    shares = [[name, f"{share:.3f}"] for name, share in importances.items()]
    table = Table(["key", "share"], shares) if shares else None
    text = IMPORTANCE if shares else "It takes two finished trials with different values."
    yield Section("Importance", text, table, importance_bars(importances))
    yield Section(
        "Parallel coordinates",
        PARALLEL,
        plot=parallel_coordinates(finished, space, base.metric, sign),
    )
    yield Section("Trials", table=_trials(study.trials, space, best))


def _summary(study: Study, space: Space, base: Config, command: str) -> str:
    trials, best = study.trials, _best(study)
    assert best.value is not None
    counts = Counter(trial.state.name.lower() for trial in trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    text = f"{len(trials)} trials ({states}). Best is trial {best.number}: {base.metric} "
    text += plain(best.value)
    own = own_trial(study, space, base)
    if own is not None and own.value is not None:
        text += f", {signed(best.value - own.value)} to the config's own values (trial "
        text += f"{own.number}); it was chosen for being the best, so train both with other seeds "
        text += "to know by how much"
    return f"{text}. Command: {command}"


def _values(best: FrozenTrial, base: Config) -> Table:
    own = by_key(base)
    rows = [[name, text_of(own[name]), _text(value)] for name, value in best.params.items()]
    return Table(["key", "config", "best"], rows)


def _trials(trials: Sequence[FrozenTrial], space: Space, best: FrozenTrial) -> Table:
    rows = []
    for trial in trials:
        value = trial.value if trial.value is not None else trial.user_attrs.get(LAST_VALUE)
        rows.append(
            [
                str(trial.number),
                trial.state.name.lower(),
                NOTHING if value is None else plain(value),
                *(_text(trial.params.get(name, NOTHING)) for name in space),
                f"{trial.user_attrs.get(SECONDS, 0):.0f}",
                trial.user_attrs.get(FAILURE, "").partition("\n")[0],
            ]
        )
    place = [trial.number for trial in trials].index(best.number)
    columns = ["trial", "state", "value", *space, "seconds", "why"]
    return Table(columns, rows, frozenset({(place, 2)}))


def _best(study: Study) -> FrozenTrial:
    best = study.best
    assert best is not None
    return best


def _text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "values": {name: trial.params[name] for name in trial.params},
        "evaluations": trial.intermediate_values,
        "seconds": trial.user_attrs.get(SECONDS),
        "failure": trial.user_attrs.get(FAILURE),
    }
