"""YAML as people write it, and nothing that harms: the one loader of every file and option.

PyYAML's safe loader runs no code, but takes a key that is there twice without a word, builds lists
within lists until Python's stack is full, and lets 700 bytes of aliases stand for 10^9 values.
"""

from typing import Any, TypeGuard

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_CHARACTERS = 64 << 20
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


class RefusedYaml(yaml.YAMLError):
    """Correct YAML that is not taken: a doubled key, too deep, too many values, too long."""


def careful_load(text: str) -> Any:
    """One YAML document as Python values.

    A word that looks like a date or number and is none (``2022-02-30``) is text: who knows the key
    can say what is allowed there. So is ``100:5``, which YAML 1.1 takes for 6005, in base 60, and
    a key ``on``, ``off``, ``yes`` or ``no``, which it takes for a boolean.

    Raises:
        yaml.YAMLError: not YAML; as ``RefusedYaml`` if it is YAML of a kind that is not taken.
    """
    if len(text) > MAX_CHARACTERS:
        raise RefusedYaml(f"{len(text):,} characters; allowed: {MAX_CHARACTERS:,}")
    try:
        return yaml.load(text, _CarefulLoader)
    except (ValueError, OverflowError) as error:  # the scanner, of "\\UFFFFFFFF"
        raise yaml.YAMLError(str(error)) from None


def _is_word(key: Node | None) -> TypeGuard[yaml.ScalarNode]:
    """Whether a key is a boolean to YAML 1.1 alone."""
    return isinstance(key, yaml.ScalarNode) and key.value.lower() in ("on", "off", "yes", "no")


class _CarefulLoader(yaml.SafeLoader):
    """Counts every value that aliases stand for, and says what it refuses with its line."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[str, int | None] = {}  # None: an anchor that is still open

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        anchor, before = event.anchor, self._values
        if isinstance(event, AliasEvent):
            self._count(self._size_of(anchor, event.start_mark), event.start_mark)
            return super().compose_node(parent, index)
        self._count(1, event.start_mark)
        if self._depth == MAX_DEPTH:
            raise RefusedYaml(f"{_line(event.start_mark)}: nested deeper than {MAX_DEPTH} levels")
        if anchor is not None:
            self._sizes[anchor] = None
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(parent, yaml.MappingNode) and index is None and _is_word(node):
            node.tag = "tag:yaml.org,2002:str"
        if anchor is not None:
            self._sizes[anchor] = self._values - before
        return node

    def _size_of(self, anchor: str, mark: Any) -> int:
        size = self._sizes.get(anchor, 0)
        if size is None:
            raise RefusedYaml(f"{_line(mark)}: alias {_short(anchor)} stands for what it is in")
        return size

    def _count(self, values: int, mark: Any) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise RefusedYaml(
                f"{_line(mark)}: more than {MAX_VALUES:,} values, counted with what aliases "
                "stand for"
            )

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (ValueError, OverflowError, AttributeError, KeyError, IndexError) as error:
            # Constructors of dates and numbers take what only looks like one.
            if isinstance(node, ScalarNode) and self._is_implied(node):
                return node.value
            raise yaml.constructor.ConstructorError(
                None, None, f"not a {node.tag.rpartition(':')[2]} ({error})", node.start_mark
            ) from None

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """A node's tag, with numbers of base 60 as text, as YAML 1.2 has them."""
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_base_60 = kind is ScalarNode and implicit[0] and tag in _NUMBERS and ":" in value
        return _TEXT if is_base_60 else tag

    def _is_implied(self, node: ScalarNode) -> bool:
        implied = self.resolve(ScalarNode, node.value, (True, False))
        return implied == node.tag and node.style is None

    def flatten_mapping(self, node: MappingNode) -> None:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE or not isinstance(key_node, ScalarNode):
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise RefusedYaml(
                    f"{_line(key_node.start_mark)}: key {_short(key_node.value)} is there twice"
                )
            seen.add(key)
        super().flatten_mapping(node)


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
