"""The house is held to docs/architecture.md: who imports whom, what DVC watches, which verbs exist."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CORE = ROOT / "shadowft_core"
ROOMS = sorted(
    p.stem if p.is_file() else p.name for p in CORE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
)
LAYERS = [
    "errors",
    "yamlfile",
    "params",
    "checkpoint objects",
    "pair store diff",
    "prepare train delta graft sweep evaluate verdict report registry promotion export receipt recipe_model pico"
    " smollm2",
    "acts looks releases workspace",
    "cli",
]
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms.split()}
EXCEPTIONS = {  # named on the page: who may look beside or above
    "pair": {"pico", "smollm2"},
    "objects": {"checkpoint"},
    "graft": {"delta"},
    "sweep": {"evaluate"},
    "evaluate": {"graft"},
    "report": {"verdict"},
    "registry": {"graft", "delta"},
    "promotion": {"registry"},
    "export": {"graft", "delta"},
    "releases": {"acts"},
    "looks": {"acts"},
    "receipt": {"graft"},
    "recipe_model": {"registry"},
}
MADE_HERE = {"pico", "smollm2"}  # rooms that make a pair: fetch sees them through work/origin.json, if it needs one
FENCES = {
    "safetensors": {"checkpoint"},
    "boto3": {"objects"},
    "botocore": {"objects"},
    "mlflow": {"registry", "recipe_model"},
    "prefect": set(),
    "dvc": set(),
    "torch": {"train", "evaluate", "sweep", "pico", "smollm2", "recipe_model"},
    "transformers": {"train", "evaluate", "sweep", "pico", "smollm2", "prepare", "recipe_model", "pair"},
    "trl": {"train"},
    "peft": {"train"},
    "lm_eval": {"evaluate"},
    "pickle": set(),
}


def room_files(room: str) -> list[Path]:
    single = CORE / f"{room}.py"
    return [single] if single.exists() else [p for p in sorted((CORE / room).rglob("*.py")) if p.parent.name != "tasks"]


def imports(path: Path) -> set[str]:
    """Every dotted module a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(room: str) -> set[str]:
    names = {
        module.split(".")[1]
        for path in room_files(room)
        for module in imports(path)
        if module.startswith("shadowft_core.")
    }
    return (names & set(ROOMS)) - {room, "__init__"}


def closure(room: str) -> set[str]:
    seen, todo = set(), [room]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += rooms_of(current)
    return seen


def test_every_room_stands_on_the_plan() -> None:
    assert set(ROOMS) - {"__init__", "tasks"} == set(LAYER) & set(ROOMS)


@pytest.mark.parametrize("room", [r for r in ROOMS if r in LAYER])
def test_imports_go_down_only(room: str) -> None:
    beside = {other for other in rooms_of(room) if LAYER[other] >= LAYER[room]}
    named = EXCEPTIONS.get(room, set())
    assert beside <= named, f"{room} must not import {beside - named}"
    assert named <= beside, f"{room} no longer imports {named - beside}: the exception can go"


@pytest.mark.parametrize("room", [r for r in ROOMS if r in LAYER])
def test_outsiders_stay_behind_their_fence(room: str) -> None:
    tops = {module.split(".")[0] for path in room_files(room) for module in imports(path)}
    wrong = {outsider for outsider, allowed in FENCES.items() if outsider in tops and room not in allowed}
    assert not wrong, f"{room} must not import {wrong}"


def stages() -> dict[str, dict[str, object]]:
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


@pytest.mark.parametrize("name", list(stages()))
def test_a_stage_depends_on_the_code_it_imports(name: str) -> None:
    unseen = MADE_HERE if name == "fetch" else set()
    expected = {watched for room in closure(verb_of(name)) - unseen for watched in watch(room)}
    deps = stages()[name]["deps"]
    assert isinstance(deps, list)
    assert {d for d in deps if d.startswith("shadowft_core")} == expected


def watch(room: str) -> list[str]:
    """A room that is a file or a folder of code; of one that also holds data, only the code."""
    if (CORE / f"{room}.py").exists():
        return [f"shadowft_core/{room}.py"]
    if (CORE / room / "data").exists():
        return [f"shadowft_core/{room}/{path.name}" for path in room_files(room)]
    return [f"shadowft_core/{room}"]


def verb_of(stage: str) -> str:
    return {"fetch": "pair", "extract": "delta"}.get(stage.split("-", maxsplit=1)[0], stage.split("-", maxsplit=1)[0])


def verbs() -> set[str]:
    from typer.main import get_command

    from shadowft_core.cli import app

    return set(get_command(app).commands)  # type: ignore[attr-defined]


def test_every_stage_is_a_verb_and_says_so() -> None:
    for name, stage in stages().items():
        verb = name.split("-")[0]
        assert verb in verbs(), name
        assert str(stage["cmd"]).startswith(f"shadowft {verb} "), name


def test_no_value_reaches_a_shell() -> None:
    """DVC hands `cmd` to a shell: a value from params.yaml, put in there, would be run."""
    commands = {name: str(stage["cmd"]) for name, stage in stages().items()}
    assert not {name: command for name, command in commands.items() if set("$`") & set(command)}


def test_one_function_knows_the_cache_folder() -> None:
    named = {p.name for p in CORE.rglob("*.py") if '"SHADOWFT_CACHE"' in p.read_text(encoding="utf-8")}
    assert named == {"files.py"}


def test_every_verb_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = {verb for verb in verbs() if f"shadowft {verb}" not in readme}
    assert not missing, f"README.md does not mention {missing}"


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "mlflow", "boto3", "transformers", "prefect", "scipy")
    code = f"import sys, shadowft_core.cli; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_files_fit_in_the_head() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for folder in ("shadowft_core", "flows", "tests", "infra")
        for p in (ROOT / folder).rglob("*.py")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long, f"two rooms would read better: {long}"


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    fixed = "pyproject.toml flows shadowft_core tests dvc.yaml params.yaml infra"
    beside = "README.md LICENSE Makefile constraints.txt .ci docs benchmarks .dvc .dvcignore .gitignore prefect.yaml"
    allowed = set(f"{fixed} {beside}".split())
    assert top <= allowed, top - allowed
