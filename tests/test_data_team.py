"""Versions of data in a team: add and push in one clone, pull in another; damage of the cache there; two versions."""

import json
import os
import sys
from pathlib import Path

import pytest

from shadowft_core.params import Store
from shadowft_core.prepare.tracked import version_of
from tests.fixtures.checkouts import commit, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROW = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "hello"}]}\n'


def shadowft(place: Path, *words: str, code: int = 0) -> str:
    return run(place, sys.executable, "-m", "shadowft_core.cli", *words, code=code)


def prepared_digest(place: Path, data: str) -> str:
    shadowft(place, "prepare", "--data", data, "--out", "prepared")
    return str(json.loads((place / "prepared/data-report.json").read_bytes())["digest"])


@pytest.fixture
def author(s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with version 1 of a file and of a folder, pushed to a bucket."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):  # DVC does not accept /dev/null here
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    place = tmp_path / "author"
    (place / "more").mkdir(parents=True)
    (place / "rows.jsonl").write_text("".join(ROW % i for i in range(40)))
    (place / "more/a.jsonl").write_text("".join(ROW % i for i in range(40, 60)))
    (place / "more/b.jsonl").write_text("".join(ROW % i for i in range(60, 80)))
    run(place, "git", "init", "-q")
    run(place, "git", "config", "user.name", "Someone")
    run(place, "git", "config", "user.email", "someone@example.org")
    run(place, "dvc", "init", "-q")
    run(place, "dvc", "remote", "add", "-d", "team", s3_store.uri)
    run(place, "dvc", "remote", "modify", "team", "endpointurl", str(s3_store.endpoint))
    (place / ".gitignore").write_text("/prepared\n")
    for name in ("rows.jsonl", "more"):
        shadowft(place, "data", "add", name, "--version", "1", "--licence", "CC0-1.0")
    commit(place, "version 1")
    run(place, "dvc", "push")
    return place


def test_a_clone_gets_the_same_data_and_notices_damage(author: Path, tmp_path: Path) -> None:
    clone = tmp_path / "else where" / "clone"
    run(tmp_path, "git", "clone", "-q", str(author), str(clone))
    assert not (clone / "rows.jsonl").exists()
    assert "run `dvc checkout" in shadowft(clone, "prepare", "--data", "rows.jsonl", "--out", "prepared", code=3)
    run(clone, "dvc", "pull")
    for name in ("rows.jsonl", "more"):
        assert prepared_digest(clone, name) == prepared_digest(author, name)
        assert version_of(clone / name) == version_of(author / name)

    for name, file, changed in (("rows.jsonl", "rows.jsonl", "hi 7"), ("more", "more/b.jsonl", "hi 66")):
        [cached] = [
            path
            for path in (clone / ".dvc/cache/files").rglob("*")
            if path.is_file() and path.read_bytes() == (author / file).read_bytes()
        ]
        stat = cached.stat()
        cached.chmod(0o644)
        cached.write_text(cached.read_text().replace(changed, "ho" + changed[2:]))
        cached.chmod(stat.st_mode)
        os.utime(cached, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (clone / file).unlink()
        run(clone, "dvc", "checkout")
        assert "up to date" in run(clone, "dvc", "status"), "DVC does not notice"
        refused = shadowft(clone, "prepare", "--data", name, "--out", "prepared", code=3)
        place = cached.relative_to(clone)
        assert f"DVC's cache is damaged: remove {place} and {name}, then run `dvc pull {name}.dvc`" in refused

        run(clone, "rm", "-rf", str(place), name)  # the remedy
        run(clone, "dvc", "pull", f"{name}.dvc")
        assert prepared_digest(clone, name) == prepared_digest(author, name)


def test_two_versions_are_compared_and_the_earlier_one_comes_back(author: Path) -> None:
    first = prepared_digest(author, "rows.jsonl")
    (author / "rows.jsonl").chmod(0o644)
    (author / "rows.jsonl").write_text("".join(ROW % i for i in range(50)))
    shadowft(author, "data", "add", "rows.jsonl", "--version", "2")
    commit(author, "version 2")
    changed = json.loads(run(author, "dvc", "diff", "HEAD~1", "HEAD", "--json"))
    assert [one["path"] for one in changed["modified"]] == ["rows.jsonl"]
    words = run(author, "git", "diff", "HEAD~1", "HEAD", "--", "rows.jsonl.dvc")
    assert "-    version: '1'" in words
    assert "+    version: '2'" in words
    assert prepared_digest(author, "rows.jsonl") != first
    run(author, "git", "checkout", "-q", "HEAD~1", "--", "rows.jsonl.dvc")
    run(author, "dvc", "checkout", "rows.jsonl.dvc")
    assert prepared_digest(author, "rows.jsonl") == first
