"""The timing of steps on a GPU, tried on a CPU with tiny shapes."""

from typing import Any

from gpu import BF16, FUSED, Case, table, timed, together
from gpu_floor import Ceilings


def test_every_variant_is_a_row_and_one_that_fails_says_why(alone: Any) -> None:
    variants = {
        "bf16 fused": together(BF16, FUSED),
        "no such layout": {"embedding": {"layout": "narrow"}},
    }
    case = Case("tiktok", 2, 64, variants, plain=("bf16",))
    rows = list(timed(case, alone, 2, Ceilings(1e8, 1e8, 1e6)))
    assert [row["variant"] for row in rows] == ["bf16 fused", "plain bf16", "no such layout"]
    for row in rows[:2]:
        assert len(row["rounds_ms"]) == 3
        assert row["step_ms"] == sorted(row["rounds_ms"])[1]
        assert row["floor_share"] > 0
    assert "embedding" in rows[2]["error"]
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert rows[2]["error"] in lines[-1]
