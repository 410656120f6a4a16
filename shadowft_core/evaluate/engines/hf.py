"""The engine `hf`: transformers in this process, on a GPU or the CPU."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.evaluate.engines.door import Deltas, Engine
from shadowft_core.evaluate.engines.finite import watch
from shadowft_core.evaluate.engines.models import load_grafted
from shadowft_core.evaluate.engines.resident import Resident
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.grafting import Options, grafted_tensors

if TYPE_CHECKING:
    from shadowft_core.params import Evaluate


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as the harness takes it."""

    digest: str
    lm: Any


class Hf:
    """Loads the Instruct once, for the first arm; each further arm changes its parameters in place."""

    def __init__(self, instruct: Path, tokenizer: Any, batch_size: int) -> None:
        self._instruct, self._tokenizer, self._batch_size = instruct, tokenizer, batch_size
        self._resident: Resident | None = None
        self._resident_lm: Any = None
        self._in_use = False
        self.identity: Mapping[str, Any] = identity_of(batch_size)

    def check(self, deltas: Deltas, options: Options, likelihood: Sequence[str]) -> None:
        """Raise what `graft.grafted_tensors` raises for this arm, before anything is loaded."""
        if deltas:
            grafted_tensors(self._instruct, deltas, options)

    @contextmanager
    def arm(self, deltas: Deltas, options: Options) -> Iterator[Loaded]:
        """As `Engine.arm`. If the Instruct's parameters cannot be restored exactly, the next arm loads it again.

        Raises EvaluationError, too, if a parameter of the Instruct changed during the arm.
        """
        if self._in_use:
            raise RuntimeError("an arm is open; leave it before the next")
        tensors = grafted_tensors(self._instruct, deltas, options) if deltas else None  # refuses before it loads
        resident, lm = self._resident or Resident(self._instruct), self._resident_lm
        self._resident, self._resident_lm, self._in_use = None, None, True
        try:
            if tensors is None or resident.takes(options):
                try:
                    with resident.added(tensors) as digest:
                        lm = lm or self.lm(resident.model)
                        yield Loaded(digest, lm)
                finally:
                    self._resident, self._resident_lm = (resident, lm) if resident.clean else (None, None)
            else:
                del resident, lm, tensors  # before the other model is loaded
                model, digest = load_grafted(self._instruct, deltas, options)
                yield Loaded(digest, self.lm(model))
        finally:
            self._in_use = False

    def lm(self, model: Any) -> Any:
        """The harness's model around a loaded one."""
        with quiet():
            from shadowft_core.evaluate.engines.vision import lm_of

            return lm_of(self._instruct, watch(model, self._tokenizer), self._tokenizer, self._batch_size)


def identity_of(batch_size: int) -> dict[str, Any]:
    """What the last bits of an answer can depend on. The number of devices is not among them."""
    import torch
    from lm_eval import __version__ as harness
    from transformers import __version__ as transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers, "lm_eval": harness}
    return {"engine": "hf", "batch_size": batch_size, "device": device, **versions}


@contextmanager
def open_hf(instruct: Path, tokenizer: Any, params: "Evaluate") -> Iterator[Engine]:
    """The engine for one Instruct folder."""
    yield Hf(instruct, tokenizer, params.batch_size)
