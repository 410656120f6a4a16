"""The rows of a training: which files are read, how each is encoded, and what was left out."""

from pathlib import Path
from typing import Any

from pydantic import Field

from shadowft_core.errors import DataError, TrainError, say
from shadowft_core.files.record import Fields, read_record
from shadowft_core.params import Train
from shadowft_core.rendering import Renderer
from shadowft_core.train.encode import Encoded, encode_file, require_enough
from shadowft_core.train.pairs import encode_pairs, require_kind, require_settings


def split_files(data: Path, params: Train, replay: bool) -> list[Path]:
    """The files to read. Raises TrainError for settings or rows that do not suit the objective."""
    require_settings(params)
    files = [data / f"{name}.parquet" for name in ("train", "valid", *(["replay"] if replay else []))]
    for file in files:
        require_kind(file, params.objective)
    return files


def encoded_rows(
    data: Path, renderer: Renderer, params: Train, replay: bool, images: bool
) -> tuple[Encoded, Encoded, dict[str, Any]]:
    """The sequences to train on and to validate with, and the counts of each file. Prints the rows left out."""

    def encoded(name: str) -> Encoded:
        path = data / f"{name}.parquet"
        if params.objective == "dpo":
            return encode_pairs(path, renderer, params.max_length)
        return encode_file(path, renderer, params.max_length, images)

    rows, valid = encoded("train"), encoded("valid")
    _print_rows(rows, valid, params)
    require_enough(rows, data / "train.parquet", params.max_length, params.max_left_out)
    if params.validation.steps and not valid.input_ids:
        raise TrainError(
            f"{data / 'valid.parquet'}: no rows, but train.validation.steps is {params.validation.steps}; raise "
            "prepare.valid, or set it to null"
        )
    counts = {"train": rows.counts(), "valid": valid.counts()}
    if replay and (data / "replay.parquet").exists():
        added = encoded("replay")
        require_enough(added, data / "replay.parquet", params.max_length, params.max_left_out)
        say(f"train: {added.used} of {added.read} replay rows added")
        counts["replay"] = added.counts()
        rows.input_ids += added.input_ids
        rows.labels += added.labels
        rows.origins += added.origins
        rows.texts += added.texts
        rows.files += added.files
        rows.rejected += added.rejected
    return rows, valid, counts


class _Report(Fields):
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


def data_digest(data: Path) -> str:
    """The digest of prepared data, from its report. Raises DataError without one."""
    if not (place := data / "data-report.json").exists():
        raise DataError(f"{place}: missing or without a digest; run `shadowft prepare`")
    return read_record(place, _Report, "run `shadowft prepare`", error=DataError).digest


def _print_rows(rows: Encoded, valid: Encoded, params: Train) -> None:
    sequences = len(rows.input_ids) + len(rows.rejected)
    say(
        f"train: {rows.used} rows in {sequences} sequences, {valid.used} rows to validate; left out: "
        f"{rows.too_long + valid.too_long} longer than {params.max_length} tokens"
    )
    for reason, count in (rows.refused + valid.refused).most_common():
        first = (rows.sources.get(reason) or valid.sources[reason])[0]
        say(f"train: left out: {count} rows, {reason} (first {first})")
