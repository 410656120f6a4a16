"""`shadowft doctor`: what is wrong is found on real sockets, folders and metadata, and named with its remedy."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shadowft_core.doctor import FAIL, OK, WARN, Finding, machine, services, software
from shadowft_core.doctor.inputs import inputs
from shadowft_core.kernels import bf16
from tests.fixtures.cli import Shadowft
from tests.fixtures.doctor import CHECKS, NONE, ROOT, closed_port, doctor, here, write_params

__all__ = ["here"]  # a fixture that every test uses


def test_nothing_fails_in_an_empty_folder(shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SERVERS", {"mlflow": (closed_port(), "/health", "another")})
    code, out, _ = shadowft("doctor")
    lines = [line.split(":")[0].split() for line in out.splitlines()]
    assert code == 0
    assert [name for _, name, *_ in lines] == [*CHECKS, "store", "registry", "port"]
    assert {state for state, name, *_ in lines if name != "arithmetic"} == {OK}  # a checkout may have no compiler
    assert "no params.yaml here" in out
    assert not list(Path().iterdir())


def test_a_version_out_of_range_fails(here: Path) -> None:
    """The metadata of another trl comes first on the path, as when a later installation replaced it."""
    (here / "trl-0.1.dist-info").mkdir()
    (here / "trl-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.1\n")
    found = doctor(1, PYTHONPATH=f"{here}:{ROOT}")
    assert found["versions"]["said"].startswith("trl 0.1 is installed, shadowft ")
    assert found["versions"]["said"].endswith((" needs <1.17,>=1.16", " needs >=1.16,<1.17"))
    assert found["versions"]["remedy"].startswith("pip install 'trl")
    assert {name for name, one in found.items() if one["state"] == FAIL} == {"versions"}


def test_the_ranges_are_those_of_the_metadata(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "shadowft-9.9.dist-info").mkdir()
    lines = [
        "Metadata-Version: 2.1", "Name: shadowft", "Version: 9.9", "Requires-Python: >=4", "Provides-Extra: more",
        "Requires-Dist: nothing-like-it>=3", "Requires-Dist: numpy<1; extra == 'more'", "Requires-Dist: early>=1",
        "Requires-Dist: neither-this; extra == 'more'", "Requires-Dist: nor-this; sys_platform == 'win32'",
    ]  # fmt: skip
    (here / "shadowft-9.9.dist-info/METADATA").write_text("\n".join(lines) + "\n")
    (here / "early-2.0rc1.dist-info").mkdir()
    (here / "early-2.0rc1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: early\nVersion: 2.0rc1\n")
    monkeypatch.syspath_prepend(here)
    absent, old = software.versions(NONE)
    assert absent == Finding("versions", FAIL, "nothing-like-it is not installed", "pip install 'nothing-like-it>=3'")
    assert (old.state, old.remedy) == (WARN, "pip install 'numpy<1'"), "an extra that is not in use may be old"
    assert old.said.endswith(" is installed, shadowft 9.9 needs <1")
    [python] = software.python(NONE)
    assert (python.state, python.said.partition(", but ")[2]) == (FAIL, "shadowft needs >=4")


def test_without_the_kernel_it_says_what_is_slower(shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "library", None)
    monkeypatch.setattr(bf16, "why_numpy", "not built")
    ended, said = shadowft("doctor"), "warn  arithmetic: numpy, the same bits but slower (not built); install the wheel"
    assert (ended.code, said in ended.out) == (0, True), "a warning is no failure"


def test_a_path_without_git_fails_and_another_dvc_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "other").mkdir()
    (here / "other/dvc").write_text("#!/bin/sh\n")
    (here / "other/dvc").chmod(0o755)
    monkeypatch.setenv("PATH", str(here / "other"))
    git, dvc, ours = software.programs(NONE)
    assert (git.check, git.state, dvc.state, ours.state) == ("git", FAIL, WARN, WARN)
    assert dvc.said.startswith(f"the PATH finds {here}/other/dvc, not {Path(sys.executable).with_name('dvc')}")
    assert ours.said.startswith("not on the PATH")
    assert dvc.remedy == f'export PATH="{Path(sys.executable).parent}:$PATH"'
    monkeypatch.setattr(sys, "executable", str(here / "bin/python"))
    assert [(one.state, one.said) for one in software.programs(NONE)[1:]] == [
        (FAIL, f"{here}/bin/{name}: no such program") for name in ("dvc", "shadowft")
    ]


def test_a_git_without_a_name_is_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git commit would fail after the first run, when the workspace's README asks for it."""
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")  # the name of an account is no name that was chosen
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    found = software.programs(NONE)[0]
    assert (found.check, found.state) == ("git", WARN)
    assert "user.email" in found.remedy


def test_a_workspace_that_is_no_repository_fails(here: Path) -> None:
    """As one that was downloaded as an archive; DVC would stop the run."""
    (here / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    found = software.programs(here / "params.yaml")[0]
    assert (found.check, found.state) == ("git", FAIL)
    assert "not a git repository" in found.said
    subprocess.run(["git", "init", "--quiet"], cwd=here, check=True)
    assert software.programs(here / "params.yaml")[0].state != FAIL


def test_what_params_names_must_exist(here: Path) -> None:
    (here / "base").mkdir()
    params = write_params(
        fetch={"base": "base", "instruct": "path/to/instruct"}, prepare={"data": "path/to/rows.jsonl"}
    )
    failed = doctor(1)["inputs"]
    assert failed["state"] == FAIL
    assert failed["said"] == (
        "fetch.instruct: path/to/instruct does not exist; prepare.data: path/to/rows.jsonl does not exist"
    )
    write_params(fetch={"base": "pico:base", "instruct": "hf:a/b@" + "0" * 40})
    assert [one.said for one in inputs(params)] == ["prepare.data, evaluate.tasks exist"]


def test_a_gpu_that_torch_cannot_use_is_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that prints what nvidia-smi prints stands for a GPU; torch is the one installed, for the CPU."""
    (here / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100 80GB HBM3, 81000\n")
    (here / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    [found] = machine.gpu(NONE)
    if "+cpu" in software.version("torch"):
        assert (found.state, found.remedy) == (WARN, "install torch for CUDA")
        assert found.said.startswith("NVIDIA H100 80GB HBM3, 78 GB usable, but torch ")
    else:
        assert (found.state, found.said) == (OK, "NVIDIA H100 80GB HBM3, 78 GB usable")


@pytest.mark.parametrize("uri", ["file.txt/store", "/proc/store", "file:///proc/store"])
def test_a_store_folder_that_cannot_be_written_fails(here: Path, uri: str) -> None:
    (here / "file.txt").touch()
    [found] = services.store(write_params(store={"uri": uri}))
    assert (found.check, found.state) == ("store", FAIL)
    assert found.said.startswith(f"{uri.removeprefix('file://')}: cannot be written (")
    assert "set store.uri to a folder of your own" in found.remedy


def test_a_store_and_a_registry_that_nobody_serves_fail_in_time() -> None:
    endpoint, tracking = (f"http://127.0.0.1:{closed_port()}" for _ in range(2))
    write_params(store={"uri": "s3://bucket/deltas", "endpoint": endpoint}, registry={"tracking_uri": tracking})
    began = time.monotonic()
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    found = doctor(1, **keys)
    assert time.monotonic() - began < 100
    assert {name for name, one in found.items() if one["state"] == FAIL} == {"store", "registry"}
    assert endpoint in found["store"]["said"]
    assert "AWS credentials" in found["store"]["remedy"]
    assert found["registry"]["said"].startswith(f"registry at {tracking}: ")
    assert "var/pending" in found["registry"]["remedy"]


def test_a_registry_that_is_not_there_yet_is_no_failure(here: Path) -> None:
    [found] = services.registry(write_params())
    assert (found.state, "the first registration creates it" in found.said) == (OK, True)
    (here / "file.txt").touch()
    [found] = services.registry(write_params(registry={"tracking_uri": "sqlite:///file.txt/mlflow.db"}))
    assert (found.check, found.state, found.remedy[-32:]) == ("registry", FAIL, "or correct registry.tracking_uri")
    assert {path.name for path in here.iterdir()} == {"file.txt", "params.yaml"}


def test_a_wrong_params_file_fails_once(shadowft: Shadowft) -> None:
    write_params(store={"url": "var/store"})
    lines = [line for line in shadowft("doctor").out.splitlines() if line.startswith("fail")]
    assert [("store.url" in line, line.rpartition("; ")[2]) for line in lines] == [(True, "correct params.yaml")]


def test_a_full_disk_fails_where_it_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest size of a file stands for a full disk: the same calls fail."""
    found = doctor(1, start=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)))
    assert {name for name, one in found.items() if one["state"] == FAIL} == {"workspace", "cache"}
    assert found["workspace"]["said"] == f"{here}: cannot be written (File too large)"
    assert "SHADOWFT_CACHE" in found["cache"]["remedy"]
    monkeypatch.setattr(machine, "LEAST_FREE", 10**18)
    assert machine.disk(NONE)[0].said.endswith(" GB free, a run needs 1000000000 GB or more")


def test_a_check_that_hangs_or_breaks_is_a_finding(here: Path) -> None:
    """It waits for a real socket that never answers; the process ends all the same."""
    code = """
import socket, sys
from pathlib import Path
from shadowft_core.doctor import examine
listener = socket.create_server(("127.0.0.1", 0))
def hangs(params):
    socket.create_connection(listener.getsockname()).recv(1)
def breaks(params):
    raise ZeroDivisionError("by a bug at http://me:hunter2@host/ " + "long" * 99)
print(*examine(Path("none"), [hangs, breaks], limit=1.0), sep="\\n")
"""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 30
    first, second = done.stdout.splitlines()
    assert "check='hangs', state='fail', said='no answer within 1 seconds'" in first
    assert "check='breaks', state='fail', said='ZeroDivisionError: by a bug at http://***@host/ longlong" in second
    assert len(second) < 500
