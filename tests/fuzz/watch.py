"""Notices, by an audit hook, what no reader of files may do: write elsewhere, start programs, run what it reads."""

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNS = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "pickle.find_class", "webbrowser.open"),
}
# The event, and which of its arguments are paths.
CHANGES = {
    **{"os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,)},
    **{
        "os.truncate": (0,),
        "os.chmod": (0,),
        "os.chown": (0,),
        "os.utime": (0,),
        "os.setxattr": (0,),
        "shutil.move": (0, 1),
    },
}
PARSED = "<unknown>"  # of ast.parse and ast.literal_eval, which run nothing: jinja2 reads numbers and texts with them
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Breach(BaseException):
    """What a reader may not do; the hook raises it, so that it is not done. No `except Exception` hides it."""


@dataclass
class Watch:
    folder: str
    writable: tuple[str, ...]
    allowed: frozenset[str]
    busy: bool = False
    seen: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1024))  # shared with forked workers

    @property
    def breach(self) -> str:
        """The last breach, the event first; empty if there was none."""
        return self.seen[:].rstrip(b"\0").decode(errors="replace")

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS and event not in self.allowed:
            self._breach(event, arguments)
        elif event == "open":
            path, mode, flags = arguments
            if flags & WRITING and not isinstance(path, int) and not self._may_write(path):
                self._breach("open", (path, mode))
        elif event in CHANGES:
            held = [argument for argument in arguments if isinstance(argument, int) and argument > 2]
            for place in CHANGES[event]:
                if not self._may_write(arguments[place], held):
                    self._breach(event, arguments)
        elif event == "import" and self._inside(arguments[1]):
            self._breach("import", arguments)
        elif event == "ctypes.dlopen" and self._inside(arguments[0]):
            self._breach("ctypes.dlopen", arguments)
        elif event == "exec" and self._inside(arguments[0].co_filename):
            self._breach("exec", (arguments[0].co_filename,))
        elif event == "compile" and arguments[1] == PARSED:
            return
        elif event == "compile" and (self._inside(arguments[1]) or self._holds(arguments[0])):
            self._breach("compile", arguments)

    def _breach(self, event: str, arguments: tuple[Any, ...]) -> None:
        said = f"{event} {arguments!r:.300}"
        self.seen[: len(said.encode())] = said.encode()
        raise Breach(said)

    def _inside(self, path: Any) -> bool:
        return isinstance(path, str) and os.path.abspath(path).startswith(self.folder)

    def _holds(self, source: Any) -> bool:
        """Whether a file of the folder contains this text of a program."""
        source = source.encode(errors="surrogatepass") if isinstance(source, str) else source
        if not isinstance(source, bytes) or len(source) < 4:
            return False
        files = (path for path in Path(self.folder).rglob("*") if path.is_file() and not path.is_symlink())
        return any(source in path.read_bytes() for path in files)

    def _may_write(self, path: Any, held: list[int] = []) -> bool:  # noqa: B006 never changed
        """`held` are the descriptors of the call: a relative path may be meant below the folder of one of them."""
        if isinstance(path, int):
            return True
        name = os.fsdecode(path)
        if name == os.devnull:
            return True
        if not os.path.isabs(name) and held:
            with suppress(OSError):
                name = os.path.join(os.readlink(f"/proc/self/fd/{held[0]}"), name)
        return os.path.abspath(name).startswith(self.writable)


_current: list[Watch] = []  # at most one
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _current[0] if _current else None
    if watch is None or watch.busy:
        return
    if event in RUNS or event in CHANGES or event in ("open", "import", "ctypes.dlopen", "exec", "compile"):
        if event == "compile":
            watch.busy = True  # reads files itself
        try:
            watch.see(event, arguments)
        finally:
            watch.busy = False


@contextmanager
def watched(folder: Path, writable: tuple[Path, ...], allowed: frozenset[str]) -> Iterator[Watch]:
    """Yield what notices breaches, in this process, its threads and its forks.

    Files may change only below `writable`, and beside those under the temporary names of `files.new_folder` and
    `files.write_atomically`. Text and code of `folder` may not be compiled, imported or executed.
    """
    if not _installed:
        sys.addaudithook(_hook)  # stays until the process ends
        _installed.append(True)
    places = tuple(f"{place.parent}/{dot}{place.name}" for place in writable for dot in ("", "."))
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    watch = Watch(str(folder), places, allowed)
    _current.append(watch)
    try:
        yield watch
    finally:
        _current.clear()
        sys.dont_write_bytecode = bytecode
