"""Files beside `prepare.data`, pinned by digest in params.yaml."""

from pathlib import Path

from shadowft_core.errors import DataError
from shadowft_core.params import Pinned
from shadowft_core.prepare.tracked import content_of


def require_pinned(place: Path, pin: Pinned, field: str) -> str:
    """The digest of a file or folder (`content_of`).

    Raises DataError unless `place` exists and has the digest of `pin`; `field` is its name in params.yaml.
    """
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; check {field} in params.yaml")
    found = content_of(place).digest
    if found != pin.digest:
        expected = pin.digest or "none"
        raise DataError(
            f"{place}: expected {field}.digest, {expected}, found {found}; if these are the right files, set "
            f"{field}.digest to it in params.yaml"
        )
    return found
