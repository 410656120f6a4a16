"""The harness itself: readers that each do one thing that no reader may do, and are caught; a sound one is not."""

import ctypes
import importlib.machinery
import importlib.util
import mmap
import os
import pickle
import resource
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shadowft_core.errors import InputError, ShadowError
from shadowft_core.files import canonical_json
from shadowft_core.limits import MIB
from tests.fuzz import harness
from tests.fuzz.child import Died, in_child, kind_of
from tests.fuzz.damage import Place, bytes_damage
from tests.fuzz.folders import put
from tests.fuzz.harness import Arena, Change, Fault, Target, attack, require_plain

pytestmark = pytest.mark.timeout(120, method="thread")  # the signal belongs to the harness
SOUND = b"1 + 1"
Read = Callable[[Path], object]


def target(bad: Read, **more: object) -> Target:
    """A reader that does `bad` with a file that is not the sound one."""

    def read(folder: Path) -> None:
        if (folder / "file").read_bytes() != SOUND:
            bad(folder)

    return Target("bad", lambda folder: (folder / "file").write_bytes(SOUND), read, {"file": bytes_damage}, **more)  # type: ignore[arg-type]


def fault_of(bad: Read, place: Path, **more: object) -> str:
    """The kind of fault that the harness finds; the outcome if it finds none."""
    arena = Arena(target(bad, **more), place)
    with arena.entered():
        assert arena.outcome(None) == "accepted"
        try:
            return arena.outcome(Change("file", b"2 + 2"))
        except Fault as fault:
            assert (arena.kept / "file").read_bytes() == (arena.input / "file").read_bytes()  # it is kept
            return fault.kind


def hang(_folder: Path) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            time.sleep(10)
        except Exception:
            continue


def slow(_folder: Path) -> None:
    """As a library that takes the alarm for itself."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(0.3)


def large(_folder: Path) -> None:
    bytearray(64 * MIB)[:: mmap.PAGESIZE] = b"x" * (64 * MIB // mmap.PAGESIZE)


def refuse(_folder: Path) -> None:
    raise InputError("not a file of ours; replace it")


def half(folder: Path) -> None:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "half").write_text("of a result")
    refuse(folder)


def remains(folder: Path) -> None:
    (folder.parent / ".out.tmp").write_text("of a result")


def careless(folder: Path) -> None:
    """Hides what the hook raises, and goes on."""
    with suppress(BaseException):
        os.system("true")


def careful(folder: Path) -> None:
    """Hides what it takes for an error, and would go on."""
    with suppress(Exception):
        os.system("true")
    (folder / "new").write_text("")


def unpickle(folder: Path) -> None:
    pickle.loads(pickle.dumps(os.getcwd))


def load(path: str) -> None:
    spec = importlib.util.spec_from_file_location(
        "odd", path, loader=importlib.machinery.ExtensionFileLoader("odd", path)
    )
    importlib.util.module_from_spec(spec)  # type: ignore[arg-type]


def moved(folder: Path) -> None:
    (folder / "file").rename(folder.parent / "out")


def unseen(folder: Path) -> None:
    """Through the C library, which the hook does not see."""
    ctypes.CDLL(None).chmod(os.fsencode(folder / "file"), 0o777)


BAD: dict[str, tuple[Read, str]] = {
    "another exception": (lambda folder: {}["key"], "KeyError tests.fuzz.test_harness"),
    "an exception below the package": (canonical_json, "TypeError shadowft_core.files.digests"),
    "hangs": (hang, "Hang tests.fuzz.harness"),
    "is slow": (slow, "slow"),
    "memory": (large, "memory"),
    "addresses": (lambda folder: mmap.mmap(-1, 8192 * MIB), "OSError tests.fuzz.test_harness"),
    "writes beside the input": (lambda folder: (folder / "new").write_text(""), "open"),
    "writes elsewhere": (lambda folder: (folder.parent.parent / "outside.txt").write_text(""), "open"),
    "writes here": (lambda folder: Path("new").write_text(""), "open"),
    "edits the input": (lambda folder: (folder / "file").open("r+b"), "open"),
    "makes a folder of a like name": (lambda folder: (folder.parent / "outer").mkdir(), "left"),
    "makes a folder": (lambda folder: (folder.parent / "other").mkdir(), "os.mkdir"),
    "deletes the input": (lambda folder: (folder / "file").unlink(), "os.remove"),
    "moves the input": (moved, "os.rename"),
    "links into the input": (lambda folder: (folder / "link").symlink_to(folder.parent / "out"), "os.symlink"),
    "changes the input unseen": (unseen, "left"),
    "cuts the input off unseen": (lambda folder: ctypes.CDLL(None).truncate(os.fsencode(folder / "file"), 1), "left"),
    "starts a program": (lambda folder: subprocess.run(["true"], check=False), "subprocess.Popen"),
    "starts a program and hides it": (careless, "os.system"),
    "starts a program and goes on": (careful, "os.system"),
    "runs the input": (lambda folder: eval((folder / "file").read_text()), "compile"),
    "executes the input": (
        lambda folder: exec(compile("1", "x", "exec").replace(co_filename=f"{folder}/file")),
        "exec",
    ),
    "imports the input": (lambda folder: runpy.run_path(f"{folder}/file"), "compile"),
    "loads the input": (lambda folder: ctypes.CDLL(f"{folder}/file"), "ctypes.dlopen"),
    "loads the input as a module": (lambda folder: load(f"{folder}/file"), "import"),
    "unpickles": (unpickle, "pickle.find_class"),
    "leaves half of a result": (half, "left"),
    "leaves a temporary file": (remains, "left"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_no_reader_may_do_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    bad, kind = BAD[what]
    monkeypatch.setattr(harness, "SECONDS", 0.2 if bad in (hang, slow) else 10.0)
    monkeypatch.setattr(harness, "GROWTH", 32 * MIB)
    if bad is large:
        large(tmp_path)  # an earlier peak hides nothing
    before = (Path.cwd(), signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS))
    assert fault_of(bad, tmp_path) == kind
    assert before == (Path.cwd(), signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS))
    assert (tmp_path / "outside.txt").read_text() == "text outside of the folder\n"


def publish(folder: Path) -> None:
    """As our own writers do: under a temporary name beside the result, which is removed or renamed."""
    made = folder.parent / ".out.tmp"
    for _ in range(2):
        shutil.rmtree(made, ignore_errors=True)
        (made / "below").mkdir(parents=True)
        (made / "below" / "result").write_text("a result")
    made.rename(folder.parent / "out")


def test_what_a_reader_may_do_is_none(tmp_path: Path) -> None:
    assert fault_of(refuse, tmp_path / "a") == "refused"
    assert fault_of(publish, tmp_path / "b") == "accepted"
    assert fault_of(unpickle, tmp_path / "d", allowed=frozenset({"pickle.find_class"})) == "accepted"


def seal(folder: Path) -> None:
    (folder / "file").write_bytes(SOUND)


def test_a_seal_comes_after_the_damage(tmp_path: Path) -> None:
    assert fault_of(refuse, tmp_path, seal=seal) == "accepted"


PLACES: dict[Place, Callable[[Path], bool]] = {
    Place.MISSING: lambda path: not path.is_symlink() and not path.exists(),
    Place.EMPTY: lambda path: path.is_file() and path.stat().st_size == 0,
    Place.FOLDER: Path.is_dir,
    Place.PIPE: Path.is_fifo,
    Place.SOCKET: Path.is_socket,
    Place.LOOP: lambda path: os.readlink(path) == str(path),
    Place.NOWHERE: lambda path: path.is_symlink() and os.readlink(path) != str(path) and not path.exists(),
    Place.OUTSIDE: lambda path: path.is_symlink() and path.read_text() == "text outside of the folder\n",
    Place.ENDLESS: lambda path: os.readlink(path) == "/dev/zero",
}


@pytest.mark.parametrize("place", Place)
def test_every_place_stands_where_the_file_was(tmp_path: Path, place: Place) -> None:
    file, outside = tmp_path / "file", tmp_path / "outside.txt"
    file.write_bytes(SOUND)
    outside.write_text("text outside of the folder\n")
    put(file, place, outside)
    assert PLACES[place](file)


def test_an_attack_counts_and_keeps_the_input_that_fails(tmp_path: Path) -> None:
    counts = attack(target(refuse), 12, tmp_path / "sound")
    assert counts["refused"] + counts["accepted"] == 12
    assert counts["refused"] > 6
    with pytest.raises(Fault, match="KeyError") as caught:
        attack(target(lambda folder: {}["key"]), 3, tmp_path / "bad")
    assert f"the input is kept in {tmp_path / 'bad' / 'failed'}" in caught.value.__notes__[-1]
    with pytest.raises(AssertionError, match="the sound input is refused: not a file of ours"):
        attack(
            Target("bad", lambda folder: (folder / "file").touch(), refuse, {"file": bytes_damage}), 1, tmp_path / "no"
        )


@pytest.mark.parametrize("message", ["a\nb", "a\x1b[2J", "a\u202eb", "a\u2028b", "a\ud800", "a" * 2001])
def test_a_message_is_one_plain_line(message: str) -> None:
    require_plain("a" * 2000)
    with pytest.raises(Fault, match="not plain"):
        require_plain(message)


def test_the_end_of_a_process_is_a_fault_of_its_reader(tmp_path: Path) -> None:
    with pytest.raises(ShadowError, match="not a file of ours"):
        in_child(refuse)(tmp_path)
    in_child(lambda folder: None)(tmp_path)
    assert kind_of(Died("SIGKILL", "")) == "SIGKILL"
    for bad, kind in (
        (lambda folder: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda folder: os._exit(3), "exit code 3"),
        (lambda folder: {}["key"], "KeyError tests.fuzz.test_harness"),
    ):
        with pytest.raises(Died) as caught:
            in_child(bad)(tmp_path)
        assert caught.value.kind == kind
