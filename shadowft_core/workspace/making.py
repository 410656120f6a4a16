"""Makes workspaces: checks everything that can be checked, then writes a folder that is complete or absent."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shadowft_core import pair, presets
from shadowft_core.errors import DataError, InputError
from shadowft_core.files import new_folder, write_atomically
from shadowft_core.loading import require_loadable
from shadowft_core.pair.references import is_generated, is_remote
from shadowft_core.params import load_params
from shadowft_core.pipeline.versions import add_data, download_and_add
from shadowft_core.remote import data as remote_data
from shadowft_core.remote.hub import current_commit, pinned
from shadowft_core.workspace import template
from shadowft_core.workspace.settings import OPEN, settings
from shadowft_core.workspace.stages import STAGES, require_usable_path, write_stages

PICO = Path(__file__).parents[1] / "demo/pico"  # data, tasks and replay rows of the embedded pair
LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")  # set inside hooks
NOBODY = ("-c", "user.name=shadowft", "-c", "user.email=shadowft@localhost")


@dataclass
class Made:
    """A new workspace: what to know about it, and the fields of params.yaml that are still to be filled in."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    to_fill: list[str] = field(default_factory=list)


def init(
    folder: Path,
    base: str | None = None,
    instruct: str | None = None,
    data: str | None = None,
    preset: str | None = None,
) -> Made:
    """Make a workspace: a git repository with one commit, and DVC.

    A data file is copied to data/ and tracked by DVC; data of a hub or a bucket is downloaded there; a folder stays
    where it is, and params.yaml names it. What is not given is to be filled in. Nothing is written unless all is in
    order; the folder is then complete.

    Raises InputError if the folder is not empty, for a missing model or an unknown preset, and without git; DataError
    for missing data; PairError for models that may not be paired, by their headers and a sample of their weights.
    Models of a hub or a bucket are checked by the stage `fetch`.
    """
    made = Made(folder)
    _require_empty(folder)
    _require_git()
    if (base is None) != (instruct is None):
        given, lacking = ("--instruct", "--base") if base is None else ("--base", "--instruct")
        raise InputError(f"{given} {base or instruct}: expected both models or neither; add {lacking}")
    if base is not None and instruct is not None:
        base, instruct = _checked(base, instruct, made)
    elif preset is not None:
        base, instruct = _of_hub(preset)
    place, source = _place(data, made), Path(data or "").absolute()
    text = settings(_registered(folder), base, instruct, place, preset)
    made.to_fill = [name for name, value in (("fetch.base", base), ("fetch.instruct", instruct)) if value is None]
    made.to_fill += ["prepare.data"] * (data is None)

    def fill() -> None:
        write_atomically(Path("params.yaml"), text.encode())
        write_atomically(Path("tasks/README.md"), template.content(template.OWN["tasks/README.md"]))
        load_params(Path("params.yaml"))
        if data is not None and remote_data.is_remote(data):
            download_and_add(data, Path(place))
        elif data is not None and not Path(place).is_absolute():
            Path("data").mkdir()
            shutil.copyfile(source, place)
            add_data(Path(place))

    _write(folder, fill, made)
    return made


def demo(folder: Path) -> Made:
    """Make the workspace of the demo: the embedded pair with its data and tasks. Raises InputError as `init` does."""
    made = Made(folder)
    _require_empty(folder)
    _require_git()

    def fill() -> None:
        shutil.copyfile(PICO / "replay.jsonl", "replay.jsonl")
        for name in ("data", "tasks"):
            shutil.copytree(PICO / name, name)
        write_atomically(Path("params.yaml"), template.content(template.DEMO["params.yaml"]))
        load_params(Path("params.yaml"))

    _write(folder, fill, made)
    return made


def _require_empty(folder: Path) -> None:
    require_usable_path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder; choose another name")
    if folder.is_dir() and (entries := sorted(entry.name for entry in folder.iterdir())):
        remedy = "choose another folder"
        if STAGES in entries:
            name = shlex.quote(str(folder))
            remedy = f"it is a workspace: `shadowft run {name}` runs it, `shadowft init --upgrade {name}` upgrades it"
        raise InputError(f"{folder}: expected an empty or new folder, found {', '.join(entries[:3])}; {remedy}")


def _require_git() -> None:
    if shutil.which("git") is None:
        raise InputError("git: not found on the PATH; install it, because DVC and the record of a run need it")


def _checked(base: str, instruct: str, made: Made) -> tuple[str, str]:
    """Both references as params.yaml has them, folders as absolute paths, once the pair was checked."""
    for reference in (base, instruct):
        if reference.startswith("hf:"):
            pinned(reference)
    both = [base, instruct]
    near = [not (is_remote(reference) or is_generated(reference)) for reference in both]
    for number, reference in enumerate(both):
        if near[number]:
            folder, _ = pair.resolve(reference)
            require_loadable(folder, tokenizer=reference == instruct)
            both[number] = str(folder.resolve())
    if all(near):
        with pair.opened(base) as (first, _), pair.opened(instruct) as (second, _):
            found = pair.compare_models(first, second, full=False)
        made.notes += [f"pair: {reason}" for reason in found["reasons"]]
    elif any(map(is_remote, both)):
        made.notes.append("pair: not checked here, because that would download; the first stage, fetch, checks it")
    return both[0], both[1]


def _of_hub(preset: str) -> tuple[str | None, str]:
    """The models of a preset at the commits of today."""
    found = presets.preset(preset)
    commits = {repo: current_commit(repo) for repo in (found.base, found.instruct) if repo}
    references = {repo: f"hf:{repo}@{commit}" for repo, commit in commits.items()}
    return references[found.base] if found.base else None, references[found.instruct]


def _place(data: str | None, made: Made) -> str:
    """`prepare.data` of params.yaml."""
    if data is None:
        return OPEN["data"]
    if remote_data.is_remote(data):
        place = f"data/{remote_data.name_of(data)}"
        made.notes.append(f"data: {place} was downloaded from {data} and is tracked by DVC")
        return place
    source = Path(data)
    if source.is_dir():
        made.notes.append(
            f"data: the folder {source} stays where it is; to share it with a team, move it here and run "
            "`shadowft data add`"
        )
        return str(source.resolve())
    if not source.is_file():
        found = "a pipe, socket or device" if source.exists() else "no such file or folder"
        raise DataError(
            f"--data {data}: {found}; name a file (json, jsonl, parquet, csv), a folder, "
            "hf:OWNER/NAME@REVISION or s3://BUCKET/PREFIX"
        )
    made.notes.append(f"data: data/{source.name} is a copy of {source}, tracked by DVC")
    return f"data/{source.name}"


def _registered(folder: Path) -> str:
    """The name of the registered model: that of the folder, as far as MLflow and the ledger accept it."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:100]
    return plain or "shadowft"


def _write(folder: Path, fill: Callable[[], None], made: Made) -> None:
    """Write the files of the template, and what `fill` writes into the current folder; then commit them all."""
    with _complete_or_absent(folder) as new:
        for path, name in template.FILES.items():
            write_atomically(new / path, template.content(name))
        write_stages(new)
        _git(new, "init", "--quiet", settings=("-c", "init.defaultBranch=main"))
        _require_tracked(new, ("dvc.lock", "data/rows.dvc"))  # which DVC will write
        with contextlib.chdir(new):
            fill()
        _require_tracked(new)
        _git(new, "add", "--all")
        named = all(_git(new, "var", f"GIT_{role}_IDENT", check=False) for role in ("AUTHOR", "COMMITTER"))
        # Neither hooks nor a signature: they may ask for something.
        settings = ("-c", "commit.gpgsign=false", *(() if named else NOBODY))
        _git(new, "commit", "--quiet", "--no-verify", "--message", "A workspace of shadowft", settings=settings)
    if not named:
        made.notes.append(
            "git: it knows no name of yours, so shadowft made the first commit; set user.name and user.email"
        )
    if _git(folder.resolve().parent, "rev-parse", "--is-inside-work-tree", check=False):
        made.notes.append("git: the workspace is a repository of its own, inside another one; ignore it there")


@contextlib.contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """An empty folder that becomes `folder`, or the content of `folder` if that exists: a shell may be in it."""
    if not folder.exists():
        with new_folder(folder) as new:
            yield new
        return
    with new_folder(folder / ".new") as new:
        yield new
    for entry in sorted((folder / ".new").iterdir(), key=lambda entry: entry.name == "dvc.yaml"):
        os.rename(entry, folder / entry.name)
    (folder / ".new").rmdir()


def _require_tracked(new: Path, later: Sequence[str] = ()) -> None:
    """Raise InputError if git's own settings ignore a file of the workspace that DVC does not track."""
    files = (path.relative_to(new) for path in new.rglob("*") if path.is_file() and new / ".git" not in path.parents)
    names = [str(file) for file in files if not any((new / f"{one}.dvc").is_file() for one in (file, *file.parents))]
    given = "\0".join([*sorted(names), *later])
    found = _run_git(new, "check-ignore", "--verbose", "-z", "--stdin", given=given).stdout.split("\0")
    for source, line, pattern, name in zip(found[::4], found[1::4], found[2::4], found[3::4], strict=False):
        if Path(source).is_absolute() or Path(source).name != ".gitignore":
            raise InputError(
                f"{source}, line {line}: with {pattern} git ignores {name} of the workspace, so a clone would lack it; "
                "narrow the pattern, or except the file in a later line, with !"
            )


def _git(folder: Path, *words: str, settings: Sequence[str] = (), check: bool = True) -> bool:
    """Run git in a folder. Returns whether it succeeded."""
    done = _run_git(folder, *settings, *words)
    if check and done.returncode:
        problem = " ".join(done.stderr.split())
        raise InputError(f"git {words[0]}: {problem[:500]}; correct git's settings, then try again")
    return done.returncode == 0


def _run_git(folder: Path, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, whatever repository the environment names."""
    environment = {name: value for name, value in os.environ.items() if name not in LOCAL}
    return subprocess.run(
        ["git", "-C", str(folder), *words],
        input=given,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        env=environment,
    )
