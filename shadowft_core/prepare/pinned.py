"""Checks the digests in params.yaml of the data files that DVC does not watch."""

from pathlib import Path

from shadowft_core.errors import DataError
from shadowft_core.params import Prepare
from shadowft_core.prepare.tracked import content_of


def require_pinned(params: Prepare) -> None:
    """Raises DataError unless the files at `newest.since` and `replay.data`, if set, have the digests in params.yaml.

    Digests are those of `content_of`.
    """
    if params.newest and params.newest.since:
        _require("prepare.newest", "since", Path(params.newest.since), params.newest.digest)
    if params.replay:
        _require("prepare.replay", "data", Path(params.replay.data), params.replay.digest)


def _require(section: str, field: str, place: Path, digest: str) -> None:
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; check {section}.{field} in params.yaml")
    if (found := content_of(place).digest) != digest:
        expected = f"{section}.digest, {digest}" if digest else f"{section}.digest in params.yaml, which is not set"
        raise DataError(
            f"{place}: expected {expected}, found {found}; if these are the right files, set {section}.digest to it"
        )
