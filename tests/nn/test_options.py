"""Options that check themselves by their annotations."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from typing_extensions import Doc

from stem_torchrec.nn.options import Options


@dataclass(frozen=True)
class Some(Options):
    share: Annotated[float, Gt(0), Le(1), Doc("a share")] = 0.5
    rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    step: Annotated[float | None, Gt(0)] = None
    widths: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1), MaxLen(3)] = (8, 4)
    kind: Literal["mlp", "fm"] = "mlp"
    names: Literal["all", "none"] | tuple[str, ...] = "all"
    more: dict[str, bool | int | str] = field(default_factory=dict)
    on: bool = True
    anything: object = None


def test_what_is_allowed_stays_as_it_is():
    made = Some(share=1, rate=0, step=2.5, widths=[3], names=("a", "b"), more={"x": 1, "y": "z"})
    assert made.widths == (3,)
    assert made == Some(1.0, 0.0, 2.5, (3,), "mlp", ("a", "b"), {"x": 1, "y": "z"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share: 0.0; allowed: a finite number, above 0, at most 1"),
        ({"share": 1.5}, "share: 1.5; allowed"),
        ({"share": float("nan")}, "share: nan; allowed"),
        ({"share": "much"}, "share: 'much'; allowed"),
        ({"share": True}, "share: True; allowed"),
        ({"rate": 1.0}, "rate: 1.0; allowed: a finite number, at least 0, below 1"),
        ({"rate": float("-inf")}, "rate: -inf; allowed"),
        ({"step": 0.0}, "step: 0.0; allowed: a finite number or None, above 0"),
        ({"widths": ()}, r"widths: \(\); allowed: a list, each an integer, at least 1"),
        ({"widths": (4, 4, 4, 4)}, "widths: .*at least 1 of them, at most 3 of them"),
        ({"widths": (4, 0)}, r"widths: \(4, 0\); allowed"),
        ({"widths": (4.5,)}, r"widths: \(4.5,\); allowed"),
        ({"widths": 4}, "widths: 4; allowed"),
        ({"kind": "cnn"}, "kind: 'cnn'; allowed: mlp, fm"),
        ({"names": "some"}, "names: 'some'; allowed: all, none or a list, each a text"),
        ({"more": {"x": None}}, "more: .*; allowed: a mapping"),
        ({"more": 3}, "more: 3; allowed: a mapping"),
        ({"on": 1}, "on: 1; allowed: true or false"),
    ],
)
def test_what_is_not_allowed_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        Some(**options)


def test_words_of_its_own_come_after_the_bounds():
    @dataclass(frozen=True)
    class Pair(Options):
        low: Annotated[int, Ge(0)] = 0
        high: Annotated[int, Ge(0)] = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.low > self.high:
                raise ValueError(f"low: {self.low}; allowed: at most high, {self.high}")

    with pytest.raises(ValueError, match="high: -1; allowed: an integer, at least 0"):
        Pair(high=-1)
    with pytest.raises(ValueError, match="low: 3; allowed: at most high, 1"):
        Pair(low=3)
