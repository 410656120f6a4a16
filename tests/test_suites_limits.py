"""Data of tasks and benchmarks that holds gigabytes, or what ends the process: refused before the harness reads it."""

import bz2
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shadowft_core.errors import EvaluationError, InputError
from shadowft_core.suites.datafiles import require_rows
from shadowft_core.suites.images import _decode
from shadowft_core.suites.sources import Source

ROW = b'{"question": "a", "answer": "b"}\n'


def long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 << 30)  # sparse


def small_table(path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300, np.int32)), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"question": words}), path, compression="zstd")


def in_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b" " * (1 << 20)) * 2_000)


def in_zstd(path: Path) -> None:
    path.write_bytes(zstandard.ZstdCompressor().compress(b" " * (1 << 20)) * 4_000)


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a line of 2 GB": (
        "json",
        long_line,
        "a NUL in the text",
    ),
    "a text of 2 GB": ("text", long_line, "a NUL in the text"),
    "gzip": ("json", in_gzip, "expands to more than"),
    "gzip as text": ("csv", in_gzip, "expands to more than|64 MiB in a line"),
    "zstd": ("json", in_zstd, "expands to more than"),
    "a table": ("parquet", small_table, "holds more than"),
    "a table in gzip": ("parquet", lambda path: path.write_bytes(gzip.compress(b"PAR1")), "an archive, or packed"),
    "bzip2": ("json", lambda path: path.write_bytes(bz2.compress(ROW)), "an archive, or packed"),
    "null": ("json", lambda path: path.write_bytes(b"null\n" + ROW), "row 1: expected a JSON object, found NoneType"),
    "a row of 20 MiB": ("json", lambda path: path.write_bytes(b" " * (20 << 20)), "row 1: .* found longer than 16 MiB"),
    "a line of 65 MiB": ("text", lambda path: path.write_bytes(b"a" * (65 << 20)), "64 MiB in a line"),
    "a list": ("json", lambda path: path.write_bytes(ROW + b"[1]\n"), "row 2: expected a JSON object, found list"),
    "levels": ("json", lambda path: path.write_bytes(b'{"a":' * 70 + b"1" + b"}" * 70), "more than 64 levels"),
}


@pytest.mark.parametrize("name", FILES)
def test_data_of_a_task_beyond_a_limit_is_refused(name: str, tmp_path: Path) -> None:
    kind, make, said = FILES[name]
    make(tmp_path / "rows.bin")
    with pytest.raises(EvaluationError, match=rf"^task say: .*rows\.bin: .*({said})"):
        require_rows("say", str(tmp_path / "rows.bin"), kind)


@pytest.mark.parametrize("name", ["test.jsonl.gz", "test.jsonl.zst", "test.parquet", "test.jsonl", "test.csv"])
def test_data_of_a_benchmark_beyond_a_limit_is_no_data(name: str, tmp_path: Path) -> None:
    make = {".gz": in_gzip, ".zst": in_zstd, ".parquet": small_table}.get(Path(name).suffix, long_line)
    make(tmp_path / name)
    source = Source(tmp_path)
    assert source.rows("openai/gsm8k", "main", "test") is None
    assert source.others(set()) == [name]


def test_more_rows_than_any_benchmark_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(ROW * 1_000_001)
    with pytest.raises(InputError, match=r"test\.jsonl: more than 1000000 rows, which is the limit"):
        Source(tmp_path).rows("openai/gsm8k", "main", "test")


def test_an_image_of_gigabytes_is_refused_by_its_header() -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    data = io.BytesIO()
    data.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)))
    body = b"IDAT" + zlib.compress(bytes(1 << 20))
    data.write(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    with pytest.raises(EvaluationError, match=r"a\.png: expected at most 64 Mi pixels, found"):
        _decode("a.png", data.getvalue())
