"""The negative-transfer analysis of finished runs: every run beside its seed's single-task runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stem_torchrec.analysis.runs import Model, Run, task_columns
from stem_torchrec.analysis.single_task import single_of, single_predictions
from stem_torchrec.analysis.spread import Spread
from stem_torchrec.analysis.subsets import (
    Buckets,
    Scores,
    Size,
    gains,
    scores_of,
    sizes_of,
    subsets_of,
)
from stem_torchrec.storage.place import Place
from stem_torchrec.training.evaluation import Joined

Names = Sequence[str]
Pair = tuple[Run, ...]


@dataclass(frozen=True)
class Analysis:
    """Scores of every run beside those of the single-task runs of its seed.

    Attributes:
        sizes: per pair of single-task runs, the size of each subset.
        singles: per pair, its scores.
        runs: per model and seed, the scores and the pair they are compared with.
    """

    tasks: Names
    split: str
    buckets: Buckets
    sizes: dict[Pair, dict[str, Size]]
    singles: dict[Pair, Scores]
    runs: dict[str, list[tuple[Run, Scores, Pair]]]

    def single(self, task: str, subset: str, figure: str) -> Spread:
        return Spread(tuple(getattr(s[task, subset], figure) for s in self.singles.values()))

    def score(self, model: str, task: str, subset: str, figure: str) -> Spread:
        return Spread(tuple(getattr(s[task, subset], figure) for _, s, _ in self.runs[model]))

    def gain(self, model: str, task: str, subset: str, figure: str) -> Spread:
        """Run by run against the single-task runs of its seed."""
        found = [gains(s, self.singles[pair])[task, subset] for _, s, pair in self.runs[model]]
        return Spread(tuple(getattr(score, figure) for score in found))


def analyse(
    tasks: Names,
    split: str,
    buckets: Buckets,
    singles: Sequence[Run],
    models: Sequence[Model],
    predictions: Mapping[Place, Joined],
) -> Analysis:
    """Every run on the subsets that the single-task runs of its seed make.

    Args:
        predictions: of each run's folder, on the same samples in the same order.
    """
    found = Analysis(tasks, split, buckets, {}, {}, {})
    subsets = {}
    for model in models:
        found.runs[model.name] = []
        for run in model.runs:
            pair = single_of(singles, tasks, run.seed)
            if pair not in subsets:
                single = single_predictions(pair, predictions, tasks)
                subsets[pair] = subsets_of(single.logits, buckets)
                found.sizes[pair] = sizes_of(single, subsets[pair])
                found.singles[pair] = scores_of(tasks, single, subsets[pair])
            samples = task_columns(predictions[run.path], run.tasks, tasks)
            scores = scores_of(tasks, samples, subsets[pair])
            found.runs[model.name].append((run, scores, pair))
    return found
