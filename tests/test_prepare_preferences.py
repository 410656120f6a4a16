"""Rows with a chosen and a rejected reply: shapes, refusals, ids, and what the stage and the verbs do with them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shadowft_core.evaluate.heldout import render_heldout
from shadowft_core.params import Newest, Prepare, Render, Replay
from shadowft_core.prepare.show import show
from shadowft_core.rendering import load_renderer, prepared_rows
from tests.fixtures.cli import Shadowft
from tests.fixtures.data import ALL_TO_TRAIN, Stage, lines, pinned, talk
from tests.fixtures.training import write_model

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
SYSTEM = {"role": "system", "content": "s"}
EARLIER = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "o"}]
FROM = [{"from": "human", "value": "q"}]


def said(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def pair(asked: str, chosen: str = "a", rejected: str = "b") -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


SHAPES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "texts": (pair("q"), [Q, A]),
    "a question, an answer and a rejected text": ({"question": "q", "answer": "a", "rejected": "b"}, [Q, A]),
    "with a system text": ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, [SYSTEM, Q, A]),
    "lists of one text": ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, [Q, A]),
    "explicit prompt": ({"prompt": [Q], "chosen": [A], "rejected": [B]}, [Q, A]),
    "explicit prompt of many turns": ({"prompt": [SYSTEM, *EARLIER, Q], "chosen": [A], "rejected": [B]},
                                      [SYSTEM, *EARLIER, Q, A]),
    "implicit prompt": ({"chosen": [*EARLIER, Q, A], "rejected": [*EARLIER, Q, B]}, [*EARLIER, Q, A]),
    "whole conversations beside their prompt": ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]}, [Q, A]),
    "UltraFeedback": ({"prompt": "q", "prompt_id": "0f", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A],
                       "score_chosen": 8.0, "score_rejected": 4.0}, [Q, A]),
    "LLaMA-Factory": ({"conversations": FROM, "chosen": said("a"), "rejected": said("b")}, [Q, A]),
    "LLaMA-Factory with a system turn": ({"conversations": [{"from": "system", "value": "s"}, *FROM],
                                          "chosen": said("a"), "rejected": said("b")}, [SYSTEM, Q, A]),
    "messages that end with the chosen reply": ({"messages": [Q, A], "rejected": "b"}, [Q, A]),
}  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), SHAPES.values(), ids=SHAPES)
def test_every_shape_gives_the_chosen_and_the_rejected_reply(stage: Stage, row: Any, messages: list[Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row]))
    report = stage.run()
    (read,) = stage.split()
    assert read["messages"] == messages
    (rejected,) = read["rejected"]
    assert {name: value for name, value in rejected.items() if value is not None} == B
    assert report["preferences"] == 1
    assert report["fields_ignored"].keys() <= {"prompt", "prompt_id", "score_chosen", "score_rejected"}


def test_a_thought_of_a_rejected_reply_is_split_off(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([pair("q", "<think>t</think>a", "<think>u</think>b")]))
    stage.run()
    (read,) = stage.split()
    assert (read["messages"][1]["reasoning_content"], read["rejected"][0]["reasoning_content"]) == ("t", "u")


BAD: dict[str, dict[str, Any]] = {
    "'chosen' and 'rejected' are equal": pair("q", "a", "a"),
    "'chosen' and 'rejected' are equal of turns": {"chosen": [Q, A], "rejected": [Q, A | {"content": "a\n"}]},
    "'chosen' and 'rejected' differ before their last turn": {"chosen": [Q, A], "rejected": [Q | {"content": "r"}, B]},
    "'chosen' and 'rejected' differ before their last turn, longer": {"chosen": [Q, A], "rejected": [*EARLIER, Q, B]},
    "'chosen' and 'rejected' differ before their last turn, system": {"chosen": [SYSTEM, Q, A], "rejected": [Q, B]},
    "'rejected' does not end with the assistant's turn": {"messages": [Q, A], "rejected": [Q]},
    "empty 'rejected'": pair("q", "a", ""),
    "empty 'rejected' of blanks": pair("q", "a", " \n"),
    "empty 'rejected' list": {"chosen": [Q, A], "rejected": []},
    "empty 'chosen'": pair("q", "", "b"),
    "weight 0 of a chosen or rejected reply": {"messages": [*EARLIER, Q, A | {"weight": 0}], "rejected": "b"},
    "weight 0 of a chosen or rejected reply, the rejected": {"messages": [Q, A], "rejected": [B | {"weight": 0}]},
    "the reply in 'messages' is not that in 'chosen'": {"messages": [Q, A], "chosen": [Q, B], "rejected": [Q, B]},
    "the reply in 'messages' is not that in 'chosen', a text": {"messages": [Q, A], "chosen": "c", "rejected": "b"},
    "the reply in 'messages' is not that in 'chosen', asked otherwise": {
        "messages": [Q, A],
        "chosen": [Q | {"content": "r"}, A],
        "rejected": "b",
    },
    "an image in a turn of the role 'assistant'": {"messages": [Q, A], "rejected": [B | {"image": "cat.png"}]},
    "field 'rejected' holds 2 replies": {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]},
    "no reply beside 'prompt'": {"prompt": "q", "rejected": "b"},
}


@pytest.mark.parametrize(("reason", "row"), BAD.items(), ids=BAD)
def test_a_preference_that_is_none_is_refused_with_its_line(stage: Stage, reason: str, row: dict[str, Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([pair("one"), row]))
    report = stage.run()
    (refused,) = stage.dropped()
    assert (refused["file"], refused["line"]) == ("rows.jsonl", 2)
    assert reason.startswith(refused["reason"]) or refused["reason"].startswith(reason)
    assert (report["bad"], report["preferences"]) == (1, 1)


def test_both_kinds_are_kept_and_null_is_no_rejected_reply(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([pair("one"), {**pair("two"), "rejected": None}, talk("three")]))
    report = stage.run()
    assert [bool(row["rejected"]) for row in stage.split()] == [True, False, False]
    assert (report["rows_used"], report["preferences"]) == (3, 1)


def test_the_id_covers_the_rejected_reply_and_no_other_id_changes(stage: Stage) -> None:
    rows = [talk("q", "a"), pair("q", "a", "b"), pair("q", "a", "c"), pair("q", "a", "b")]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(ALL_TO_TRAIN.model_copy(update={"near": None}))
    plain, first, second = (row["id"] for row in stage.split())
    # Recorded before rows had rejected replies.
    assert plain == hashlib.sha256(b'[{"content":"q","role":"user"},{"content":"a","role":"assistant"}]').hexdigest()
    assert first == hashlib.sha256(
        b'{"messages":[{"content":"q","role":"user"},{"content":"a","role":"assistant"}],'
        b'"rejected":[{"content":"b","role":"assistant"}]}'
    ).hexdigest()  # fmt: skip
    assert len({plain, first, second}) == 3
    assert report["rows_dropped"] == {"duplicate": 1}


LONG = "the first of many words about rivers and seas that nobody has ever counted twice in one long day"
OTHER = "no such thing was ever said by anyone who knew where the old mill stood before it burned down"


def test_pairs_are_near_duplicates_only_if_their_rejected_replies_are_near_too(stage: Stage) -> None:
    rows = [pair("q one", LONG, OTHER), pair("q one", LONG, f"{OTHER} again"), pair("q one", LONG, LONG[::-1])]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run()
    assert report["rows_dropped"] == {"near duplicate": 1}
    assert [row["source"] for row in stage.split()] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_equal_prompts_stay_in_one_split(stage: Stage) -> None:
    rows = [
        row
        for n in range(200)
        for row in (pair(f"ask {n}", "a", f"b{n}"), pair(f"Ask  {n}", f"a{n}"), talk(f"ask {n}"))
    ]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(Prepare(data="-", valid=0.2, dev=0.1, test=0.1))
    splits = {
        name: {" ".join(row["prompt"].casefold().split()) for row in stage.split(name)} for name in report["splits"]
    }
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 200
    assert all(len(stage.split(name)) == 3 * len(asked) for name, asked in splits.items())
    assert all(splits.values())


def test_test_items_newest_rows_and_replay_treat_pairs_as_other_rows(stage: Stage) -> None:
    (stage.tasks / "items.jsonl").write_text('{"question": "ask 3 of them"}\n')
    old = [pair(f"ask {n} of them") for n in range(40)]
    (stage.data / "rows.jsonl").write_bytes(lines(old))
    earlier = stage.data.parent / "earlier.jsonl"
    earlier.write_bytes(lines(old[:30]))
    general = stage.data.parent / "general.jsonl"
    general.write_bytes(lines([pair(f"general {n}") for n in range(20)]))
    newest, replay = Newest(since=str(earlier)), Replay(data=str(general), share=0.1)
    params = pinned(pinned(Prepare(data="-", valid=0, test=0.1, newest=newest)).model_copy(update={"replay": replay}))
    report = stage.run(params)
    assert report["rows_dropped"] == {"in a test item": 1}
    assert {int(row["source"].split(":")[1]) > 30 for row in stage.split("test")} == {True}
    assert report["preferences"] == 39
    assert report["replay"]["preferences"] == report["replay"]["rows_used"] > 0


def test_show_prints_both_replies(stage: Stage, shadowft: Shadowft, tmp_path: Path) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([pair("1 plus 2", "is 3", "is 4 is 4"), talk("1 plus 1", "is 2")]))
    stage.run()
    text = shadowft("data", "show", stage.out).out
    assert "2 rows read, 2 used, 1 with a rejected reply" in text
    assert "user: 1 plus 2\nassistant: is 3\nrejected: is 4 is 4\n" in text
    model = write_model(tmp_path / "model", 1)
    text = shadowft("data", "show", stage.out, "--tokenizer", model).out
    prompt = "<|im_start|> user : 1 plus 2 <|im_end|> . <|im_start|> assistant :"
    assert f"{prompt}{{+is 3 <|im_end|>+}}\nrejected:\n{prompt}{{+is 4 is 4 <|im_end|>+}}\n" in text
    assert "tokens of 2 rows of train: min 15, median 15, p95 16, max 16" in text  # of a pair the longer sequence


def test_diff_counts_a_changed_rejected_reply(stage: Stage, shadowft: Shadowft) -> None:
    (stage.data / "one.jsonl").write_bytes(lines([pair("q", "a", "b"), pair("r")]))
    (stage.data / "two.jsonl").write_bytes(lines([pair("q", "a", "c"), pair("r")]))
    done = shadowft("data", "diff", stage.data / "one.jsonl", stage.data / "two.jsonl", "--json")
    found = json.loads(done.out)
    assert found["changed"]["questions"] == 1
    assert found["splits"]["rows"] == {"before": 2, "after": 2, "added": 1, "removed": 1, "kept": 1}


def test_a_folder_made_before_the_column_is_read(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("q", "a")]))
    stage.run()
    for name in ("train", "valid", "dev", "test"):
        file = stage.out / f"{name}.parquet"
        pq.write_table(pq.read_table(file).drop_columns(["rejected"]), file)
    report = json.loads((stage.out / "data-report.json").read_text())
    del report["preferences"]
    (stage.out / "data-report.json").write_text(json.dumps(report))
    assert [row.rejected for row in prepared_rows(stage.out / "train.parquet")] == [None]
    assert show(stage.out)["samples"][0]["rejected"] is None


def test_a_file_without_pairs_has_a_null_column(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("q", "a")]))
    assert stage.run()["preferences"] == 0
    column = pq.read_table(stage.out / "train.parquet").column("rejected")
    assert column.null_count == len(column) == 1


def test_heldout_scores_the_chosen_reply(stage: Stage, tmp_path: Path) -> None:
    """Of a conversation of many turns it is the last reply; the first one was given to the model as well."""
    turns = [{"role": "user", "content": "1 plus 1"}, {"role": "assistant", "content": "is 2"}]
    asked = {"role": "user", "content": "1 plus 2"}
    rows = [
        {"prompt": [*turns, asked], "chosen": "is 3", "rejected": "is 4"},
        {"messages": [*turns, asked, {"role": "assistant", "content": "is 5"}]},
    ]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    stage.run()
    (stage.out / "train.parquet").rename(stage.out / "test.parquet")
    renderer = load_renderer(write_model(tmp_path / "model", 1), Render())
    render_heldout(renderer, stage.out, tmp_path / "rendered")
    found = pq.read_table(tmp_path / "rendered/test.parquet").column("reply").to_pylist()
    assert [reply.strip() for reply in found] == ["is 3", "is 2"]
