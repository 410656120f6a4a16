"""The package as a library: its public names, what importing it sets, and the built wheel."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import shadowft_core

ROOT = Path(__file__).parent.parent
PUBLIC = {  # adding a name is a decision; removing one breaks users
    "Checkpoint",
    "Delta",
    "Options",
    "Params",
    "ShadowError",
    "Store",
    "__version__",
    "check_pair",
    "export_adapter",
    "extract",
    "fetch_delta",
    "graft_model",
    "load_params",
    "materialize",
    "open_checkpoint",
    "open_delta",
    "publish",
}


def run(code: str) -> str:
    """Run code in a new interpreter that has none of the variables that the package sets."""
    env = {name: value for name, value in os.environ.items() if name not in shadowft_core._ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=ROOT)
    return done.stdout.strip()


def test_the_public_names_are_frozen() -> None:
    assert set(shadowft_core.__all__) == PUBLIC


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


@pytest.mark.parametrize("room", ["train", "evaluate", "loading", "recipe_model", "pair", "registry", "weights"])
def test_a_library_user_has_hubs_offline_and_telemetry_off(room: str) -> None:
    code = (
        f"import os, shadowft_core.{room}, huggingface_hub.constants as hub, datasets.config\n"
        "print(hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY, datasets.config.HF_DATASETS_OFFLINE)\n"
        "print(os.environ['DO_NOT_TRACK'], os.environ['OPENBLAS_NUM_THREADS'])"
    )
    assert run(code) == "True True True\ntrue 1"


def test_a_variable_that_is_set_stays() -> None:
    code = "import os; os.environ['HF_HUB_OFFLINE'] = '0'; import shadowft_core; print(os.environ['HF_HUB_OFFLINE'])"
    assert run(code) == "0"


BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built from a copy of the files that git knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "shadowft_core", "flows"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in (*filter(None, names), "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_the_sdist_has_the_source_of_the_kernel(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"shadowft_core/kernels/bf16.c", "shadowft_core/py.typed", "pyproject.toml", "LICENSE"} <= names


@pytest.mark.slow
def test_the_wheel_has_every_data_file(built: Path) -> None:
    listed = ["git", "ls-files", "-z", "--", "shadowft_core"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    expected = {name for name in tracked if name and not name.endswith(".c")}
    for folder, suffix in (("weights", ".json"), ("report", ".html"), ("demo/pico/data", ".json"), ("", "py.typed")):
        assert any(name.startswith(f"shadowft_core/{folder}") and name.endswith(suffix) for name in expected)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        assert expected <= set(wheel.namelist())


@pytest.mark.slow
def test_the_installed_wheel_runs_from_an_empty_folder(built: Path, tmp_path: Path) -> None:
    """The environment is new; only the dependencies come from the one that runs the tests."""
    venv.create(tmp_path / "venv", with_pip=False)
    python, empty = tmp_path / "venv/bin/python", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, next(built.glob("*.whl"))], check=True)
    packages = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SHADOWFT_ROOT")}

    def output(*command: str | Path) -> str:
        return subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=True).stdout

    where = "import shadowft_core as s; print(s.__version__, s.__file__)"
    assert output(python, "-c", where).split() == [shadowft_core.__version__, f"{packages}/shadowft_core/__init__.py"]
    assert "graft" in output(tmp_path / "venv/bin/shadowft", "--help")
    assert output(python, "-c", "import shadowft_core.weights as w; print(bool(w.Family))").split() == ["True"]
    assert not list(empty.iterdir())
