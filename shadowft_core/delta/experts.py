"""Factors on the fused weights of a mixture of experts, split into the tensors that the Base stores.

PEFT adapts such a parameter, (experts, rows, columns) in memory, as a whole: A is (experts * rank, inputs) with the
rows of one expert together, B is (outputs, rank * experts) with the expert index varying fastest
(ParamWrapper.get_delta_weight). The shapes show whether rows or columns are the inputs, unless both are equal. Then
PEFT's rule for the class decides: before 0.19.0 always the rows; since then the columns, unless the class declares its
experts as (inputs, outputs). A folder may store the parameter as it is, with every matrix transposed, or as one tensor
per expert and matrix.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from shadowft_core.delta.adapter import Adapter
from shadowft_core.delta.change import Change
from shadowft_core.delta.factors import Factors
from shadowft_core.delta.settings import MERGE
from shadowft_core.errors import AdapterError

SWAPS = (0, 19)
"""the first PEFT version that takes the columns of experts as inputs"""


class Stack(NamedTuple):
    """A fused parameter and the tensors of the Base that hold it."""

    parameter: str
    shape: tuple[int, int, int]
    """(experts, rows, columns) in memory"""
    whole: str | None
    """the tensor that holds all of it"""
    transposed: bool
    """every matrix is stored (columns, rows)"""
    parts: list[list[str]]
    """for each expert, the tensors whose rows make up the matrix"""


class Experts:
    """The fused experts of an adapter's Base."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._stacks: dict[str, Stack | None] = {}

    def stack(self, parameter: str) -> Stack | None:
        """The fused experts of that name in memory; None when the Base has none."""
        if parameter not in self._stacks:
            self._stacks[parameter] = _find_stack(self._adapter, parameter)
        return self._stacks[parameter]

    def changes(self, module: str, keys: dict[str, str]) -> dict[str, Change]:
        """Changes by tensor name of the Base. Raises AdapterError if the Base has no experts of these shapes."""
        adapter = self._adapter
        stack = self._adapted(module, keys)
        if stack is None:
            raise AdapterError(
                f"{adapter.file}: adapts {module}, but {adapter.before.path} has neither its weight nor matching "
                "experts; pass the model it was trained on, or merge the adapter (PEFT merge_and_unload) and pass that"
            )
        turned = self._is_turned(stack, keys)
        (count, rows, _), (rank, scaling) = stack.shape, adapter.settings.rank_and_scaling(stack.parameter)

        def factors(expert: int, first: int = 0, end: int = rows) -> Factors:
            """The factors of rows `first` to `end` of an expert's matrix in memory."""
            a, b = _pair(adapter, keys, rank, count, expert)
            left, right = (a, b) if turned else (b, a)
            return Factors(
                rank,
                scaling,
                lambda: (left().T if turned else left())[first:end],
                lambda: right().T if turned else right(),
            )

        if stack.whole is not None:
            adapter.require_float(stack.whole)

            def delta(expert: int) -> np.ndarray:
                pair = factors(expert)
                product: np.ndarray = scaling * (pair.left().astype(np.float64) @ pair.right())
                return product.T if stack.transposed else product

            return {stack.whole: Change(stacked=delta)}
        changes: dict[str, Change] = {}
        for expert, names in enumerate(stack.parts):
            first = 0
            for name in names:
                adapter.require_float(name)
                end = first + adapter.before.info(name).shape[0]
                changes[name] = Change(factors=factors(expert, first, end))
                first = end
        return changes

    def _adapted(self, module: str, keys: dict[str, str]) -> Stack | None:
        """The fused experts that the factors of a module belong to."""
        adapter, holder = self._adapter, module
        while holder.endswith(".base_layer"):  # PEFT nests one wrapper for each adapted parameter
            holder = holder.removesuffix(".base_layer")
        if set(keys) != {"A", "B"}:
            return None
        names = adapter.settings.parameters_of(holder)
        if odd := next((n for n in names if adapter.before.family.is_converted(f"{holder}.{n}")), None):
            raise adapter.converted(f"{holder}.{odd}")
        stacks = [stack for name in names if (stack := self.stack(f"{holder}.{name}"))]
        fitting = [stack for stack in stacks if any(self._fit(stack, keys))]
        depth = module.count(".base_layer")  # the first parameter is wrapped by all others
        if depth < len(stacks) and (meant := stacks[len(stacks) - 1 - depth]) in fitting:
            return meant
        return fitting[0] if len(fitting) == 1 else None

    def _fit(self, stack: Stack, keys: dict[str, str]) -> tuple[bool, bool]:
        """Whether the factors fit matrices (outputs, inputs), and whether they fit matrices (inputs, outputs)."""
        (count, rows, columns), rank = stack.shape, self._adapter.settings.rank_and_scaling(stack.parameter)[0]
        shapes = [self._adapter.weights.info(keys[factor]).shape for factor in "AB"]
        width = count * rank
        straight = shapes == [(width, columns), (rows, width)]
        turned = shapes == [(width, rows), (columns, width)]
        return straight, turned and count > 1  # PEFT never turns a single expert

    def _is_turned(self, stack: Stack, keys: dict[str, str]) -> bool:
        """Whether the rows of a matrix in memory are its inputs. Raises AdapterError if that cannot be determined."""
        straight, turned = self._fit(stack, keys)
        if straight != turned:
            return turned
        shown = self._shown  # PEFT reads all parameters of a class in the same way
        if len(shown) == 1:
            return True in shown
        settings, family = self._adapter.settings, self._adapter.before.family
        version = settings.peft
        if version and version < SWAPS:
            return True
        if version and family.known and not shown:
            way = family.experts.get(stack.parameter.rpartition(".")[2])
            return way is not None and way.turned
        why = f"{settings.path.name} has no peft_version"
        if version:
            why = f"{family.title} is not a known model family"
        if shown:
            why = "other experts of the file have both orientations"
        raise AdapterError(
            f"{self._adapter.file}: {stack.parameter} is square, {stack.shape}, so its shape does not show which axis "
            f"is the input: {why}; {MERGE}"
        )

    @cached_property
    def _shown(self) -> frozenset[bool]:
        """The orientations (rows are inputs) of those experts of the adapter whose shapes show it."""
        return frozenset(self._shown_orientations())

    def _shown_orientations(self) -> Iterator[bool]:
        for module, keys in self._adapter.modules.items():
            if self._adapter.is_fused(module):
                stack = self._adapted(module, keys)
                if stack and len(set(fit := self._fit(stack, keys))) == 2:
                    yield fit[1]


def _find_stack(adapter: Adapter, parameter: str) -> Stack | None:
    model, last = adapter.before, parameter.rpartition(".")[2]
    whole, way = adapter.stored(parameter), model.family.experts.get(last)
    if whole in model and len(shape := model.info(whole).shape) == 3:
        transposed = way is not None and way.transposed
        count, rows, columns = shape
        return Stack(parameter, (count, columns, rows) if transposed else (count, rows, columns), whole, transposed, [])
    holder = parameter.removesuffix(f".{last}")

    def tensors(expert: int, matrices: tuple[str, ...]) -> list[str]:
        return [adapter.stored(f"{holder}.{expert}.{matrix}.weight") for matrix in matrices]

    for matrices in model.family.parts(last):
        parts: list[list[str]] = []
        while all(name in model for name in tensors(len(parts), matrices)):
            parts.append(tensors(len(parts), matrices))
        if parts:
            shapes = [model.info(name).shape for name in parts[0]]
            rows = sum(shape[0] for shape in shapes)
            return Stack(parameter, (len(parts), rows, shapes[0][-1]), None, False, parts)
    return None


def _pair(
    adapter: Adapter, keys: dict[str, str], rank: int, count: int, expert: int
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """One expert's A, (rank, inputs), and B, (outputs, rank)."""

    def a() -> np.ndarray:
        whole: np.ndarray = adapter.read_again(keys["A"])
        part: np.ndarray = whole.reshape(count, rank, -1)[expert]
        return part

    def b() -> np.ndarray:
        whole: np.ndarray = adapter.read_again(keys["B"])
        part: np.ndarray = whole.reshape(-1, rank, count)[:, :, expert]
        return part

    return a, b
