"""Read hand-written YAML, and refuse what other readers silently accept or fail on.

By default a file is read as DVC reads it (version 1.2), and what DVC would read as a different value is refused.
"""

import math
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shadowft_core.errors import ParamsError
from shadowft_core.files.jsonfile import Error, read_regular
from shadowft_core.limits import DEPTH, DIGITS, JSON_BYTES, YAML_CHARACTERS, YAML_VALUES

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"


class Loader(SafeLoader):  # type: ignore[misc]
    """A loader whose numbers have at most `DIGITS` digits and fit into float64."""


class _Yaml(Loader):
    """YAML 1.2, as DVC reads the same file: `on` and `12:30` are text, 1e-4 is a number. 010 and 0o17 are refused."""


_Yaml.yaml_implicit_resolvers = {}  # drop the resolvers of YAML 1.1
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?\.[0-9]+([eE][-+][0-9]+)?", "-+."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Yaml.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), list(_first))
# What DVC or another reader takes for a number or a date, although the patterns above make it text.
_OTHERWISE = re.compile(
    r"[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*|[-+][0-9_]+"
    r"|[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9_]+([eE][-+][0-9]+)?|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?|="
)
# A character that YAML does not allow in a file, such as a form feed.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    if len(node.value) > DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a whole number of {len(node.value)} digits, the limit is {DIGITS}", node.start_mark
        )
    if isinstance(loader, _Yaml):
        return int(node.value, 0)
    return int(SafeLoader.construct_yaml_int(loader, node))


def _number(loader: Any, node: yaml.ScalarNode) -> float:
    value = float(SafeLoader.construct_yaml_float(loader, node))
    if math.isinf(value) and "inf" not in node.value.lower():
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value:.40} is more than float64 can hold", node.start_mark
        )
    return value


def _converted(kind: str, convert: Callable[[Any, yaml.ScalarNode], Any]) -> Callable[[Any, yaml.ScalarNode], Any]:
    def constructor(loader: Any, node: yaml.ScalarNode) -> Any:
        try:
            return convert(loader, node)
        except (ValueError, LookupError):  # PyYAML's own for text with a tag, such as `!!bool x` and `!!int ""`
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r:.40} does not fit the tag !!{kind}", node.start_mark
            ) from None

    return constructor


for _name, _convert in (("bool", SafeLoader.construct_yaml_bool), ("int", _integer), ("float", _number)):
    Loader.add_constructor(_TAG + _name, _converted(_name, _convert))


def read_yaml(
    path: Path,
    largest: int = JSON_BYTES,
    error: Error = ParamsError,
    *,
    loader: type[Any] = _Yaml,
    tags: Set[str] = frozenset(),
    repeated: bool = False,
) -> Any:
    """Read a hand-written YAML file: version 1.2, or as another `loader` reads it.

    Raises `error`, with the line, for a file that `read_regular` refuses, invalid UTF-8 or YAML, a second document, a
    duplicate key in a mapping or in what it merges (`<<`) unless `repeated`, a tag that is not in `tags`, a directive,
    more than `DEPTH` levels or `YAML_VALUES` values, aliases that expand to more than `YAML_CHARACTERS` characters, and
    numbers beyond `DIGITS` digits or float64. With the default loader, also for a key that is not text and for a value
    that DVC reads differently.
    """
    return parse_yaml(read_regular(path, largest, error), path, error, loader=loader, tags=tags, repeated=repeated)


def parse_yaml(
    raw: bytes,
    where: object,
    error: Error = ParamsError,
    *,
    loader: type[Any] = _Yaml,
    tags: Set[str] = frozenset(),
    repeated: bool = False,
) -> Any:
    """The YAML in `raw`, as `read_yaml` reads it; `where` names its origin in errors."""
    try:
        text = _text(raw)
        _check_events(text, tags)
        parsed = loader(text)
        try:
            node = parsed.get_single_node()
            if node is None:
                return None
            _require_short(node, max(YAML_CHARACTERS, 2 * len(text) + 2))  # without aliases it is never longer
            for field, first, second in () if repeated else _repeated(node, "", set()):
                lines = f"lines {first + 1} and {second + 1}" if first != second else f"line {first + 1}"
                raise error(
                    f"{where}: duplicate key {field:.200}, in {lines}; keep one: many readers silently use the last"
                )
            if loader is _Yaml:
                _require_read_alike(node, set())
            return parsed.construct_document(node)
        finally:
            parsed.dispose()
    except (yaml.YAMLError, ValueError) as problem:
        said = _problem(problem)
        remedy = "" if "; " in said else "; correct it"
        raise error(f"{where}: not readable as YAML: {said}{remedy}") from None


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise ValueError(f"line {line}: byte 0x{raw[problem.start]:02x} is not UTF-8") from None
    if odd := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise ValueError(f"line {line}: the character U+{ord(odd[0]):04X} may not be in a YAML file")
    return text


def _check_events(text: str, tags: Set[str]) -> None:
    """Raise ValueError for what must be refused before anything is built, and for text that cannot be parsed."""
    above: list[_Open] = []
    values = 0
    try:
        for event in yaml.parse(text, Loader=SafeLoader):
            line = event.start_mark.line + 1  # type: ignore[union-attr]
            values += isinstance(event, yaml.NodeEvent)
            if isinstance(event, yaml.DocumentStartEvent) and (event.version or event.tags):
                raise ValueError(f"line {line}: a directive (%YAML, %TAG) changes how readers read the file; remove it")
            _follow(above, event)
            if len(above) > DEPTH:
                raise ValueError(f"line {line}: more than {DEPTH} levels of nesting")
            if values > YAML_VALUES:
                raise ValueError(f"line {line}: more than {YAML_VALUES} values")
            tag = getattr(event, "tag", None)
            if tag is not None and tag not in tags:
                shown = tag.replace(_TAG, "!!")
                raise ValueError(f"line {line}: the tag {shown:.80} is not accepted; write the plain value")
    except yaml.YAMLError as error:
        field = ".".join(one.key for one in above if one.key)
        raise ValueError(_problem(error) + (f", at or after the field {field:.200}" if field else "")) from None


@dataclass
class _Open:
    """A list or mapping that has begun; `key` is the last one of a mapping, `named` that its value is still missing."""

    mapping: bool
    key: str = ""
    named: bool = False


def _follow(above: list[_Open], event: yaml.Event) -> None:
    """Keep what is open after an event."""
    if isinstance(event, yaml.CollectionEndEvent):
        above.pop()
    elif isinstance(event, yaml.NodeEvent) and above and above[-1].mapping:
        inner = above[-1]
        inner.key = inner.key if inner.named else str(getattr(event, "value", ""))
        inner.named = not inner.named
    if isinstance(event, yaml.CollectionStartEvent):
        above.append(_Open(isinstance(event, yaml.MappingStartEvent)))


def _require_short(root: yaml.Node, most: int) -> None:
    """Raise ValueError if an alias contains itself, or if aliases expand to too much."""
    sizes: dict[int, tuple[int, int] | None] = {}  # characters and levels of a node, expanded; None: being measured

    def measured(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            if (known := sizes[id(node)]) is None:
                raise ValueError(
                    f"line {node.start_mark.line + 1}: an alias inside its own anchor never ends; write the values out"
                )
            return known
        sizes[id(node)] = None
        if isinstance(node, yaml.ScalarNode):
            found = len(node.value) + 1, 0
        else:
            inner = [part for one in node.value for part in (one if isinstance(one, tuple) else (one,))]
            parts = [measured(part) for part in inner]
            found = 2 + sum(size for size, _ in parts), 1 + max((levels for _, levels in parts), default=0)
        if found[0] > most or found[1] > DEPTH:
            raise ValueError(
                f"line {node.start_mark.line + 1}: its aliases expand to more than {most} characters "
                f"or {DEPTH} levels; write the values out"
            )
        sizes[id(node)] = found
        return found

    measured(root)


def _repeated(node: yaml.Node, above: str, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """Yield every duplicate key below a node: its dotted name and both line numbers, counted from 0."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, line in _keys(node):
            if key in lines:
                yield above + key, min(lines[key], line), max(lines[key], line)
            lines[key] = line
        for key_node, value in node.value:
            yield from _repeated(value, f"{above}{key_node.value}.", seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, above, seen)


def _keys(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Yield the keys of a mapping and of the mappings merged into it, with their line numbers."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {key.start_mark.line + 1}: a list or mapping as a key; use text as the key")
        yield str(key.value), key.start_mark.line
        if key.tag == f"{_TAG}merge":
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _keys(merged)


def _require_read_alike(node: yaml.Node, seen: set[int]) -> None:
    """Raise ValueError for a key that is not text, and for a value that DVC reads differently."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                line = key.start_mark.line + 1
                raise ValueError(f"line {line}: the key {key.value!r:.80} is not text; put it in quotes")
            _require_read_alike(key, seen)
            _require_read_alike(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_read_alike(item, seen)
    elif (
        isinstance(node, yaml.ScalarNode)
        and node.tag == f"{_TAG}str"
        and not node.style
        and _OTHERWISE.fullmatch(node.value)
    ):
        raise ValueError(
            f"line {node.start_mark.line + 1}: {node.value!r:.80} is a number or date to some readers of YAML; put it "
            "in quotes, or write the number as 1000, 0.5 or 1e-5"
        )


def _problem(error: Exception) -> str:
    """The parser's message without the line it quotes, which may contain a secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        return (f"line {mark.line + 1}, column {mark.column + 1}: " if mark else "") + str(error.problem)
    return " ".join(str(error).split())
