"""The Instruct in memory: deltas are added to its parameters in place, and taken back bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines.models import as_torch, described, load_folder
from shadowft_core.grafting import Options
from shadowft_core.weights import Checkpoint, model_digest, open_checkpoint

PART = 1 << 20  # elements of a parameter that are summed at a time
SAME_BYTES = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}


class Resident:
    """The Instruct, loaded once. While a delta is added, memory holds one more tensor, never a second model."""

    def __init__(self, folder: Path) -> None:
        """Raises what `load_folder` raises."""
        self._checkpoint = open_checkpoint(folder)
        self.digest = self._checkpoint.digest()
        self.model = load_folder(folder)
        self._places: dict[str, Any] | None = None
        self._sums = self._all_sums()
        self.clean = True
        """whether the parameters are those of the Instruct"""

    def takes(self, options: Options) -> bool:
        """Whether deltas can be added in place: every tensor of the files is one parameter, with the same values.

        A model whose class joins, splits or renames the tensors of the files has to be loaded separately. So has a
        graft of another dtype on a GPU, where the parameters have the dtype of the files.
        """
        if options.dtype != "instruct" and self.model.device.type != "cpu":
            return False
        if self._places is None:
            self._places = places_of(self.model, self._checkpoint)
        return bool(self._places)

    @contextmanager
    def added(self, tensors: Iterator[tuple[str, np.ndarray]] | None) -> Iterator[str]:
        """Write a grafted model's tensors into the parameters; yields its model digest. None: the Instruct itself.

        Afterwards, whatever happened, the parameters are those of the Instruct again; `clean` is False if not. Raises
        what `tensors` raises, and EvaluationError if the folder has changed since the model was loaded, or a parameter
        has.
        """
        self.clean = False
        changed: list[str] = []
        try:
            yield self.digest if tensors is None else self._add(tensors, self._places or {}, changed)
        finally:
            self._take_back(self._places or {}, changed)
            self.clean = True

    def _add(self, tensors: Iterator[tuple[str, np.ndarray]], places: dict[str, Any], changed: list[str]) -> str:
        digests = {}
        for name, array in tensors:
            digests[name] = described(array)
            if name in places and digests[name][2] != self._checkpoint.tensor_digest(name):
                changed.append(name)  # before the copy, which may be interrupted
                places[name].copy_(as_torch(array))
            del array  # before the next is made
        return model_digest(digests)

    def _take_back(self, places: dict[str, Any], changed: list[str]) -> None:
        """Write the Instruct's tensors of these names into the parameters again, and check all parameters by the sums
        of their bits, which costs one pass over the memory."""
        for name in changed:
            array = self._checkpoint.read(name)
            found, expected = described(array)[2], self._checkpoint.tensor_digest(name)
            if found != expected:
                raise EvaluationError(
                    f"{self._checkpoint.info(name).file}: tensor {name} had digest {expected} when the model was "
                    f"loaded, and now has {found}; leave the folder alone while it is scored, and run again"
                )
            places[name].copy_(as_torch(array))
            del array
        for name, total in self._all_sums().items():
            if total != self._sums[name]:
                raise EvaluationError(
                    f"{self._checkpoint.path}: parameter {name} is not that of the Instruct any more (sum of its bits "
                    f"{total}, expected {self._sums[name]}): the scores of this arm may be wrong; run again"
                )

    def _all_sums(self) -> dict[str, int]:
        return {name: _sum_of_bits(tensor) for name, tensor in self.model.state_dict().items()}


def places_of(model: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameter of each tensor of the files, by name. Empty unless they correspond one to one.

    That is so if every parameter and saved buffer has a tensor of its name, or shares its memory with one that has, and
    each holds the values of that tensor, cast to its dtype. Tensors of the files that the class does not load (such as
    those of further prediction heads) have no place.
    """
    import torch

    state = model.state_dict()
    places = {name: state[name] for name in checkpoint.names if name in state}
    memory = {tensor.data_ptr() for tensor in places.values() if tensor.numel()}
    if len(memory) != sum(1 for tensor in places.values() if tensor.numel()):
        return {}  # two tensors of the files share one parameter
    if any(tensor.numel() and tensor.data_ptr() not in memory for tensor in state.values()):
        return {}
    for name, place in places.items():
        if tuple(place.shape) != checkpoint.info(name).shape:
            return {}
        values = as_torch(checkpoint.read(name)).to(place.device).to(place.dtype)
        if not torch.equal(_bits(values), _bits(place)):
            return {}
    return places


def _bits(tensor: Any) -> Any:
    import torch

    return tensor.view(getattr(torch, SAME_BYTES[tensor.element_size()]))


def _sum_of_bits(tensor: Any) -> int:
    import torch

    return sum(int(part.sum(dtype=torch.int64)) for part in _bits(tensor).reshape(-1).split(PART))
