"""The built package: one wheel for every Python, another for every platform, and the source archive."""

import ctypes
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import shadowft_core
from shadowft_core.kernels import bf16
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair, shifted
from tests.fixtures.package import ROOT, build, content, installed, source

LIBRARY = "shadowft_core/kernels/libbf16.so"


def test_the_wheel_is_for_every_python_and_one_platform(wheel: Path, tmp_path: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version, python, abi) == ("shadowft", shadowft_core.__version__, "py3", "none")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as opened:
        described = opened.read(f"shadowft-{version}.dist-info/WHEEL").decode().splitlines()
        library = opened.extract(LIBRARY, tmp_path)
    assert {"Root-Is-Purelib: false", f"Tag: py3-none-{platform}"} <= set(described)
    assert ctypes.CDLL(library).shadowft_version() == bf16.VERSION


@pytest.mark.parametrize("reason", [{"SHADOWFT_PURE": "1"}, {"CC": "false", "LDSHARED": "false"}])
def test_without_a_compiler_or_when_asked_the_wheel_is_pure(
    wheel: Path, tmp_path: Path, reason: dict[str, str]
) -> None:
    pure = build("wheel", source(tmp_path / "source"), tmp_path / "dist", **reason)
    assert pure.name == f"shadowft-{shadowft_core.__version__}-py3-none-any.whl"
    assert content(wheel) - content(pure) == {LIBRARY}
    assert content(pure) <= content(wheel)
    with zipfile.ZipFile(pure) as opened:
        described = opened.read(f"shadowft-{shadowft_core.__version__}.dist-info/WHEEL").decode().splitlines()
    assert {"Root-Is-Purelib: true", "Tag: py3-none-any"} <= set(described)


def test_what_an_earlier_build_left_is_not_packed(wheel: Path, tmp_path: Path) -> None:
    """`pip install .` builds in the clone, and leaves build/ there."""
    place = source(tmp_path / "source")
    for platform in ("linux-x86_64", "linux-aarch64"):
        left = place / f"build/lib.{platform}-cpython-{sys.version_info[0]}{sys.version_info[1]}/shadowft_core"
        (left / "kernels").mkdir(parents=True)
        for name in ("removed.py", "kernels/libbf16.so"):
            (left / name).touch()
    pure = build("wheel", place, tmp_path / "dist", SHADOWFT_PURE="1")
    assert pure.stem.endswith("-py3-none-any")
    assert content(wheel) - content(pure) == {LIBRARY}
    assert content(pure) <= content(wheel)


def test_the_wheel_has_every_data_file_and_no_other_package(wheel: Path) -> None:
    """A workspace has a package `flows` of its own."""
    listed = ["git", "ls-files", "-z", "--", "shadowft_core"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    expected = {name for name in tracked if name and not name.endswith(".c")}
    for folder, suffix in (("weights", ".json"), ("report", ".html"), ("demo/pico/data", ".json"), ("", "py.typed")):
        assert any(name.startswith(f"shadowft_core/{folder}") and name.endswith(suffix) for name in expected)
    assert expected <= content(wheel)
    tops = {name.split("/")[0] for name in content(wheel)}
    assert tops == {"shadowft_core", f"shadowft-{shadowft_core.__version__}.dist-info"}


def test_an_editable_installation_builds_the_library_in_place(tmp_path: Path) -> None:
    """Which `make venv` relies on."""
    place = source(tmp_path / "source")
    assert not (place / LIBRARY).exists()
    wheel = build("editable", place, tmp_path / "dist")
    assert ctypes.CDLL(str(place / LIBRARY)).shadowft_version() == bf16.VERSION
    assert not [name for name in content(wheel) if name.endswith(".so")]


def test_the_sdist_has_the_source_of_the_kernel(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source(tmp_path / "source"), tmp_path / "dist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"shadowft_core/kernels/bf16.c", "shadowft_core/py.typed", "pyproject.toml", "LICENSE"} <= names
    assert not {name for name in names if name.endswith(".so")}


@pytest.mark.slow
def test_the_installed_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path, tiny_llama_pair: Pair) -> None:
    """The environment is new; only the dependencies come from the one that runs the tests."""
    programs, empty = installed(wheel, tmp_path / "venv"), tmp_path / "empty"
    empty.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SHADOWFT_ROOT")}

    def output(*command: str | Path) -> str:
        return subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=True).stdout

    packages = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    where = "import shadowft_core as s; print(s.__version__, s.__file__)"
    found = output(programs / "python", "-c", where).split()
    assert found == [shadowft_core.__version__, f"{packages}/shadowft_core/__init__.py"]
    assert "graft" in output(programs / "shadowft", "--help")
    assert output(programs / "python", "-c", "import shadowft_core.weights as w; print(bool(w.Family))") == "True\n"
    assert not list(empty.iterdir())

    def shadowft(*words: str | Path) -> str:
        return output(programs / "shadowft", *words)

    assert shadowft("--version") == f"shadowft {shadowft_core.__version__}\n"
    assert shadowft("--version", "--verbose").splitlines()[-1] == "arithmetic: compiled"
    base, instruct = tiny_llama_pair.base, tiny_llama_pair.instruct
    assert json.loads(shadowft("pair", "--base", base, "--instruct", instruct, "--json"))["verdict"] == "ok"
    shifted(base, tmp_path / "tuned", 0.01, seed=2)
    shadowft("extract", "--base", base, "--tuned", tmp_path / "tuned", "--out", "delta")
    recipe = json.loads(
        shadowft("graft", "--instruct", instruct, "--delta", "delta", "--scale", "0.5", "--out", "new", "--json")
    )
    assert recipe["digest"] == open_checkpoint(empty / "new").digest()
    doctor = [programs / "shadowft", "doctor", "--json"]
    said = json.loads(subprocess.run(doctor, cwd=empty, env=env, capture_output=True, text=True, check=False).stdout)
    states = {one["check"]: (one["state"], one["said"]) for one in said["checks"]}
    assert states["arithmetic"] == ("ok", "compiled")
    assert {check for check, (state, _) in states.items() if state == "fail"} <= {"dvc"}, "not in this environment"
