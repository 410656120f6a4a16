"""Upgrades of a workspace: which stages become stale, what a stage of another version does, and the changed files."""

import re
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import doctor
from shadowft_core.errors import InputError
from shadowft_core.files import file_digest
from shadowft_core.workspace import making, stages, template, upgrade
from tests.fixtures.checkouts import ran, run
from tests.fixtures.cli import Shadowft


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    making.demo(folder := tmp_path / "mine")
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`installed(report=2)` is a package with that number."""

    def release(**changed: int) -> None:
        text = stages.INSTALLED.read_text(encoding="utf-8")
        for name, number in changed.items():
            text = re.sub(rf"^{name}: \d+$", f"{name}: {number}", text, flags=re.MULTILINE)
        (tmp_path / "installed.yaml").write_text(text, encoding="utf-8")
        monkeypatch.setattr(stages, "INSTALLED", tmp_path / "installed.yaml")

    return release


def finish(folder: Path) -> None:
    """Record outputs that are made up as those of a finished run, as `dvc commit` does."""
    from dvc.repo import Repo

    with chdir(folder), Repo() as repo:
        places = [Path(one.fs_path) for stage in repo.index.stages for one in (*stage.outs, *stage.deps)]
        for place in sorted(places, reverse=True):  # the files in a folder before the folder
            if not place.exists():
                file = place if place.suffix else place / "file"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"made up: {place.name}", encoding="utf-8")
        repo.commit(force=True)


def stale(folder: Path) -> dict[str, Any]:
    from dvc.repo import Repo

    with chdir(folder), Repo() as repo:
        found: dict[str, Any] = repo.status()
    return found


def test_an_upgrade_makes_only_the_changed_stage_stale(workspace: Path, installed: Any) -> None:
    """The number of report from 1 to 2: `dvc status` names report alone."""
    finish(workspace)
    assert stale(workspace) == {}
    installed(report=2)
    assert upgrade(workspace).stages == ("report",)
    assert stale(workspace) == {"report": [{"changed deps": {"stages.yaml": {"report": "modified"}}}]}
    with (workspace / "stages.yaml").open("a") as file:
        file.write("removed: 7\n")  # a stage that this version has no more
    assert not upgrade(workspace), "the second time there is nothing to do"


def test_a_stage_of_a_route_has_the_number_of_its_stage(workspace: Path, installed: Any) -> None:
    finish(workspace)
    installed(train=2, extract=3)
    assert upgrade(workspace).lines() == ["out of date, because their results changed: train, extract"]
    assert {name.partition("@")[0] for name in stale(workspace)} == {"train", "extract"}
    assert len(stale(workspace)) == 6


def test_dvc_does_not_run_a_stage_of_another_version(
    workspace: Path, installed: Any, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    words = ("select", "--sweeps", "none", "--out", "candidate.json")
    monkeypatch.setenv("DVC_STAGE", "select")
    shadowft(*words).refused(7, "none/shadow.json: no such file")
    installed(select=2)
    refusal = ("its number is 1 here", "and 2 in shadowft", "run `shadowft init --upgrade`")
    shadowft(*words).refused(3, *refusal)
    monkeypatch.setenv("DVC_STAGE", "select@mine")
    shadowft(*words).refused(3, *refusal)
    monkeypatch.setenv("DVC_STAGE", "mine")  # a stage that the user added
    shadowft(*words).refused(7, "none/shadow.json: no such file")
    monkeypatch.delenv("DVC_STAGE")  # a person
    shadowft(*words).refused(7, "none/shadow.json: no such file")
    monkeypatch.setenv("DVC_STAGE", "select")
    Path("stages.yaml").unlink()  # as in a checkout
    shadowft(*words).refused(7, "none/shadow.json: no such file")


def test_a_workspace_of_a_newer_version_is_never_taken_back(
    workspace: Path, installed: Any, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (workspace / "stages.yaml").read_text(encoding="utf-8")
    newer = text.replace("verdict: 1\n", "verdict: 2\n").replace("written_by: shadowft ", "written_by: shadowft 9")
    (workspace / "stages.yaml").write_text(re.sub("written_by.*\n", "", newer), encoding="utf-8")
    shadowft("init", "--upgrade", workspace).refused(3, "verdict is 2, written by an unknown version")
    (workspace / "stages.yaml").write_text(newer, encoding="utf-8")
    refusal = ("verdict is 2, written by shadowft 9", "install that version of shadowft or a newer one")
    shadowft("init", "--upgrade", workspace).refused(3, *refusal)
    shadowft("run", workspace).refused(3, *refusal)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_STAGE", "verdict")
    shadowft("verdict", "--scores", "s", "--out", "v.json").refused(3, *refusal)
    assert (workspace / "stages.yaml").read_text(encoding="utf-8") == newer


def test_files_that_nobody_changed_are_replaced(
    workspace: Path, tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was changed stays, and the new one is put beside it, once."""
    mine = "# mine\n" + (workspace / "dvc.yaml").read_text(encoding="utf-8")
    (workspace / "dvc.yaml").write_text(mine, encoding="utf-8")
    (workspace / "flows/__init__.py").write_text("# mine, and not changed by the package\n", encoding="utf-8")
    (workspace / ".dvcignore").unlink()
    (workspace / "README.md").unlink()
    numbers = (workspace / "stages.yaml").read_text(encoding="utf-8")
    numbers = re.sub("  README.md: .*\n", "", numbers)  # written by a version that had no such file
    (workspace / "stages.yaml").write_text(numbers, encoding="utf-8")
    with (workspace / ".dvc/config").open("a") as file:
        file.write("# new\n")  # as the package has it now
    monkeypatch.setattr(template, "FOLDER", tmp_path / "template")
    (tmp_path / "template").mkdir()
    for name in template.FILES.values():
        old = (Path(template.__file__).with_name("template") / name).read_bytes()
        changed = name in ("dvc.yaml.txt", "prefect.yaml.txt", "dvc-config.txt")
        (tmp_path / "template" / name).write_bytes(old + b"# new\n" * changed)
    lines = shadowft("init", "--upgrade", workspace).out.splitlines()
    assert lines == [
        "replaced, as nobody had changed them: prefect.yaml, README.md",
        "dvc.yaml: changed here, so it stays; the new one is dvc.yaml.new",
    ]
    assert (workspace / "prefect.yaml").read_bytes().endswith(b"# new\n")
    assert (workspace / "dvc.yaml").read_text(encoding="utf-8") == mine
    assert (workspace / "dvc.yaml.new").read_bytes().endswith(b"# new\n")
    assert not (workspace / ".dvcignore").exists(), "a removed file stays removed"
    (tmp_path / "template/dvc.yaml.txt").write_text("# newer\n")
    assert shadowft("init", "--upgrade", workspace).out.splitlines() == lines[1:]
    out = shadowft("init", "--upgrade", workspace).out
    assert out == "nothing to do: the workspace is that of this version\n"


def test_a_list_of_templates_that_was_edited_is_refused(workspace: Path, shadowft: Shadowft) -> None:
    file = workspace / "stages.yaml"
    text = file.read_text(encoding="utf-8").partition("templates:")[0] + "templates: [dvc.yaml]\n"
    file.write_text(text, encoding="utf-8")
    refusal = (f'{file}: templates: expected a digest for each file, found ["dvc.yaml"]', "restore it with git")
    shadowft("init", "--upgrade", workspace).refused(3, *refusal)
    assert file.read_text(encoding="utf-8") == text


def test_only_a_workspace_can_be_upgraded(tmp_path: Path, shadowft: Shadowft) -> None:
    with pytest.raises(InputError, match=r"has no stages\.yaml, so it is no workspace"):
        upgrade(tmp_path)
    (tmp_path / "stages.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"expected a number for each stage, found \[1\]; restore it with git"):
        upgrade(tmp_path)
    assert shadowft("init", "--upgrade", tmp_path, "--data", "x").code == 2


def test_doctor_says_what_an_upgrade_would_do_and_does_not_do_it(
    workspace: Path, installed: Any, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(doctor, "CHECKS", ())  # the others take seconds

    def said() -> str:
        return shadowft("doctor").out

    assert said() == "ok    stages: stages.yaml is that of this version\n"
    Path("dvc.yaml").write_text("stages: {}\n", encoding="utf-8")  # as if an earlier version had written it
    text = (
        Path("stages.yaml")
        .read_text(encoding="utf-8")
        .replace(template.digests()["dvc.yaml"], file_digest(Path("dvc.yaml")))
    )
    Path("stages.yaml").write_text(text, encoding="utf-8")
    installed(train=2, report=2)
    assert said() == (
        "warn  stages: stages.yaml is of another version; an upgrade makes stale train, report and replaces dvc.yaml; "
        "run `shadowft init --upgrade`; `shadowft run` does the same\n"
    )
    assert (Path("stages.yaml").read_text(encoding="utf-8"), Path("dvc.yaml").stat().st_size) == (text, 11)
    Path("stages.yaml").write_text(text.replace("verdict: 1\n", "verdict: 2\n"), encoding="utf-8")
    assert said().startswith("fail  stages: stages.yaml: the number of the stage verdict is 2, written by ")
    Path("stages.yaml").unlink()
    assert said() == "", "a checkout has no numbers"


@pytest.mark.slow
def test_dvc_itself_stops_at_a_stage_of_another_version(workspace: Path) -> None:
    """A real `dvc repro`; the shadowft on the PATH has another number than the workspace."""
    text = (workspace / "stages.yaml").read_text(encoding="utf-8")
    (workspace / "stages.yaml").write_text(text.replace("fetch-origin: 1\n", "fetch-origin: 0\n"), encoding="utf-8")
    said = run(workspace, "dvc", "repro", "fetch-origin", code=255)
    assert "error: stages.yaml: the results of the stage fetch-origin changed: its number is 0 here" in said
    run(workspace, sys.executable, "-m", "shadowft_core.cli", "init", "--upgrade")
    assert ran(run(workspace, "dvc", "repro", "fetch-origin")) == ["fetch-origin"]
