"""Small data files that hold gigabytes: refused in seconds, before they fill the memory."""

import gzip
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shadowft_core.errors import DataError
from shadowft_core.files.rows import read_rows
from tests.fixtures.memory import traced


def zstd_bomb(part: bytes) -> bytes:
    return b"".join([zstandard.ZstdCompressor().compress(part)] * 4_000)


@pytest.mark.parametrize("letter", [b" ", b"a", b"\n"], ids=["blanks", "one row", "lines"])
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_small_file_that_expands_to_gigabytes_is_refused_in_seconds(
    letter: bytes, suffix: str, tmp_path: Path
) -> None:
    part = letter * (1 << 20)
    packed = gzip.compress(part) * 500 if suffix == "gz" else zstd_bomb(part)
    (tmp_path / f"rows.jsonl.{suffix}").write_bytes(packed)
    started = time.process_time()
    with pytest.raises(DataError, match=r"rows\.jsonl\.\w+: (expands to more than \d+ bytes|more than \d+ lines)"):
        list(read_rows(tmp_path / f"rows.jsonl.{suffix}"))
    assert time.process_time() - started < 10


def test_what_a_small_file_expands_to_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"a" * (1 << 20)) * 60)
    with traced() as peak:
        assert [row.problem for row in read_rows(tmp_path / "rows.jsonl.gz")] == ["longer than 16 MiB"]
        assert peak() < 64 << 20


def test_a_line_of_gigabytes_is_refused_in_seconds(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    started = time.process_time()
    with pytest.raises(DataError, match=r"rows\.jsonl: line 1 is longer than 1024 MiB"):
        list(read_rows(tmp_path / "rows.jsonl"))
    assert time.process_time() - started < 10


def test_a_quote_that_is_never_closed_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    line = b"a" * 99 + b"\n"
    (tmp_path / "rows.csv").write_bytes(b'prompt,reply\na,"' + line * 400_000)
    said = r"rows\.csv: line \d+: not readable as CSV: field larger than field limit"
    with traced() as peak:
        with pytest.raises(DataError, match=said):
            list(read_rows(tmp_path / "rows.csv"))
        assert peak() < 256 << 20


def test_a_small_table_that_holds_gigabytes_is_refused(tmp_path: Path) -> None:
    whole = pa.array(["a" * (1 << 20)])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), whole)
    pq.write_table(pa.table({"prompt": rows, "reply": rows}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: holds more than \d+ bytes, 100 times its size or 64 MiB"):
        list(read_rows(tmp_path / "rows.parquet"))
