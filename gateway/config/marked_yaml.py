"""YAML with the place of everything in it, so that faults can be reported by line and column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Line and column count from 1."""

    line: int
    column: int


class _Loader(yaml.SafeLoader):
    """YAML without anchors, which can expand without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)


def read_marked(text: str) -> tuple[Any, dict[Path, Mark]]:
    """The data, and the place of each key of a mapping and each item of a list. Raises `yaml.YAMLError`, also for duplicate
    keys, and `RecursionError` or `ValueError` for input that exceeds the parser's limits."""
    marks: dict[Path, Mark] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, marks
        _place(node, (), marks)
        return loader.construct_document(node), marks
    finally:
        loader.dispose()


def _place(node: yaml.Node, path: Path, marks: dict[Path, Mark]) -> None:
    marks[path] = Mark(node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        keys_seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in keys_seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands here twice", key.start_mark
                )
            keys_seen.add(key.value)
            _place(value, (*path, key.value), marks)
            marks[(*path, key.value)] = Mark(key.start_mark.line + 1, key.start_mark.column + 1)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _place(item, (*path, position), marks)
