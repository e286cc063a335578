"""Every rule of the package that runs on the device, for tests of all of them.

A rule is tried with its default options and with every other choice that one of its options
gives; a new file in ``balancing/rules/`` is in these tests by itself.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from stem_torchrec.balancing.rule import Rule
from stem_torchrec.balancing.rules import rules
from stem_torchrec.balancing.rules.static import StaticOptions, StaticRule

ON_THE_HOST = ("torchjd",)


def made(rule: type[Rule], **options: Any) -> Callable[[int], Rule]:
    return lambda num_tasks: rule(rule.options_type(**options))


def static(num_tasks: int) -> Rule:
    return StaticRule(StaticOptions(weights=tuple(0.5 + task for task in range(num_tasks))))


def choices(options: type) -> list[tuple[str, str]]:
    """(option, value) of each choice that is not the default."""
    hints = get_type_hints(options, include_extras=True)
    found = []
    for field in fields(options):
        kind = hints[field.name]
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if get_origin(kind) is Literal:
            found += [(field.name, value) for value in get_args(kind) if value != field.default]
    return found


# Each is made for a number of tasks T.
EVERY_RULE: dict[str, Callable[[int], Rule]] = {}
for name, rule in rules().items():
    if name not in ON_THE_HOST:
        EVERY_RULE[name] = static if rule is StaticRule else made(rule)
        for option, value in choices(rule.options_type):
            EVERY_RULE[f"{name}@{value}"] = made(rule, **{option: value})
# Rules that may give a task a negative multiplier.
SIGNED = ("imtl_g", "aligned_mtl", "aligned_mtl@median", "aligned_mtl@rmse")
# Rules whose result depends on nothing but which task is which.
SYMMETRIC = [name for name in EVERY_RULE if name not in ("static", "pcgrad", "rlw")]
