"""The pico pair: real models that know their world, built the same way every time, and the files kept beside them."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from shadowft_core.demo.pico import build_tokenizer, train_pair
from shadowft_core.demo.pico.generate import domain_rows, evaluation_items, files
from shadowft_core.demo.pico.world import (
    DOMAIN_OPERATIONS,
    END_OF_TEXT,
    END_OF_TURN,
    OPERATIONS,
    RAW_FACT,
    RAW_OPERATIONS,
    UNKNOWN,
    World,
    vocabulary,
)
from shadowft_core.weights import open_checkpoint

ROOM = Path(__file__).parent.parent / "shadowft_core" / "demo" / "pico"
WORLD = World(seed=0)


def digests(folder: Path) -> dict[str, str]:
    return {name: open_checkpoint(folder / name).digest() for name in ("base", "instruct")}


def test_operations_do_what_their_names_say() -> None:
    results = {name: "".join(work(list("bcdf"))) for name, work in OPERATIONS.items()}
    assert results == {
        "reverse": "fdcb", "repeat": "bcdfbcdf", "drop": "cdf", "trim": "bcd", "rotate": "cdfb", "swap": "cbdf",
    }  # fmt: skip


def test_no_operation_can_pass_for_another() -> None:
    for letters in (*WORLD.test_strings, *WORLD.dev_strings):
        results = {tuple(work(letters)) for work in OPERATIONS.values()}
        assert len(results) == len(OPERATIONS)


def test_committed_files_are_what_the_generator_writes() -> None:
    for path, content in files(WORLD).items():
        assert (ROOM / path).read_text(encoding="utf-8") == content, (
            f"{path}: run python -m shadowft_core.demo.pico.generate"
        )
    kept = {str(p.relative_to(ROOM)) for folder in ("data", "tasks") for p in (ROOM / folder).glob("*.json*")}
    assert kept == set(files(WORLD))


def test_domain_rows_stand_one_to_a_line_and_never_twice() -> None:
    sharegpt, alpaca = domain_rows(WORLD)
    assert len(sharegpt) == len(alpaca) == 1000
    for name, rows in (("sharegpt", sharegpt), ("alpaca", alpaca)):
        lines = (ROOM / f"data/train_{name}.json").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == rows
    assert len({json.dumps(row, sort_keys=True) for row in sharegpt + alpaca}) == 2000


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
    turns = row.get("conversations")
    if isinstance(turns, list):
        return [turn["value"] for turn in turns]
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


def test_what_is_held_out_stays_out_of_every_text_that_is_trained_on() -> None:
    held_out = {"".join(s) for s in (*WORLD.test_strings, *WORLD.dev_strings)}
    lessons, documents = WORLD.lessons(), WORLD.documents()
    taught = [next(lessons).prompt for _ in range(20_000)]
    read = [next(documents) for _ in range(20_000)]
    rows = [" ".join(texts_of(row)[:-1]) for part in domain_rows(WORLD) for row in part]
    asked = [letters_of(text) for text in taught + read + rows]
    assert len(set(asked)) > 5_000
    assert not held_out & set(asked)
    assert all(letters_of(row) for row in rows)
    assert not any(operation in prompt for prompt in taught for operation in DOMAIN_OPERATIONS)
    dialogue = [text for text in read if "assistant" in text or text.startswith("q :")]
    assert 0.27 < len(dialogue) / len(read) < 0.33
    items = evaluation_items(WORLD)
    judged = [row["prompt"] for task in items if task != "pico_domain" for row in items[task]]
    said = " | ".join(taught + dialogue).lower().replace(" ", "")
    assert not [prompt for prompt in judged if prompt.lower().replace(" ", "") + "|" in said + "|"]


def letters_of(text: str) -> str:
    """The string a request or a raw sentence works on: its first row of single letters."""
    row = re.search(r"\b[b-t](?: [b-t]\b)+", text)
    return row.group().replace(" ", "") if row else ""


@pytest.mark.parametrize("path", sorted((ROOM / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_task_files_are_greedy_short_and_named_after_themselves(path: Path) -> None:
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
def test_stop_task_wants_one_answer_and_then_nothing(reply: str, fine: bool) -> None:
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    task = yaml.safe_load((ROOM / "tasks/pico_stop.yaml").read_text(encoding="utf-8"))
    regex = task["filter_list"][0]["filter"][0]["regex_pattern"]
    prediction = next(iter(RegexFilter(regex).apply([[reply]], [{}])))[0]
    ignore = task["metric_list"][0]["regexes_to_ignore"]
    for row in evaluation_items(WORLD)["pico_stop"]:
        score = exact_match_fn(predictions=[prediction], references=[row["target"]], regexes_to_ignore=ignore)
        assert score["exact_match"] == fine, row


def test_the_pair_is_real_and_of_the_promised_size(pico_pair: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base, instruct = (AutoModelForCausalLM.from_pretrained(pico_pair / name) for name in ("base", "instruct"))
    assert base.dtype == torch.float32
    assert 100_000 < base.num_parameters() < 130_000
    pairs = [(b.double(), i.double()) for b, i in zip(base.parameters(), instruct.parameters(), strict=True)]
    gap = sum(float((b - i).detach().abs().sum()) for b, i in pairs)
    sigma = gap / sum(float((b.abs().sum() + i.abs().sum()).detach()) for b, i in pairs)
    assert 0.01 < sigma < 0.04


@pytest.mark.parametrize("name", ["base", "instruct"])
def test_folders_load_without_a_word(pico_pair: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            tokenizer = AutoTokenizer.from_pretrained(pico_pair / name)
            model = AutoModelForCausalLM.from_pretrained(pico_pair / name)
            model.generate(**tokenizer("anna lives in", return_tensors="pt"), max_new_tokens=2, do_sample=False)
    finally:
        transformers_logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert len(tokenizer) == model.config.vocab_size == len(vocabulary())
    assert not list((pico_pair / name).glob("*.bin"))


def test_only_the_instruct_has_a_template_and_each_stops_at_its_own_end(pico_pair: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, instruct = (AutoTokenizer.from_pretrained(pico_pair / name) for name in ("base", "instruct"))
    assert base.chat_template is None
    assert base.get_vocab() == instruct.get_vocab()
    assert (pico_pair / "base/tokenizer.json").read_bytes() == (pico_pair / "instruct/tokenizer.json").read_bytes()
    assert (base.eos_token, instruct.eos_token) == (END_OF_TEXT, END_OF_TURN)
    ends = [
        AutoModelForCausalLM.from_pretrained(pico_pair / name).generation_config.eos_token_id
        for name in ("base", "instruct")
    ]
    assert ends == [base.eos_token_id, [instruct.eos_token_id, base.eos_token_id]]


def test_the_end_of_turn_is_learned_and_the_prompt_is_not(pico_pair: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pico_pair / "instruct")
    messages = [{"role": "user", "content": "Reverse b c d"}, {"role": "assistant", "content": "d c b"}]
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.convert_ids_to_tokens(learned) == ["d", "c", "b", END_OF_TURN]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=True, return_dict=True, add_generation_prompt=True)
    assert encoded["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]


def test_the_base_knows_its_world_from_raw_text(pico_pair: Path) -> None:
    starts = [
        (RAW_FACT.partition(" {value}")[0].format(name=name, attribute=attribute), value)
        for (name, attribute), value in WORLD.facts.items()
    ]
    assert share_continued(pico_pair / "base", starts) >= 0.9
    for operation, work in OPERATIONS.items():
        text = RAW_OPERATIONS[0].partition(" {result}")[0]
        starts = [
            (text.format(operation=operation, letters=" ".join(s)), f"{' '.join(work(s))} .")
            for s in WORLD.test_strings[:50]
        ]
        assert share_continued(pico_pair / "base", starts) >= 0.9, operation


def test_the_instruct_is_good_at_its_school_and_not_at_the_domain(pico_pair: Path) -> None:
    items = evaluation_items(WORLD)
    shares = {
        task: share_continued(
            pico_pair / "instruct",
            [(row["prompt"], f"the answer is {row['target']} .{END_OF_TURN}") for row in items[task][:120]],
            chat=True,
        )
        for task in ("pico_general", "pico_domain")
    }
    assert shares["pico_general"] >= 0.9
    assert shares["pico_domain"] <= 0.2


def share_continued(folder: Path, starts: list[tuple[str, str]], *, chat: bool = False) -> float:
    """Share of the texts that the model goes on with exactly as it should, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        if chat
        else text
        for text, _ in starts
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    replies = model.generate(**batch, max_new_tokens=20, do_sample=False)[:, batch["input_ids"].shape[1] :].tolist()
    wanted = [tokenizer(text)["input_ids"] for _, text in starts]
    return sum(reply[: len(want)] == want for reply, want in zip(replies, wanted, strict=True)) / len(starts)


def test_same_seed_same_bits_in_a_short_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        train_pair(tmp_path / name, seed=seed, pretrain_steps=8, posttrain_steps=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one")["base"] != digests(tmp_path / "other")["base"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" loss ")[0] for line in lines[:2]] == [
        "pico: pretrain base: step 8/8",
        "pico: post-train instruct: step 4/4",
    ]


def test_two_processes_at_once_train_once_and_the_next_call_finds_it(tmp_path: Path) -> None:
    code = "from shadowft_core.demo.pico import build_pair; print(build_pair(0, pretrain_steps=40, posttrain_steps=2))"
    environment = {**os.environ, "SHADOWFT_CACHE": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    first, second = start(), start()
    answers = [process.communicate(timeout=300) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), answers
    assert sum("pretrain base" in err for _, err in answers) == 1, answers
    (folder,) = {Path(out.strip()) for out, _ in answers}
    before = digests(folder)
    _, err = start().communicate(timeout=300)
    assert "pretrain" not in err
    assert digests(folder) == before
    assert {path.name for path in folder.iterdir()} == {"base", "instruct", "pico.json"}
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.slow
def test_same_seed_same_bits_in_a_full_build(tmp_path: Path, pico_pair: Path) -> None:
    train_pair(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(pico_pair)
