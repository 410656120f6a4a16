"""Guarded reading: what a damaged, hostile or oversized file may not do."""

import json
import os
import time
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from shadowft_core.errors import CheckpointError, DeltaError
from shadowft_core.files import (
    Fields,
    Record,
    lines_of,
    parse_json,
    parse_record,
    read_json_object,
    read_record,
    read_regular,
    reading,
)
from tests.fixtures.memory import traced


class Part(Record):
    scale: float = Field(ge=0, le=10)


class Whole(Record):
    format: int
    name: str
    parts: tuple[Part, ...] = ()


class Numbered(Record):
    format: Literal[1] | None = None


class Some(Fields):
    rank: int


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "64 levels"),
        (b"[" * 200_000, "levels of nesting"),
        (b"1" * 65, "65 digits"),
        (b"-" + b"1" * 6000, "6000 digits"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b'"\\uD800"', "surrogates not allowed"),
        (b'{"a": ', "not readable as JSON"),
        (b"", "not readable as JSON"),
    ],
)
def test_json_that_no_reader_may_take_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        parse_json(raw, "some.json")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_numbers_that_are_not_finite_are_refused_only_on_request(text: str) -> None:
    assert isinstance(parse_json(text.encode(), "config.json"), float)  # configs of models have them
    with pytest.raises(DeltaError, match=r"delta\.json: not readable as JSON"):
        parse_json(text.encode(), "delta.json", DeltaError, finite=True)


def test_a_number_that_is_too_large_is_shown_by_its_first_digits() -> None:
    with pytest.raises(CheckpointError, match=r"JSON: 1{40} is more than float64 can hold"):
        parse_json(b"1" * 5000 + b".0", "x", finite=True)


def test_json_at_the_limits_is_read() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64, "deep.json")
    assert parse_json(b'{"a":' * 64 + b"1" + b"}" * 64, "deep.json")
    assert parse_json(b"9" * 64, "long.json") == 10**64 - 1
    assert parse_json(b"-" + b"9" * 64, "long.json") == 1 - 10**64


@pytest.mark.timeout(60)
def test_only_regular_files_below_the_limit_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    begun, handles = time.monotonic(), len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="expected a regular file"):
            read_regular(path)
    assert time.monotonic() - begun < 5  # nobody writes to the pipe
    assert len(os.listdir("/proc/self/fd")) == handles
    assert b"Pid:" in read_regular(Path("/proc/self/status"))  # of size 0, as all files of the kernel
    with pytest.raises(CheckpointError, match="status: 21 bytes, the limit is 20"):  # no more than that is read
        read_regular(Path("/proc/self/status"), 20)
    for read in (read_regular, lambda path: list(lines_of(path, 9, CheckpointError))):
        with pytest.raises(CheckpointError, match="mem: Input/output error; expected a readable file"):
            read(Path("/proc/self/mem"))
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert list(lines_of(tmp_path / "ten", 10, CheckpointError)) == [(1, b"0123456789")]
    with pytest.raises(DeltaError, match="ten:1: a line of more than 9 bytes"):
        list(lines_of(tmp_path / "ten", 9, DeltaError))
    assert read_regular(tmp_path / "ten", 10) == b"0123456789"
    with pytest.raises(DeltaError, match="10 bytes, the limit is 9"):
        read_regular(tmp_path / "ten", 9, DeltaError)
    with pytest.raises(CheckpointError, match="no such file"):
        read_regular(tmp_path / "none")
    with pytest.raises(CheckpointError, match="expected a readable file"):
        read_regular(Path("a\0b"))


def test_no_more_of_a_line_is_read_than_it_may_have(tmp_path: Path) -> None:
    with (tmp_path / "long").open("wb") as file:
        file.truncate(64 << 20)
    with traced() as peak:
        with pytest.raises(CheckpointError, match="long:1: a line of more than 9 bytes"):
            list(lines_of(tmp_path / "long", 9, CheckpointError))
        assert peak() < 1 << 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"format": 1}, "field name is missing"),
        ({"format": [1], "name": "a"}, r"format: Input should be a valid integer(?!, found)"),
        ({"format": 1, "name": "a", "x\ny": 1}, r"unknown field x\\ny"),
        ({"format": 1, "name": "a", "x" * 5000: 1}, "unknown field x{200}"),
        ({"format": 1, "name": "a", "extra": 1}, "unknown field extra"),
        ({"format": "1", "name": "a"}, "format: .*integer, found '1'"),
        ({"format": True, "name": "a"}, "format: .*integer, found True"),
        ({"format": 1, "name": "a", "parts": [{"scale": 11}]}, "parts.0.scale: .*10, found 11"),
        ({"format": 1, "name": "a", "parts": {"0": {"scale": 1}}}, "parts: .*array"),
        ([], "object"),
    ],
)
def test_a_record_names_file_field_expectation_and_value(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DeltaError, match=f"{path}: .*{said}.*; make it again"):
        read_record(path, Whole, "make it again", error=DeltaError)
    with pytest.raises(DeltaError, match="the limit is 1;"):
        read_record(path, Whole, "make it again", error=DeltaError, largest=1)


def test_a_record_is_finite_and_the_fields_of_others_need_not_be_known() -> None:
    with pytest.raises(CheckpointError, match="more than float64 can hold"):
        parse_record(b'{"format": 1, "name": "a", "parts": [{"scale": 1e999}]}', Whole, "x", "make it again")
    some = parse_record(b'{"rank": 8, "other": [1]}', Some, "adapter_config.json", "save it again")
    assert some.rank == 8
    with pytest.raises(ValidationError, match="frozen"):
        some.rank = 9


def test_an_object_is_required(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        read_json_object(tmp_path / "list.json")


@pytest.mark.parametrize("value", ["true", "1.0", "1e0"])
def test_what_equals_the_number_of_a_format_is_not_that_number(value: str) -> None:
    assert parse_record(b'{"format":1}', Numbered, "a.json", "write it again").format == 1
    with pytest.raises(
        CheckpointError, match=r"^a\.json: format: Input should be a valid integer, found (True|1\.0); write it"
    ):
        parse_record(f'{{"format":{value}}}'.encode(), Numbered, "a.json", "write it again")


@pytest.mark.parametrize(
    "problem",
    [UnicodeError("a\n b"), RecursionError("a b"), OverflowError("a b"), KeyError("a b"), TypeError("a b"),
     AttributeError("a b"), OSError("a b")],
)  # fmt: skip
def test_an_exception_of_a_library_is_one_line(problem: Exception) -> None:
    said = f"^file: {type(problem).__name__}: '?a b'?; get it again$"
    with pytest.raises(DeltaError, match=said), reading("file", "get it again", DeltaError, OSError):
        raise problem


def test_a_long_exception_is_cut_and_an_exception_of_ours_passes() -> None:
    with (
        pytest.raises(CheckpointError, match=r"^file: ValueError: x{300}; get it again$"),
        reading("file", "get it again"),
    ):
        raise ValueError("x" * 5000)
    with pytest.raises(OSError, match="not of the input"), reading("file", "get it again"):
        raise OSError("not of the input")
