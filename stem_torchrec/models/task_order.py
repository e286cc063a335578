"""Tasks that follow one another, such as a click and the purchase after it."""

from collections.abc import Sequence

from stem_torchrec.config import ModelConfig
from stem_torchrec.errors import UserError
from stem_torchrec.hints import did_you_mean
from stem_torchrec.schema import Schema


def ordered_pair(config: ModelConfig, schema: Schema) -> tuple[int, int]:
    """Indices of the two tasks of ``model.task_order``.

    Raises:
        UserError: no order is given, or it is not of two tasks of the run.
    """
    order = config.task_order
    tasks = ", ".join(schema.task_names)
    if order is None:
        raise UserError(
            f"model.task_order: missing; model.name {config.name} needs the two tasks that follow "
            f"one another, of {tasks}"
        )
    if len(order) != 2:
        raise UserError(f"model.task_order: {len(order)} tasks; model.name {config.name} needs 2")
    first, second = _indices(order, schema)
    return first, second


def full_order(config: ModelConfig, schema: Schema) -> list[int]:
    """Indices of all tasks in the order of ``model.task_order``, or as the run has them if null.

    Raises:
        UserError: the order leaves a task out, or the run has one task alone.
    """
    if len(schema.tasks) < 2:
        raise UserError(
            f"model.name: {config.name!r} needs at least 2 tasks; the run has "
            f"{', '.join(schema.task_names)}"
        )
    order = _indices(config.task_order or schema.task_names, schema)
    if len(order) != len(schema.tasks):
        raise UserError(
            f"model.task_order: {len(order)} tasks; model.name {config.name} needs all of "
            f"{', '.join(schema.task_names)}"
        )
    return order


def chain_of(config: ModelConfig, tasks: Sequence[str]) -> Sequence[str] | None:
    """Tasks as they follow one another, of a model whose weights go by that; None of others."""
    if config.name == "aitm":
        return config.task_order or tasks
    return config.task_order if config.name == "esmm" else None


def _indices(order: tuple[str, ...], schema: Schema) -> list[int]:
    known = schema.task_names
    if unknown := [name for name in order if name not in known]:
        raise UserError(
            f"model.task_order: unknown task {unknown[0]!r}{did_you_mean(unknown[0], known)}; "
            f"allowed: {', '.join(known)}"
        )
    if doubled := [name for name in order if order.count(name) > 1]:
        raise UserError(f"model.task_order: {doubled[0]!r} is named twice")
    return [known.index(name) for name in order]
