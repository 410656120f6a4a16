"""Records of runs and stores that strangers wrote: what is refused, with the file, the field and the value."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import shadowft_core.store as stores
from shadowft_core.errors import DeltaError, EvaluationError, LedgerError, StoreCorruptError, StoreError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.forgetting.answers import read_answers
from shadowft_core.params import Store
from shadowft_core.promotion.ledger import Ledger
from shadowft_core.selection import read_candidate, select
from shadowft_core.store.backends.folder import FolderBackend
from shadowft_core.store.manifest import object_key
from shadowft_core.verdict.itemfile import read_items
from shadowft_core.verdict.looks import read_run
from shadowft_core.verdict.scores import read_arm
from tests.fixtures.arms import CLEAR, arena, five
from tests.fixtures.deltas import noise, trusted, write_delta
from tests.test_selection import write_sweep
from tests.test_verdict_files import write_arm

ROWS = [
    {"suite": "domain", "task": "t", "item_id": str(item), "arm": arm, "score": float(item % 2)}
    for arm in ("instruct", "mine")
    for item in range(4)
]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format":1', '"format":2', "shadow.json: format: .*found 2"),
        ('"format":1', '"format":1,"format":1', "duplicate key 'format'"),
        ('"scale":0.5,', '"scale":-3,', r"shadow.json: .*scale: .*found -3"),
        ('"scale":0.5,', '"scale":1000,', r"shadow.json: .*scale: .*found 1000"),
        ('"scale":0.5,', '"scale":NaN,', "shadow.json: not readable as JSON: NaN"),
        ('"scale":0.5,', '"scale":1e400,', "shadow.json: not readable as JSON: 1e400"),
        ('"scale":0.5,', '"scale":-0.0,', "shadow.json: .*0 has no sign"),
        ('"scale":0.5,', '"scale":true,', "shadow.json: .*scale: .*found True"),
        ('"domain":0.8', '"domain":1e308', r"shadow.json: curve.*domain: .*found 1e\+308"),
        ('"n":100', f'"n":{"9" * 70}', "shadow.json: .*whole number of 70 digits"),
    ],
)
def test_a_sweep_that_was_edited_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_sweep(tmp_path, "shadow", [(0.5, 0.8, 0.9), (1.0, 0.4, 0.9)])
    select(tmp_path, ["shadow"], 0.02, tmp_path / "candidate.json")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(EvaluationError, match=message):
        select(tmp_path, ["shadow"], 0.02, tmp_path / "again.json")
    assert not (tmp_path / "again.json").exists()
    (tmp_path / "candidate.json").write_text('{"format":1,"arm":null,"route":null,"scale":null,"reason":"","more":1}')
    with pytest.raises(EvaluationError, match=r"candidate.json: unknown field more"):
        read_candidate(tmp_path / "candidate.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task":"skill","item":"x","score":1e308}', r"items.jsonl:501: score: .*found 1e\+308"),
        ('{"task":"skill","item":"x","score":1e400}', "items.jsonl:501: score"),
        ('{"task":"skill","item":"x","score":Infinity}', "items.jsonl:501: score"),
        ('{"task":"skill","item":"x","score":true}', "items.jsonl:501: score: .*found True"),
        ('{"task":"skill","item":"x","score":"1"}', "items.jsonl:501: score: .*found '1'"),
        ('{"task":"skill","item":"x","score":1,"score":0}', "items.jsonl:501: .*duplicate key 'score'"),
        (
            '{"task":"skill","item":"x","score" :1,"score":0,"output":"\\":"}',
            "items.jsonl:501: .*duplicate key 'score'",
        ),
        ('{"task":"skill","item":"x","score"\r:1,"score":0}', "items.jsonl:501: .*duplicate key 'score'"),
        ('{"task":"skill","item":"x","score":1,"prompt":NaN}', "items.jsonl:501: .*NaN"),
        ('{"task":"skill","item":"x","score":1,"finish":"no"}', "items.jsonl:501: finish"),
        ('{"task":"skill","item":"x","score":1,"clusters":"a"}', "items.jsonl:501: unknown field clusters"),
        ('{"task":"skill","item":"' + "x" * 400 + '","score":1}', "items.jsonl:501: item: .*at most 300"),
    ],
)
def test_damaged_lines_of_scores_are_refused(tmp_path: Path, line: str, message: str) -> None:
    write_arm(tmp_path / "arm", arena(five(CLEAR, 100))["instruct"], "d")
    assert len(read_arm(tmp_path / "arm").scores["skill"]) == 100
    with (tmp_path / "arm/items.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_arm(tmp_path / "arm")


def test_a_long_answer_is_cut_with_a_word(tmp_path: Path) -> None:
    write_arm(tmp_path / "arm", arena(five(CLEAR, 4))["instruct"], "d")
    path = tmp_path / "arm/items.jsonl"
    path.write_text(path.read_text("utf-8").replace("caf\u00e9", "x" * 5_000_000, 1), "utf-8")
    by_item = read_answers(tmp_path / "arm").by_item
    shown = [answer.output for answers in by_item.values() for answer in answers.values()]
    assert max(map(len, shown)) < 4_100
    assert sum("cut: 5,000,007 characters" in text for text in shown) == 1


RUN = {"format": 1, "candidate": "a", "items": "i", "look": 1, "earlier": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"look": -1}, "run.json: look: .*found -1"),
        ({"look": 1.0}, "run.json: look: .*found 1.0"),
        ({"champion": {"version": True, "digest": "d"}}, "run.json: champion.version: .*found True"),
        ({"earlier": [{"number": 0}]}, "run.json: earlier.0.number"),
        ({"costs": [{"stage": "s", "seconds": -1}]}, "run.json: costs.0.seconds"),
        ({"more": 1}, "run.json: unknown field more"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN))
    assert read_run(path).look == 1
    path.write_text(json.dumps(RUN | change))
    with pytest.raises(EvaluationError, match=message):
        read_run(path)


def _dictionary(name: str, values: list[Any]) -> pyarrow.Array:
    column = pyarrow.array(values)
    return column.dictionary_encode() if name == "task" else column


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("score", pyarrow.array([0] * 8, pyarrow.timestamp("s")), "column 'score' has the type timestamp"),
        ("score", pyarrow.array([b"1"] * 8), "column 'score' has the type binary"),
        ("score", pyarrow.array([[1.0]] * 8), "column 'score' has the type list"),
        ("score", pyarrow.array([1] * 8, pyarrow.decimal128(5, 2)), "column 'score' has the type decimal"),
        ("score", pyarrow.array([1e308] * 8), r"row 1: score is 1e\+308"),
        ("score", pyarrow.array([float("nan")] * 8), "row 1: score is nan"),
        ("task", pyarrow.array([{"a": 1}] * 8), "column 'task' has the type struct"),
        ("task", pyarrow.array(["x" * 400] * 8), "row 1: task has 400 characters"),
        ("item_id", pyarrow.array([None] * 8, pyarrow.string()), "row 1: item_id is missing"),
        ("seed", pyarrow.array([1.5] * 8), "row 1: seed is 1.5"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path: Path, column: str, values: Any, message: str) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    coded = pyarrow.table({name: _dictionary(name, table[name].to_pylist()) for name in table.column_names})
    path = tmp_path / "items.parquet"
    pyarrow.parquet.write_table(coded, path)
    assert read_items(path)["mine"].scores == {"t": {"0": 0.0, "1": 1.0, "2": 0.0, "3": 1.0}}
    others = {name: coded[name] for name in coded.column_names if name != column}
    pyarrow.parquet.write_table(pyarrow.table(others | {column: values}), path)
    with pytest.raises(EvaluationError, match=message):
        read_items(path)


def test_a_column_that_stands_twice_and_too_many_rows_are_refused(tmp_path: Path) -> None:
    path, table = tmp_path / "items.parquet", pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table.append_column("score", table["score"]), path)
    with pytest.raises(EvaluationError, match="column 'score' appears 2 times"):
        read_items(path)
    many = {name: pyarrow.nulls(6_000_000, pyarrow.string()) for name in table.column_names}
    pyarrow.parquet.write_table(pyarrow.table(many), path)
    with pytest.raises(EvaluationError, match="6000000 rows, the limit is 5000000"):
        read_items(path)


def _published(tmp_path: Path) -> tuple[Store, str]:
    store = Store(uri=str(tmp_path / "store"))
    trusted(store)
    return store, stores.publish(write_delta(tmp_path / "delta", {"a": noise(1, 40)}), store)


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        place = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            one.bind(path.name[:60])
        finally:
            os.chdir(place)
        (path.parent / path.name[:60]).rename(path)


def _link(path: Path, kept: Path) -> None:
    path.symlink_to(kept)


def _device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("put", [_pipe, _socket, _link, _device])
@pytest.mark.parametrize("what", ["claim", "chunk", "folder", "lock"])
def test_nothing_but_files_and_folders_is_read_in_a_store(tmp_path: Path, put: Any, what: str) -> None:
    store, digest = _published(tmp_path)
    root = Path(store.uri)
    place = {
        "claim": root / "deltas" / digest[7:],
        "chunk": root / "objects/sha256" / digest[7:9] / digest[7:],
        "folder": root / "objects/sha256" / digest[7:9],
        "lock": root / ".lock",
    }[what]
    kept = place.rename(tmp_path / "kept")
    put(place, kept)
    before = kept.read_bytes() if kept.is_file() else b""
    use = stores.keep_record if what == "lock" else lambda _, store: stores.fetch_delta(digest, store, tmp_path / "out")
    with pytest.raises(StoreCorruptError, match="no plain file or folder"):
        use(b"{}", store)
    assert not (tmp_path / "out").exists()
    assert before == (kept.read_bytes() if kept.is_file() else b"")


@pytest.mark.parametrize("name", ["dense.safetensors.safetensors", "factors.safetensors", "evil.safetensors"])
def test_a_file_that_delta_json_does_not_imply_is_refused(tmp_path: Path, name: str) -> None:
    store, digest = _published(tmp_path)
    claim_path = Path(store.uri, "deltas", digest[7:])
    claim = json.loads(claim_path.read_bytes())
    at = Path(store.uri, object_key(claim["manifest"]))
    manifest = json.loads(at.read_bytes())
    manifest["files"][name] = manifest["files"]["dense.safetensors"]
    raw = canonical_json(manifest)
    at.with_name(at.name).write_bytes(raw)
    place = Path(store.uri, object_key(bytes_digest(raw)))
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(raw)
    claim_path.write_bytes(canonical_json(claim | {"manifest": bytes_digest(raw), "manifest_bytes": len(raw)}))
    with pytest.raises(StoreCorruptError, match=f"{name} is not a file of this delta"):
        stores.fetch_delta(digest, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert name in stores.check(store, state=tmp_path / "state").bad[0].problem
    assert name in str(stores.ls(store)[0].problem)
    (tmp_path / "delta" / name).write_bytes((tmp_path / "delta/dense.safetensors").read_bytes())
    with pytest.raises(DeltaError, match=f"{name} is not a file of this delta"):
        stores.publish(tmp_path / "delta", store)


def test_an_object_of_absurd_size_is_refused_without_reading_it(tmp_path: Path) -> None:
    store, digest = _published(tmp_path)
    place = Path(store.uri, "deltas", digest[7:])
    with place.open("ab") as file:
        file.truncate(1 << 40)  # sparse
    for use in (stores.holds, lambda digest, store: stores.fetch_delta(digest, store, tmp_path / "out")):
        with pytest.raises(StoreCorruptError, match=r"1099511627776 bytes|larger than the 4096 bytes"):
            use(digest, store)
    with pytest.raises(StoreError, match="found 1099511627776 bytes"):
        FolderBackend(Path(store.uri)).get(f"deltas/{digest[7:]}", 10, digest, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("when", "yesterday", "when: Invalid isoformat"),
        ("when", "2026-01-01T00:00:00", "when: expected a time with its zone"),
        ("version", 10**20, "version: "),
        ("version", True, "version: "),
        ("reason", "x" * 30_000, "reason: "),
        ("more", 1, "field more"),
    ],
)
def test_a_damaged_entry_of_the_ledger_is_refused(tmp_path: Path, field: str, value: Any, message: str) -> None:
    store, digest = Store(uri=str(tmp_path / "store")), "sha256:" + "a" * 64
    trusted(store)
    facts = {"version": 1, "model": digest, "recipe": digest, "verdict": digest, "decision": "promote", "reason": "r"}
    ledger = Ledger(store, "m")
    entry = ledger.append(ledger.tip(), None, action="promote", override=False, run_id="r", source="s", **facts)
    raw = canonical_json(json.loads(entry.raw) | {field: value})
    root = Path(store.uri, "ledger/m")
    (root / "entries" / bytes_digest(raw)[7:]).write_bytes(raw)
    (root / "head").write_bytes(canonical_json({"format": 1, "name": "m", "number": 1, "entry": bytes_digest(raw)}))
    with pytest.raises(LedgerError, match=message):
        Ledger(store, "m").tip()
