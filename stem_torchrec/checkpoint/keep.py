"""Which checkpoints stay."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from stem_torchrec.checkpoint.folders import complete, discard, folder_of, is_leftover
from stem_torchrec.checkpoint.manifest import Manifest
from stem_torchrec.config import metric_direction
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place


def metric_value(record: Mapping[str, Any] | None, name: str | None) -> float | None:
    """The named figure (``valid/auc/click``) of an eval record; None where it has none."""
    if record is None or name is None:
        return None
    split, *keys = name.split("/")
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if record["split"] == split and isinstance(value, float) else None


def remove_old(folder: Place, step: int, *, keep: int, metric: str | None) -> None:
    """Leave the checkpoint of ``step``, the newest ``keep`` and the best by ``metric``.

    Called when that of ``step`` is complete, so that at no time there is none. Folders without a
    manifest that are no leftovers of a save are not touched.
    """
    found = {number: manifest for number, _, manifest in complete(folder)}
    kept = {step, *sorted(found)[-keep:]}
    if (best := best_of(found, metric)) is not None:
        kept.add(best)
    unwanted = [folder_of(folder, number) for number in found if number not in kept]
    unwanted += [path for path in folder.glob("step_*") if is_leftover(path)]
    for path in unwanted:
        with suppress(OSError, UserError):  # left for the next time
            discard(path)


def best_step(folder: Place, metric: str | None) -> int | None:
    """The step of the best checkpoint by a metric; None where none has a value of it."""
    return best_of({number: manifest for number, _, manifest in complete(folder)}, metric)


def best_of(found: Mapping[int, Manifest], metric: str | None) -> int | None:
    """The best step by a metric, the later one of equals; None where none has a value of it."""
    values = {
        number: value
        for number, manifest in found.items()
        if (saved := manifest.about.get("metric")) and saved["name"] == metric
        if isinstance(value := saved["value"], float)
    }
    if metric is None or not values:
        return None
    sign = metric_direction(metric)
    return max(values, key=lambda number: (sign * values[number], number))
