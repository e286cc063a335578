"""The balancing rules of this package, one per file: every ``Rule`` in here that has a name."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

from stem_torchrec.balancing.rule import Rule
from stem_torchrec.balancing.rules.torchjd import PREFIX, TorchJdRule
from stem_torchrec.nn.discovery import named_in
from stem_torchrec.nn.options import Options


class RuleKind(NamedTuple):
    """How a rule is made: ``make(options, seed=...)``.

    Attributes:
        options_type: class of the options.
    """

    options_type: type[Options]
    make: Callable[..., Rule[Any]]


@cache
def rules() -> Mapping[str, type[Rule[Any]]]:
    """Every rule by name; ``torchjd`` stands for ``torchjd:NAME``."""
    return MappingProxyType(named_in(__name__, Rule))


def rule_kind(name: str) -> RuleKind:
    """The rule of a name.

    Raises:
        ValueError: no such rule.
    """
    if name.startswith(PREFIX):
        aggregator = name.removeprefix(PREFIX)
        return RuleKind(TorchJdRule.options_type, partial(TorchJdRule, aggregator=aggregator))
    found = rules().get(name)
    if found is None or found is TorchJdRule:
        raise ValueError(f"{name!r}; allowed: {', '.join(rule_names())}")
    return kind_of(found)


def kind_of(rule: type[Rule[Any]]) -> RuleKind:
    """How a rule of a class is made."""
    return RuleKind(rule.options_type, rule)


def rule_names() -> list[str]:
    """What ``rule_kind`` takes."""
    return [f"{PREFIX}NAME" if rule is TorchJdRule else name for name, rule in rules().items()]
