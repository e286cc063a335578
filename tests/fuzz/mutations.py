"""Correct content, and what a slip, a damaged disk or an attacker makes of it."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml
from hypothesis import strategies as st

Content = Any

_DEEP = 20_000  # Hypothesis raises Python's limit of 1,000 frames
_VALUE = re.compile(rb"[:\[,-] ?(?=[^ ])")
_WORD = re.compile(rb"[^,\n\]}]*")


NASTY: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e300, -1e-300]
    ),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", " ", "null", "2022-02-30", "..", "/", "~", "a" * 5000, "\x00", "\u202e"]),
    st.sampled_from(["s3://", "s3://a@b/c", "://", "shared", "1e5", "9" * 400, "%s{}", "[", "-"]),
    st.sampled_from([[], {}, [[]], [None], {"a": {}}, [1, "a", None], {"": ""}, [True]]),
    st.dates(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers() | st.text(max_size=5), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
)

TOKENS = (
    *(
        b"!!float x",
        b"!!binary x",
        b"!!python/object:os.system x",
        b"&a [*a]",
        b"<<: [1]",
        b"? [a]",
    ),
    *(b"2022-02-30", b"0x" + b"f" * 4000, b"1:99:99", b"9" * 5000, b"-.inf", b"\xff\xfe", b"\x00"),
    *(b"[" * _DEEP, b"{" * _DEEP, b"- " * _DEEP, b"NaN", b"Infinity", b"\xed\xa0\x80", b"---\n"),
    *(b"%YAML 9.9\n", b"\t", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"{", b"}", b":", b",", b"\n"),
)


@st.composite
def mutated(draw: st.DrawFn, content: Content) -> Content:
    """The content with up to three places replaced, removed, renamed or doubled."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(0, 3))):
        content = _changed(draw, content)
    return content


def _changed(draw: st.DrawFn, content: Content) -> Content:
    """One change at a random place; the whole is replaced now and then."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 9)) == 0:
        return deepcopy(draw(NASTY))
    keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = draw(st.sampled_from(keys))
    if isinstance(content[key], dict | list) and content[key] and draw(st.booleans()):
        content[key] = _changed(draw, content[key])
        return content
    match draw(st.sampled_from(["replace", "replace", "remove", "add", "double"])):
        case "replace":
            content[key] = deepcopy(draw(NASTY))
        case "remove":
            del content[key]
        case "add" if isinstance(content, dict):
            name = draw(st.text(max_size=8) | st.sampled_from(["lr", "name", "table"]))
            content[name] = deepcopy(draw(NASTY))
        case "double" if isinstance(content, list):
            content.append(content[key])
    return content


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """The bytes as they are, or with some cut off, flipped, put in or given again."""
    if draw(st.booleans()):
        return text
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        match draw(st.sampled_from(["cut", "flip", "put", "token", "value", "value", "again"])):
            case "cut":
                text = text[:place]
            case "flip" if place < len(text):
                flipped = text[place] ^ (1 << draw(st.integers(0, 7)))
                text = text[:place] + bytes([flipped]) + text[place + 1 :]
            case "put":
                text = text[:place] + draw(st.binary(max_size=8)) + text[place:]
            case "token":  # mostly where a value begins
                starts = [match.end() for match in _VALUE.finditer(text)]
                place = draw(st.sampled_from([*starts, place]))
                text = text[:place] + draw(st.sampled_from(TOKENS)) + text[place:]
            case "value" if _VALUE.search(text):
                start = draw(st.sampled_from([m.end() for m in _VALUE.finditer(text)]))
                word = _WORD.match(text, start)
                end = word.end() if word else start
                text = text[:start] + draw(st.sampled_from(TOKENS)) + text[end:]
            case "again":
                end = draw(st.integers(place, len(text)))
                text = text[:end] + text[place:end] + text[end:]
    return text


def files(content: Content, write: Callable[[Content], str]) -> st.SearchStrategy[bytes]:
    """Files near a correct one, and bytes that are nothing at all."""
    near = mutated(content).map(lambda value: write(value).encode(errors="surrogatepass"))
    nothing = st.binary(max_size=200) | st.text(max_size=100).map(_bytes)
    return st.integers(0, 9).flatmap(lambda i: near.flatmap(damaged) if i else nothing)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def as_yaml(content: Content) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def as_json(content: Content) -> str:
    return json.dumps(content, default=str)


def as_lines(content: Content) -> str:
    """One JSON object per line."""
    parts = content if isinstance(content, list) else [content]
    return "".join(f"{as_json(part)}\n" for part in parts)
