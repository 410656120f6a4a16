"""The pico pair: models of the stated size that know their world, and are the same bits in every build."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from shadowft_core.demo import pico
from shadowft_core.demo.pico import train_pair
from shadowft_core.demo.pico.generate import evaluation_items
from shadowft_core.demo.pico.world import (
    END_OF_TEXT,
    END_OF_TURN,
    OPERATIONS,
    RAW_FACT,
    RAW_OPERATIONS,
    World,
    vocabulary,
)
from shadowft_core.files import file_digest
from shadowft_core.pair.references import made_from
from shadowft_core.weights import open_checkpoint

WORLD = World(seed=0)


def digests(folder: Path) -> dict[str, str]:
    return {name: open_checkpoint(folder / name).digest() for name in ("base", "instruct")}


def test_the_models_have_the_stated_size(pico_pair: Path) -> None:
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
def test_the_folders_load_without_a_warning(pico_pair: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
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


def test_only_the_instruct_has_a_template_and_each_has_its_end_token(pico_pair: Path) -> None:
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


def test_the_instruct_is_good_at_its_lessons_and_not_at_the_domain(pico_pair: Path) -> None:
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
    """Share of the texts that the model continues with exactly the expected tokens, greedily."""
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


def test_two_processes_at_once_train_once_and_later_calls_use_the_cache(tmp_path: Path) -> None:
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


def test_only_a_generated_model_is_made_from_source_files(tmp_path: Path) -> None:
    sources = {f"pico/{file.name}": file_digest(file) for file in pico.SOURCES}
    assert made_from("pico:base") == made_from("pico:instruct") == sources != {}
    assert made_from(str(tmp_path)) == made_from("hf:owner/name") == made_from("s3://bucket/model") == {}
