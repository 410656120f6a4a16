"""Factors on the fused weights of a mixture of experts, given back to the tensors as the Base stores them.

PEFT adapts such a parameter, (experts, rows, columns) in memory, as a whole: A is (experts * rank, inputs) with an
expert's rows together, B is (outputs, rank * experts) with the expert running fastest (ParamWrapper.get_delta_weight).
Which of rows and columns are the inputs shows in the shapes unless both are equal; then it is what PEFT makes of the
class: since 0.19.0 the columns, unless the class says that its experts are (inputs, outputs), and always the rows
before. A folder may hold the parameter as it is, every matrix transposed, or one tensor per expert and matrix.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shadowft_core.delta.lora import Factors
from shadowft_core.delta.merge import Change
from shadowft_core.delta.settings import MERGE
from shadowft_core.errors import AdapterError

if TYPE_CHECKING:
    from shadowft_core.delta.adapters import Adapter

SWAPS = (0, 19)
"""the first PEFT version that takes the columns of experts as inputs"""


class Stack(NamedTuple):
    """A fused parameter and the tensors of the Base that hold it."""

    parameter: str
    shape: tuple[int, int, int]
    """(experts, rows, columns) in memory"""
    whole: str | None
    """the one tensor that holds it"""
    transposed: bool
    """every matrix is stored (columns, rows)"""
    parts: list[list[str]]
    """by expert, the tensors whose rows make the matrix"""


def find_stack(adapter: "Adapter", parameter: str) -> Stack | None:
    """The fused experts of that name in memory; None when the Base holds none."""
    model, last = adapter.before, parameter.rpartition(".")[2]
    whole, way = adapter.stored(parameter), model.family.experts.get(last)
    if whole in model and len(shape := model.info(whole).shape) == 3:
        transposed = way is not None and way.transposed
        count, rows, columns = shape
        return Stack(parameter, (count, columns, rows) if transposed else (count, rows, columns), whole, transposed, [])
    holder = parameter.removesuffix(f".{last}")

    def row(expert: int, matrices: tuple[str, ...]) -> list[str]:
        return [adapter.stored(f"{holder}.{expert}.{matrix}.weight") for matrix in matrices]

    for matrices in model.family.parts(last):
        found: list[list[str]] = []
        while all(name in model for name in row(len(found), matrices)):
            found.append(row(len(found), matrices))
        if found:
            shapes = [model.info(name).shape for name in found[0]]
            rows = sum(shape[0] for shape in shapes)
            return Stack(parameter, (len(found), rows, shapes[0][-1]), None, False, found)
    return None


def expert_changes(adapter: "Adapter", module: str, keys: dict[str, str]) -> dict[str, Change]:
    """Changes by tensor name of the Base. Raises AdapterError when no experts of these shapes are there."""
    stack = _adapted(adapter, module, keys)
    if stack is None:
        raise AdapterError(
            f"{adapter.file}: adapts {module}, and {adapter.before.path} holds neither its weight nor matching "
            "experts; pass the model it was trained on, or merge the adapter (PEFT merge_and_unload) and pass that"
        )
    turned = _is_turned(adapter, stack, keys)
    (count, rows, _), (rank, scaling) = stack.shape, adapter.settings.rank_and_scaling(stack.parameter)

    def factors(expert: int, first: int = 0, end: int = rows) -> Factors:
        """Of rows `first` to `end` of an expert's matrix in memory."""
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
            made = factors(expert)
            product: np.ndarray = scaling * (made.left().astype(np.float64) @ made.right())
            return product.T if stack.transposed else product

        return {stack.whole: Change(stacked=delta)}
    found: dict[str, Change] = {}
    for expert, names in enumerate(stack.parts):
        first = 0
        for name in names:
            adapter.require_float(name)
            end = first + adapter.before.info(name).shape[0]
            found[name] = Change(factors=factors(expert, first, end))
            first = end
    return found


def _adapted(adapter: "Adapter", module: str, keys: dict[str, str]) -> Stack | None:
    """The fused experts that the factors of a module belong to."""
    holder = module
    while holder.endswith(".base_layer"):  # one wrapper in another, one for each adapted parameter
        holder = holder.removesuffix(".base_layer")
    if set(keys) != {"A", "B"}:
        return None
    names = adapter.settings.parameters_of(holder)
    if odd := next((n for n in names if adapter.before.family.is_converted(f"{holder}.{n}")), None):
        raise adapter.converted(f"{holder}.{odd}")
    stacks = [stack for name in names if (stack := adapter.stack(f"{holder}.{name}"))]
    fitting = [stack for stack in stacks if any(_fit(adapter, stack, keys))]
    depth = module.count(".base_layer")  # the first parameter is wrapped by all others
    if depth < len(stacks) and (meant := stacks[len(stacks) - 1 - depth]) in fitting:
        return meant
    return fitting[0] if len(fitting) == 1 else None


def _fit(adapter: "Adapter", stack: Stack, keys: dict[str, str]) -> tuple[bool, bool]:
    """Whether the factors' shapes are those of matrices (outputs, inputs), and of matrices (inputs, outputs)."""
    (count, rows, columns), rank = stack.shape, adapter.settings.rank_and_scaling(stack.parameter)[0]
    found = [adapter.weights.info(keys[factor]).shape for factor in "AB"]
    width = count * rank
    turned = [(width, rows), (columns, width)]
    return found == [
        (width, columns),
        (rows, width),
    ], found == turned and count > 1  # PEFT never turns a single expert


def _is_turned(adapter: "Adapter", stack: Stack, keys: dict[str, str]) -> bool:
    """Whether the rows of a matrix in memory are its inputs. Raises AdapterError where nothing tells."""
    straight, turned = _fit(adapter, stack, keys)
    if straight != turned:
        return turned
    shown = adapter.shown_experts  # the parameters of a class are all read in the same way
    if len(shown) == 1:
        return True in shown
    version, family = adapter.settings.peft, adapter.before.family
    if version and version < SWAPS:
        return True
    if version and family.known and not shown:
        way = family.experts.get(stack.parameter.rpartition(".")[2])
        return way is not None and way.turned
    why = f"{adapter.settings.path.name} has no peft_version"
    if version:
        why = f"{family.title} is not a known model family"
    if shown:
        why = "other experts of the file have both orientations"
    raise AdapterError(
        f"{adapter.file}: {stack.parameter} is square, {stack.shape}, and nothing says which axis is the input: "
        f"{why}; {MERGE}"
    )


def shown_orientations(adapter: "Adapter") -> Iterator[bool]:
    """Whether rows are inputs, for each of the adapter's experts whose shapes show it."""
    for module, keys in adapter.modules.items():
        if adapter.is_fused(module):
            stack = _adapted(adapter, module, keys)
            if stack and len(set(fit := _fit(adapter, stack, keys))) == 2:
                yield fit[1]


def _pair(
    adapter: "Adapter", keys: dict[str, str], rank: int, count: int, expert: int
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """One expert's A, (rank, inputs), and B, (outputs, rank)."""

    def a() -> np.ndarray:
        whole: np.ndarray = adapter.read_again(keys["A"])
        mine: np.ndarray = whole.reshape(count, rank, -1)[expert]
        return mine

    def b() -> np.ndarray:
        whole: np.ndarray = adapter.read_again(keys["B"])
        mine: np.ndarray = whole.reshape(-1, rank, count)[:, :, expert]
        return mine

    return a, b
