"""The package as a library: its public names, and their types."""

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import shadowft_core
from tests.fixtures.package import installed

ROOT = Path(__file__).parent.parent
FOLDER = "str | os.PathLike[str]"
ANY = "dict[str, typing.Any]"
FUNCTIONS = {  # adding a name or an optional argument is a decision; any other change breaks users
    "check_pair": f"(base: {FOLDER}, instruct: {FOLDER}, *, ignore: collections.abc.Sequence[str] = ()) -> {ANY}",
    "extract": f"(base: {FOLDER}, tuned: {FOLDER}, out: {FOLDER}, *, storage: 'Storage' = 'compressed', "
    "lowrank: float | None = None, unrelated: bool = False, ignore: collections.abc.Sequence[str] = ()) -> " + ANY,
    "graft": f"(instruct: {FOLDER}, deltas: collections.abc.Sequence[tuple['Folder | Delta', float]], "
    f"out: {FOLDER}, options: 'Options | None' = None) -> {ANY}",
    "judge": "(scores: 'Folder | Table | Sequence[Mapping[str, Any]]', candidate: str, "
    f"thresholds: 'Verdict | None' = None) -> {ANY}",
    "materialize": f"(reference: str, out: {FOLDER}, registry: 'Registry', store: 'Store', *, "
    f"instruct: {FOLDER} | None = None) -> {ANY}",
    "open_delta": f"(folder: {FOLDER}) -> 'Delta'",
    "publish": f"(delta: {FOLDER}, store: 'Store') -> str",
    "read_receipt": f"(folder: {FOLDER}) -> {ANY}",
}
TYPES = {  # the fields or arguments that users may name
    "Delta": "names shape form read norm verify",
    "Merge": "rule density seed",
    "Options": "scope dtype merge scale_for waivers ignore",
    "Registry": "name tracking_uri",
    "ShadowError": "exit_code",
    "Store": "uri endpoint region sse sse_kms_key bucket_owner chunk_bytes",
    "Verdict": "alpha margin margin_each worthwhile metrics require resamples seed",
}
PUBLIC = {*FUNCTIONS, *TYPES, "__version__"}


def run(code: str) -> str:
    """Run code in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_the_public_names_are_frozen() -> None:
    assert set(shadowft_core.__all__) == PUBLIC


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_is_frozen(name: str) -> None:
    assert str(inspect.signature(getattr(shadowft_core, name))) == FUNCTIONS[name]


@pytest.mark.parametrize("name", TYPES)
def test_the_fields_of_a_public_type_are_frozen(name: str) -> None:
    kind = getattr(shadowft_core, name)
    held = getattr(kind, "model_fields", None) or [*dir(kind), *getattr(kind, "__annotations__", ())]
    assert not set(TYPES[name].split()) - set(held)


def test_the_page_and_the_changelog_name_every_public_name() -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert not [name for name in PUBLIC - {"__version__"} if f"`{name}" not in page]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(shadowft_core, name) is not None
    assert name in dir(shadowft_core)


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "shadowft_core/__init__.pyi").read_text(encoding="utf-8"))
    imported = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == shadowft_core._SOURCES


def test_the_version_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert shadowft_core.__version__ == project["version"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'shadowft_core' has no attribute 'grft'"):
        _ = shadowft_core.grft  # type: ignore[attr-defined]


def test_importing_the_package_loads_no_dependency() -> None:
    outside = "{m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names - before"
    code = f"import sys; before = {{m.split('.')[0] for m in sys.modules}}; import shadowft_core; print({outside})"
    assert run(code) == "{'shadowft_core'}"


USER = """
from pathlib import Path
import shadowft_core as shadowft
from shadowft_core import Delta, Merge, Options, Registry, ShadowError, Store, Verdict

def tune(base: Path, instruct: str) -> str:
    delta: Delta = shadowft.open_delta("delta")
    try:
        recipe = shadowft.graft(instruct, [("delta", 1.0), (delta, 0.5)], base / "out", Options(merge=Merge("sum")))
        digest: str = shadowft.publish(delta.path, Store(uri="s3://bucket/deltas"))
    except ShadowError as error:
        return str(error)
    shadowft.materialize("models:/mine@champion", "out", Registry(), Store(), instruct=base)
    verdict = shadowft.judge([{"arm": "instruct", "score": 1.0}], "mine", Verdict(margin=0.02))
    shadowft.graft(instruct, ["delta"], "out")  # refused
    shadowft.check_pair(base)  # refused
    shadowft.judge(3, "mine")  # refused
    shadowft.graft_model  # refused
    return f"{digest} {recipe['digest']} {verdict['decision']} {shadowft.__version__.upper()}"
"""


@pytest.mark.slow
def test_a_type_checker_reads_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Of an installed package mypy sees what the stubs say."""
    python, empty = installed(wheel, tmp_path / "venv") / "python", tmp_path / "empty"
    empty.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SHADOWFT_ROOT")}
    (empty / "user.py").write_text(USER)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([*mypy, "user.py"], cwd=empty, env=env, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert [line.partition(": error: ")[0] for line in said[:-1] if ": note: " not in line] == [
        f"user.py:{number}" for number, line in enumerate(USER.splitlines(), 1) if line.endswith("# refused")
    ], done.stdout
