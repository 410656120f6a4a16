"""The models that pair.json names, typed."""

from pathlib import Path

from shadowft_core.files import Fields, read_record


class Side(Fields):
    """A model of the pair: its reference, its digest, and a label for people."""

    ref: str
    digest: str
    label: str = ""


class Pair(Fields):
    """The fields of pair.json that every reader needs."""

    base: Side
    instruct: Side


def read_pair(path: Path) -> Pair:
    """Read pair.json. Raises CheckpointError if it is missing or damaged."""
    return read_record(path, Pair, "run `shadowft fetch` again")
