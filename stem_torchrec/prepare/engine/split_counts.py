"""What a check has counted in a split."""

from dataclasses import dataclass, field

from stem_torchrec.data.dense_scale import Moments


@dataclass
class SplitCounts:
    """What the files of a split hold.

    Attributes:
        labels: observed labels and positive ones, by task.
        dense: moments of the dense features, by name.
        is_sound: nothing is wrong with them.
    """

    name: str
    rows: int = 0
    files: int = 0
    row_groups: int = 0
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    dense: dict[str, Moments] = field(default_factory=dict)
    is_sound: bool = True

    def positive_ratio(self, task: str) -> float | None:
        observed, positive = self.labels.get(task, (0, 0))
        return positive / observed if observed else None
