"""Tasks that follow one another, such as a click and the purchase after it."""

from collections.abc import Sequence

from stem_torchrec.errors import did_you_mean


def ordered_pair(order: Sequence[str] | None, tasks: Sequence[str]) -> tuple[int, int]:
    """Indices of the two tasks of an order.

    Raises:
        ValueError: no order is given, or it is not of two of the tasks.
    """
    if order is None:
        raise ValueError(
            "task_order: missing; needed are the two tasks that follow one another, of "
            f"{', '.join(tasks)}"
        )
    if len(order) != 2:
        raise ValueError(f"task_order: {len(order)} tasks; this model needs 2")
    first, second = _indices(order, tasks)
    return first, second


def full_order(order: Sequence[str] | None, tasks: Sequence[str]) -> list[int]:
    """Indices of all tasks in their order, or as the run has them if it is null.

    Raises:
        ValueError: the order leaves a task out, or there is one task alone.
    """
    if len(tasks) < 2:
        raise ValueError(f"needs at least 2 tasks; there is {', '.join(tasks)}")
    indices = _indices(order or tasks, tasks)
    if len(indices) != len(tasks):
        raise ValueError(
            f"task_order: {len(indices)} tasks; this model needs all of {', '.join(tasks)}"
        )
    return indices


def _indices(order: Sequence[str], tasks: Sequence[str]) -> list[int]:
    if unknown := [name for name in order if name not in tasks]:
        raise ValueError(
            f"task_order: unknown task {unknown[0]!r}{did_you_mean(unknown[0], tasks)}; "
            f"allowed: {', '.join(tasks)}"
        )
    if doubled := [name for name in order if order.count(name) > 1]:
        raise ValueError(f"task_order: {doubled[0]!r} is named twice")
    return [list(tasks).index(name) for name in order]
