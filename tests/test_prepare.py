"""Data files of every shape and every kind of damage, made here; nothing is mocked."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import DataError, ParamsError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Prepare
from shadowft_core.prepare import SPLITS, prepare, rows

ALL_TO_TRAIN = Prepare(data="-", valid=0, max_bad=0.9)


def talk(asked: str, said: str = "fine") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def lines(values: list[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


class Stage:
    """`prepare` on one folder of data files and one task folder, both empty at first."""

    def __init__(self, place: Path) -> None:
        self.data, self.tasks, self.out = place / "data", place / "tasks", place / "out"
        self.data.mkdir()
        self.tasks.mkdir()

    def run(self, params: Prepare = ALL_TO_TRAIN) -> dict[str, Any]:
        prepare(self.data, self.tasks, params, self.out)
        report: dict[str, Any] = json.loads((self.out / "data-report.json").read_text())
        return report

    def split(self, name: str = "train") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.out / f"{name}.parquet").to_pylist()
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


SYSTEM = {"role": "system", "content": "Be kind."}
SHAPES = {
    "messages": (talk("hi"), [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "fine"}]),
    "system turn": ({"messages": [SYSTEM, *talk("hi")["messages"]]}, [SYSTEM, *talk("hi")["messages"]]),
    "sharegpt": (
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "fine"}]},
        [SYSTEM, *talk("hi")["messages"]],
    ),
    "no tools": (
        {"tools": "[]", "conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "fine"}]},
        talk("hi")["messages"],
    ),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, talk("Add.\n1 2", "3")["messages"]),
    "alpaca, no input": ({"instruction": "hi", "input": "", "output": "fine"}, talk("hi")["messages"]),
    "question/answer": ({"question": "hi", "answer": "fine"}, talk("hi")["messages"]),
    "prompt/response": ({"prompt": "hi", "response": "fine"}, talk("hi")["messages"]),
    "CRLF": (talk("a\r\nb", "c\r\nd"), talk("a\nb", "c\nd")["messages"]),
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "json with BOM", "parquet"])
@pytest.mark.parametrize(("given", "wanted"), SHAPES.values(), ids=SHAPES)
def test_every_shape_in_every_format(stage: Stage, given: dict[str, Any], wanted: list[Any], kind: str) -> None:
    path = stage.data / f"rows.{kind.split(maxsplit=1)[0]}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([given]), path)
    elif kind == "jsonl":
        path.write_bytes(json.dumps(given).encode())  # and no newline at the end
    else:
        path.write_bytes(b"\xef\xbb\xbf" * kind.endswith("BOM") + json.dumps([given], indent=1).encode())
    report = stage.run()
    assert report["bad"]["count"] == 0
    (row,) = stage.split()
    assert row["messages"] == wanted
    assert f"sha256:{row['id']}" == bytes_digest(canonical_json(wanted))
    assert row["source"] == f"{path.name}:1"
    system = [turn["content"] for turn in wanted if turn["role"] == "system"]
    assert row["prompt"] == "\n\n".join([*system, wanted[len(system)]["content"]])
    assert row["reply"] == wanted[-1]["content"]


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


BAD = {
    "bad JSON": b'{"messages": [',
    "invalid UTF-8": b'{"question": "\xff", "answer": "x"}',
    "duplicate key": b'{"question": "a", "question": "b", "answer": "c"}',
    "NaN is not JSON": b'{"question": "a", "answer": "c", "score": NaN}',
    "nested too deeply": b"[" * 200_000,
    "not a JSON object": b'["question", "answer"]',
    "missing field: neither": b'{"text": "no conversation"}',
    "missing field 'answer'": b'{"question": "a"}',
    "field 'answer' is not text": b'{"question": "a", "answer": 3}',
    "empty 'answer'": b'{"question": "a", "answer": " \\n"}',
    "NUL in 'question'": b'{"question": "a\\u0000", "answer": "b"}',
    "lone surrogate in 'question'": b'{"question": "\\ud83d", "answer": "b"}',
    "field 'messages' is not a list": b'{"messages": "hi"}',
    "a turn of 'messages' has no 'role'": b'{"messages": [{"content": "x"}]}',
    "a turn of 'messages' has no 'content'": b'{"messages": [{"role": "user"}]}',
    "unsupported role 'tool'": json.dumps(turns("user", "tool", "assistant")).encode(),
    "unsupported role 'function_call'": b'{"conversations": [{"from": "function_call", "value": "f()"}]}',
    "unsupported field 'tools'": b'{"question": "a", "answer": "b", "tools": [{"name": "f"}]}',
    "unsupported role 'tool_calls'": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]}'
    ),
    "unsupported field 'history'": b'{"instruction": "a", "output": "b", "history": [["c", "d"]]}',
    "unsupported field 'chosen'": b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
    "no user turn": json.dumps(turns("system")).encode(),
    "user and assistant do not alternate": json.dumps(turns("user", "user", "assistant")).encode(),
    "last turn is not the assistant's": json.dumps(turns("user", "assistant", "user")).encode(),
    "longer than 16 MiB": b'{"question": "' + b"x" * (17 << 20) + b'", "answer": "b"}',
}


@pytest.mark.parametrize(("reason", "line"), BAD.items(), ids=BAD)
def test_a_bad_row_is_counted_with_its_line_and_reason(stage: Stage, reason: str, line: bytes) -> None:
    good = [json.dumps(talk(f"question {n}")).encode() for n in range(4)]
    (stage.data / "rows.jsonl").write_bytes(b"\n".join([good[0], good[1], line, b"", good[2], good[3]]))
    report = stage.run()
    (refused,) = report["bad"]["rows"]
    assert refused["source"] == "rows.jsonl:3"
    assert refused["reason"].startswith(reason)
    assert report["bad"]["reasons"] == {refused["reason"]: 1}
    assert (report["rows"], report["splits"]["train"]) == (5, 4)
    assert {row["source"] for row in stage.split()} == {f"rows.jsonl:{n}" for n in (1, 2, 5, 6)}


def test_odd_elements_of_an_array_cost_only_themselves(stage: Stage) -> None:
    (stage.data / "rows.json").write_text(
        f'[{json.dumps(talk("one"))}, {{"question": 1, "question": 2}}, NaN, {json.dumps(talk("two"))}]'
    )
    report = stage.run()
    assert [bad["source"] for bad in report["bad"]["rows"]] == ["rows.json:2", "rows.json:3"]
    assert report["splits"]["train"] == 2


UNREADABLE = {
    "holds no .json, .jsonl, .parquet file": {},
    "holds no rows": {"rows.jsonl": b""},
    "none of 2 rows is usable: rows.jsonl:1 bad JSON; rows.jsonl:2 bad JSON": {"rows.jsonl": b"{\n}}\n"},
    "all 3 usable rows are the same conversation": {"rows.jsonl": lines([talk("hi")] * 3)},
    "bad JSON in row 2, line 2": {"rows.json": b'[{"question": "a", "answer": "b"},\n{"question": ]'},
    "row 1 is followed by neither ',' nor ']'": {"rows.json": b'[{"question": "a", "answer": "b"} {}]'},
    "text after the closing ']'": {"rows.json": b'[{"question": "a", "answer": "b"}] x'},
    "invalid UTF-8 at byte 2": {"rows.json": b'["\xff"]'},
    "not readable as parquet": {"rows.parquet": b"PAR1 but no more"},
}


@pytest.mark.parametrize(("message", "files"), UNREADABLE.items(), ids=UNREADABLE)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(
    stage: Stage, message: str, files: dict[str, bytes]
) -> None:
    for name, content in files.items():
        (stage.data / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        stage.run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in stage.data.parent.iterdir()) == ["data", "tasks"]


def test_missing_places_are_named(stage: Stage) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        prepare(stage.data / "nowhere", stage.tasks, ALL_TO_TRAIN, stage.out)
    (stage.data / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=r"rows\.txt: ends in '\.txt'"):
        prepare(stage.data / "rows.txt", stage.tasks, ALL_TO_TRAIN, stage.out)
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi")]))
    with pytest.raises(DataError, match="nowhere: no such task folder"):
        prepare(stage.data, stage.data / "nowhere", ALL_TO_TRAIN, stage.out)


def test_too_many_bad_rows_fail_and_the_share_itself_does_not(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(str(n)) for n in range(95)] + [{}] * 5))
    assert stage.run(Prepare(data="-", max_bad=0.05))["bad"]["count"] == 5
    message = r"5 of 100 rows \(5\.0%\) are not usable, prepare\.max_bad allows 4\.0%: rows\.jsonl:96 missing field"
    with pytest.raises(DataError, match=message):
        stage.run(Prepare(data="-", max_bad=0.04))


def test_duplicates_across_files_keep_the_first(stage: Stage) -> None:
    (stage.data / "b.jsonl").write_bytes(lines([talk("two"), talk("one")]))
    (stage.data / "a.jsonl").write_bytes(lines([talk("zero"), talk("one"), talk("one")]))
    report = stage.run()
    assert (report["duplicates"], report["splits"]["train"]) == (2, 3)
    assert {row["prompt"]: row["source"] for row in stage.split()} == {
        "zero": "a.jsonl:1",
        "one": "a.jsonl:2",
        "two": "b.jsonl:1",
    }


def places(stage: Stage) -> dict[str, str]:
    return {row["id"]: name for name in SPLITS for row in stage.split(name)}


def test_splits_hold_their_shares_and_added_rows_move_no_old_one(stage: Stage) -> None:
    shares = Prepare(data="-", valid=0.1, dev=0.2, test=0.3)
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(2000)]))
    report = stage.run(shares)
    old = places(stage)
    for name, share in (("valid", 0.1), ("dev", 0.2), ("test", 0.3), ("train", 0.4)):
        spread = (2000 * share * (1 - share)) ** 0.5
        assert abs(report["splits"][name] - 2000 * share) < 4 * spread
        ids = [row["id"] for row in stage.split(name)]
        assert ids == sorted(ids)
    (stage.data / "more.jsonl").write_bytes(lines([talk(f"another {n}") for n in range(1000)]))
    more = stage.run(shares)
    new = places(stage)
    assert len(new) == 3000
    assert {key: new[key] for key in old} == old
    assert more["digest"] != report["digest"]


def test_the_same_rows_in_other_files_give_the_same_ids_and_digest(stage: Stage) -> None:
    values = [talk(f"question {n}") for n in range(50)]
    (stage.data / "rows.jsonl").write_bytes(lines(values))
    one, ids = stage.run()["digest"], places(stage)
    first = (stage.out / "train.parquet").read_bytes()
    stage.run()
    assert (stage.out / "train.parquet").read_bytes() == first
    (stage.data / "rows.jsonl").unlink()
    (stage.data / "other.json").write_text(json.dumps(values[::-1]))
    assert stage.run()["digest"] == one
    assert places(stage) == ids


def test_max_rows_keeps_a_sample_of_every_split(stage: Stage) -> None:
    params = Prepare(data="-", valid=0.5)
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(1000)]))
    stage.run(params)
    everything = places(stage)
    report = stage.run(params.model_copy(update={"max_rows": 200}))
    kept = places(stage)
    assert (len(kept), report["left_out_by_max_rows"]) == (200, 800)
    assert kept.items() <= everything.items()
    assert 70 < report["splits"]["valid"] < 130


def test_shares_that_leave_no_training_rows_are_refused(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi")]))
    with pytest.raises(ParamsError, match=r"valid 0\.5 \+ dev 0\.3 \+ test 0\.2 leaves nothing to train on"):
        stage.run(Prepare(data="-", valid=0.5, dev=0.3, test=0.2))
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "HI"}]))
    with pytest.raises(DataError, match=r"no row is left to train on \(1 distinct, 1 stand in"):
        stage.run()


STORY = (
    "A farmer has twelve red hens and each of them lays four brown eggs every single week of the long year "
    "so how many eggs does he sell when he keeps seven of them for his own breakfast"
)
LEAKS = {
    "equal": (STORY, "exact"),
    "case and white space": (STORY.upper().replace(" ", " \n "), "exact"),
    "wrapped": (f"Please answer with care.\n{STORY}? Think step by step.", "13-gram"),
    "most of it": (" ".join(STORY.split()[:28]) + " does she have", "13-gram"),
    "short, where the item asks": ("Why so?", "exact"),
}
CLEAN = {
    "stock phrase of 13 words": " ".join(STORY.split()[3:16]) + " and then a fox came by and took them all",
    "an answer of an item": "Yes.",
    "words in another order": " ".join(sorted(STORY.split())),
    "part of a short question": "Why so late?",
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "object", "parquet"])
def test_planted_leaks_are_found_and_nothing_else(stage: Stage, kind: str) -> None:
    items = [{"question": "Why so?", "answer": "yes."}, {"doc": {"query": STORY + "?"}, "gold": 41}, {"text": STORY}]
    (stage.tasks / "deep").mkdir()
    path = stage.tasks / "deep" / f"items.{'json' if kind == 'object' else kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"question": i.get("question"), "text": STORY} for i in items]), path)
    elif kind == "jsonl":
        path.write_bytes(lines(items))
    else:
        path.write_text(json.dumps({"examples": items} if kind == "object" else items, indent=1))
    planted = [talk(text) for text, _ in LEAKS.values()]
    later = {"messages": talk("Tell me a riddle.")["messages"] + talk(STORY)["messages"]}
    clean = [talk(text) for text in CLEAN.values()]
    (stage.data / "rows.jsonl").write_bytes(lines([*planted, later, *clean]))
    report = stage.run()
    found = {int(row["source"].split(":")[1]): row["rule"] for row in report["contaminated"]["rows"]}
    assert found == {**{n: rule for n, (_, rule) in enumerate(LEAKS.values(), 1)}, len(LEAKS) + 1: "exact"}
    assert {row["prompt"] for row in stage.split()} == set(CLEAN.values())
    assert all(row["item"].startswith(f"deep/{path.name}:") for row in report["contaminated"]["rows"])


def test_a_task_file_that_cannot_be_read_is_no_clean_bill(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi")]))
    (stage.tasks / "items.jsonl").write_bytes(b'{"question": "hi"}\n{"question": \n')
    with pytest.raises(DataError, match=r"items\.jsonl: task file not readable, row 2: bad JSON"):
        stage.run()


def test_a_line_without_end_is_never_held_in_memory(tmp_path: Path) -> None:
    """A sparse line of 256 MiB is refused while memory stays near the limit of 16 MiB."""
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(lines([talk("hi")]))
        file.seek(256 << 20)
        file.write(b"\n" + lines([talk("ho")]))
    tracemalloc.start()
    found = [(row.number, row.problem) for row in rows.read_rows(path)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(1, None), (2, "longer than 16 MiB"), (3, None)]
    assert peak < 3 * rows.ROW_LIMIT


def test_a_hidden_file_is_no_data(stage: Stage) -> None:
    """What an editor or a file manager leaves: read as data, it would train on rows that were taken out."""
    (stage.data / "rows.jsonl").write_bytes(lines([talk("kept")]))
    (stage.data / ".rows.jsonl").write_bytes(lines([talk("taken out")]))
    assert [file["file"] for file in stage.run()["files"]] == ["rows.jsonl"]
    assert [row["prompt"] for row in stage.split()] == ["kept"]


def test_a_row_stays_in_its_split_from_release_to_release(stage: Stage) -> None:
    """Pinned: another hash, or another order of the shares, would move rows that were judged on into training."""
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(20)]))
    stage.run(Prepare(data="-", valid=0.2, dev=0.2, test=0.2))
    found = {name: sorted(int(row["prompt"].split()[1]) for row in stage.split(name)) for name in SPLITS}
    assert found == {
        "train": [0, 2, 5, 6, 8, 10, 12, 14, 16, 17, 18],
        "valid": [3, 7, 11, 13, 15],
        "dev": [4],
        "test": [1, 9, 19],
    }
