"""The page on training: untrained tokens, replies that end, and training sequences."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from tests.fixtures.report import EVIL, Page, dump, page, write_work

TOKEN = {"token": f"<|im_end|>{EVIL}", "id": 2, "embedding": "zero", "head": f"near {EVIL}"}
PIECES = [{"text": f"asked {EVIL}\n", "learned": False}, {"text": f"said {EVIL}", "learned": True}]


def shown(work: Path, stopped: int, **facts: Any) -> Page:
    write_work(work)
    path = work / "tuned/shadow/train.json"
    stops = {"prompts": 20, "stopped_before": 19, "stopped_after": stopped, "max_new_tokens": 34}
    dump(path, json.loads(path.read_text()) | {"stops": stops} | facts)
    dump(work / "tuned/shadow/samples.jsonl", {"left_out": 7, "pieces": PIECES})
    return page(work)


@pytest.mark.parametrize("stopped", [18, 0])
def test_replies_that_end_are_counted_and_a_drop_to_none_is_a_warning(tmp_path: Path, stopped: int) -> None:
    found = shown(tmp_path, stopped)
    said = f"19 ended within 34 tokens before training, {stopped} after it"
    assert f"of 20 replies to validation questions, {said}" in found.text
    assert ("the tuned model does not stop" in found.text) == (stopped == 0)


@pytest.mark.parametrize(
    ("setting", "words"), [("from_instruct", "training used the Instruct's rows"), ("train", "trained.")]
)
def test_untrained_tokens_are_named_with_their_treatment(tmp_path: Path, setting: str, words: str) -> None:
    found = shown(tmp_path, 1, untrained_tokens=[TOKEN], render={"template_tokens": setting})
    assert "never trained 1 tokens of the chat template" in found.text
    assert f"{TOKEN['token']} (id 2, embedding zero, head {TOKEN['head']})" in found.text
    assert words.rstrip(".") in found.text


def test_samples_mark_what_is_learned_and_are_escaped(tmp_path: Path) -> None:
    found = shown(tmp_path, 1, untrained_tokens=[TOKEN], render={"template_tokens": "train"})
    assert not {"script", "img"} & {tag for tag, _ in found.tags}
    assert [tag for tag, _ in found.tags].count("mark") == 1
    assert f"7 tokens before … asked {EVIL}\nsaid {EVIL}" in found.text


def test_a_preference_shows_its_rejected_reply(tmp_path: Path) -> None:
    shown(tmp_path, 1)
    line = {"left_out": 0, "pieces": PIECES, "rejected": f"bad {EVIL}"}
    dump(tmp_path / "tuned/shadow/samples.jsonl", line)
    found = page(tmp_path)
    assert f"rejected: bad {EVIL}" in found.text
    assert not {"script", "img"} & {tag for tag, _ in found.tags}


def test_an_older_run_has_neither(tmp_path: Path) -> None:
    write_work(tmp_path)
    old = page(tmp_path)
    assert "replies to validation questions" not in old.text
    assert "training sequences" not in old.text


def test_a_train_json_of_another_trainer_leaves_dashes(tmp_path: Path) -> None:
    write_work(tmp_path)
    dump(tmp_path / "tuned/shadow/train.json", {"model_digest": "sha256:mine", "seed": 3})
    assert "shadow–3––––" in "".join(page(tmp_path).text.split())


BEFORE: dict[str, Any] = {"format": 1, "method": "lora", "sequences": 16, "cosine": 0.4321}
BEFORE |= {"loss": {"base": 2.5, "instruct": 1.75}, "modules": {"q_proj": 0.125}}
BEFORE |= {"sigma": {"overall": 0.0321, "modules": {"q_proj": 0.5, "norm": 0.25}}}


def test_what_was_known_before_training_is_shown_as_unproven(tmp_path: Path) -> None:
    write_work(tmp_path)
    dump(tmp_path / "preflight.json", BEFORE)
    found = page(tmp_path).text
    told = found[found.index("What was known before training") :]
    assert "They are not proven to predict what a graft gains or keeps" in told
    assert "the loss is 2.500 for the Base and 1.750 for the Instruct" in told
    assert "The cosine of their first gradients is 0.432" in told
    assert re.search(r"sigma.* is 0\.0321", told)
    assert re.search(r"norm\W*–\W*0\.2500", told)
    assert re.search(r"q_proj\W*0\.125\W*0\.5000", told)


def test_what_was_not_measured_before_training_is_said(tmp_path: Path) -> None:
    write_work(tmp_path)
    assert re.search(r"What was known before training\W*Not recorded\.", page(tmp_path).text)
    dump(tmp_path / "preflight.json", {"format": 1, "not_measured": EVIL, "sigma": BEFORE["sigma"]})
    assert f"Losses and gradients were not measured: {EVIL}." in page(tmp_path).text
    dump(tmp_path / "preflight.json", BEFORE | {"sigma": {"overall": 0.5}})
    assert re.search(r"sigma.* is 0\.5000", page(tmp_path).text)
    dump(tmp_path / "preflight.json", {name: BEFORE[name] for name in BEFORE if name != "loss"})
    with pytest.raises(EvaluationError, match=r"preflight\.json: expected either `not_measured`, or .* and `loss`"):
        page(tmp_path)


def of_another_trainer(work: Path, trainer: dict[str, Any] | None) -> Page:
    """The page of a run whose route `shadow` was trained elsewhere, without a train.json."""
    write_work(work)
    (work / "tuned/shadow/train.json").unlink()
    path = work / "delta/shadow/delta.json"
    facts = {name: value for name, value in json.loads(path.read_text()).items() if name != "train"}
    dump(path, facts | ({"train": None, "trainer": trainer} if trainer else {"train": None}))
    return page(work)


def test_what_another_trainer_tells_is_shown_and_what_it_does_not_is_said(tmp_path: Path) -> None:
    told = {"base": f"Own/Model{EVIL}", "steps": 4321, "seed": 7, "last_loss": 1.5, "versions": {"axolotl": "0.19.0"}}
    lacks = ["data", "how rows were rendered"]
    trainer = {"name": f"axolotl{EVIL}", "facts": told, "not_known": lacks, "unreadable": ["trainer_state.json"]}
    found = of_another_trainer(tmp_path, trainer)
    assert f"shadow was tuned by axolotl{EVIL} from Own/Model{EVIL}, not by shadowft train" in found.text
    assert "Not known: data, how rows were rendered. Not readable: trainer_state.json." in found.text
    assert "shadow (data, how rows were rendered). That the routes had the same rows and settings is not" in found.text
    assert "4,321" in found.text
    assert not {"script", "img"} & {tag for tag, _ in found.tags}


def test_a_training_of_which_nothing_is_told_is_said(tmp_path: Path) -> None:
    found = of_another_trainer(tmp_path, None)
    assert "shadow: how it was tuned is not recorded" in found.text
    assert "direct: how it was tuned is not recorded" not in found.text
