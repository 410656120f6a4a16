"""The interface of a delta that `graft` uses, for a stored folder and for the difference of two checkpoints."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shadowft_core.delta.factors import Factors
from shadowft_core.kernels.bf16 import LazyDifference
from shadowft_core.weights import Ignored

Differences = Callable[[float, int], Iterator[LazyDifference]]
"""(scale, elements per part) -> the parts of a tensor's delta, in order; the next part may overwrite a part"""


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
        """Identifies the delta; for a folder, the digest of its certificate."""
        ...

    @property
    def trainer(self) -> dict[str, Any] | None:
        """What the files of another trainer tell of the training (told.py); None if there is nothing."""
        ...

    @property
    def recorded(self) -> dict[str, Any]:
        """The delta's entry in a recipe, without the scale."""
        ...

    @property
    def base_digest(self) -> str:
        """Model digest of the Base."""
        ...

    @property
    def tokenizer_digest(self) -> str | None:
        """The digest of the Base's tokenizer; None if it has none."""
        ...

    @property
    def base_tied(self) -> bool:
        """Whether the Base uses its embedding as head."""
        ...

    @property
    def ignore(self) -> tuple[str, ...]:
        """Glob patterns of tensors that only one side may have, as given at extraction."""
        ...

    @property
    def ignored(self) -> Ignored:
        """Tensors that only one of two checkpoints has; empty for a stored delta, whose certificate lists them."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Tensors of the Base that changed."""
        ...

    def __hash__(self) -> int:
        """Deltas are keys of caches."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def norm(self, name: str) -> float:
        """The Frobenius norm of a tensor's delta. Raises NotFiniteError."""
        ...

    def form(self, name: str) -> str:
        """How a tensor's delta is stored: `factors`, `frames` or `plain`; `difference` if it is not."""
        ...

    def factors(self, name: str) -> Factors | None:
        """LoRA factors whose product is a tensor's delta; None if it has another form."""
        ...

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(start, flat float32 part)`, `step(shape)` elements each; the next part may overwrite a part.

        Raises DeltaError or UnrelatedError, at the latest at the end of the pass.
        """
        ...

    def parts(self, name: str) -> Callable[[int], np.ndarray]:
        """Check the tensor, then return a function from a part's number to the same elements that `chunks` yields.

        Raises DeltaError or UnrelatedError.
        """
        ...

    def differences(self, name: str) -> Differences | None:
        """The parts as pairs of weights that are not yet subtracted; None if the delta itself is stored."""
        ...

    def base_sample(self) -> dict[str, np.ndarray]:
        """A few values of every float tensor of the Base, float32, flat, at `sample_positions`."""
        ...

    def base_token_marks(self) -> np.ndarray | None:
        """uint64 by token id of the Base's vocabulary (weights.token_marks); None without a tokenizer.json."""
        ...
