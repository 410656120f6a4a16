"""Read hand-written YAML as DVC does (version 1.2), and reject duplicate keys."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shadowft_core.errors import ParamsError


class _Yaml(yaml.SafeLoader):
    """YAML 1.2, as DVC reads the same file: `on` and `12:30` are text, 1e-4 is a number, 010 is ten."""


_Yaml.yaml_implicit_resolvers = {}  # drop the resolvers of YAML 1.1
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Yaml.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10),
)


def read_yaml(path: Path) -> Any:
    """Read a hand-written YAML 1.2 file. Raises ParamsError as `check_keys` does."""
    loader, node = _checked(path)
    try:
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {_problem(error)}") from None


def check_keys(path: Path) -> None:
    """Raise ParamsError for a duplicate key in a mapping, including merged mappings (`<<`), and for invalid YAML.

    The error names both lines. YAML readers silently use the last value.
    """
    _checked(path)


def _checked(path: Path) -> tuple[_Yaml, yaml.Node | None]:
    """Parse a file and check its keys. Returns the loader, and the root node or None for an empty file."""
    try:
        loader = _Yaml(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        for where, first, second in _repeated(node, "", set()):
            lines = f"lines {first + 1} and {second + 1}" if first != second else f"line {first + 1}"
            raise ParamsError(f"{path}: duplicate key {where}, in {lines}; keep one: readers silently use the last")
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {_problem(error)}") from None
    return loader, node


def _repeated(node: yaml.Node | None, above: str, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """Yield every duplicate key below a node: its dotted name and both line numbers, counted from 0."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, line in _keys(node, set()):
            if key in lines:
                yield above + key, min(lines[key], line), max(lines[key], line)
            lines[key] = line
        for key_node, value in node.value:
            yield from _repeated(value, f"{above}{key_node.value}.", seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, above, seen)


def _keys(node: yaml.Node, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Yield the keys of a mapping and of the mappings merged into it, with their line numbers."""
    if id(node) in seen:
        return
    seen = seen | {id(node)}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield str(key.value), key.start_mark.line
        if key.tag == "tag:yaml.org,2002:merge":
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _keys(merged, seen)


def _problem(error: Exception) -> str:
    """The parser's message without the line it quotes, which may contain a secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        return (f"line {mark.line + 1}, column {mark.column + 1}: " if mark else "") + str(error.problem)
    return " ".join(str(error).split())
