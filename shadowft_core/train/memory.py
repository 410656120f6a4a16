"""Out of memory: one retry with smaller micro-batches and the same rows per optimizer step, then an error."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

from shadowft_core.errors import TrainError, say
from shadowft_core.params import Train
from shadowft_core.train.checkpoints import Checkpoints

P = ParamSpec("P")
WORDS = ("can't allocate memory", "not enough memory")  # of torch's CPU allocator, which raises RuntimeError


class RetryError(TrainError):
    """A training ran out of memory; the next try reads the smaller micro-batches from its checkpoint folder."""


def retried(run: Callable[P, None]) -> Callable[P, None]:
    """Run it once more after a RetryError, when the memory of the first run is free again."""

    @functools.wraps(run)
    def once_or_twice(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            run(*args, **kwargs)
            return
        except RetryError as error:
            say(f"train: {error}")
        import torch

        gc.collect()  # the frames of the error held the model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        run(*args, **kwargs)

    return once_or_twice


def as_retried(params: Train, checkpoints: Checkpoints) -> Train:
    """The settings, with smaller micro-batches if an earlier try ran out of memory."""
    return params.model_copy(update=checkpoints.smaller or {})


@contextlib.contextmanager
def memory_checked(params: Train, model: Path, checkpoints: Checkpoints, alone: bool) -> Iterator[None]:
    """Turn running out of memory in the block into an error. `params` are those of `as_retried`.

    Raises RetryError the first time, if the micro-batch can be divided, else TrainError. Several processes are not
    retried: the others cannot be told while they wait.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if type(error) is RuntimeError and not any(words in text for words in WORDS):
            raise
        said = f"{model}: out of memory with train.batch_size {params.batch_size} ({text:.200})"
        parts = next((n for n in range(2, params.batch_size + 1) if params.batch_size % n == 0), None)
        if alone and parts and checkpoints.settings and not checkpoints.smaller:
            smaller = {"batch_size": params.batch_size // parts, "accumulation": params.accumulation * parts}
            checkpoints.go_on_with(smaller)
            raise RetryError(
                f"{said}; trying once more with batch_size {smaller['batch_size']}, accumulation "
                f"{smaller['accumulation']}"
            ) from None
        raise TrainError(
            f"{said}; halve train.batch_size and double train.accumulation, set train.gradient_checkpointing, or lower "
            "train.max_length"
        ) from None
