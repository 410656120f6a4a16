"""What a training needs of the copies of its checkpoints elsewhere. The verb `train` passes those in the store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from shadowft_core.errors import ParamsError, ShadowError, say
from shadowft_core.params import Checkpoint


class Copies(Protocol):
    """Copies of the checkpoints of a run where another machine finds them; store/checkpoints.py has the contracts."""

    location: str

    def steps(self) -> list[int]:
        """The steps of the complete copies, ascending."""

    def send(self, folder: Path, keep: int) -> None:
        """Copy the folder of a checkpoint, and remove older copies beyond `keep`."""

    def fetch(self, step: int, folder: Path) -> None:
        """Write a copy to a new folder. Raises StoreCorruptError if it is damaged."""

    def remove(self) -> None:
        """Remove all copies of the run."""


CopiesOf = Callable[[str], Copies]


def require_copies(settings: Checkpoint | None, copies_of: CopiesOf | None) -> None:
    """Raises ParamsError if the settings ask for copies, and there is no store for them."""
    if settings and settings.store and copies_of is None:
        raise ParamsError("checkpoint.store is true, but no store was passed; pass copies_of, or set it to false")


@contextmanager
def going_on_without(what: str) -> Iterator[None]:
    """Print `what` and the reason if copying fails: a training does not fail because of it."""
    try:
        yield
    except (ShadowError, OSError) as error:
        say(f"train: {what} ({error})")
