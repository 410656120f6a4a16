"""Renders other people's jinja2 templates within limits, so that none runs for minutes or fills the memory.

jinja2's sandbox keeps a template away from Python's internals, but not from nested loops or a gigabyte of text. Here
every loop iteration, call and operation is counted, and whatever could create a large value is measured before it
does. `limits.py` has the limits; within them a template renders the same text as without.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shadowft_core.files.patterns import substitute
from shadowft_core.files.templatecosts import (
    FILTERS,
    PLAIN,
    STEP,
    Budget,
    Rule,
    TemplateLimit,
    calculated,
    called,
    product,
    require,
)
from shadowft_core.limits import TEMPLATE_CHARACTERS

_DROPPED = ("urlize", "pprint")  # no chat template needs these filters, whose costs are hard to bound
_COMPARE = "in eq == equalto ne != lt < lessthan le <= gt > greaterthan ge >="


class _Local(threading.local):
    def __init__(self) -> None:
        self.budget = Budget()


_NOW = _Local()


class _Limited(Template):
    """A template; each rendering has a budget of its own."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        with _spending(Budget()):
            return super().render(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        """Yield the text piece by piece, as transformers does for masks of replies."""
        budget, pieces = Budget(), super().generate(*args, **kwargs)
        while True:
            with _spending(budget):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


@contextmanager
def _spending(budget: Budget) -> Iterator[None]:
    before, _NOW.budget = _NOW.budget, budget
    try:
        yield
    except RecursionError:
        raise TemplateLimit("calls nested too deeply for Python") from None
    except (OverflowError, MemoryError) as error:
        raise TemplateLimit(str(error) or type(error).__name__) from None
    finally:
        _NOW.budget = before


class _Code(CodeGenerator):
    """Generates code that counts loops and measures values."""

    environment: "LimitedEnvironment"

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        guard = _guard(node)
        if guard is None:
            return super().visit(node, *args, **kwargs)
        self.write(f"environment.{guard}(")
        super().visit(node, *args, **kwargs)
        self.write(")")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter.looped = True  # type: ignore[attr-defined]
        super().visit_For(node, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        terms: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            terms.append(left.right)
            left = left.left
        self._call("added", [left, *reversed(terms)], frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("concatenated", node.nodes, frame)

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:
        self.fail("autoescape is not supported", node.lineno)

    visit_ScopedEvalContextModifier = visit_EvalContextModifier

    def _call(self, name: str, terms: Iterable[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{name}(")
        for term in terms:
            self.visit(term, frame)
            self.write(", ")
        self.write(")")


def _guard(node: nodes.Node) -> str | None:
    """The method of the environment that the value of an expression is passed to; None if there is none."""
    if getattr(node, "looped", False):
        return "rounds"
    if isinstance(node, nodes.Compare):
        return "counted" if any(one.op in ("in", "notin") for one in node.ops) else None
    if isinstance(node, nodes.List) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return None if all(isinstance(one, nodes.Const) for one in node.items) else "measured"
    return "measured" if isinstance(node, nodes.Dict) and node.items else None


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with limits. `limited` makes one."""

    code_generator_class = _Code
    template_class = _Limited
    intercepted_binops = frozenset(("*", "**", "%", "/", "//"))

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Template:
        """Compile a template. Raises TemplateError for one that is too long, or that Python cannot compile."""
        if not isinstance(source, str):
            raise TemplateError(f"expected text, found {type(source).__name__}")
        if len(source) > TEMPLATE_CHARACTERS:
            raise TemplateLimit(f"it has {len(source)} characters, the limit is {TEMPLATE_CHARACTERS}")
        before, _NOW.budget = _NOW.budget, Budget()
        try:
            return super().from_string(source, *args, **kwargs)
        except (RecursionError, MemoryError, SyntaxError, OverflowError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise TemplateError(f"it cannot be compiled: {said:.200}") from None
        finally:
            _NOW.budget = before

    def printed(self, value: Any) -> Any:
        """Measure a value that becomes text."""
        budget = _NOW.budget
        budget.used += STEP
        if budget.used > budget.checked:
            budget.check()
        if type(value) is not str:
            budget.weights.of(value)
        return value

    def counted(self, value: Any) -> Any:
        """Count a step."""
        _NOW.budget.use(STEP)
        return value

    def measured(self, value: Any) -> Any:
        """Account for a value that was created."""
        budget = _NOW.budget
        kind = type(value)
        if kind is str:
            budget.used += STEP + (len(value) if value.isascii() else 4 * len(value))
        elif kind is bool or value is None:
            budget.used += STEP
        else:
            size = budget.weights.of(value)
            budget.used += 64 * len(value) if kind in (list, dict, tuple) else size
        if budget.used > budget.checked:
            budget.check()
        return value

    def rounds(self, values: Iterable[Any]) -> Iterator[Any]:
        """Count the rounds of a loop."""
        budget = _NOW.budget
        for value in values:
            budget.used += STEP
            if budget.used > budget.checked:
                budget.check()
            yield value

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the output of a template, block or macro."""
        found = list(pieces)
        require(size := sum(map(len, found)))
        text = "".join(found)
        _NOW.budget.use(size if text.isascii() else 4 * size)
        return text

    def added(self, *terms: Any) -> Any:
        """The sum of values, from left to right."""
        size = 0
        for term in terms:
            if type(term) is not str:
                break
            size += len(term)
        else:
            require(size)
            return self.measured("".join(terms))
        total = terms[0]
        for term in terms[1:]:
            require(_NOW.budget.weights.of(total) + _NOW.budget.weights.of(term))
            total = self.measured(total + term)
        return total

    def concatenated(self, *values: Any) -> str:
        """The values as one text, as `~` makes it."""
        weights = _NOW.budget.weights
        require(sum([len(one) if type(one) is str else weights.of(one) for one in values]))
        return str(self.measured(str_join(values)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply, divide and format within limits."""
        calculated(_NOW.budget.weights, operator, left, right)
        return self.measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, macro or method within limits."""
        if type(__obj) is BuiltinMethodType and __obj.__name__ in PLAIN:
            _NOW.budget.use(STEP + (4 * len(__obj.__self__) if type(__obj.__self__) is str else 0))
            return super().call(__context, __obj, *args, **kwargs)
        args = tuple(called(_NOW.budget.weights, __obj, args, kwargs))
        return __self.measured(super().call(__context, __obj, *args, **kwargs))


def limited(environment: Environment) -> LimitedEnvironment:
    """An environment with the filters, globals and settings of another, whose templates have limits.

    A template that exceeds one raises TemplateLimit, which is a TemplateError.
    """
    found = LimitedEnvironment(
        trim_blocks=environment.trim_blocks,
        lstrip_blocks=environment.lstrip_blocks,
        keep_trailing_newline=environment.keep_trailing_newline,
        undefined=environment.undefined,
        extensions=list(map(type, environment.extensions.values())),
    )
    found.globals |= {name: value for name, value in environment.globals.items() if name not in ("range", "lipsum")}
    del found.globals["lipsum"]
    namespace: Any = found.globals["namespace"]
    found.globals["namespace"] = type("Namespace", (namespace,), {"__repr__": lambda _: "<Namespace>"})
    filters = {name: one for name, one in environment.filters.items() if name not in _DROPPED}
    if "regex_replace" in filters:
        filters["regex_replace"] = _substituted
    found.filters = {name: _filter(found, one, FILTERS.get(name, product)) for name, one in filters.items()}
    found.tests |= {name: _counted(found, found.tests[name]) for name in _COMPARE.split()}
    found.finalize = found.printed
    return found


def _substituted(text: Any, pattern: Any, replacement: Any, count: Any = 0) -> str:
    """The filter `regex_replace` of the harness, within limits."""
    if not all(isinstance(one, str) for one in (text, pattern, replacement)) or not isinstance(count, int):
        raise TemplateError("regex_replace: expected text, pattern, replacement and a number")
    try:
        return substitute(text, pattern, replacement, count)
    except ValueError as error:
        raise TemplateLimit(f"regex_replace: {error}") from None


def _filter(environment: LimitedEnvironment, function: Callable[..., Any], rule: Rule | None) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))  # the context is the first argument

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return environment.measured(function(*args, **kwargs))

    @wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        changed = cast(Rule, rule)(_NOW.budget.weights, args[first:], kwargs)
        return environment.measured(function(*(args if changed is None else (*args[:first], *changed)), **kwargs))

    return plain if rule is None else within


def _counted(environment: LimitedEnvironment, test: Any) -> Callable[..., Any]:
    @wraps(test)
    def within(*args: Any) -> Any:
        return environment.counted(test(*args))

    return within
