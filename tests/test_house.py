"""The house is held to docs/architecture.md: who imports whom, what DVC watches, which verbs exist."""

import ast
import re
import subprocess
import sys
from collections.abc import Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

from shadowft_core.demo import pico, smollm2

ROOT = Path(__file__).parent.parent
CORE = ROOT / "shadowft_core"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(
    p.stem if p.is_file() else p.name for p in CORE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
)
_ROWS = re.findall(r"^\| (\d+) \|([^|]+)\|([^|]*)\|[^|]*\|$", PAGE, re.MULTILINE)
LAYER = {room: int(layer) for layer, rooms, _ in _ROWS for room in re.findall(r"\b([a-z_]+)(?:/|\.py)", rooms)}
LIBRARIES = {  # which rooms the page lets import a library that has an owner
    room: set(re.findall(r"[a-z0-9_]+", libraries))
    for _, rooms, libraries in _ROWS
    for room in re.findall(r"\b([a-z_]+)(?:/|\.py)", rooms)
}
OWNED = set().union(*LIBRARIES.values()) | {"pickle"}


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


def test_every_room_stands_on_the_page() -> None:
    assert set(ROOMS) - {"__init__"} == set(LAYER)


@pytest.mark.parametrize("room", sorted(LAYER))
def test_imports_go_down_only(room: str) -> None:
    assert not {other for other in rooms_of(room) if LAYER[other] >= LAYER[room]}


@pytest.mark.parametrize("room", sorted(LAYER))
def test_a_library_stays_in_the_rooms_that_own_it(room: str) -> None:
    tops = {module.split(".")[0] for path in room_files(room) for module in imports(path)}
    assert tops & OWNED == LIBRARIES[room]


def modules() -> dict[str, set[str]]:
    """Every module of shadowft_core and flows, and the ones it imports, also inside functions and for types alone."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for folder in ("shadowft_core", "flows")
        for p in (ROOT / folder).rglob("*.py")
    }
    return {name: taken(path, files.keys()) - {name} for name, path in files.items()}


def taken(path: Path, known: Set[str]) -> set[str]:
    """The modules that a file imports from; of `from door import module`, the module, not the door."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in inner}
    return found & known


def test_no_circle_between_modules() -> None:
    try:
        TopologicalSorter(modules()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def stages() -> dict[str, dict[str, object]]:
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


@pytest.mark.parametrize("name", list(stages()))
def test_a_stage_depends_on_the_code_it_imports(name: str) -> None:
    deps = stages()[name]["deps"]
    assert isinstance(deps, list)
    assert {d for d in deps if d.startswith("shadowft_core")} == expected_deps(name)


def expected_deps(stage: str) -> set[str]:
    """The code that a stage imports; fetch-origin also watches the sources of the generated pairs."""
    sources = [*pico.SOURCES, *smollm2.SOURCES] if stage == "fetch-origin" else []
    return {watched for room in closure(verb_of(stage)) for watched in watch(room)} | {
        str(file.relative_to(ROOT)) for file in sources
    }


def watch(room: str) -> list[str]:
    """A room as dvc.yaml names it: a file or a folder."""
    return [f"shadowft_core/{room}.py" if (CORE / f"{room}.py").exists() else f"shadowft_core/{room}"]


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
    assert named == {"cache.py"}


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
