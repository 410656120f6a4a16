"""Bounds on the value that an operation of a template could create, known before it is created."""

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from types import BuiltinMethodType, FunctionType
from typing import Any

from jinja2 import TemplateError

from shadowft_core.limits import DEPTH, MIB, TEMPLATE_BYTES, TEMPLATE_SECONDS

STEP = 32  # bytes that a step counts as
_OFTEN = 1 << 18  # bytes between two checks of the clock
_BITS = 10_000  # of a whole number; Python refuses to write longer ones as text
_NODE = 64  # bytes of an entry of a list or mapping, about
_HELD = 64 * MIB  # bytes of a list or mapping with everything in it
_PRODUCT = 1 << 20  # the product of the sizes of all arguments, for operations that are not listed here
_SEARCH = 1 << 28  # characters of a text times those searched from its end


class TemplateLimit(TemplateError):
    """A template exceeds a limit."""


class Weights:
    """The sizes of values, in about the bytes of their text. A list that is held twice counts twice."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, Any]] = {}  # by id, which is not given again while the value is held

    def of(self, value: Any) -> int:
        """The size of a value. Raises TemplateLimit for one that is too large or too deep."""
        kind = type(value)
        if kind is str:
            return len(value)
        if kind is int:
            if (bits := int(value).bit_length()) > _BITS:
                raise TemplateLimit(f"a whole number of {bits} bits, the limit is {_BITS}")
            return 8 + bits
        if kind is bool or value is None or kind is float:
            return 24
        if isinstance(value, str | bytes):
            return 6 * len(value)
        return self._walk(value)[0] if isinstance(value, Collection) and not isinstance(value, range) else _NODE

    def _walk(self, value: Any) -> tuple[int, int]:
        """Size and levels of a collection."""
        if found := self._known.get(id(value)):
            return found[0], found[1]
        size, levels = _NODE, 0
        for one in chain(value.keys(), value.values()) if isinstance(value, Mapping) else value:
            if isinstance(one, list | tuple | dict):
                inner, below = self._walk(one)
                size, levels = size + inner, max(levels, below)
            else:
                size += _NODE + self.of(one)
            if size > _HELD:
                raise TemplateLimit(f"a list or mapping of more than {_HELD >> 20} MiB")
        if levels >= DEPTH:
            raise TemplateLimit(f"a list or mapping of more than {DEPTH} levels")
        self._known[id(value)] = (size, levels + 1, value)
        return size, levels + 1


Arguments = Sequence[Any]
Rule = Callable[[Weights, Arguments, Mapping[str, Any]], "Arguments | None"]
"""Raises TemplateLimit if an operation with these arguments could create too large a value; may replace arguments"""


class Budget:
    """What one rendering has used: bytes of values, and `STEP` bytes for each step."""

    __slots__ = ("_until", "checked", "used", "weights")

    def __init__(self) -> None:
        self.used, self.checked = 0, _OFTEN
        self.weights = Weights()
        self._until = 0.0

    def use(self, size: int) -> None:
        """Account for a value of that many bytes."""
        self.used += size
        if self.used > self.checked:
            self.check()

    def check(self) -> None:
        """Raises TemplateLimit if a limit is exceeded. Called when `used` exceeds `checked`."""
        self.checked = self.used + _OFTEN
        if self.used > TEMPLATE_BYTES:
            raise TemplateLimit(
                f"more than {TEMPLATE_BYTES >> 20} MiB of values, where each step counts as {STEP} bytes"
            )
        now = time.thread_time()
        self._until = self._until or now + TEMPLATE_SECONDS
        if now > self._until:
            raise TemplateLimit(f"more than {TEMPLATE_SECONDS:g} seconds")


def require(size: int, limit: int = TEMPLATE_BYTES) -> None:
    """Raises TemplateLimit for a size above the limit."""
    if size > limit:
        raise TemplateLimit(
            f"an operation could make a value of {size / MIB:.4g} MiB, the limit is {limit / MIB:g} MiB"
        )


def product(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    """For operations that may repeat one argument for each part of another. A whole number counts as its value."""
    size = 1
    for one in (*arguments, *named.values()):
        if type(one) is int:
            size *= 1 + abs(one)
        elif one is not None and type(one) is not bool:
            size *= 1 + weights.of(one)
        require(size, _PRODUCT)


def _joined(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> Arguments:
    """The filter `join`."""
    values, *others = arguments
    values = list(values)
    between = others[0] if others else named.get("d", "")
    require(weights.of(values) + len(values) * weights.of(between))
    return [values, *others]


def _replaced(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    if len(arguments) < 3 or not all(isinstance(one, str) for one in arguments[:3]):
        return product(weights, arguments, named)
    text, old, new = arguments[:3]
    return require(len(text) + text.count(old) * len(new))


def _searched(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    """Methods that compare each character, or each from the end, with a text."""
    if len(arguments) == 1 and not named:
        return
    size = 1
    for one in (*arguments, *named.values()):
        size *= 1 + (weights.of(one) if isinstance(one, str | bytes) else 0)
    require(size, _SEARCH)


def _indented(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    text, *others = arguments
    width = others[0] if others else named.get("width", 4)
    size = width if isinstance(width, int) else weights.of(width)
    require(weights.of(text) + (1 + (text.count("\n") if isinstance(text, str) else 0)) * max(size, 0))


def _json(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    weights.of(arguments[0])
    for one in (*arguments[1:], *named.values()):
        require(one if isinstance(one, int) else weights.of(one), 4 * _NODE)


def formatted(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    """Formatting with `%`, `format`, `format_map`: each field may take every argument, and have any width."""
    text, *values = arguments
    if not isinstance(text, str):
        return product(weights, arguments, named)
    fields = text.count("%") + text.count("{")
    size = sum([weights.of(one) for one in (*values, *named.values())])
    widths = [int(digits[:20]) for digits in re.findall(r"\d{3,}", text)]
    if re.search(r"%[^A-Za-z%]*\*|\{[^{}]*\{", text):
        raise TemplateLimit("an argument gives the width of a text")
    return require(len(text) + fields * (size + max(widths, default=0)))


def calculated(weights: Weights, operator: str, left: Any, right: Any) -> None:
    """`*`, `**`, `/`, `//` and `%`."""
    if operator == "%" and isinstance(left, str | bytes):
        return formatted(weights, (left, right), {})
    sizes = weights.of(left), weights.of(right)
    if operator not in ("*", "**"):
        return None
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return require(bits, _BITS)
    return require(sizes[1] * left if isinstance(left, int) else sizes[0] * right if isinstance(right, int) else 0)


def _substituted(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    """The filter `regex_replace` of the harness: text, pattern, replacement."""
    size = 1
    for one in (*arguments[:1], *arguments[2:], *named.values()):
        size *= 1 + (weights.of(one) if isinstance(one, str) else 0)
    require(size)


def _split(weights: Weights, arguments: Arguments, named: Mapping[str, Any]) -> None:
    text, *others = arguments
    between = others[0] if others else named.get("sep")
    if not isinstance(text, str) or not (between is None or isinstance(between, str)):
        return product(weights, arguments, named)
    parts = text.count(between) + 1 if between else len(text) // 2 if len(text) > _PRODUCT else 0
    return require(len(text) + _NODE * parts)


_FILTERS = (
    "abs attr capitalize count d default dictsort e escape first float forceescape groupby int items last length list "
    "lower map max min random reject rejectattr reverse safe select selectattr sort string title truncate unique upper "
    "wordcount"
)
FILTERS: dict[str, Rule | None] = dict.fromkeys(_FILTERS.split()) | {
    "format": formatted,
    "indent": _indented,
    "join": _joined,
    "regex_replace": _substituted,
    "replace": _replaced,
    "tojson": _json,
    "trim": _searched,
}
"""the filters that are not judged by `product`"""
_PLAIN = (
    "startswith endswith partition find index count removeprefix removesuffix lower upper casefold capitalize title "
    "swapcase isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
    "isupper items keys values get"
)
PLAIN = frozenset(_PLAIN.split())
"""methods that make nothing larger than their arguments"""
METHODS: dict[str, Rule] = {
    "join": lambda weights, arguments, named: [arguments[0], *_joined(weights, arguments[::-1], named)[:1]],
    "replace": _replaced,
    **dict.fromkeys(("split", "splitlines"), _split),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rsplit", "rfind", "rindex", "rpartition"), _searched),
}
"""the other methods that are not judged by `product`"""


def called(weights: Weights, function: Any, arguments: Arguments, named: Mapping[str, Any]) -> Arguments:
    """The arguments with which a function, macro or method may be called. Raises TemplateLimit."""
    if type(function) is BuiltinMethodType:
        rule = METHODS.get(function.__name__, product)
        changed = rule(weights, (function.__self__, *arguments), named)
        return arguments if changed is None else changed[1:]
    if type(function) is FunctionType and function.__name__ in ("format", "format_map"):  # wrapped by the sandbox
        formatted(weights, (function.__wrapped__.__self__, *arguments), named)  # type: ignore[attr-defined]
    for one in (*arguments, *named.values()):
        if type(one) is not str:
            weights.of(one)
    return arguments
