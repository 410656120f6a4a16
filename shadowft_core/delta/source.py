"""What `graft` needs to know of a delta, whether it is stored in a folder or taken from two checkpoints."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shadowft_core.delta.factors import Factors
from shadowft_core.kernels.bf16 import LazyDifference
from shadowft_core.weights import Ignored

Differences = Callable[[float, int], Iterator[LazyDifference]]
"""(scale, elements per part) -> the parts of a tensor's delta, in order; a part may be overwritten by the next"""


class DeltaSource(Protocol):
    """A delta, tensor by tensor, as flat float32 parts. `Delta` reads a folder, `Difference` two checkpoints."""

    @property
    def path(self) -> Path:
        """The folder that messages name."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every folder that is read."""
        ...

    @property
    def is_stored(self) -> bool:
        """Whether the delta is a folder, so that `digest` covers its bytes and it can be published."""
        ...

    @property
    def digest(self) -> str:
        """Identifies the delta: of a folder, the digest of its certificate."""
        ...

    @property
    def recorded(self) -> dict[str, Any]:
        """The entry of a recipe, without the scale."""
        ...

    @property
    def base_digest(self) -> str:
        """Model digest of the Base."""
        ...

    @property
    def tokenizer_digest(self) -> str | None:
        """That of the Base; None where the Base has no tokenizer."""
        ...

    @property
    def base_tied(self) -> bool:
        """Whether the Base used its embedding as head."""
        ...

    @property
    def ignore(self) -> tuple[str, ...]:
        """Glob patterns of tensors that only one side may hold, as given at extraction."""
        ...

    @property
    def ignored(self) -> Ignored:
        """What only one of two checkpoints holds; empty for a stored delta, whose certificate names it."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Tensors of the Base that changed."""
        ...

    def __hash__(self) -> int:
        """A delta is a key of caches."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def norm(self, name: str) -> float:
        """The Frobenius norm of a tensor's delta. Raises NotFiniteError."""
        ...

    def form(self, name: str) -> str:
        """How a tensor's delta is held: `factors`, `frames`, `plain` or `difference`."""
        ...

    def factors(self, name: str) -> Factors | None:
        """LoRA factors whose product is a tensor's delta; None where it is held in another form."""
        ...

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(start, flat float32 part)`, `step(shape)` elements each; a part may be overwritten by the next.

        Raises DeltaError or UnrelatedError, at the latest at the end of the pass.
        """
        ...

    def parts(self, name: str) -> Callable[[int], np.ndarray]:
        """A function from a part's number to its elements, those of `chunks`, for any order. Checks the tensor first.

        Raises DeltaError or UnrelatedError.
        """
        ...

    def differences(self, name: str) -> Differences | None:
        """The parts as pairs of weights still to be subtracted; None where the delta itself is stored."""
        ...

    def base_sample(self) -> dict[str, np.ndarray]:
        """A few values of every float tensor of the Base, float32, flat, at `sample_positions`."""
        ...

    def base_token_marks(self) -> np.ndarray | None:
        """uint64 by token id of the Base's vocabulary (weights.token_marks); None without a tokenizer.json."""
        ...
