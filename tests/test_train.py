"""Training on a tiny model of random weights with a word-level tokenizer: real TRL, real PEFT, seconds on one core."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.delta import extract
from shadowft_core.errors import AdapterError, CheckpointError, DataError, TensorMissing, TrainError
from shadowft_core.params import Lora, Prepare, Train
from shadowft_core.prepare import prepare
from shadowft_core.train import train
from shadowft_core.train.labels import IGNORED, Encoded, Encoder

WORDS = [*map(str, range(12)), "plus", "is", "be", "kind", "user", "assistant", "system", ":", "."]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} : "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} <|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }} <|im_end|>{% endif %} . {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant : {% endif %}"
)
SETTINGS = Train(
    lora=Lora(rank=8, alpha=16),
    batch_size=8,
    learning_rate=0.01,
    max_length=40,
    epochs=5,
    schedule="constant",
    warmup=0,
)


def word_tokenizer(words: list[str] = WORDS, special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["<unk>", "<pad>", *special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_model(folder: Path, seed: int, vocabulary: int | None = None) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, instruct/ and data/ made by the real `prepare`: 81 sums."""
    place = tmp_path_factory.mktemp("train")
    write_model(place / "base", 1)
    write_model(place / "instruct", 2)
    rows = [
        {"messages": [{"role": "user", "content": f"{a} plus {b}"}, {"role": "assistant", "content": f"is {a + b}"}]}
        for a in range(9)
        for b in range(9)
        if a + b < 12
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "tasks").mkdir()
    prepare(place / "rows.jsonl", place / "tasks", Prepare(data="-", valid=0.2), place / "data")
    return place


def run(place: Path, out: Path, settings: Train = SETTINGS, model: str = "base") -> dict[str, Any]:
    train(place / model, place / "instruct", place / "data", settings, out)
    facts: dict[str, Any] = json.loads((out / "train.json").read_text())
    return facts


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_lora_learns_and_repeats_bit_for_bit(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = run(place, tmp_path / "one")
    assert facts["last_loss"] < 0.8 * facts["first_loss"]
    assert facts["valid_loss"] < facts["first_loss"]
    lines = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, facts["steps"] + 1))
    err = capfd.readouterr().err
    assert f"step {facts['steps']}/{facts['steps']} loss {facts['last_loss']:.3f} eta 0s" in err

    train(place / "base", place / "instruct", place / "data", SETTINGS, tmp_path / "elsewhere" / "two")
    one, two = tree(tmp_path / "one"), tree(tmp_path / "elsewhere" / "two")
    assert set(one) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "metrics.jsonl",
        "train.json",
    }
    assert one == two
    assert not any(str(tmp_path).encode() in content or str(place).encode() in content for content in one.values())

    other = run(place, tmp_path / "three", SETTINGS.model_copy(update={"seed": 1}))
    assert other["seed"] == 1
    assert tree(tmp_path / "three")["adapter/adapter_model.safetensors"] != one["adapter/adapter_model.safetensors"]


def test_both_routes_start_from_the_same_adapter_and_see_the_same_rows(place: Path, tmp_path: Path) -> None:
    """At a learning rate of almost nothing A stays as drawn, and the token counts tell the order of the batches."""
    from safetensors.numpy import load_file

    still = SETTINGS.model_copy(update={"learning_rate": 1e-30, "epochs": 1})
    seen = {}
    for model in ("base", "instruct"):
        facts = run(place, tmp_path / model, still, model)
        adapter = load_file(tmp_path / model / "adapter/adapter_model.safetensors")
        lines = [json.loads(line) for line in (tmp_path / model / "metrics.jsonl").read_text().splitlines()]
        seen[model] = ([line["tokens"] for line in lines], {n: t for n, t in adapter.items() if "lora_A" in n})
        assert facts["model_digest"] != facts["data_digest"]
    assert seen["base"][0] == seen["instruct"][0]
    assert len(seen["base"][1]) == 14  # 7 linear layers in each of 2 blocks; neither embedding nor head
    assert {str(a.dtype) for a in seen["base"][1].values()} == {"float32"}
    assert all((seen["instruct"][1][name] == a).all() for name, a in seen["base"][1].items())


def test_full_training_writes_a_float32_checkpoint(place: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    full = SETTINGS.model_copy(update={"method": "full", "learning_rate": 0.003, "max_steps": 12})
    facts = run(place, tmp_path / "out", full)
    assert (facts["method"], facts["steps"]) == ("full", 12)
    assert facts["last_loss"] < 0.8 * facts["first_loss"]
    before, after = load_file(place / "base/model.safetensors"), load_file(tmp_path / "out/model/model.safetensors")
    assert before.keys() == after.keys()
    assert {str(t.dtype) for t in after.values()} == {"float32"}
    assert all((before[name] != after[name]).any() for name in before)
    names = {p.name for p in (tmp_path / "out/model").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    run(place, tmp_path / "again", full)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_the_trainer_uses_exactly_the_intended_labels(place: Path, tmp_path: Path) -> None:
    """What the data loader hands to the model: the reply and its end token, nothing of the prompt, nothing after."""
    from shadowft_core.train.run import load_model, load_tokenizer, make_trainer, stop_ids

    tokenizer = load_tokenizer(place / "instruct")
    rows = Encoder(tokenizer, stop_ids(tokenizer, place / "instruct")).encode_file(place / "data/train.parquet", 40)
    trainer = make_trainer(load_model(place / "base", tokenizer), tokenizer, rows, SETTINGS, tmp_path)
    spoken = []
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
            spoken.append(tokenizer.decode([label for label in labels if label != IGNORED]))
            a, b = (int(tokenizer.decode([ids[at]])) for at in (3, 5))
            assert spoken[-1] == f"is {a + b} <|im_end|>"
            first = next(at for at, label in enumerate(labels) if label != IGNORED)
            assert (
                tokenizer.decode(ids[:first])
                == f"<|im_start|> user : {a} plus {b} <|im_end|> . <|im_start|> assistant :"
            )
    assert len(spoken) == len(rows.input_ids) > 40


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, {"gradient_accumulation_steps": 1, "scaling": 2.0, "rates": [1, 1, 1, 1]}),
        ({"accumulation": 3}, {"gradient_accumulation_steps": 3}),
        ({"batch_size": 5}, {"per_device_train_batch_size": 5}),
        ({"lora": Lora(rank=8, alpha=4)}, {"scaling": 0.5}),
        ({"lora": Lora(rank=16, alpha=8, rslora=True)}, {"scaling": 2.0, "rank": 16}),
        ({"schedule": "linear"}, {"rates": [1, 0.75, 0.5, 0.25]}),
        ({"schedule": "cosine"}, {"rates": [1, 0.8535534, 0.5, 0.1464466]}),
        ({"warmup": 0.5}, {"rates": [0, 0.5, 1, 1]}),
        ({"warmup": 0.5, "schedule": "linear"}, {"rates": [0, 0.5, 1, 0.5]}),
        ({"epochs": 2.5}, {"num_train_epochs": 2.5, "max_steps": -1}),
        ({"max_steps": 7}, {"max_steps": 7}),
        ({"seed": 5}, {"seed": 5, "data_seed": 5}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) and "scaling" not in value else "",
)
def test_every_setting_reaches_the_trainer(
    place: Path, tmp_path: Path, settings: dict[str, Any], trained: dict[str, Any]
) -> None:
    """`rates` are the learning rates of steps 0 to 3 of 4, as shares of the one that is set."""
    from shadowft_core.train.run import _with_adapter, load_model, load_tokenizer, make_trainer

    params = SETTINGS.model_copy(update=settings)
    tokenizer = load_tokenizer(place / "instruct")
    network = _with_adapter(load_model(place / "base", tokenizer), params)
    trainer = make_trainer(network, tokenizer, Encoded([[1, 2]] * 8, [[1, 2]] * 8), params, tmp_path)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    rates = []
    for _ in range(4):
        rates.append(trainer.lr_scheduler.get_last_lr()[0] / params.learning_rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    adapters = [module for module in network.modules() if hasattr(module, "lora_A")]
    assert len(adapters) == 14
    for field, expected in trained.items():
        if field == "rates":
            assert rates == pytest.approx(expected)
        elif field == "scaling":
            assert {module.scaling["default"] for module in adapters} == {expected}
        elif field == "rank":
            assert {module.lora_A["default"].weight.shape[0] for module in adapters} == {expected}
        else:
            assert getattr(trainer.args, field) == expected


@pytest.mark.parametrize(
    ("listed", "stops"),
    [
        (None, {3}),
        ({}, {3}),
        ({"eos_token_id": None}, {3}),
        ({"eos_token_id": 7}, {3, 7}),
        ({"eos_token_id": [7, 9]}, {3, 7, 9}),
    ],
)
def test_every_end_token_ends_a_reply(tmp_path: Path, listed: dict[str, Any] | None, stops: set[int]) -> None:
    from shadowft_core.train.run import stop_ids

    if listed is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(listed))
    assert stop_ids(word_tokenizer(), tmp_path) == stops


def test_weights_that_are_not_finite_are_not_kept(place: Path, tmp_path: Path) -> None:
    """A row of the embedding that no batch looks up: neither loss nor gradient tells of it."""
    from safetensors.numpy import load_file, save_file

    base = shutil.copytree(place / "base", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][0, 5] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    settings = SETTINGS.model_copy(update={"method": "full", "max_steps": 1})
    with pytest.raises(TrainError, match=r"embed_tokens\.weight: not finite after the last step; lower"):
        train(base, place / "instruct", place / "data", settings, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_rows_too_long_or_with_control_tokens_are_counted_and_left_out(place: Path, tmp_path: Path) -> None:
    def row(asked: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "is 3"}]}

    rows = [row("1 plus 2"), row("2 plus 1"), row("1 plus " * 20), row("be <|im_end|> kind"), row("<pad>")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepare(tmp_path / "rows.jsonl", place / "tasks", Prepare(data="-", valid=0), tmp_path / "data")
    settings = SETTINGS.model_copy(update={"max_steps": 1})
    train(place / "base", place / "instruct", tmp_path / "data", settings, tmp_path / "out")
    facts = json.loads((tmp_path / "out/train.json").read_text())
    used = facts["rows"]["train"]
    assert (used["rows"], used["too_long"], used["control_tokens"]) == (2, 1, 2)
    assert used["learned_tokens"] == 2 * 3
    assert facts["valid_loss"] is None
    with pytest.raises(TrainError, match="no row is left: 3 are longer than max_length 8, 2 spell control tokens"):
        train(
            place / "base",
            place / "instruct",
            tmp_path / "data",
            SETTINGS.model_copy(update={"max_length": 8}),
            tmp_path / "no",
        )
    assert not (tmp_path / "no").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    wild = SETTINGS.model_copy(update={"method": "full", "learning_rate": 1e30})
    with pytest.raises(TrainError, match=r"^step 2: (loss|gradient norm) is (nan|inf); lower train.learning_rate"):
        run(place, tmp_path / "out", wild)
    assert list(tmp_path.iterdir()) == []


def test_models_and_tokenizers_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    small = write_model(tmp_path / "small", 1, vocabulary=20)
    with pytest.raises(TrainError, match=r"embeds ids below 20, the Instruct's tokenizer gives ids up to 24"):
        train(small, place / "instruct", place / "data", SETTINGS, tmp_path / "out")
    holed = write_model(tmp_path / "holed", 1)
    tensors = load_file(holed / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, holed / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is missing or misshapen \(1 in all\)"):
        train(holed, place / "instruct", place / "data", SETTINGS, tmp_path / "out")
    mute = write_model(tmp_path / "mute", 1)
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(TrainError, match="no chat template"):
        train(place / "base", mute, place / "data", SETTINGS, tmp_path / "out")
    with pytest.raises(DataError, match=r"train\.parquet: no such file; run `shadowft prepare` first"):
        train(place / "base", place / "instruct", tmp_path, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_extract_could_not_take_is_refused_before_the_first_step(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from typer.testing import CliRunner

    from shadowft_core.cli import app

    tokenizer, hidden = word_tokenizer(), {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes = {"vocab_size": len(tokenizer), "num_attention_heads": 4, "head_dim": 8}
    for family, settings in (("hrm_text", sizes | hidden), ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4} | sizes)):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
    file = tmp_path / "gpt2" / "model.safetensors"  # as on the hub, without the prefix that transformers saves
    bare = {name.removeprefix("transformer."): array for name, array in load_file(file).items()}
    save_file(bare, file, {"format": "pt"})

    def done(family: str, method: str) -> Any:
        params = {"train": SETTINGS.model_copy(update={"method": method, "max_steps": 1}).model_dump(mode="json")}
        whole = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text()) | params
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
        words = ["--instruct", str(place / "instruct"), "--data", str(place / "data"), "--out", str(tmp_path / "out")]
        words += ["--params", str(tmp_path / "params.yaml"), "--model", str(tmp_path / family)]
        return CliRunner().invoke(app, ["train", *words])

    for family, method, error, message in (
        (
            "hrm_text",
            "lora",
            AdapterError,
            r"hrm_text: with train\.method: lora .*: \S+_proj\.weight is .* only transformers can convert; .* full$",
        ),
        (
            "gpt2",
            "full",
            TensorMissing,
            r"would save transformer\.\S+, which the folder does not hold \(\d+ in all",
        ),
    ):
        found = done(family, method).exception
        assert isinstance(found, error)
        assert re.search(message, str(found))
        assert not (tmp_path / "out").exists()
        assert "step 1/" not in capfd.readouterr().err
    assert done("gpt2", "lora").exit_code == 0
    assert extract(tmp_path / "gpt2", tmp_path / "out", tmp_path / "delta")["kind"] == "lora"
    assert done("hrm_text", "full").exit_code == 0


def test_sigterm_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    endless = SETTINGS.model_copy(update={"max_steps": 100_000})
    code = (
        "import sys; from pathlib import Path; from shadowft_core.params import Train;"
        "from shadowft_core.train import train;"
        "a = [Path(p) for p in sys.argv[1:5]]; train(a[0], a[1], a[2], Train.model_validate_json(sys.argv[5]), a[3])"
    )
    paths = [str(place / "base"), str(place / "instruct"), str(place / "data"), str(tmp_path / "out")]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *paths, endless.model_dump_json()], stderr=subprocess.PIPE, text=True
    )
    assert child.stderr
    assert any(line.startswith("step ") for line in child.stderr)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM
    assert not (tmp_path / "out").exists()
