"""Evaluate: real harness, a tiny model that really learned something, no stand-ins."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import EvaluationError, GraftError
from shadowft_core.evaluate import evaluate, load_folder, load_grafted, open_bench
from shadowft_core.files import canonical_json
from shadowft_core.graft import Options, graft
from shadowft_core.params import Evaluate
from shadowft_core.weights import open_checkpoint

LETTERS = [chr(97 + i) for i in range(26)]
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: a
generation_kwargs: {{until: ["<end>"], max_gen_toks: {tokens}, do_sample: {sample}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: {better}}}]
"""
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: say.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: a
doc_to_choice: !function helper.letters
"""


@dataclass(frozen=True)
class World:
    """`instruct` can say a letter back; `tuned` also names the next one; `delta` is what lies between."""

    root: Path
    instruct: Path
    delta: Path
    tasks: Path
    data: Path

    def params(self, **changes: Any) -> Evaluate:
        base = {"tasks": str(self.tasks), "domain": ("next",), "guards": ("say",)}
        return Evaluate(**{**base, **changes})


def rows(skill: str) -> list[tuple[str, str]]:
    step = {"say": 0, "next": 1}[skill]
    return [(f"{skill} {a}", LETTERS[(i + step) % 26]) for i, a in enumerate(LETTERS)]


def write_task(tasks: Path, name: str, items: list[tuple[str, str]], /, **changes: Any) -> None:
    options = {"name": name, "file": f"{name}.jsonl", "tokens": 3, "sample": "false", "better": "true"} | changes
    (tasks / f"{name}.jsonl").write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in items))
    (tasks / f"{name}.yaml").write_text(GENERATE.format(**options))


def write_models(root: Path) -> tuple[Path, Path]:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["<pad>", "<user>", "<bot>", "<end>", "<unk>", "say", "next", *LETTERS]
    word_level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_level, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", chat_template=TEMPLATE
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=32, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)

    def teach(skills: list[str], steps: int) -> None:
        texts = [f"<user> {q} <end> <bot> {a} <end>" for skill in skills for q, a in rows(skill)]
        ids = torch.tensor([tokenizer.encode(text) for text in texts])
        labels = ids.clone()
        labels[:, :5] = -100
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()

    folders = root / "instruct", root / "tuned"
    for folder, (skills, steps) in zip(folders, [(["say"], 80), (["say", "next"], 80)], strict=True):
        teach(skills, steps)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@cache
def build_world(root: Path) -> World:
    root.mkdir()
    instruct, tuned = write_models(root)
    extract(instruct, tuned, root / "delta" / "shadow", unrelated=True)  # taught from noise, it moves far
    tasks, data = root / "tasks", root / "data"
    tasks.mkdir()
    data.mkdir()
    for name, items in {
        "next": rows("next")[:13], "say": rows("say")[:13], "next_dev": rows("next")[13:], "say_dev": rows("say")[13:],
        "twins": [*rows("say")[:2], *rows("say")[:2]],
    }.items():  # fmt: skip
        write_task(tasks, name, items)
    (tasks / "choice.yaml").write_text(CHOICE)
    (tasks / "helper.py").write_text("def letters(doc):\n    return list('abcdefghijklm')\n")
    held = [{"prompt": f"say {a}", "reply": f"{a} {b}"} for a, b in zip("abcde", "fghij", strict=True)]
    pq.write_table(pa.Table.from_pylist(held), data / "test.parquet")
    pq.write_table(pa.Table.from_pylist(held).slice(0, 0), data / "dev.parquet")
    return World(root, instruct, root / "delta" / "shadow", tasks, data)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Shared with test_sweep.py, which imports it: built once for both."""
    return build_world(tmp_path_factory.getbasetemp() / "evaluate-world")


@pytest.fixture(scope="session")
def half(world: World) -> Path:
    """The delta grafted at half its size."""
    graft(world.instruct, [(world.delta, 0.5)], world.root / "half", Options(waivers=["onto-base"]))
    return world.root / "half"


def read_arm(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "items.jsonl").read_text().splitlines()
    return json.loads((folder / "scores.json").read_bytes()), [json.loads(line) for line in lines]


def judge_instruct(world: World, out: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    evaluate(world.instruct, world.data, None, None, "shadow", world.params(**changes), out)
    return read_arm(out / "instruct")


def test_the_instruct_is_scored_as_it_was_taught(world: World, tmp_path: Path) -> None:
    scores, items = judge_instruct(world, tmp_path / "out")
    assert scores["tasks"]["say"] == {"role": "guard", "metric": "exact_match", "n": 13, "mean": 1.0}
    assert scores["tasks"]["next"]["role"] == "domain"
    assert scores["tasks"]["next"]["mean"] < 0.5
    assert (scores["arm"], scores["scale"], scores["label"]) == ("instruct", 0, "")
    assert scores["model_digest"] == open_checkpoint(world.instruct).digest()
    assert (tmp_path / "out/instruct/scores.json").read_bytes() == canonical_json(scores)
    assert items == sorted(items, key=lambda item: (item["task"], item["item"]))
    assert {item["output"].strip() for item in items if item["task"] == "say"} == set(LETTERS[:13])
    for task, summary in scores["tasks"].items():
        values = [item["score"] for item in items if item["task"] == task]
        assert (len(values), sum(values) / len(values)) == (summary["n"], pytest.approx(summary["mean"]))


def test_the_same_model_gets_the_same_bytes(world: World, tmp_path: Path) -> None:
    tasks = {"domain": ("next", "heldout"), "guards": ("say", "choice")}
    for out in ("one", "two"):
        judge_instruct(world, tmp_path / out, **tasks)
    for name in ("scores.json", "items.jsonl"):
        assert (tmp_path / "one/instruct" / name).read_bytes() == (tmp_path / "two/instruct" / name).read_bytes()


def test_the_batch_size_changes_no_answer(world: World, tmp_path: Path) -> None:
    assert judge_instruct(world, tmp_path / "a", batch_size=64) == judge_instruct(world, tmp_path / "b", batch_size=1)


def test_arms_meet_the_same_items(world: World, half: Path, tmp_path: Path) -> None:
    instruct, plain = judge_instruct(world, tmp_path / "instruct")
    evaluate(world.instruct, world.data, world.delta, half, "shadow", world.params(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["shadow", "shadow_scaled"]
    for arm, scale in {"shadow": 1, "shadow_scaled": 0.5}.items():
        scores, items = read_arm(tmp_path / "out" / arm)
        assert (scores["arm"], scores["scale"]) == (arm, scale)
        assert scores["template_digest"] == instruct["template_digest"]
        assert [(i["task"], i["item"]) for i in items] == [(i["task"], i["item"]) for i in plain]
    assert scores["model_digest"] == open_checkpoint(half).digest() != instruct["model_digest"]
    assert read_arm(tmp_path / "out/shadow")[0]["tasks"]["next"]["mean"] == 1.0


def test_in_memory_and_on_disk_are_one_model(world: World, half: Path) -> None:
    import torch

    on_disk = load_folder(half)
    in_memory, digest = load_grafted(world.instruct, [(world.delta, 0.5)], Options("all", waivers=["onto-base"]))
    assert digest == open_checkpoint(half).digest()
    assert on_disk.generation_config.to_dict() == in_memory.generation_config.to_dict()
    pairs = zip(on_disk.state_dict().items(), in_memory.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    with open_bench(world.instruct, world.data, world.params(), ("next", "heldout"), ("say",)) as bench:
        assert bench.score(on_disk, "disk") == bench.score(in_memory, "memory")


def test_scale_1_is_scored_once(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graft(world.instruct, [(world.delta, 1.0)], tmp_path / "whole", Options(waivers=["onto-base"]))
    evaluate(world.instruct, world.data, world.delta, tmp_path / "whole", "direct", world.params(), tmp_path / "out")
    said = capfd.readouterr().err
    assert "direct next 13/13" in said
    assert "scaled" not in said
    (one, items), (other, others) = (read_arm(tmp_path / "out" / arm) for arm in ("direct", "direct_scaled"))
    assert items == others
    assert one == {**other, "arm": "direct"}


@pytest.mark.parametrize("damage", ["weights", "delta", "instruct", "recipe"])
def test_a_folder_that_is_not_its_recipe_is_refused(world: World, half: Path, tmp_path: Path, damage: str) -> None:
    grafted = shutil.copytree(half, tmp_path / "grafted")
    recipe = json.loads((grafted / "recipe.json").read_bytes())
    if damage == "weights":
        shutil.copy(world.instruct / "model.safetensors", grafted / "model.safetensors")
    elif damage == "delta":
        recipe["deltas"][0]["digest"] = f"sha256:{0:064}"
    elif damage == "instruct":
        recipe["instruct"]["digest"] = f"sha256:{0:064}"
    else:
        recipe["deltas"] *= 2
    (grafted / "recipe.json").write_bytes(canonical_json(recipe))
    with pytest.raises(EvaluationError, match=r"run `shadowft graft` again"):
        evaluate(world.instruct, world.data, world.delta, grafted, "shadow", world.params(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_grafted_in_one_pass_keeps_no_delta_to_judge(world: World, half: Path, tmp_path: Path) -> None:
    grafted = shutil.copytree(half, tmp_path / "grafted")
    recipe = json.loads((grafted / "recipe.json").read_bytes())
    recipe["deltas"] = [{"base": "sha256:1", "tuned": "sha256:2", "scale": 0.5}]
    (grafted / "recipe.json").write_bytes(canonical_json(recipe))
    with pytest.raises(GraftError, match=r"recipe\.json: adds sha256:2 - sha256:1 without a stored delta"):
        evaluate(world.instruct, world.data, world.delta, grafted, "shadow", world.params(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loglikelihood_is_nats_per_byte_of_the_reply(world: World, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    scores, items = judge_instruct(world, tmp_path / "out", domain=("heldout",), guards=())
    assert scores["tasks"]["heldout"]["metric"] == "logprob_per_byte"
    tokenizer, model = AutoTokenizer.from_pretrained(world.instruct), load_folder(world.instruct)
    expected = []
    for prompt, reply in zip("abcde", "fghij", strict=True):
        ids = torch.tensor([tokenizer.encode(f"<user> say {prompt} <end> <bot> {prompt} {reply}")])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, 4:6]
        expected.append(logprobs.gather(1, ids[0, 5:7, None]).sum().item() / 3)  # "a f" is three bytes
    assert sorted(item["score"] for item in items) == pytest.approx(sorted(expected), abs=1e-6)


def test_multiple_choice_takes_accuracy_and_shows_the_choice(world: World, tmp_path: Path) -> None:
    scores, items = judge_instruct(world, tmp_path / "out", domain=("choice",), guards=(), limit=3)
    assert scores["tasks"]["choice"] == {"role": "domain", "metric": "acc", "n": 3, "mean": 1.0}
    assert sorted(item["output"] for item in items) == ["a", "b", "c"]


def test_twins_count_twice_under_names_of_their_own(world: World, tmp_path: Path) -> None:
    _, items = judge_instruct(world, tmp_path / "out", domain=("twins",))
    names = [item["item"] for item in items if item["task"] == "twins"]
    assert len(set(names)) == 4
    assert sorted(name.endswith("#1") for name in names) == [False, False, True, True]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"domain": ("nixt",)}, "task nixt: unknown; .* offer choice, heldout, heldout_dev, next, next_dev, say"),
        ({"domain": ("heldout_dev",)}, r"task heldout_dev: .*/dev\.parquet: holds no rows, .*prepare\.dev"),
        ({"domain": ("say",)}, "task say: is named both as domain and as guard"),
        ({"tasks": "no/such/folder"}, "no/such/folder: no such task folder"),
    ],
)
def test_a_task_that_cannot_run_is_named(world: World, tmp_path: Path, tasks: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        judge_instruct(world, tmp_path / "out", **tasks)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "items", "message"),
    [
        ({"file": "gone.jsonl"}, rows("say"), r"task odd: .*/gone\.jsonl: no such data file; .*shadowft prepare"),
        ({}, [], r"task odd: .*/odd\.jsonl: holds no rows"),
        ({"sample": "true"}, rows("say"), "task odd: it samples"),
        ({"better": "false"}, rows("say"), "task odd: lower exact_match is better"),
        ({"tokens": 99}, rows("say"), "task odd: AssertionError: .*less than model's maximum sequence length"),
        ({}, [("say a " * 20, "a")], "task odd: Left truncation applied.*shorten or repair the items"),
        ({"name": "heldout"}, rows("say"), r"odd\.yaml: task heldout stands in .* already; rename"),
        ({"name": "[odd"}, rows("say"), r"odd\.yaml: not a task file"),
    ],
)
def test_a_task_file_that_misleads_is_refused(
    world: World, tmp_path: Path, changes: dict[str, Any], items: list[tuple[str, str]], message: str
) -> None:
    tmp_path.joinpath("tasks").mkdir()
    write_task(tmp_path / "tasks", "odd", items, **changes)
    with pytest.raises(EvaluationError, match=message) as caught:
        judge_instruct(world, tmp_path / "out", tasks=str(tmp_path / "tasks"), domain=("odd",), guards=())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_instruct_without_template_or_tensor_is_refused(world: World, tmp_path: Path) -> None:
    mute = shutil.copytree(world.instruct, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="no chat template"):
        evaluate(mute, world.data, None, None, "shadow", world.params(), tmp_path / "out")
    deep = shutil.copytree(world.instruct, tmp_path / "deep")
    config = json.loads((deep / "config.json").read_text())
    layers = {"num_hidden_layers": 3, "layer_types": None, "max_window_layers": 3}
    (deep / "config.json").write_text(json.dumps(config | layers))
    with pytest.raises(EvaluationError, match=r"missing_keys.*model\.layers\.2"):
        evaluate(deep, world.data, None, None, "shadow", world.params(), tmp_path / "out")


def test_nothing_is_left_behind(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = {*cache.rglob("*")}, {*world.tasks.rglob("*.json*")}, {*world.data.rglob("*")}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    judge_instruct(world, tmp_path / "out", domain=("next", "heldout"))
    assert [*scratch.iterdir()] == []
    assert before == ({*cache.rglob("*")}, {*world.tasks.rglob("*.json*")}, {*world.data.rglob("*")})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "scratch"]
