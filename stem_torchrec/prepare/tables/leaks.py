"""Features that give away a label: refused before anything is read."""

from collections.abc import Mapping

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.describe import Description


def refuse_leaks(
    description: Description,
    features: Mapping[str, frozenset[str]],
    labels: Mapping[str, frozenset[str]],
) -> None:
    """Refuse features that read a column of which a label is made.

    Args:
        features, labels: the raw columns that each reads, by its name.

    Raises:
        UserError: one does, and ``may_read_labels`` does not name it.
    """
    for name, read in features.items():
        if name in description.may_read_labels:
            continue
        for task, columns in labels.items():
            if shared := sorted(read & columns):
                raise UserError(
                    f"features.{name}: reads column {shared[0]!r}, of which label {task!r} is made "
                    "and which is not known when the label is predicted; leave the feature out, or "
                    "name it in may_read_labels"
                )
