"""What each file of another trainer tells, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.delta import losses
from shadowft_core.delta.told import read_told
from shadowft_core.delta.trainer import sentence

CARD = "---\nbase_model: [own/model]\ntags: [generated_from_trainer]\n---\n- num_epochs: 3\n- learning_rate: 1e-4\n"
AXOLOTL = "- seed: 8\naxolotl version: `0.19.0`\n```yaml\nbase_model: own/model\nadapter: lora\nseed: 7\n```\n"
ADAPTER = {"base_model_name_or_path": "a/b", "peft_type": "LORA", "use_dora": True, "r": 8.5}
LOG = [{"step": 2, "loss": 3.0, "num_tokens": 10}, {"step": 4, "loss": 2.0}]
RESULTS = {"all_results.json": {"train_loss": 2.5}, "train_results.json": {"train_loss": 9.0}}


@pytest.mark.parametrize(
    ("files", "name", "facts"),
    [
        ({"README.md": CARD}, "transformers", {"base": "own/model", "epochs": 3.0, "learning_rate": 1e-4}),
        ({"README.md": "- seed: 8\n", "trainer_log.jsonl": ""}, "LLaMA-Factory", {"seed": 8}),
        ({"README.md": AXOLOTL}, "axolotl", {"base": "own/model", "seed": 7, "versions": {"axolotl": "0.19.0"}}),
        ({"mine.yaml": "model_name_or_path: own/model\nseed: 3\n", "README.md": "- seed: 8\n"}, None, {"seed": 8}),
        (
            {"adapter_config.json": ADAPTER},
            None,
            {"base": "a/b", "method": "lora (DoRA)"},
        ),
        (
            {"trainer_state.json": {"global_step": 4, "log_history": LOG}, **RESULTS},
            "transformers",
            {"steps": 4, "first_loss": 3.0, "last_loss": 2.0, "mean_loss": 2.5},
        ),
        (
            {"trainer_state.json": {"global_step": 4, "log_history": [*LOG, {"step": 4, "num_tokens": 20}]}},
            "transformers",
            {"steps": 4, "first_loss": 3.0, "last_loss": 2.0, "tokens": 20},
        ),
        ({"trainer_state.json": "{"}, None, {}),
        ({"notes.txt": "mine"}, None, None),
        ({"README.md": "---\nbase_model: null\n---\n"}, None, None),
        ({"README.md": "---\nbase_model: ~\n---\n"}, None, None),
        ({"README.md": f"---\ndatasets: [a/{'b' * 198}]\n---\n"}, None, None),
        ({"README.md": f"---\ndatasets: [{'a/b,' * 150}]\n---\n"}, None, {"datasets": ["a/b"] * 99}),
        ({"README.md": f"---\nbase_model: {'a' * 1001}\n---\n"}, None, None),
        ({"trainer_state.json": {"global_step": 2**63, "epoch": 1e301}}, "transformers", None),
        ({"adapter_config.json": {"base_model_name_or_path": "a/b", "peft_type": "a\nb"}}, None, {"base": "a/b"}),
        ({"adapter_config.json": {"base_model_name_or_path": "a/b", "peft_type": ""}}, None, {"base": "a/b"}),
        ({"config.json": {"transformers_version": "5.1"}}, None, {"versions": {"transformers": "5.1"}}),
        ({"config.json": {"transformers_version": "9" * 1001}}, None, None),
        ({"config.json": {"transformers_version": "5\x1b[2J"}}, None, None),
    ],
)
@pytest.mark.parametrize("inside", ["", "checkpoint-4"])
def test_each_file_tells_what_it_has(
    tmp_path: Path, files: dict[str, Any], name: str | None, facts: dict[str, Any] | None, inside: str
) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    for file, content in files.items():  # the settings of a run lie beside its checkpoints
        place = tmp_path / (inside if file.endswith(".json") else "") / file
        place.write_text(content if isinstance(content, str) else json.dumps(content))
    found = read_told(tmp_path / inside, tmp_path / inside, {"model_digest": "of the record"}).trainer
    if facts is None or found is None:
        assert (facts, found) == (None, None)
        return
    assert (found["name"], found["facts"]) == (name, facts)
    assert found["unreadable"] == [file for file, content in files.items() if content == "{"]
    assert "starting model" not in found["not_known"]


def test_a_file_that_cannot_be_read_is_named_once_and_in_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    for place in (tmp_path, tmp_path / "model"):
        (place / "a.yaml").write_text("a: *" + "x" * 5000)
    for name in ("b.yaml", "all_results.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)  # sparse
    told = read_told(tmp_path, tmp_path / "model").trainer
    assert told is not None
    assert told["unreadable"] == ["all_results.json", "a.yaml", "b.yaml"]
    lines = capsys.readouterr().err.splitlines()
    said = ("the limit is 67108864", "x" * 50, "the limit is 262144")
    assert all(one in line for one, line in zip(said, lines, strict=True))
    assert max(map(len, lines)) < 300 + len(str(tmp_path))


def test_sixteen_files_of_settings_are_read(tmp_path: Path) -> None:
    for number in range(17):
        (tmp_path / f"{number:02}.yaml").write_text(f"model_name_or_path: own/model\nstage: sft\nseed: {number}\n")
        if number != 15:
            (tmp_path / f"{number:02}.yaml").write_text(
                "notes: mine\n" if number < 15 else "stage: sft\nlearning_rate: 1\n"
            )
    told = read_told(tmp_path, tmp_path).trainer
    assert told is not None
    assert told["facts"]["seed"] == 15
    assert told["unreadable"] == ["16.yaml"]


def test_the_log_and_the_sentence_of_a_training(tmp_path: Path) -> None:
    log = [{"step": 2, "epoch": 1}, {"step": 1, "loss": 2.0, "learning_rate": "x"}, {"step": 1, "eval_loss": 1.5}, 7]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert losses(tmp_path) == [{"step": 1, "loss": 2.0, "valid_loss": 1.5}]
    told = {"name": None, "facts": {"mean_loss": 1, "seed": 3}, "not_known": ["data"], "unreadable": ["a.json"]}
    said = "tuned by another trainer, seed 3, mean loss 1.000; not known: data; not readable: a.json"
    assert sentence(told) == said
