"""Versions of data: the record of `data add`, and damage of DVC's cache, which only this record shows."""

import json
import os
from pathlib import Path

import pytest
import yaml

from shadowft_core.errors import DataError
from shadowft_core.files import bytes_digest, canonical_json, file_digest
from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare
from shadowft_core.prepare.tracked import content_of, require_intact, version_of
from tests.fixtures.checkouts import run
from tests.fixtures.cli import Shadowft

ROW = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "hello"}]}\n'


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a new DVC repository with a file and a folder of data."""
    place = tmp_path / "workspace"
    (place / "more" / "deep").mkdir(parents=True)
    run(place, "git", "init", "-q")
    run(place, "dvc", "init", "-q")
    (place / "rows.jsonl").write_text("".join(ROW % i for i in range(40)))
    (place / "more/a.jsonl").write_text("".join(ROW % i for i in range(40, 60)))
    (place / "more/deep/b.jsonl").write_text("".join(ROW % i for i in range(60, 80)))
    monkeypatch.chdir(place)
    return place


def record(name: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(Path(name + ".dvc").read_text())
    return found


def digest_of_prepared(data: str, out: Path) -> str:
    prepare(Path(data), None, Prepare(data=data), out)
    return str(json.loads((out / "data-report.json").read_bytes())["digest"])


def test_add_records_version_licence_note_and_digest(workspace: Path, shadowft: Shadowft) -> None:
    done = shadowft("data", "add", "rows.jsonl", "--version", "1", "--licence", "CC0-1.0", "--note", "as collected")
    assert done.code == 0, done.err
    digest = file_digest(Path("rows.jsonl"))
    assert digest in done.out
    assert "next: git add rows.jsonl.dvc .gitignore && git commit, then dvc push" in done.out
    found = record("rows.jsonl")
    assert found["desc"] == "version 1; licence CC0-1.0; as collected"
    about = {"digest": digest, "files": 1, "bytes": Path("rows.jsonl").stat().st_size}
    assert found["meta"] == {"shadowft": {**about, "version": "1", "licence": "CC0-1.0", "note": "as collected"}}
    assert run(workspace, "dvc", "status").strip() == "Data and pipelines are up to date."


def test_a_folder_has_the_digest_of_its_listing(workspace: Path, shadowft: Shadowft) -> None:
    Path("more/.hidden").write_text("not data")
    done = shadowft("data", "add", "more", "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    listing = {name: file_digest(Path("more", name)) for name in ("a.jsonl", "deep/b.jsonl")}
    assert answer["digest"] == bytes_digest(canonical_json(listing))
    assert (answer["kind"], answer["files"], answer["changed"]) == ("data.add", 2, True)


def test_the_same_bytes_again_change_nothing_and_others_are_a_new_version(workspace: Path, shadowft: Shadowft) -> None:
    shadowft("data", "add", "rows.jsonl", "--version", "1", "--licence", "CC0-1.0", "--note", "as collected")
    before = Path("rows.jsonl.dvc").read_bytes()
    again = shadowft("data", "add", "rows.jsonl")
    assert (again.code, "already added" in again.out) == (0, True)
    assert Path("rows.jsonl.dvc").read_bytes() == before
    old = file_digest(Path("rows.jsonl"))
    Path("rows.jsonl").write_text("".join(ROW % i for i in range(50)))
    new = file_digest(Path("rows.jsonl"))
    for words in ((), ("--version", "1")):
        refused = shadowft("data", "add", "rows.jsonl", *words)
        refused.refused(
            3,
            "rows.jsonl: version 1 is recorded as ",
            old,
            new,
            "name the new version with --version",
            "--force rows.jsonl.dvc",
        )
    assert Path("rows.jsonl.dvc").read_bytes() == before
    assert shadowft("data", "add", "rows.jsonl", "--version", "2").code == 0
    meta = record("rows.jsonl")["meta"]
    size = Path("rows.jsonl").stat().st_size
    assert meta == {"shadowft": {"digest": new, "files": 1, "bytes": size, "version": "2", "licence": "CC0-1.0"}}


def test_fields_that_users_added_to_the_record_stay(workspace: Path, shadowft: Shadowft) -> None:
    run(workspace, "dvc", "add", "rows.jsonl")
    with Path("rows.jsonl.dvc").open("a") as file:
        file.write("meta:\n  owner: someone\n")
    assert version_of(Path("rows.jsonl")) is None
    assert shadowft("data", "add", "rows.jsonl").code == 0
    meta = record("rows.jsonl")["meta"]
    assert isinstance(meta, dict)
    assert meta.keys() == {"owner", "shadowft"}


def test_refusals_of_add_are_one_line_with_the_remedy(
    workspace: Path, shadowft: Shadowft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    shadowft("data", "add", "nothing.jsonl").refused(3, "nothing.jsonl: no such file or folder")
    shadowft("data", "add", "empty").refused(3, "empty: expected a file, or a folder with files, found none")
    Path(".dvcignore").write_text("*.log\n")
    Path("more/a.log").write_text("x")
    shadowft("data", "add", "more").refused(3, "more/a.log: .dvcignore excludes 1 files of more")
    run(workspace, "git", "add", "rows.jsonl")
    shadowft("data", "add", "rows.jsonl").refused(3, "dvc: ", "is already tracked by SCM")
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    Path("rows.jsonl").write_text(ROW % 1)
    shadowft("data", "add", "rows.jsonl").refused(3, "outside: expected a folder of a DVC repository", "`dvc init`")
    assert os.listdir() == ["rows.jsonl"]


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Change a cached file and keep its size, times and mode, as a failing disk does."""
    stat, data = path.stat(), path.read_bytes()
    assert old in data
    path.chmod(0o644)
    path.write_bytes(data.replace(old, new, 1))
    path.chmod(stat.st_mode)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cached(md5: object) -> Path:
    return Path(".dvc/cache/files/md5") / str(md5)[:2] / str(md5)[2:]


def test_damage_in_the_cache_reaches_the_workspace_and_prepare_refuses_it(
    workspace: Path, shadowft: Shadowft, tmp_path: Path
) -> None:
    run(workspace, "dvc", "config", "cache.type", "copy")
    for name in ("rows.jsonl", "more"):
        assert shadowft("data", "add", name, "--version", "1").code == 0
    [out] = record("rows.jsonl")["outs"]  # type: ignore[misc]
    file = cached(out["md5"])
    damage(file, b"hi 7", b"hi 8")
    Path("rows.jsonl").unlink()
    run(workspace, "dvc", "checkout", "rows.jsonl.dvc")
    assert b"hi 7" not in Path("rows.jsonl").read_bytes(), "DVC has linked or copied the damaged file"
    assert "up to date" in run(workspace, "dvc", "status", "rows.jsonl.dvc"), "DVC does not notice"
    expected = version_of(Path("rows.jsonl"))
    assert expected is not None
    found = file_digest(Path("rows.jsonl"))
    with pytest.raises(DataError) as caught:
        prepare(Path("rows.jsonl"), None, Prepare(data="rows.jsonl"), tmp_path / "out")
    assert str(caught.value) == (
        f"rows.jsonl: expected {expected.content.digest} (version 1), as rows.jsonl.dvc records, found {found}; "
        f"DVC's cache is damaged: remove {file} and rows.jsonl, then run `dvc pull rows.jsonl.dvc`"
    )
    assert not (tmp_path / "out").exists()

    member = cached(json.loads(cached(record("more")["outs"][0]["md5"]).read_bytes())[1]["md5"])  # type: ignore[index]
    damage(member, b"hi 61", b"hi 91")
    for path in ("more/a.jsonl", "more/deep/b.jsonl"):
        Path(path).unlink()
    run(workspace, "dvc", "checkout", "more.dvc")
    for data in ("more", "more/a.jsonl", "."):  # the folder, a file in it, the folder that holds it
        with pytest.raises(DataError, match=r"^(more|rows.jsonl): expected sha256:.* DVC's cache is damaged"):
            require_intact(Path(data))
    with pytest.raises(DataError, match=f"remove {member} and more, then run `dvc pull more.dvc`"):
        require_intact(Path("more"))


@pytest.mark.parametrize("where", [(), ("--local",)])
def test_damage_is_found_in_a_cache_of_another_folder(
    workspace: Path, shadowft: Shadowft, tmp_path: Path, where: tuple[str, ...]
) -> None:
    run(workspace, "dvc", "config", *where, "cache.dir", str(tmp_path / "cache"))
    assert shadowft("data", "add", "rows.jsonl").code == 0
    [file] = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    damage(file, b"hi 7", b"hi 8")
    Path("rows.jsonl").unlink()
    run(workspace, "dvc", "checkout", "rows.jsonl.dvc")
    with pytest.raises(DataError, match=f"DVC's cache is damaged: remove ../cache/files/md5/{file.parent.name}/"):
        require_intact(Path("rows.jsonl"))


def test_a_changed_file_is_refused_until_it_is_added(workspace: Path, shadowft: Shadowft, tmp_path: Path) -> None:
    shadowft("data", "add", "rows.jsonl", "--version", "1")
    digest_of_prepared("rows.jsonl", tmp_path / "out")
    Path("rows.jsonl").chmod(0o644)
    Path("rows.jsonl").write_text("".join(ROW % i for i in range(50)))
    with pytest.raises(DataError, match=r"if you changed it, run `shadowft data add rows.jsonl --version NEW`"):
        prepare(Path("rows.jsonl"), None, Prepare(data="rows.jsonl"), tmp_path / "out")
    shadowft("data", "add", "rows.jsonl", "--version", "2")
    digest_of_prepared("rows.jsonl", tmp_path / "out")
    Path("rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"found no such file or folder; .*`dvc checkout"):
        require_intact(Path("rows.jsonl"))


def test_prepared_data_that_was_added_is_compared_before_it_is_shown(workspace: Path, shadowft: Shadowft) -> None:
    digest_of_prepared("rows.jsonl", Path("prepared"))
    assert shadowft("data", "add", "prepared").code == 0
    assert shadowft("data", "show", "prepared").code == 0
    Path("prepared/dropped.jsonl").chmod(0o644)
    Path("prepared/dropped.jsonl").write_text("{}")
    shadowft("data", "show", "prepared").refused(3, "prepared: expected sha256:", "run `shadowft data add prepared")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{shadowft: {digest: x}}", "expected meta.shadowft with digest, files and bytes"),
        ("{shadowft: 3}", "expected meta.shadowft with digest, files and bytes"),
    ],
)
def test_a_malformed_record_is_refused(workspace: Path, meta: str, message: str) -> None:
    Path("rows.jsonl.dvc").write_text(f"outs:\n- md5: '0123'\n  path: rows.jsonl\nmeta: {meta}\n")
    with pytest.raises(DataError, match=message):
        require_intact(Path("rows.jsonl"))


def test_the_digest_follows_names_and_bytes_only(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "in").mkdir(parents=True)
        (tmp_path / folder / "in/x.jsonl").write_text("x")
    (tmp_path / "two/.cache").mkdir()
    (tmp_path / "two/.cache/y").write_text("hidden")
    os.utime(tmp_path / "two/in/x.jsonl", (1, 1))
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    (tmp_path / "two" / os.fsdecode(b"caf\xe9.jsonl")).write_text("x")
    with pytest.raises(DataError, match="expected UTF-8 file names, found 'caf"):
        content_of(tmp_path / "two")
    (tmp_path / "two" / os.fsdecode(b"caf\xe9.jsonl")).unlink()
    (tmp_path / "two/in/x.jsonl").rename(tmp_path / "two/in/z.jsonl")
    assert content_of(tmp_path / "one").digest != content_of(tmp_path / "two").digest
