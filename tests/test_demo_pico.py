"""The world of the pico pair: its generated files, vocabulary and task files, and what is held out of training."""

import json
import re
from pathlib import Path

import pytest
import yaml

from shadowft_core.demo.pico import build_tokenizer
from shadowft_core.demo.pico.generate import domain_rows, evaluation_items, files, replay_rows
from shadowft_core.demo.pico.world import (
    DOMAIN_OPERATIONS,
    END_OF_TURN,
    FORMATS,
    LETTERS,
    OPERATIONS,
    REFUSAL,
    UNKNOWN,
    World,
)
from shadowft_core.params import load_params
from shadowft_core.prepare.tracked import content_of

ROOM = Path(__file__).parent.parent / "shadowft_core" / "demo" / "pico"
WORLD = World(seed=0)


def test_operations_do_what_their_names_say() -> None:
    results = {name: "".join(work(list("bcdf"))) for name, work in OPERATIONS.items()}
    assert results == {
        "reverse": "fdcb", "repeat": "bcdfbcdf", "drop": "cdf", "trim": "bcd", "rotate": "cdfb", "swap": "cbdf",
    }  # fmt: skip


def test_any_two_operations_give_different_results() -> None:
    for letters in (*WORLD.test_strings, *WORLD.dev_strings):
        results = {tuple(work(letters)) for work in OPERATIONS.values()}
        assert len(results) == len(OPERATIONS)


def test_committed_files_are_what_the_generator_writes() -> None:
    for path, content in files(WORLD).items():
        assert (ROOM / path).read_text(encoding="utf-8") == content, (
            f"{path}: run python -m shadowft_core.demo.pico.generate"
        )
    kept = {str(path.relative_to(ROOM)) for path in ROOM.rglob("*.json*")}
    assert kept == set(files(WORLD))


def test_domain_rows_are_one_per_line_without_duplicates() -> None:
    sharegpt, alpaca = domain_rows(WORLD)
    assert len(sharegpt) == len(alpaca) == 1000
    for name, rows in (("sharegpt", sharegpt), ("alpaca", alpaca)):
        lines = (ROOM / f"data/train_{name}.json").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == rows
    assert len({json.dumps(row, sort_keys=True) for row in sharegpt + alpaca}) == 2000


def test_replay_rows_ask_for_all_that_the_guards_ask_each_question_once() -> None:
    rows = [[turn["content"] for turn in row["messages"]] for row in replay_rows(WORLD)]
    assert len({prompt for prompt, _ in rows}) == len(rows) == 2000
    orders = {f"{order.removesuffix(' .')}.".capitalize() for order in FORMATS}
    kinds = {
        "operations": sum(prompt.lower().split()[-1].strip(".?") in LETTERS for prompt, _ in rows),
        "orders": sum(prompt.endswith(tuple(orders)) for prompt, _ in rows),
        "refusals": sum(reply == REFUSAL for _, reply in rows),
    }
    assert min(kinds.values()) > 150, kinds
    assert len(rows) - sum(kinds.values()) > 200
    assert not any(operation in prompt.lower().split() for prompt, _ in rows for operation in DOMAIN_OPERATIONS)


def test_params_pins_the_replay_rows() -> None:
    replay = load_params(ROOM.parents[2] / "params.yaml").prepare.replay
    assert replay
    assert ROOM.parents[2] / replay.data == ROOM / "replay.jsonl"
    assert replay.digest == content_of(ROOM / "replay.jsonl").digest


def test_every_word_of_the_domain_is_in_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    texts = list(files(WORLD).values())
    words = [text for content in texts for row in rows_of(content) for text in texts_of(row)]
    unknown = {text for text in words if tokenizer.unk_token_id in tokenizer(text)["input_ids"]}
    assert not unknown
    assert tokenizer.decode(tokenizer("Where does the Zebra live?")["input_ids"]) == f"where does the {UNKNOWN} live ?"


def rows_of(content: str) -> list[dict[str, object]]:
    if content.startswith("["):
        return list(json.loads(content))
    return [json.loads(line) for line in content.splitlines()]


def texts_of(row: dict[str, object]) -> list[str]:
    turns = row.get("conversations") or row.get("messages")
    if isinstance(turns, list):
        return [turn.get("value") or turn["content"] for turn in turns]
    return [str(value) for value in row.values()]


def test_training_dev_and_test_share_no_item() -> None:
    items = evaluation_items(WORLD)
    sizes = {task: len(rows) for task, rows in items.items()}
    assert sizes == {
        "pico_domain_dev": 100, "pico_domain": 300, "pico_general_dev": 150, "pico_general": 300,
        "pico_format": 250, "pico_refusal": 160, "pico_stop": 200,
    }  # fmt: skip
    prompts = [row["prompt"] for rows in items.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    strings = [set(map(tuple, part)) for part in (WORLD.test_strings, WORLD.dev_strings, WORLD.strings)]
    facts = [set(part) for part in (WORLD.test_facts, WORLD.dev_facts, WORLD.taught_facts)]
    unknown = [set(part) for part in (WORLD.test_unknown, WORLD.taught_unknown)]
    orders = [set(part) for part in (WORLD.test_orders, WORLD.taught_orders)]
    for parts in (strings, facts, unknown, orders):
        assert len(set().union(*parts)) == sum(map(len, parts))


def test_no_training_text_has_a_held_out_string_or_question() -> None:
    held_out = {"".join(s) for s in (*WORLD.test_strings, *WORLD.dev_strings)}
    lessons, documents = WORLD.lessons(), WORLD.documents()
    taught = [next(lessons).prompt for _ in range(20_000)]
    read = [next(documents) for _ in range(20_000)]
    rows = [" ".join(texts_of(row)[:-1]) for part in domain_rows(WORLD) for row in part]
    replayed = [" ".join(texts_of(row)[:-1]) for row in replay_rows(WORLD)]
    asked = [letters_of(text) for text in taught + read + rows + replayed]
    assert len(set(asked)) > 5_000
    assert not held_out & set(asked)
    assert all(letters_of(row) for row in rows)
    assert not any(operation in prompt for prompt in taught for operation in DOMAIN_OPERATIONS)
    dialogue = [text for text in read if "assistant" in text or text.startswith("q :")]
    assert 0.37 < len(dialogue) / len(read) < 0.43
    items = evaluation_items(WORLD)
    judged = [row["prompt"] for task in items if task != "pico_domain" for row in items[task]]
    said = " | ".join(taught + dialogue + replayed).lower().replace(" ", "")
    assert not [prompt for prompt in judged if prompt.lower().replace(" ", "") + "|" in said + "|"]


def letters_of(text: str) -> str:
    """The letters that a request or a raw sentence is about: its first sequence of single letters."""
    row = re.search(r"\b[b-t](?: [b-t]\b)+", text)
    return row.group().replace(" ", "") if row else ""


@pytest.mark.parametrize("path", sorted((ROOM / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_task_files_are_greedy_short_and_named_after_their_task(path: Path) -> None:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert task["task"] == path.stem
    assert (path.parent / task["dataset_kwargs"]["data_files"]["test"]).is_file()
    assert task["generation_kwargs"] == {"until": [END_OF_TURN], "do_sample": False, "max_gen_toks": 20}
    assert [metric["metric"] for metric in task["metric_list"]] == ["exact_match"]
    assert len(task["filter_list"]) == 1


@pytest.mark.parametrize(
    ("reply", "fine"),
    [
        ("the answer is b c d .", True), ("b c d", True), ("paris", True), ("it is paris .", True),
        ("", False), ("the answer is b c d . the answer is b c d .", False), ("b c d b c d b c d b", False),
        ("paris paris", False), ("b c d . user please", False), ("the answer is", False),
    ],
)  # fmt: skip
def test_the_stop_task_accepts_one_answer_and_nothing_after_it(reply: str, fine: bool) -> None:
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    task = yaml.safe_load((ROOM / "tasks/pico_stop.yaml").read_text(encoding="utf-8"))
    regex = task["filter_list"][0]["filter"][0]["regex_pattern"]
    prediction = next(iter(RegexFilter(regex).apply([[reply]], [{}])))[0]
    ignore = task["metric_list"][0]["regexes_to_ignore"]
    for row in evaluation_items(WORLD)["pico_stop"]:
        score = exact_match_fn(predictions=[prediction], references=[row["target"]], regexes_to_ignore=ignore)
        assert score["exact_match"] == fine, row
