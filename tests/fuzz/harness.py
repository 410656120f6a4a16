"""Gives readers damaged files and checks what they do.

A target names a reader: `make(folder)` writes one sound input, `files` says how each of its files is damaged, and
`read(folder)` calls the reader. What the reader writes belongs in `folder.parent / "out"`. To add targets:

    test_hostile_files = fuzzed(Target("delta", make, read, {"delta.json": json_damage}))

The sound input must be accepted. A damaged one is accepted or refused with a ShadowError; whatever else happens is a
fault: another exception, 10 seconds, 512 MiB, a file written elsewhere, code that runs, something half-published.
FUZZ_EXAMPLES is the number of inputs of each target in `make test-fuzz`, FUZZ_SEED chooses them.
"""

import hashlib
import os
import resource
import shutil
import signal
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from shadowft_core.errors import ShadowError
from shadowft_core.limits import MESSAGE_CHARACTERS, MIB
from tests.fuzz.child import kind_of
from tests.fuzz.damage import Damage, Place, bytes_damage, file_damage
from tests.fuzz.folders import left_behind, listed, put, special
from tests.fuzz.watch import Breach, watched

SEED = int(os.environ.get("FUZZ_SEED", "17"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1650"))
FEW = 82  # inputs of each target in `make test`
tempfile.gettempdir()  # writes a file when it is first called
SECONDS = 10.0
GROWTH = 512 * MIB
ADDRESSES = 4096 * MIB  # what a read may reserve; more is a MemoryError instead of a full machine


WORKERS = frozenset({"os.fork", "pickle.find_class"})  # forked workers send their results to their parent


@dataclass(frozen=True)
class Target:
    """A reader, and the files that it reads."""

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: Mapping[str, Damage]
    """by name, or by a pattern of names"""
    seal: Callable[[Path], object] | None = None
    """recomputes, after the damage, digests that would hide it from the reader"""
    allowed: frozenset[str] = frozenset()
    """audit events that belong to this reader, such as those of `WORKERS`"""
    share: float = 1.0
    """of the usual number of inputs, for slow readers"""


@dataclass(frozen=True)
class Change:
    """One file, and what it becomes."""

    file: str
    content: bytes | Place

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(f"{self.file} <- {self.content!r:.300}")  # how hypothesis shows it


class Fault(AssertionError):
    def __init__(self, kind: str, details: str) -> None:
        super().__init__(f"{kind}: {details:.1000}")
        self.kind = kind


class Hang(BaseException):
    """More seconds than a reader may take. No `except Exception` ends it."""


def fuzzed(*targets: Target) -> Callable[..., None]:
    """A test of these targets: many inputs with the marker `fuzz`, else few."""

    @pytest.mark.timeout(1800, method="thread")  # the signal belongs to the harness
    @pytest.mark.parametrize(
        "examples", [pytest.param(FEW, id="few"), pytest.param(EXAMPLES, id="many", marks=pytest.mark.fuzz)]
    )
    @pytest.mark.parametrize("target", targets, ids=lambda target: target.name)
    def test_of_targets(target: Target, examples: int, tmp_path: Path, record_property: Callable[..., None]) -> None:
        record_property("fuzz", attack(target, max(1, round(examples * target.share)), tmp_path))

    return test_of_targets


def attack(target: Target, examples: int, place: Path) -> dict[str, Any]:
    """Give a reader the sound input and that many damaged ones; returns counts. Raises Fault, with the input kept."""
    arena = Arena(target, place)
    counts: Counter[str] = Counter()
    number = int.from_bytes(hashlib.sha256(f"{SEED} {target.name}".encode()).digest()[:8])

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(arena.changes())
    def one(change: Change) -> None:
        counts[arena.outcome(change)] += 1

    with arena.entered():
        if (found := arena.outcome(None)) != "accepted":
            raise AssertionError(f"{target.name}: the sound input is {found}: {arena.said}")
        try:
            one()
        except BaseException as error:
            error.add_note(f"target {target.name}, FUZZ_SEED={SEED}; the input is kept in {arena.kept}")
            raise
    about = {"target": target.name, "seconds": round(arena.slowest, 2), "mib": arena.highest // MIB}
    return about | {name: counts[name] for name in ("accepted", "refused")}


@dataclass
class Arena:
    """A folder with the input, `out` for results, and `here`, the current folder. Nothing else may change in it."""

    target: Target
    place: Path
    slowest: float = 0.0
    highest: int = 0
    said: str = ""

    def __post_init__(self) -> None:
        self.sound, self.kept, self.arena = (self.place / name for name in ("sound", "failed", "arena"))
        for folder in (self.sound, self.arena / "here"):
            folder.mkdir(parents=True)
        (self.place / "outside.txt").write_text("text outside of the folder\n")
        self.target.make(self.sound)
        self.input, self.out = self.arena / "input", self.arena / "out"

    def changes(self) -> st.SearchStrategy[Change]:
        """Nine in ten changes are those of the file's kind."""
        ways = {}
        named = [
            (str(path.relative_to(self.sound)), damage)
            for pattern, damage in self.target.files.items()
            for path in sorted(self.sound.glob(pattern))
        ]
        for name, damage in named:
            raw = (self.sound / name).read_bytes()
            ways[name] = [damage(raw)] * 18 + [bytes_damage(raw), file_damage()]
        return st.sampled_from(sorted(ways)).flatmap(
            lambda name: st.integers(0, 19).flatmap(lambda way: st.builds(Change, st.just(name), ways[name][way]))
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The current folder is `here`, and an alarm ends what hangs."""
        before, handler = Path.cwd(), signal.signal(signal.SIGALRM, _hang)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        os.chdir(self.arena / "here")
        try:
            yield
        finally:
            os.chdir(before)
            signal.signal(signal.SIGALRM, handler)
            resource.setrlimit(resource.RLIMIT_AS, limits)

    def outcome(self, change: Change | None) -> str:
        """`accepted` or `refused`. Raises Fault."""
        for place in self.arena.iterdir():
            if place.name != "here":
                shutil.rmtree(place)
        shutil.copytree(self.sound, self.input, symlinks=True)
        if change is not None:
            put(self.input / change.file, change.content, self.place / "outside.txt")
            if self.target.seal is not None and isinstance(change.content, bytes):
                self.target.seal(self.input)
        try:
            return self._read(warm=change is None)
        except Fault:
            shutil.rmtree(self.kept, ignore_errors=True)
            with suppress(shutil.Error, OSError):
                shutil.copytree(self.input, self.kept, symlinks=True, ignore=special)
            raise

    def _read(self, warm: bool) -> str:
        before, memory, start = listed(self.arena), _resident(reset=True), time.monotonic()
        refusal: ShadowError | None = None
        cache = Path(os.environ["SHADOWFT_CACHE"]).parent
        with watched(self.input, (self.out, cache), self.target.allowed) as watch:
            try:
                with limited():
                    self.target.read(self.input)
            except ShadowError as error:
                refusal = error
            except (KeyboardInterrupt, SystemExit):
                raise
            except Hang as hang:
                raise Fault(kind_of(hang), f"more than {SECONDS} s") from hang
            except Breach:
                pass
            except BaseException as error:
                raise Fault(kind_of(error), str(error)) from error
        seconds, grown = time.monotonic() - start, _resident() - memory
        if not warm:
            self.slowest, self.highest = max(self.slowest, seconds), max(self.highest, grown)
        self.said = str(refusal or "")
        if watch.breach:
            raise Fault(watch.breach.partition(" ")[0], watch.breach)
        if seconds > SECONDS:
            raise Fault("slow", f"{seconds:.1f} s")
        if grown > GROWTH and not warm:
            raise Fault("memory", f"grew by {grown // MIB} MiB")
        if (left := left_behind(before, listed(self.arena), refusal is None)) is not None:
            raise Fault("left", left)
        if refusal is not None:
            require_plain(self.said)
        return "accepted" if refusal is None else "refused"


def require_plain(message: str) -> None:
    """Require one printable line that fits a terminal's screen."""
    odd = {letter for letter in message if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")}
    odd |= set(message) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    if odd or len(message) > MESSAGE_CHARACTERS:
        raise Fault("message", f"{len(message)} characters, not plain: {sorted(odd)!r:.80}: {message!r:.500}")


@contextmanager
def limited() -> Iterator[None]:
    """The alarm is set, again each second because threads are waited for, and addresses are limited."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _hang(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Hang


def _resident(reset: bool = False) -> int:
    """The highest resident memory of this process since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
