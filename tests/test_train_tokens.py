"""Tokens of the chat template that the Base never trained: `pair` and `train` find them, and each treatment works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shadowft_core.delta import extract, require_extractable
from shadowft_core.errors import TrainError
from shadowft_core.grafting import Options, graft
from shadowft_core.pair import check_pair
from shadowft_core.pair.template_tokens import untrained_in_base
from shadowft_core.params import Prepare, Render, Train
from shadowft_core.prepare import prepare
from shadowft_core.train import train
from shadowft_core.weights import open_checkpoint
from tests.fixtures.training import SETTINGS as TINY
from tests.fixtures.training import tree

ROOT = Path(__file__).parent.parent
SETTINGS = Train(batch_size=8, learning_rate=0.003, max_length=64, max_steps=3, schedule="constant", warmup=0)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
START, END = 1, 2  # <|im_start|>, <|im_end|> of the embedded pair


def changed(source: Path, out: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def zeroed(tensors: dict[str, np.ndarray]) -> None:
    for name in (EMBEDDING, HEAD):
        tensors[name][[START, END]] = 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "tasks").mkdir()
    settings = Prepare(data="-", valid=0.3, max_rows=60)
    prepare(ROOT / "shadowft_core/demo/pico/data", folder / "tasks", settings, folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def base(pico_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(pico_pair / "base", tmp_path_factory.mktemp("zeroed") / "base", zeroed)


def as_reserved(tensors: dict[str, np.ndarray]) -> None:
    """The rows that a resized model gets: the mean of all, and a little noise."""
    noise = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    for name in (EMBEDDING, HEAD):
        tensors[name][[START, END]] = tensors[name].mean(axis=0) + 1e-5 * noise


def only_start(tensors: dict[str, np.ndarray]) -> None:
    tensors[EMBEDDING][START] *= 1e-20
    tensors[HEAD][START] = 0


def only_head_of_end(tensors: dict[str, np.ndarray]) -> None:
    tensors[HEAD][END] = 0


def only_head_of_start(tensors: dict[str, np.ndarray]) -> None:
    tensors[HEAD][START] = 0  # no reply has this token


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (zeroed, {START: ("zero", "zero"), END: ("zero", "zero")}),
        (as_reserved, dict.fromkeys((START, END), ("equal to 1 other row", "equal to 1 other row"))),
        (only_start, {START: ("near zero", "zero")}),
        (only_head_of_end, {END: ("", "zero")}),
        (only_head_of_start, {}),
        (lambda tensors: None, {}),
    ],
)
def test_pair_names_the_tokens_that_the_base_never_trained(
    pico_pair: Path, tmp_path: Path, change: Any, found: dict[int, tuple[str, str]]
) -> None:
    result = check_pair(changed(pico_pair / "base", tmp_path / "base", change), pico_pair / "instruct")
    shown = {one["id"]: (one["embedding"], one["head"]) for one in result["untrained_tokens"]}
    assert shown == found
    told = [reason for reason in result["reasons"] if "never trained" in reason]
    assert len(told) == bool(found)
    assert result["verdict"] == ("warn" if found else "ok")
    assert all(f"{'<|im_end|>' if n == END else '<|im_start|>'} (id {n}: " in told[0] for n in found)


def test_a_token_that_the_instruct_never_trained_either_is_not_named(pico_pair: Path, tmp_path: Path) -> None:
    both = [changed(pico_pair / side, tmp_path / side, zeroed) for side in ("base", "instruct")]
    assert check_pair(*both)["untrained_tokens"] == []


def test_rows_that_never_left_the_middle_of_the_unused_ones_are_found(tmp_path: Path) -> None:
    """Unused rows scatter by 10 % of their norm, so no two are equal; the token's row is in their middle."""
    from shadowft_core.weights import untrained_tokens
    from tests.fixtures.models import write_model

    noise = np.random.default_rng(0)
    rows = noise.standard_normal((64, 32)).astype(np.float32)
    middle = noise.standard_normal(32).astype(np.float32)
    rows[32:] = middle + 0.1 * noise.standard_normal((32, 32)).astype(np.float32)
    trained = noise.standard_normal((64, 32)).astype(np.float32)
    rows[3] = np.median(rows[32:], axis=0)
    models = [
        open_checkpoint(write_model(tmp_path / name, {EMBEDDING: of}, tie_word_embeddings=True))
        for name, of in (("base", rows), ("instruct", trained))
    ]
    [found] = untrained_tokens(models[0], models[1], {3: "<a>", 4: "<b>"}, set(), range(32, 64))
    assert (found.id, found.embedding) == (3, "never moved from the middle of 32 unused rows")


def run(base: Path, pair: Path, data: Path, out: Path, setting: str, **changes: Any) -> dict[str, Any]:
    settings = SETTINGS.model_copy(update=changes)
    render = Render(template_tokens=setting)
    train(base, pair / "instruct", data, settings, out, require_extractable, render)
    facts: dict[str, Any] = json.loads((out / "train.json").read_text())
    return facts


def grafted(base: Path, pair: Path, tuned: Path, out: Path) -> dict[str, np.ndarray]:
    """The Instruct plus the delta of a training."""
    extract(base, tuned, out / "delta")
    graft(pair / "instruct", [(out / "delta", 1.0)], out / "grafted", Options())
    return load_file(out / "grafted/model.safetensors")


def test_lora_is_trained_with_the_instructs_rows(
    base: Path, pico_pair: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = run(base, pico_pair, data, tmp_path / "tuned", "from_instruct")
    assert [one["token"] for one in facts["untrained_tokens"]] == ["<|im_start|>", "<|im_end|>"]
    assert facts["render"]["template_tokens"] == "from_instruct"
    named = "never trained 2 control tokens of the data: <|im_start|> (id 1: embedding zero, head zero)"
    err = capfd.readouterr().err
    assert named in err
    assert "uses the Instruct's rows" in err
    instruct = load_file(pico_pair / "instruct/model.safetensors")

    def with_rows(tensors: dict[str, np.ndarray]) -> None:
        for name in (EMBEDDING, HEAD):
            tensors[name][[START, END]] = instruct[name][[START, END]]

    whole = changed(base, tmp_path / "whole", with_rows)
    same = run(whole, pico_pair, data, tmp_path / "same", "error")
    assert same["untrained_tokens"] == []
    assert tree(tmp_path / "same/adapter") == tree(tmp_path / "tuned/adapter")
    assert same["last_loss"] == facts["last_loss"]
    result = grafted(base, pico_pair, tmp_path / "tuned", tmp_path)
    assert all((result[name] == instruct[name]).all() for name in (EMBEDDING, HEAD))
    assert any((result[name] != instruct[name]).any() for name in instruct)


def test_a_full_training_saves_the_bases_rows_plus_the_change(
    base: Path, pico_pair: Path, data: Path, tmp_path: Path
) -> None:
    full = {"method": "full", "learning_rate": 0.001}
    run(base, pico_pair, data, tmp_path / "tuned", "from_instruct", **full)
    instruct = load_file(pico_pair / "instruct/model.safetensors")
    result = grafted(base, pico_pair, tmp_path / "tuned", tmp_path)
    for name in (EMBEDDING, HEAD):
        moved = np.linalg.norm((result[name] - instruct[name])[[START, END]], axis=1)
        norms = np.linalg.norm(instruct[name][[START, END]], axis=1)
        assert (moved > 0).all()
        assert (moved < 0.1 * norms).all()  # not off by a whole row


def test_the_rows_are_trained_with_lora(base: Path, pico_pair: Path, data: Path, tmp_path: Path) -> None:
    run(base, pico_pair, data, tmp_path / "tuned", "train", learning_rate=0.001)
    config = json.loads((tmp_path / "tuned/adapter/adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": [START, END], "lm_head": [START, END]}
    saved = load_file(tmp_path / "tuned/adapter/adapter_model.safetensors")
    instruct = load_file(pico_pair / "instruct/model.safetensors")
    result = grafted(base, pico_pair, tmp_path / "tuned", tmp_path)
    for name, module in ((EMBEDDING, "model.embed_tokens"), (HEAD, "lm_head")):
        rows = saved[f"base_model.model.{module}.token_adapter.trainable_tokens_delta"]
        assert rows.any(axis=1).all()
        others = np.setdiff1d(np.arange(len(instruct[name])), [START, END])
        assert (result[name][others] == instruct[name][others]).all()
        np.testing.assert_allclose(result[name][[START, END]], instruct[name][[START, END]] + rows, rtol=1e-5)


def test_the_rows_of_a_tied_model_are_trained_once(place: Path, tmp_path: Path) -> None:
    def zero(tensors: dict[str, np.ndarray]) -> None:
        tensors[EMBEDDING][[2, 3]] = 0

    base = changed(place / "base", tmp_path / "base", zero)
    settings = TINY.model_copy(update={"max_steps": 3})
    tuned = tmp_path / "tuned"
    train(
        base, place / "instruct", place / "data", settings, tuned, require_extractable, Render(template_tokens="train")
    )
    extract(base, tuned, tmp_path / "delta")
    names = json.loads((tmp_path / "delta/delta.json").read_text())["tensors"]
    assert EMBEDDING in names
    assert HEAD not in names


def test_error_refuses_before_the_first_step(base: Path, pico_pair: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainError, match=r"base: never trained 2 control tokens of the data: <\|im_start\|> \(id 1: .*; set"
    ):
        run(base, pico_pair, data, tmp_path / "out", "error")
    assert not (tmp_path / "out").exists()
    facts = run(pico_pair / "instruct", pico_pair, data, tmp_path / "direct", "error", max_steps=1)
    assert facts["untrained_tokens"] == []


TEMPLATES = {  # where a folder may have its template: file, and how the file holds it
    "chat_template.jinja": lambda text: text,
    "additional_chat_templates/tool_use.jinja": lambda text: text,
    "chat_template.json": lambda text: json.dumps({"chat_template": text}),
    "tokenizer_config.json": lambda text: json.dumps({"chat_template": text}),
    "tokenizer_config.json, by name": lambda text: json.dumps({"chat_template": [{"name": "x", "template": text}]}),
}


@pytest.mark.parametrize("place", TEMPLATES)
@pytest.mark.parametrize("token", ["<|im_start|>", "{{ bos_token }}"])
def test_the_tokens_of_a_template_are_found_wherever_it_is(
    base: Path, pico_pair: Path, tmp_path: Path, place: str, token: str
) -> None:
    instruct = shutil.copytree(pico_pair / "instruct", tmp_path / "instruct")
    (instruct / "chat_template.jinja").write_text("{{ messages }}")
    file = instruct / place.partition(",")[0]
    file.parent.mkdir(exist_ok=True)
    file.write_text(TEMPLATES[place](f"{token}{{{{ messages }}}}"))
    settings = instruct / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"bos_token": {"content": "<|im_start|>"}}))
    ids = [token.id for token in untrained_in_base(open_checkpoint(base), open_checkpoint(instruct))]
    assert START in ids


@pytest.mark.parametrize("named", ["generation_config.json", "tokenizer_config.json"])
def test_a_token_that_ends_a_reply_is_found_by_either_file(pico_pair: Path, tmp_path: Path, named: str) -> None:
    base = changed(pico_pair / "base", tmp_path / "base", only_head_of_end)
    instruct = shutil.copytree(pico_pair / "instruct", tmp_path / "instruct")
    for name, eos in (("generation_config.json", END), ("tokenizer_config.json", "<|im_end|>")):
        found = json.loads((instruct / name).read_text()) | {"eos_token_id": None, "eos_token": None}
        given = {"eos_token_id": eos, "eos_token": eos} if name == named else {}
        (instruct / name).write_text(json.dumps(found | given))
    ids = [token.id for token in untrained_in_base(open_checkpoint(base), open_checkpoint(instruct))]
    assert ids == [END]
