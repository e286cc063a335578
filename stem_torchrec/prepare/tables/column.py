"""A column of the table ``rows``: SQL over raw columns, and what makes a raw row a bad one."""

from dataclasses import dataclass

from stem_torchrec.prepare.engine.sql import literal


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of ``rows``.

    Attributes:
        wrong: SQL that is true where the raw row is bad; None if it cannot be.
        fault: SQL of a text that says what is wrong, ``what: value is ...``.
        misfit: SQL that is true where the column does not hold what the raw row says, so that it
            has to be read in a wider form; None if it always does.
        typed: raw columns whose values must be of their column's type.
        reads: the raw columns in it.
        later: SQL for rows that come later and may need a wider form; ``sql`` if None.
        is_plain: the value is that of one raw column, as an integer or a text.
        is_plain_text: so it is of texts, without a look at what they say.
        is_text: its size differs from row to row: a text, or a list of values.
        type: DuckDB's type of the raw value.
        form: of values that are told apart, which of their forms is the narrowest they take.
    """

    name: str
    sql: str
    wrong: str | None = None
    fault: str = ""
    misfit: str | None = None
    typed: frozenset[str]
    reads: frozenset[str] = frozenset()
    later: str | None = None
    is_plain: bool = False
    is_plain_text: bool = False
    is_text: bool = False
    type: str = ""
    form: int | None = None


def fault_sql(what: str, found: str, allowed: str) -> str:
    """SQL of a text: the value found, and what would be allowed."""
    shown = f"coalesce(left(({found})::VARCHAR, 80), 'nothing')"
    return f"concat({literal(what + ': ')}, {shown}, {literal(' is not ' + allowed)})"
