"""The engine `hf`: transformers in this process, on a GPU or the CPU."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.evaluate.engines.door import Deltas, Engine
from shadowft_core.evaluate.engines.models import load_folder, load_grafted
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.graft import Options
from shadowft_core.weights import open_checkpoint

if TYPE_CHECKING:
    from shadowft_core.params import Evaluate


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as the harness takes it."""

    digest: str
    lm: Any


class Hf:
    """Loads each arm into memory."""

    def __init__(self, instruct: Path, tokenizer: Any, batch_size: int) -> None:
        self._instruct, self._tokenizer, self._batch_size = instruct, tokenizer, batch_size
        self.identity: Mapping[str, Any] = {"engine": "hf", "batch_size": batch_size}

    @contextmanager
    def arm(self, deltas: Deltas, options: Options) -> Iterator[Loaded]:
        if deltas:
            model, digest = load_grafted(self._instruct, deltas, options)
        else:
            model, digest = load_folder(self._instruct), open_checkpoint(self._instruct).digest()
        yield Loaded(digest, self.lm(model))

    def lm(self, model: Any) -> Any:
        """The harness's model around a loaded one."""
        with quiet():
            from lm_eval.models.huggingface import HFLM

            return HFLM(
                pretrained=model,
                tokenizer=self._tokenizer,
                batch_size=self._batch_size,
                add_bos_token=False,  # as in training, ids are those of the rendered text
                trust_remote_code=False,
            )


@contextmanager
def open_hf(instruct: Path, tokenizer: Any, params: "Evaluate") -> Iterator[Engine]:
    """The engine for one Instruct folder."""
    yield Hf(instruct, tokenizer, params.batch_size)
