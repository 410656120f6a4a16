"""Where a workspace is made: the settings of git, the path and the name of the folder."""

import re
import subprocess
from pathlib import Path

import pytest

from shadowft_core.errors import InputError
from shadowft_core.params import load_params
from shadowft_core.workspace import making, template
from tests.fixtures.cli import Shadowft


@pytest.mark.parametrize(
    ("pattern", "missing"), [(".*", ".dvc"), ("*.lock", "dvc.lock"), ("params.yaml", "params.yaml"), ("*.jsonl", "")]
)
def test_a_file_that_the_users_git_ignores_is_not_left_out_of_the_commit(
    pattern: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By core.excludesFile; data may be ignored, because DVC tracks it."""
    excludes, config, rows = tmp_path / "excludes", tmp_path / "gitconfig", tmp_path / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    excludes.write_text(f"*.swp\n{pattern}\n", encoding="utf-8")
    config.write_text(f"[core]\nexcludesFile = {excludes}\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    if missing:
        said = re.escape(f"{excludes}, line 2: with {pattern} git ignores {missing}")
        with pytest.raises(InputError, match=said):
            making.init(tmp_path / "mine", data=str(rows))
        assert sorted(tmp_path.iterdir()) == sorted([excludes, config, rows])
    else:
        making.init(tmp_path / "mine", data=str(rows))
        listed = subprocess.run(["git", "ls-files"], cwd=tmp_path / "mine", capture_output=True, text=True, check=True)
        expected = {*template.FILES, *template.OWN, "stages.yaml", "data/rows.jsonl.dvc"}
        assert set(listed.stdout.splitlines()) == expected


@pytest.mark.parametrize("part", ["what?", "{route}", "a}", "a%20b", '"x"', "a :b"])
def test_a_path_that_dvc_or_a_database_misreads_is_refused(part: str, tmp_path: Path, shadowft: Shadowft) -> None:
    place = tmp_path / part / "mine"
    for verb in ("init", "demo"):
        shadowft(verb, place).refused(3, f"{place}: the path has", 'use a folder whose path has none of { } ? % " :')
    assert not list(tmp_path.iterdir())
    making.init(tmp_path / "mine")
    (tmp_path / "mine").rename(place.parent)
    shadowft("run", place.parent).refused(3, f"{place.parent}: the path has")


@pytest.mark.parametrize("part", ["a\nb", "\x1b[2J", "a\udcffb"], ids=["line", "escape", "bytes"])
def test_a_path_that_is_no_plain_text_is_refused(part: str, tmp_path: Path, shadowft: Shadowft) -> None:
    place = tmp_path / part
    for verb in ("init", "demo"):
        shadowft(verb, place).refused(3, f"{str(place)!r}: the path has control characters or is not UTF-8")
    assert not list(tmp_path.iterdir())


def test_commands_that_are_printed_work_in_a_folder_with_a_space(
    tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "my pair"
    last = shadowft("init", place).out.splitlines()[-1]
    run = last.partition(", then ")[2].removesuffix(" && shadowft run")
    done = subprocess.run(["sh", "-c", f"{run} && pwd"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{place}\n"
    shadowft("init", place).refused(3, f"`shadowft run '{place}'` runs it")
    monkeypatch.chdir(place)
    (place / "my rows.jsonl").write_text("{}\n", encoding="utf-8")
    added = shadowft("data", "add", "my rows.jsonl").out.splitlines()[-1]
    subprocess.run(["sh", "-c", added.removeprefix("next: ").partition(" && ")[0]], check=True)
    staged = subprocess.run(["git", "diff", "--cached", "--name-only"], capture_output=True, text=True, check=True)
    assert "my rows.jsonl.dvc" in staged.stdout.splitlines()


@pytest.mark.parametrize("name", ["null", "true", "no"])
def test_the_name_of_a_folder_stays_text_in_yaml(name: str, tmp_path: Path) -> None:
    making.init(tmp_path / name)
    assert load_params(tmp_path / name / "params.yaml").registry.name == name
