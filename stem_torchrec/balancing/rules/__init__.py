"""The balancing rules by name, and how a run's configuration becomes one."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stem_torchrec.balancing.rule import Rule
from stem_torchrec.balancing.rules.cagrad import CaGrad
from stem_torchrec.balancing.rules.equal import Equal
from stem_torchrec.balancing.rules.mgda import Mgda
from stem_torchrec.balancing.rules.multi_balance import MultiBalance
from stem_torchrec.balancing.rules.pcgrad import PcGrad
from stem_torchrec.balancing.rules.static import Static
from stem_torchrec.balancing.rules.torchjd import PREFIX, TorchJd
from stem_torchrec.errors import UserError
from stem_torchrec.hints import did_you_mean

RULES: dict[str, type[Rule]] = {
    "equal": Equal,
    "static": Static,
    "multi_balance": MultiBalance,
    "mgda": Mgda,
    "pcgrad": PcGrad,
    "cagrad": CaGrad,
}


class RuleSettings(Protocol):
    """What of ``BalanceConfig`` concerns the rules; a rule's keyword is the key's name."""

    @property
    def rule(self) -> str: ...
    @property
    def weights(self) -> Sequence[float] | None: ...
    @property
    def gamma(self) -> float: ...
    @property
    def rho(self) -> float: ...
    @property
    def beta(self) -> float | None: ...
    @property
    def matrix(self) -> str: ...
    @property
    def normalization(self) -> str: ...
    @property
    def cagrad_c(self) -> float: ...
    @property
    def torchjd_options(self) -> Mapping[str, bool | int | float | str]: ...


SETTINGS = tuple(name for name in vars(RuleSettings) if name[0] != "_" and name != "rule")


def rule_for(config: RuleSettings, num_tasks: int, seed: int = 0) -> Rule:
    """The configured rule; ``seed`` is the run's, for rules that draw at random.

    Raises:
        UserError: an unknown rule, or a setting outside its range or not fit for ``num_tasks``.
    """
    kind = _kind(config.rule)
    keywords: dict[str, Any] = {name: getattr(config, name) for name in settings_of(config.rule)}
    accepted = inspect.signature(kind).parameters
    if "seed" in accepted:
        keywords["seed"] = seed
    if "name" in accepted:
        keywords["name"] = config.rule.removeprefix(PREFIX)
    rule = kind(**keywords)
    rule.check(num_tasks)
    return rule


def settings_of(rule: str) -> tuple[str, ...]:
    """The keys of the ``balance`` section that have an effect on this rule.

    Raises:
        UserError: an unknown rule.
    """
    accepted = inspect.signature(_kind(rule)).parameters
    return tuple(name for name in SETTINGS if name in accepted)


def _kind(rule: str) -> type[Rule]:
    if rule.startswith(PREFIX):
        return TorchJd
    if rule not in RULES:
        hint = did_you_mean(rule, RULES)
        raise UserError(f"balance.rule: {rule!r}{hint}; allowed: {', '.join(RULES)}, {PREFIX}NAME")
    return RULES[rule]
