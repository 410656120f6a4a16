"""A tokenizer that somebody else made: it neither hangs, grows nor panics, and is the one that was checked."""

import base64
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import loading
from shadowft_core.errors import CheckpointError
from shadowft_core.files import within
from shadowft_core.loading import load
from shadowft_core.pair import check_pair
from shadowft_core.rendering import load_tokenizer
from tests.fixtures.models import Pair
from tests.test_loading import edit

TEXT = "please swap the letters a b c d " * 30
BACKTRACKS = r"(?:[ -~]|[ -~])%s(?<!.)"  # no position matches, and each has two ways for every letter
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
PAIR = [SEQUENCE, {"Sequence": {"id": "B", "type_id": 1}}]


def split(expression: str) -> dict[str, Any]:
    return {
        "normalizer": None,
        "pre_tokenizer": {
            **{"type": "Split", "pattern": {"Regex": expression}},
            **{"behavior": "Isolated", "invert": False},
        },
    }


def replace(content: str, times: int = 1, **pattern: str) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": pattern, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [one] * times}}


def charsmap(raw: bytes) -> dict[str, Any]:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}}


def templates(pieces: int) -> dict[str, Any]:
    single = [SEQUENCE] * pieces
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": PAIR, "special_tokens": {}}}


BPE = {"type": "BPE", "dropout": 0.5, "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "random tokens": ({"model": BPE}, r"model\.dropout is 0\.5, so the same text has other tokens each time"),
    "a letter becomes a terabyte": (
        replace("e" * 100, 6, String="e"),
        r"normalizer has 1e\+12 characters written for one, the limit is 64",
    ),
    "something for nothing": (replace("e" * 64, Regex=""), "65 characters written for one"),
    "something for an end": (replace("e" * 64, Regex="$"), "65 characters written for one"),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "e" * 64}}, "65 characters written for one"),
    "a map that reserves gigabytes": (charsmap(b"\xff" * 4), "a trie of 4294967295 bytes in 4; save"),
    "a map of nothing": (charsmap(b"\0" * 3), "a trie of 0 bytes in 3"),
    "a map to long texts": (charsmap(b"\4\0\0\0" + b"\0" * 4 + b"e" * 65 + b"\0"), "65 characters written for one"),
    "the text many times": (templates(1_001), r"post_processor has 1004 parts, the limit is 1000"),
    "a long expression": (split("a" * 10_001), "10001 characters of a pattern, the limit is 10000"),
    "an unknown form": ({"normalizer": {"type": "Replace"}}, "unknown form: KeyError: 'pattern'; save the tokenizer"),
}
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "pieces of no letters": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero"),
    "a map that leads out": (charsmap(b"\4\0\0\0" + b"\0" * 4 + b"xxxx\0"), "index out of bounds"),
    "an expression that gives up": (split(BACKTRACKS % "+"), "retry-limit-in-match over"),
    "no token for what is unknown": (
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[no]"}},
        r"Missing \[UNK\] token",
    ),
}


@pytest.fixture
def changed(tiny_llama_pair: Pair, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A copy of the Instruct with these fields in its tokenizer.json."""

    def change(fields: dict[str, Any]) -> Path:
        folder = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "model")
        edit(folder, "tokenizer.json", **fields)
        return folder

    return change


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_is_refused_before_the_library_reads_it(
    changed: Callable[[dict[str, Any]], Path], name: str
) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=rf"model/tokenizer\.json: .*{message}"):
        load_tokenizer(changed(fields))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_is_named(changed: Callable[[dict[str, Any]], Path], name: str) -> None:
    fields, message = DAMAGED[name]
    tokenizer = load_tokenizer(changed(fields))
    with pytest.raises(CheckpointError, match=rf"model/tokenizer\.json: damaged: .*{message}.*; save it again$"):
        tokenizer(TEXT)


def test_half_a_character_has_no_tokens(changed: Callable[[dict[str, Any]], Path]) -> None:
    tokenizer = load_tokenizer(changed({}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: half a character \(a surrogate\) has no tokens"):
        tokenizer("a \ud800")


def test_a_text_has_a_limit_of_time(changed: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(changed(split(BACKTRACKS % "{17}")))
    monkeypatch.setattr(loading, "TOKENIZER_SECONDS", 0.2)
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: took more than 0\.2\d* s for one text or batch"):
        tokenizer(TEXT)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "fields",
    [
        replace("▁", String=" "),
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        split(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        templates(1),
    ],
)
def test_what_tokenizers_do_is_taken(changed: Callable[[dict[str, Any]], Path], fields: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(changed(fields))
    assert tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode([1, 2])


@pytest.mark.parametrize(
    ("file", "field", "own", "other"),
    [
        ("config.json", "configuration_files", "config.json", "config.4.0.0.json"),
        ("tokenizer_config.json", "fast_tokenizer_files", "tokenizer.json", "tokenizer.4.0.0.json"),
        ("tokenizer_config.json", "fast_tokenizer_files", "tokenizer.json", "../tokenizer.4.0.0.json"),
    ],
)
def test_no_other_version_of_a_file_takes_its_place(
    tiny_llama_pair: Pair, tmp_path: Path, file: str, field: str, own: str, other: str
) -> None:
    folder = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "model")
    content = json.loads((folder / own).read_text())
    (folder / other).write_text(json.dumps(content | {"rms_norm_eps": 10.0, "normalizer": {"type": "Lowercase"}}))
    edit(folder, file, **{field: [own]})
    assert load_tokenizer(folder)("a")["input_ids"]
    edit(folder, file, **{field: [own, other]})
    message = rf"model/{file}: {field}\.1: Input should be '{own}', found '{other}'; correct the field"
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match=message):
        check_pair(tiny_llama_pair.base, folder)


def test_a_call_within_a_limit_returns_or_raises_as_it_would() -> None:
    def fails() -> None:
        raise KeyError("x")

    def busy() -> None:
        while time.thread_time() < 1:
            sum(range(1000))

    assert within(1, lambda: 7) == 7
    with pytest.raises(KeyError, match="x"):
        within(1, fails)
    with pytest.raises(TimeoutError):
        within(0.1, busy)
    assert within(1, lambda: 8) == 8, "not the result of the call before"


def test_the_loader_is_the_one_that_is_limited(tiny_llama_pair: Pair) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    assert isinstance(load(AutoTokenizer, tiny_llama_pair.instruct), PreTrainedTokenizerFast)
    assert all(hasattr(getattr(PreTrainedTokenizerFast, name), "__wrapped__") for name in ("_encode_plus", "_decode"))
