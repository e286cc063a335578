"""The study of drifting preferences: what is averaged over what, and what is not made again."""

from pathlib import Path

import pytest
from drift import DAYS, kept, summary


def rows(arm: str, aucs: dict[str, float], seed: int = 0) -> list[dict[str, object]]:
    return [
        {"arm": arm, "seed": seed, "day": day, "auc_mean": auc, "ne_mean": 1 - auc}
        for day, auc in aucs.items()
    ]


def test_arms_are_compared_on_the_days_that_they_have_in_common() -> None:
    going_on = [
        *rows("continued", dict(zip(DAYS[1:5], (0.5, 0.6, 0.7, 0.8), strict=True))),
        *rows("continued", dict(zip(DAYS[1:5], (0.6, 0.6, 0.8, 0.8), strict=True)), seed=1),
    ]
    late = rows("stale 3 days", dict(zip(DAYS[3:5], (0.6, 0.4), strict=True)))
    found = {(line["arm"], line["from_day"]): line for line in summary([*going_on, *late])}
    assert ("stale 3 days", DAYS[1]) not in found
    assert found["continued", DAYS[1]]["auc_mean_by_seed"] == pytest.approx([0.65, 0.7])
    assert found["continued", DAYS[1]]["auc_mean"] == pytest.approx(0.675)
    assert found["continued", DAYS[3]]["auc_mean"] == pytest.approx(0.775)
    assert found["stale 3 days", DAYS[3]]["ne_mean"] == pytest.approx(0.5)
    assert found["stale 3 days", DAYS[3]]["auc_mean_std"] is None


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    made = rows("continued", {DAYS[1]: 0.7})
    assert kept(tmp_path / "rows.json", lambda: made) == made
    assert kept(tmp_path / "rows.json", lambda: pytest.fail("made again")) == made
