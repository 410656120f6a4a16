"""The fast reading and hashing of rows gives the results of the standard library."""

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowft_core.files import canonical_json
from shadowft_core.files.jsontext import decode
from shadowft_core.prepare.overlap import NGRAM, Items, ngrams
from shadowft_core.prepare.table import words_of

TEXTS = st.text(st.characters(codec="utf-8")) | st.sampled_from(['":', "\\", '\\":', "\0", "\x7f", "\u2028", "\ufeff"])
NUMBERS = (
    st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([2**64, -0.0])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def slow(text: bytes) -> Any:
    """Read with the standard library, and refuse what `decode` refuses."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    json.loads(text.decode(), parse_constant=constant)
    return json.loads(text.decode(), object_pairs_hook=unique)


def outcome(read: Any, text: bytes) -> str:
    try:
        return repr(read(text))
    except json.JSONDecodeError:
        return "bad JSON"
    except ValueError as error:
        return re.sub(r"Exceeds.*", "bad JSON", str(error))


@settings(max_examples=300)
@given(VALUES, st.booleans(), st.sampled_from([None, 0, 1]))
def test_a_value_is_what_json_reads(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert outcome(decode, text) == repr(value)


ODD = [
    "-0", "-0.0", "18446744073709551616", "-9223372036854775809", "1e400", "-1e400", "1" * 400, "1" * 5000, "NaN",
    "[-Infinity]", r'"\ud800"', r'{"\udfff": 1}', r'["\ud83d\ude00"]', "\ufeff1", "[1,]", '"\x01"', '"\x7f"', "1E5",
    "[1]\x0c", r'"\u0000"', '{"a":1,"a":2}', r'{"a":1,"\u0061":2}', '{"a" \t:1,"a"\n:2}', '{"a":{"b":1,"b":2},"c":NaN}',
    '{"a"  :1,"a":2}', '{"a"\t:1,"a":2}',
    r'{"a":"\ud800","a":1}', '{"a":1,"a":2', "\u2028 1", "1 2", r'"\x"', "-", "01", "[1]\0", "", " ", '{"a":"x\\":y"}',
    r'{"a\\":1,"b":1,"b":2}', '{"a":"b":1}', "'a'", "{1: 2}", "1.", ".5", "+1", "tru", "true", '[1e-400, 1e22, 0.1]',
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_read_or_refused_as_json_does(text: str) -> None:
    assert outcome(decode, text.encode()) == outcome(slow, text.encode())


@settings(max_examples=300)
@given(st.binary(max_size=12) | st.text(alphabet='[]{}":,\\u0dE-. \n', max_size=16).map(str.encode))
def test_any_bytes_are_read_or_refused_as_json_does(text: bytes) -> None:
    assert outcome(decode, text) == outcome(slow, text)


@given(
    st.lists(st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}, optional={"weight": st.just(0), "name": TEXTS}))
)
def test_an_id_is_that_of_the_canonical_json(messages: list[dict[str, Any]]) -> None:
    assert orjson.dumps(messages, option=orjson.OPT_SORT_KEYS) == canonical_json(messages)


@given(st.text(st.characters(max_codepoint=127)) | TEXTS)
def test_words_are_those_of_the_regular_expression(text: str) -> None:
    assert words_of(text) == re.findall(r"\w+", text.casefold())


@settings(max_examples=300)
@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=60))
def test_no_shared_sequence_is_overlooked(item: list[int], row: list[int]) -> None:
    """The quick test skips no text that has a sequence of an item."""
    items, asked = Items(None), [f"w{number}" for number in row]
    items.add({"items:1": {"text": " ".join(f"w{number}" for number in item)}})
    both = ngrams([f"w{number}" for number in item]) & ngrams(asked)
    assert items.shared(" ".join(asked)) == both
    assert all(len(gram.split()) == NGRAM for gram in both)
