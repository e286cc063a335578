"""The YAML loader: what it takes, what it refuses, and that it says where."""

import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.config.careful_yaml import MAX_DEPTH, RefusedYaml, careful_load

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.dates(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(string.ascii_letters), parts),
    max_leaves=20,
)


@given(VALUES)
def test_what_yaml_writes_is_read(value: object) -> None:
    assert careful_load(yaml.safe_dump(value)) == value


def test_aliases_and_merged_keys_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]"
    one = {"x": 1, "y": 2}
    assert careful_load(text) == {"a": one, "b": {"x": 1, "y": 3}, "c": [one, one]}


@pytest.mark.parametrize(
    "text",
    [
        *("2022-02-30", "2022-04-08 25:00:00", "9" * 5000, "1:99:" + "9" * 5000),
        *("100:5", "-1:2:3", "1:30.5"),
    ],
)
def test_what_only_looks_like_a_date_or_number_is_text(text: str) -> None:
    assert careful_load(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    "text",
    ["!!float x", "!!int x", "!!timestamp x", "!!bool x", "!!python/name:os"],
)
def test_a_tag_that_does_not_fit_is_no_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="line 2"):
        careful_load(f"a: 1\nb: {text}")


@pytest.mark.parametrize("code", ["00110000", "FFFFFFFF"])
def test_a_character_that_does_not_exist_is_no_yaml(code: str) -> None:
    with pytest.raises(yaml.YAMLError):
        careful_load(f'a: "\\U{code}"')


def bomb(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(levels):
        names = ", ".join([f"*l{level}"] * 9)
        lines.append(f"l{level + 1}: &l{level + 1} [{names}]")
    return "\n".join(lines)


def test_what_aliases_stand_for_is_counted() -> None:
    assert careful_load(bomb(3))["l3"][0][0][0] == ["x"] * 9
    with pytest.raises(RefusedYaml, match=r"line 7: more than 1,000,000 values"):
        careful_load(bomb(9))


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_depth_is_bounded(brackets: str) -> None:
    opening, closing = brackets
    inner = "" if brackets == "[]" else "a: "
    levels = MAX_DEPTH - 1
    careful_load((opening + inner) * levels + closing * levels)
    with pytest.raises(RefusedYaml, match=f"line 1: nested deeper than {MAX_DEPTH} levels"):
        careful_load((opening + inner) * 5000 + closing * 5000)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "{a: 1,\n a: 1}", "a: 1\n'a': 2", "1: a\n1: b"])
def test_doubled_keys_are_refused(text: str) -> None:
    with pytest.raises(RefusedYaml, match=r"line 2: key '[a1]' is there twice"):
        careful_load(text)
