"""How the tasks' gradients of what they share are balanced."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stem_torchrec.config.import_path import FORM, import_class, is_import_path
from stem_torchrec.config.options import KindSection
from stem_torchrec.config.section import MAX_ROWS, MAX_STEPS

if TYPE_CHECKING:
    from stem_torchrec.balancing.rules import RuleKind


class BalanceConfig(KindSection):
    """The rule with its options, and what all rules have in common."""

    kind_key = "rule"

    rule: str = Field(
        "equal",
        description="how the tasks' gradients of the shared part are combined",
    )
    boundary: Literal["pooled", "experts", "parameters", "dense_parameters"] = Field(
        "pooled", description="which gradients are compared"
    )
    gram_rows: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="rows of the local batch in the Gram matrix (pooled); all if null",
    )
    gram_every: int = Field(
        1, ge=1, le=MAX_STEPS, description="steps from one Gram matrix to the next"
    )

    @classmethod
    def kinds(cls) -> Mapping[str, type[Any]]:
        from stem_torchrec.balancing.rules import rules

        return {name: rule.options_type for name, rule in rules().items()}

    @classmethod
    def kind_names(cls) -> list[str]:
        from stem_torchrec.balancing.rules import rule_names

        return rule_names()

    @classmethod
    def options_type_of(cls, name: str) -> type[Any]:
        return cls.rule_kind_of(name).options_type

    @classmethod
    def rule_kind_of(cls, name: str) -> "RuleKind":
        """The rule of a name or import path.

        Raises:
            ValueError: no such rule, or it cannot be imported.
        """
        from stem_torchrec.balancing.rule import Rule
        from stem_torchrec.balancing.rules import kind_of, rule_kind
        from stem_torchrec.balancing.rules.torchjd import PREFIX

        if is_import_path(name) and not name.startswith(PREFIX):
            return kind_of(import_class(name, Rule))
        try:
            return rule_kind(name)
        except ValueError as error:
            raise ValueError(f"{error}, {FORM}") from None
