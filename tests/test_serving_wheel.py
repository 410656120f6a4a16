"""A registered version carries this package as a wheel, and MLflow builds an environment with it."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools
from mlflow.utils.environment import _PythonEnv

import shadowft_core
from shadowft_core.registry import wheel
from shadowft_core.registry.serving import PACKAGES, requirements
from shadowft_core.registry.wheel import write_wheel
from tests.fixtures.package import build, content, source
from tests.fixtures.runs import Run

ROOT = Path(__file__).parent.parent
USER = {"role": "user", "content": "word1 word2"}


def test_the_wheel_of_a_version_has_the_package_and_requires_what_the_loader_imports(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    carried, again = (write_wheel(tmp_path / folder, PACKAGES) for folder in ("one", "two"))
    assert (carried.name, carried.read_bytes()) == (again.name, again.read_bytes())
    assert re.fullmatch(
        rf"shadowft-{re.escape(shadowft_core.__version__)}\+loader\.[0-9a-f]{{12}}-py3-none-any\.whl", carried.name
    )
    pure = build("wheel", source(tmp_path / "source"), tmp_path / "dist", SHADOWFT_PURE="1")
    inside = {name for name in content(carried) if not name.startswith("shadowft-")}
    assert inside == {name for name in content(pure) if not name.startswith("shadowft-")}
    with zipfile.ZipFile(carried) as ours, zipfile.ZipFile(pure) as built:
        assert [name for name in inside if ours.read(name) != built.read(name)] == []
    (described,) = Distribution.discover(path=[str(carried)])
    assert described.version in carried.name
    assert described.metadata["Requires-Python"] == metadata("shadowft")["Requires-Python"]
    with zipfile.ZipFile(carried) as ours:
        assert {entry.external_attr >> 16 for entry in ours.infolist()} == {0o644}, "readable once it is installed"
        for file in described.files or ():  # as RECORD has them
            data = ours.read(str(file))
            if file.name != "RECORD":
                assert file.hash is not None
                assert base64.urlsafe_b64decode(file.hash.value + "=") == hashlib.sha256(data).digest()
                assert file.size == len(data)
    assert "Root-Is-Purelib: true" in (described.read_text("WHEEL") or "").splitlines()
    named = {line.partition("<")[0].partition(">")[0].partition("=")[0] for line in described.requires or ()}
    assert {"torch", "transformers", "mlflow"} <= named <= set(PACKAGES)
    assert carried.stat().st_size < 2_000_000


def test_other_code_or_other_requirements_give_another_version(tmp_path: Path, monkeypatch: Any) -> None:
    """MLflow names an environment by the requirements, and uses one of that name again."""
    first = write_wheel(tmp_path, PACKAGES).name
    assert write_wheel(tmp_path, PACKAGES[:-1]).name != first
    copy = tmp_path / "shadowft_core"
    shutil.copytree(ROOT / "shadowft_core", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(wheel, "_PACKAGE", copy)
    assert write_wheel(tmp_path, PACKAGES).name == first
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__/x.pyc").touch()
    (copy / "kernels/libbf16.so").write_bytes(b"of another compiler")
    assert write_wheel(tmp_path, PACKAGES).name == first
    (copy / "errors.py").write_text("# changed")
    assert write_wheel(tmp_path, PACKAGES).name != first


def test_a_version_without_a_wheel_can_still_be_loaded(run: Run, monkeypatch: Any) -> None:
    """As those that were registered before."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.params.registry.tracking_uri)
    mlflow.set_tracking_uri(run.params.registry.tracking_uri)
    reference = f"models:/{run.register().name}/1"
    folder = Path(mlflow.artifacts.download_artifacts(reference))
    (carried,) = folder.glob("wheels/*.whl")
    with_wheel = mlflow.pyfunc.load_model(reference).predict([USER])
    shutil.rmtree(carried.parent)
    listed = folder / "requirements.txt"
    assert listed.read_text().splitlines()[-1] == f"wheels/{carried.name}"
    listed.write_text("".join(f"{line}\n" for line in listed.read_text().splitlines() if ".whl" not in line))
    assert mlflow.pyfunc.load_model(str(folder)).predict([USER]) == with_wheel
    materialized = run.materialize(reference, folder.parent / "rebuilt")
    assert materialized["digest"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_predict_works_in_an_environment_that_mlflow_builds_without_an_index(run: Run, tmp_path: Path) -> None:
    """uv takes the libraries from its cache, where `make venv` put them, and Shadow-FT from the version's own wheel."""
    programs = Path(sys.executable).parent
    if not (programs / "uv").exists():
        pytest.skip("uv is not installed, so MLflow cannot build an environment with it")
    name = run.register().name
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SHADOWFT_ROOT")}
    environment |= {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": run.params.registry.tracking_uri,
        "SHADOWFT_CACHE": str(tmp_path / "cache"),
        "UV_OFFLINE": "1",
        "UV_CONSTRAINT": str(tmp_path / "cached.txt"),
        "UV_FIND_LINKS": links(tmp_path / "tools"),
    }
    pins = (ROOT / "constraints.txt").read_text().splitlines()  # without the build tools, whose versions MLflow names
    (tmp_path / "cached.txt").write_text("\n".join(line for line in pins if not line.startswith("wheel=")))
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps({"messages": [USER], "max_new_tokens": 4}))
    require_cached(environment)
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", f"models:/{name}@challenger"]
    replies = []
    for manager in ("uv", "local"):
        done = subprocess.run(
            [*command, "--env-manager", manager, "-i", "request.json", "-o", f"{manager}.json"],
            cwd=folder,
            env=environment | ({"PYTHONPATH": str(ROOT)} if manager == "local" else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        replies.append(json.loads((folder / f"{manager}.json").read_text()))
        if manager == "uv":
            (version,) = re.findall(r"^ \+ shadowft==(\S+) \(from file://", done.stderr, re.MULTILINE)
            assert version.startswith(f"{shadowft_core.__version__}+loader.")
            assert "+ prefect==" not in done.stderr, "only what the loader imports"
    assert replies[0] == replies[1]


def links(folder: Path) -> str:
    """The folders of packages that pip is configured with, as the Makefile passes them to uv, and one with MLflow's
    build tools: every environment of MLflow has them, `make venv` did not install them with uv.
    """
    asked = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    configured = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    folder.mkdir()
    places = [*sys.path, str(Path(setuptools.__file__).parent / "_vendor")]
    for tool in _PythonEnv.get_current_build_dependencies():
        pack_again(next(Distribution.discover(name=tool.partition("==")[0], path=places)), folder)
    return ",".join([*configured, str(folder)])


def pack_again(installed: Distribution, folder: Path) -> None:
    """The wheel of an installed pure package, without its programs."""
    name = f"{installed.metadata['Name']}-{installed.version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        for file in installed.files or ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts and file.name != "RECORD":
                wheel.write(file.locate(), str(file))
        wheel.writestr(f"{name}.dist-info/RECORD", "".join(f"{name},,\n" for name in wheel.namelist()))


def require_cached(environment: dict[str, str]) -> None:
    """Skip the test where uv has not installed the libraries before: `make venv` falls back to pip."""
    wanted = [*requirements(), *_PythonEnv.get_current_build_dependencies()]
    asked = ["uv", "pip", "install", "--dry-run", "--python", sys.executable, "--reinstall", *wanted]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"uv's cache has not all libraries: {done.stderr.splitlines()[-1]}")
