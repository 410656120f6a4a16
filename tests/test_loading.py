"""Code of a model folder never runs, and no prompt asks whether it may."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import CheckpointError, EvaluationError
from shadowft_core.evaluate import load_folder, open_bench
from shadowft_core.pair import compare_models, fetch
from shadowft_core.params import Evaluate, Fetch
from shadowft_core.weights import open_checkpoint
from tests.fixtures.evaluation import World
from tests.fixtures.models import Pair
from tests.test_cli import assert_one_line, shadowft

ROOT = Path(__file__).parent.parent
CODE = "import pathlib\npathlib.Path({!r}).mkdir(exist_ok=True)\nclass Own: pass\ndef generate(model, **_): pass\n"
OWN_MODEL = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}


def edit(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(settings | fields))


def own_class(folder: Path) -> None:
    edit(folder, "config.json", model_type="own", architectures=["Own"], auto_map=OWN_MODEL)


def own_class_elsewhere(folder: Path) -> None:
    edit(folder, "config.json", model_type="own", auto_map={"AutoConfig": "some/where--own.Own"})


def own_tokenizer(folder: Path) -> None:
    own_class(folder)
    edit(folder, "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": [None, "own.Own"]})


def own_tokenizer_of_old(folder: Path) -> None:
    own_class(folder)
    edit(folder, "tokenizer_config.json", tokenizer_class="Own", auto_map=["own.Own", None])


def code_beside_a_known_class(folder: Path) -> None:
    edit(folder, "config.json", auto_map=OWN_MODEL)
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})


def processor_beside_a_known_class(folder: Path) -> None:
    edit(folder, "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})
    edit(folder, "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Own"})


def own_generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "own.py", folder / "custom_generate/generate.py")
    edit(folder, "generation_config.json", custom_generate="own.py", trust_remote_code=True)


def adapter(folder: Path) -> None:
    edit(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="some/where")


def other_weights(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    edit(folder, "config.json", transformers_weights="other.safetensors")


def kernel(folder: Path) -> None:
    edit(folder, "config.json", attn_implementation="some/kernel")


def nested_kernel(folder: Path) -> None:
    edit(folder, "config.json", text_config={"_attn_implementation": {"": "flash|some/kernel"}})


def kernel_of_experts(folder: Path) -> None:
    edit(folder, "config.json", experts_implementation="some/kernel")


def nested_kernel_of_experts(folder: Path) -> None:
    edit(folder, "config.json", text_config={"_experts_implementation": "some/kernel"})


def trust_in_the_config(folder: Path) -> None:
    own_class(folder)
    edit(folder, "config.json", trust_remote_code=True)


NEVER_RUN = "code that comes with a model is never run.*use a model that transformers supports"
REFUSED: list[tuple[Callable[[Path], None], str, str]] = [
    (own_class, "weights", rf"config\.json: auto_map own\.Own: {NEVER_RUN}"),
    (own_class_elsewhere, "weights", rf"config\.json: auto_map some/where--own\.Own: {NEVER_RUN}"),
    (trust_in_the_config, "weights", rf"config\.json: auto_map own\.Own: {NEVER_RUN}"),
    (own_tokenizer, "all", rf"auto_map own\.Own: {NEVER_RUN}"),
    (own_tokenizer_of_old, "all", rf"auto_map own\.Own: {NEVER_RUN}"),
    (
        adapter,
        "all",
        r"adapter_config\.json: transformers would add this adapter.*move the adapter to a separate folder",
    ),
    (other_weights, "all", r"config\.json: transformers_weights is 'other\.safetensors'.*remove the field"),
    (
        kernel,
        "all",
        r"config\.json: attn_implementation is 'some/kernel', and downloaded code is never run; remove the field",
    ),
    (nested_kernel, "all", r"config\.json: _attn_implementation is 'flash\|some/kernel', and downloaded code is never"),
    (kernel_of_experts, "all", r"config\.json: experts_implementation is 'some/kernel', and downloaded code is never"),
    (nested_kernel_of_experts, "all", r"config\.json: _experts_implementation is 'some/kernel', and downloaded code"),
]
TAKEN = [code_beside_a_known_class, processor_beside_a_known_class, own_generate]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that code reads from stdin; each is answered with yes."""
    questions: list[str] = []

    def answer(question: object = "") -> str:
        questions.append(str(question))
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return questions


def with_code(instruct: Path, tmp_path: Path, change: Callable[[Path], None]) -> tuple[Path, Path]:
    """A copy of the Instruct with code, and the path that the code creates when it runs."""
    folder, canary = shutil.copytree(instruct, tmp_path / "model"), tmp_path / "code-ran"
    (folder / "own.py").write_text(CODE.format(str(canary)))
    change(folder)
    return folder, canary


@pytest.mark.parametrize(("change", "loads", "message"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_every_load_refuses_code_and_weights_that_a_folder_would_add(
    tiny_llama_pair: Pair, tmp_path: Path, asked: list[str], change: Callable[[Path], None], loads: str, message: str
) -> None:
    from shadowft_core.rendering import load_tokenizer
    from shadowft_core.train.models import load_model

    folder, canary = with_code(tiny_llama_pair.instruct, tmp_path, change)
    tokenizer = load_tokenizer(tiny_llama_pair.instruct)
    tasks = Evaluate(tasks=str(tmp_path), domain=("heldout",))
    places: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: load_folder(folder),
        "train": lambda: load_model(folder, tokenizer),
    }
    if loads == "all":
        places["evaluate, tokenizer"] = lambda: open_bench(folder, tmp_path, tasks, (), ()).__enter__()
        places["train, tokenizer"] = lambda: load_tokenizer(folder)
    for place, load in places.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value), place
    assert (asked, canary.exists()) == ([], False)


@pytest.mark.parametrize("change", TAKEN, ids=lambda change: change.__name__)
def test_the_class_of_transformers_is_used_where_there_is_one(
    tiny_llama_pair: Pair, tmp_path: Path, asked: list[str], change: Callable[[Path], None]
) -> None:
    from shadowft_core.rendering import load_tokenizer, stop_ids
    from shadowft_core.train.models import load_model

    folder, canary = with_code(tiny_llama_pair.instruct, tmp_path, change)
    tokenizer = load_tokenizer(folder)
    assert stop_ids(tokenizer, folder) == {4}
    for model in (load_model(folder, tokenizer), load_folder(folder)):
        assert type(model).__module__ == "transformers.models.llama.modeling_llama"
        assert model.generate.__func__ is type(model).generate
    assert (asked, canary.exists()) == ([], False)


def test_a_yes_on_stdin_runs_nothing(world: World, tmp_path: Path) -> None:
    folder, canary = with_code(world.instruct, tmp_path, own_class)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"] |= {"tasks": str(world.tasks), "domain": ["next"], "guards": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    done = shadowft(
        tmp_path, "evaluate", "--instruct", str(folder), "--data", str(world.data), "--out", "out", said="y\n" * 9
    )
    assert_one_line(done, CheckpointError.exit_code, f"{folder}/config.json: auto_map own.Own: code that comes with")
    assert "Do you wish to run" not in done.stdout + done.stderr
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_a_verb_and_its_children_have_an_empty_stdin(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from shadowft_core.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(repr(sys.stdin.read()), subprocess.run(['cat'], capture_output=True).stdout)"
    )
    program = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(program, input="y\n" * 9, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "'' b''"


@pytest.mark.parametrize("role", ["base", "instruct"])
def test_a_pair_that_needs_its_own_code_is_not_fetched(
    tiny_llama_pair: Pair, tmp_path: Path, asked: list[str], role: str
) -> None:
    folder, canary = with_code(getattr(tiny_llama_pair, role), tmp_path, own_tokenizer)
    sides = {side: getattr(tiny_llama_pair, side) for side in ("base", "instruct")} | {role: folder}
    other = sides["instruct" if role == "base" else "base"]
    changed = shutil.copytree(other, tmp_path / "other")
    edit(changed, "config.json", model_type="own")  # the same on both sides, as in a published pair
    sides = {side: changed if path == other else path for side, path in sides.items()}
    with pytest.raises(CheckpointError, match=rf"auto_map own\.Own: {NEVER_RUN}"):
        fetch(Fetch(**{side: str(path) for side, path in sides.items()}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = compare_models(*(open_checkpoint(sides[side]) for side in ("base", "instruct")), full=False)
    assert found["verdict"] == "warn", "its weights can be grafted all the same"
    brings = f"the {role.capitalize()} includes code, which is never run (config.json: auto_map own.Own"
    assert any(reason.startswith(brings) for reason in found["reasons"])
    assert (asked, canary.exists()) == ([], False)


def test_code_of_a_known_class_is_a_warning_and_is_not_copied(
    tiny_llama_pair: Pair, tmp_path: Path, asked: list[str]
) -> None:
    folder, canary = with_code(tiny_llama_pair.instruct, tmp_path, code_beside_a_known_class)
    base = shutil.copytree(tiny_llama_pair.base, tmp_path / "base")
    edit(base, "config.json", auto_map=OWN_MODEL)
    (base / "tokenizer.json").unlink()  # a Base is trained with the Instruct's tokenizer and needs none
    edit(base, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    edit(base, "processor_config.json", auto_map=7)
    fetch(Fetch(base=str(base), instruct=str(folder)), tmp_path / "out")
    reasons = json.loads((tmp_path / "out/pair.json").read_text())["reasons"]
    for name in ("Base", "Instruct"):
        listed = "config.json: auto_map own.Own, tokenizer_config.json: auto_map own.Own"
        assert f"the {name} includes code, which is never run ({listed})" in reasons
    assert not (tmp_path / "out/instruct/own.py").exists()
    assert (asked, canary.exists()) == ([], False)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("kind", ["script", "pickle"])
def test_data_files_of_a_task_run_no_code(tiny_llama_pair: Pair, tmp_path: Path, asked: list[str], kind: str) -> None:
    tasks, canary = tmp_path / "tasks", tmp_path / "code-ran"
    (tasks / "rows").mkdir(parents=True)
    (tasks / "rows/rows.py").write_text(CODE.format(str(canary)))
    (tasks / "rows.pkl").write_bytes(pickle.dumps(Bomb(canary)))
    path, options = {
        "script": (tasks / "rows/rows.py", {"trust_remote_code": True}),
        "pickle": ("pandas", {"data_files": {"test": "rows.pkl"}}),
    }[kind]
    task = {"task": "odd", "dataset_path": str(path), "dataset_kwargs": options, "test_split": "test"}
    task |= {"output_type": "generate_until", "doc_to_text": "q", "doc_to_target": "a"}
    (tasks / "odd.yaml").write_text(yaml.safe_dump(task))
    params = Evaluate(tasks=str(tasks), domain=("odd",))
    with pytest.raises(EvaluationError, match=r"^task odd"):
        open_bench(tiny_llama_pair.instruct, tmp_path, params, ("odd",), ()).__enter__()
    assert (asked, canary.exists()) == ([], False)


LOADERS = {"from_pretrained", "from_config", "load_dataset", "pipeline", "load_checkpoint_and_dispatch", "load_adapter"}
"""functions that can load code, or unchecked weights"""


def test_only_loading_calls_the_loaders() -> None:
    found = []
    for path in sorted(p for room in ("shadowft_core", "flows") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in LOADERS:
                    found.append((path.relative_to(ROOT).as_posix(), name))
            elif isinstance(node, ast.Call):
                trusts = {k.arg: k.value for k in node.keywords}.get("trust_remote_code")
                assert trusts is None or (isinstance(trusts, ast.Constant) and trusts.value is False), path
                if isinstance(node.func, ast.Name) and node.func.id == "HFLM":
                    assert trusts, f"{path}: the harness is not told"
    assert found == [("shadowft_core/loading.py", "from_pretrained")]
