"""Which form a column's values take (see ``canonical_values``): seen in the rows themselves."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from stem_torchrec.prepare.engine.canonical_values import Form, forms_of, no_id_sql
from stem_torchrec.prepare.engine.sql import fetch_one
from stem_torchrec.prepare.tables.expressions import Expression
from stem_torchrec.prepare.tables.raw.errors import readable_errors
from stem_torchrec.prepare.tables.raw.files import RawFiles


@dataclass(frozen=True)
class EarlierValues:
    """How the values of earlier days were taken, which those of later days follow.

    Attributes:
        forms: by column, the number of the narrowest form that they took.
        text_tables: features whose tables hold texts.
    """

    forms: Mapping[str, int]
    text_tables: frozenset[str]


@dataclass(frozen=True)
class Values:
    """What an expression gives, as values that are told apart: one of a row, or a list.

    Attributes:
        sql: of the value or the list.
        first_form: of the rows of a later day the number of the form that the earlier ones took:
            each value is taken in it, or in the next wider one that it fits. None: all rows are
            here, and one form holds for all of them.
    """

    sql: str
    is_list: bool
    type: str
    is_unstated: bool
    first_form: int | None = None

    @classmethod
    def of(cls, expression: Expression, parts: str | None = None) -> "Values":
        """The values of an expression; ``parts`` is SQL of a list that its text is split into."""
        is_list = parts is not None or expression.is_list
        element_type = expression.element_type if parts is None else "VARCHAR"
        return cls(parts or expression.sql, is_list, element_type, expression.is_unstated)

    @property
    def forms(self) -> tuple[Form, ...]:
        """Those that the values may take, the narrowest first."""
        return forms_of(self.type, is_unstated=self.is_unstated)[self.first_form or 0 :]

    def form_number(self, form: Form) -> int:
        """Which form rows that come later begin with."""
        return self.forms.index(form) if self.first_form is None else self.first_form

    def are_plain_texts(self, form: Form) -> bool:
        """Every value, a later row's too, is the text that is there."""
        return (form if self.first_form is None else self.forms[0]) is self.forms[-1]

    def taken(self, form: Form, type_name: str) -> str:
        """SQL of the values as ``type_name``, which holds the form's type."""
        if self.first_form is not None:
            return self.of_later_rows(form, type_name)
        value = form.value("v" if self.is_list else self.sql)
        value = value if form.type == type_name else f"({value})::{type_name}"
        return f"[{value} for v in {self.sql}]" if self.is_list else value

    def of_later_rows(self, form: Form, type_name: str) -> str:
        """``taken`` for values that nobody has looked at, which may need a wider form.

        Such a one is taken in the form that it fits. Where the table holds integers alone and it is
        none, it is null.
        """
        value, start = "v" if self.is_list else self.sql, self.forms.index(form)
        wider = self.forms if self.first_form is not None else self.forms[start:]
        cases = [
            (f"NOT ({f.misfit(value)})" if f.misfit else "true", f.value(value))
            for f in wider
            if type_name in (f.type, "VARCHAR")
        ]
        sql = " ".join(f"WHEN {fits} THEN ({taken})::{type_name}" for fits, taken in cases)
        return f"[CASE {sql} END for v in {self.sql}]" if self.is_list else f"CASE {sql} END"

    def misfit(self, form: Form) -> str | None:
        """SQL that is true where a value needs a wider form."""
        return self._any(form.misfit("v" if self.is_list else self.sql)) if form.misfit else None

    @property
    def no_id(self) -> str | None:
        """SQL that is true where a value is no id at all."""
        wrong = no_id_sql("v" if self.is_list else self.sql, self.type)
        return self._any(wrong) if wrong else None

    def _any(self, wrong: str) -> str:
        return f"len([v for v in {self.sql} if {wrong}]) > 0" if self.is_list else wrong


def choose_forms(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    values: Mapping[str, Values],
    *,
    of_all_rows: bool,
) -> dict[str, Form]:
    """The narrowest form that fits all rows of each column, or the first rows only."""
    tried = [(name, form) for name in values for form in values[name].forms if form.misfit]
    if not tried:
        return {name: values[name].forms[0] for name in values}
    asked = ", ".join(
        f"coalesce(bool_or({values[name].misfit(form)}), false)" for name, form in tried
    )
    rows = raw.passing_over().relation() if of_all_rows else raw.head()
    with readable_errors(raw.paths):
        answers = fetch_one(connection, f"SELECT {asked} FROM {rows}")
    does_not_fit = dict(zip(tried, answers, strict=True))
    return {
        name: next(form for form in values[name].forms if not does_not_fit.get((name, form), False))
        for name in values
    }
