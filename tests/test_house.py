"""The code follows docs/architecture.md: imports, the code that DVC watches, verbs, and the form of files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Set
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
TABLE = [  # (layer, rooms, libraries) of each row of the page's table
    (int(layer), re.findall(r"\b([a-z_]+)(?:/|\.py)", rooms), set(re.findall(r"[a-z0-9_]+", libraries)))
    for layer, rooms, libraries in re.findall(r"^\| (\d+) \|([^|]+)\|([^|]*)\|[^|]*\|$", PAGE, re.MULTILINE)
]
LAYER = {room: layer for layer, rooms, _ in TABLE for room in rooms}
LIBRARIES = {room: libraries for _, rooms, libraries in TABLE for room in rooms}
OWNED = set().union(*LIBRARIES.values()) | {"pickle"}  # libraries that only the rooms named with them may import

# Exceptions to the rules below.
VERBS = {
    "fetch": "pair",
    "start": "promotion",
    "look": "promotion",
    "preflight": "train",
    "extract": "delta",
    "graft": "grafting",
    "select": "selection",
}  # a stage whose verb is implemented in a room of another name
TOP_LEVEL = (
    "shadowft_core flows infra tests benchmarks docs dvc.yaml params.yaml prefect.yaml pyproject.toml constraints.txt"
)
OTHER_FILES = (
    "README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE Makefile .ci .dvc .dvcignore .github .gitignore"
)
LONGEST = 300  # lines of a Python file
RETIRED = "is wanted|are wanted|at home|lies elsewhere|lie elsewhere|lasting worth|a stranger|its words|at hand|afar"


def tracked(*paths: str) -> list[str]:
    """The files that git tracks, below these paths or all."""
    command = ["git", "ls-files", "-z", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def room_files(room: str) -> list[Path]:
    single = CORE / f"{room}.py"
    return [single] if single.exists() else [p for p in sorted((CORE / room).rglob("*.py")) if p.parent.name != "tasks"]


def import_nodes(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement of a file, also inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports: for `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(room: str) -> set[str]:
    names = {
        module.split(".")[1]
        for path in room_files(room)
        for module in imports(path)
        if module.startswith("shadowft_core.")
    }
    return (names & set(ROOMS)) - {room, "__init__"}


def closure(room: str) -> set[str]:
    """A room and all rooms that it imports, directly or not."""
    seen, queue = set(), [room]
    while queue:
        current = queue.pop()
        if current not in seen:
            seen.add(current)
            queue += imported_rooms(current)
    return seen


def test_every_room_is_in_the_table() -> None:
    assert set(ROOMS) - {"__init__"} == set(LAYER)


def test_the_walks_are_short_and_name_files_that_exist() -> None:
    lists = re.findall(r"^- \*\*An? .*?(?=^- |^$)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(lists) == 4
    for walk in (re.findall(r"[a-z0-9_/]+\.py", text) for text in lists):
        assert 5 <= len(walk) <= 10
        assert all((CORE / name).is_file() for name in walk), walk


@pytest.mark.parametrize("room", sorted(LAYER))
def test_a_room_imports_only_lower_layers(room: str) -> None:
    assert not {other for other in imported_rooms(room) if LAYER[other] >= LAYER[room]}


@pytest.mark.parametrize("room", sorted(LAYER))
def test_a_library_is_imported_only_by_the_rooms_that_own_it(room: str) -> None:
    tops = {module.split(".")[0] for path in room_files(room) for module in imports(path)}
    assert tops & OWNED == LIBRARIES[room]


def test_only_the_demo_imports_the_demo() -> None:
    assert [room for room in LAYER if "demo" in imported_rooms(room)] == []
    assert not [name for name in imports(CORE / "__init__.py") if name.startswith("shadowft_core")]


def modules() -> dict[str, set[str]]:
    """Every module of shadowft_core and flows with the modules it imports, also inside functions and for types."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for folder in ("shadowft_core", "flows")
        for p in (ROOT / folder).rglob("*.py")
    }
    return {name: imported_modules(path, files.keys()) - {name} for name, path in files.items()}


def imported_modules(path: Path, known: Set[str]) -> set[str]:
    """The modules that a file imports: for `from package import module` the module, not the package."""
    names: set[str] = set()
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in known else node.module for name in inner}
    return names & known


def test_every_import_names_its_module_in_full() -> None:
    """The rules above do not see relative imports."""
    packages = (path for folder in ("shadowft_core", "flows") for path in (ROOT / folder).rglob("*.py"))
    relative = {
        str(path.relative_to(ROOT))
        for path in packages
        for node in import_nodes(path)
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert relative == set()


def test_no_modules_import_each_other() -> None:
    try:
        TopologicalSorter(modules()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def stages() -> dict[str, dict[str, object]]:
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


def verb_of(stage: str) -> str:
    return stage.split("-", maxsplit=1)[0]


def code_watched(stage: str) -> set[str]:
    deps = stages()[stage]["deps"]
    assert isinstance(deps, list)
    return {dependency for dependency in deps if dependency.startswith("shadowft_core")}


def expected_code(stage: str) -> set[str]:
    """The rooms that a stage imports; fetch-origin also watches the source files of the generated pairs."""
    rooms = closure(VERBS.get(verb_of(stage), verb_of(stage)))
    sources = [*pico.SOURCES, *smollm2.SOURCES] if stage == "fetch-origin" else []
    paths = [CORE / f"{room}.py" if (CORE / f"{room}.py").exists() else CORE / room for room in rooms]
    return {str(path.relative_to(ROOT)) for path in (*paths, *sources)}


@pytest.mark.parametrize("stage", list(stages()))
def test_params_yaml_has_the_sections_that_a_stage_reads(stage: str) -> None:
    """DVC fails at a stage whose parameters are missing, even where they have defaults."""
    given = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    named = [name.split(".")[0] for name in stages()[stage].get("params", [])]
    assert set(named) <= given.keys()


@pytest.mark.parametrize("stage", list(stages()))
def test_a_stage_watches_the_code_it_imports(stage: str) -> None:
    assert code_watched(stage) == expected_code(stage)


def test_git_tracks_every_file_that_dvc_watches() -> None:
    """An untracked file in a watched folder would make stages stale in this checkout only."""
    lines = (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines()
    suffixes = {line.rpartition("*")[2] for line in lines if line.startswith("!/shadowft_core/**/*.")}
    watched = {path for stage in stages() for path in code_watched(stage)}
    files = [
        path for name in watched for path in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])
    ]
    seen = {str(path.relative_to(ROOT)) for path in files if path.suffix in suffixes and not path.name.startswith(".")}
    assert {".py", ".c", ".json"} <= suffixes
    assert seen - set(tracked(*watched)) == set()


def verbs() -> set[str]:
    from typer.main import get_command

    from shadowft_core.cli import app

    return set(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_command_of_a_stage_is_its_verb() -> None:
    for name, stage in stages().items():
        assert verb_of(name) in verbs(), name
        assert str(stage["cmd"]).startswith(f"shadowft {verb_of(name)} "), name


def test_no_parameter_reaches_a_shell() -> None:
    """DVC passes `cmd` to a shell, which would run a value inserted from params.yaml."""
    commands = {name: str(stage["cmd"]) for name, stage in stages().items()}
    assert not {name: command for name, command in commands.items() if set("$`") & set(command)}


def test_only_one_module_reads_the_variable_of_the_cache() -> None:
    named = {p.name for p in CORE.rglob("*.py") if '"SHADOWFT_CACHE"' in p.read_text(encoding="utf-8")}
    assert named == {"cache.py"}


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "mlflow", "boto3", "transformers", "prefect", "scipy")
    code = f"import sys, shadowft_core.cli; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_python_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("shadowft_core", "flows", "tests", "infra")
        for path in (ROOT / folder).rglob("*.py")
    }
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long, f"split each at a seam: {too_long}"


def test_the_top_level_has_no_other_files() -> None:
    assert {name.split("/")[0] for name in tracked()} - {
        *TOP_LEVEL.split(),
        *OTHER_FILES.split(),
        ".pre-commit-config.yaml",
    } == set()


@pytest.mark.parametrize("words", RETIRED.split("|"))
def test_code_and_docs_use_plain_words(words: str) -> None:
    names = [
        name for name in tracked("shadowft_core", "flows", "docs", "README.md") if Path(name).suffix in (".py", ".md")
    ]
    assert [name for name in names if words in (ROOT / name).read_text(encoding="utf-8")] == []


def test_rooms_below_the_command_line_print_one_line_at_a_time() -> None:
    """A line break in a name of others would look like a line of ours (`errors.say`)."""
    apart = ("cli", "demo", "pipeline", "answers", "errors.py", "train/launch.py", "train/command.py")
    found = [
        f"{path}:{node.lineno}"
        for path in sorted((ROOT / "shadowft_core").rglob("*.py"))
        if not path.relative_to(ROOT / "shadowft_core").as_posix().startswith(apart)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and "sys.stderr" in ast.unparse(node)
    ]
    assert not found, f"use errors.say: {found}"
