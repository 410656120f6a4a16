"""Linux namespaces around a program: it sees an empty network, its own processes, the interpreter, and a folder in
memory. All by system calls through ctypes, because Python 3.11 has no `os.unshare`."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shadowft_core.sandbox import syscalls
from shadowft_core.sandbox.limits import Limits

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000  # linux/sched.h
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT = 1, 2, 4, 8, 32  # linux/mount.h
NOATIME, NODIRATIME, BIND, REC, PRIVATE, RELATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
LOCKED = {2: NOSUID, 4: NODEV, 8: NOEXEC, 1024: NOATIME, 2048: NODIRATIME, 4096: RELATIME}  # statvfs flag: mount flag
DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, AMBIENT_CLEAR = 1, 24, 38, 47, 4
CAP_VERSION_3 = 0x20080522
INSIDE, NOBODY = 1000, 65534  # the user inside; outside, for root, the user nobody
PLACE = "/tmp"  # noqa: S108 (replaced by a folder in memory): where the new root is put together, and the program's folder in it
PACKAGES = "/packages"
STATE = Path("/proc/self")

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def call(what: str, result: int) -> None:
    """Raise OSError, naming the step, if a function of the C library failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def die_with_parent(gone: Callable[[], bool]) -> None:
    """Have the kernel kill this process when its parent ends; `gone` tells whether it has ended before.

    The parent is the thread that started this process. A change of the user cancels it.
    """
    call("prctl", libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0))
    if gone():
        os._exit(1)


def enter_namespaces() -> None:
    """Move into new namespaces; children get a new PID namespace. Raises OSError where the system forbids it.

    The user is mapped to INSIDE. For root, the user nobody is: the kernel does not limit root's threads.
    """
    read, write = os.pipe()
    writer = os.fork()  # stays outside, since only there root may map another user than itself
    if writer == 0:
        code = 1
        try:
            os.close(write)
            if os.read(read, 1):
                _map_users(os.getppid())
                code = 0
        finally:
            os._exit(code)
    os.close(read)
    try:
        call("unshare", libc.unshare(NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP))
        os.write(write, b"1")
    finally:
        os.close(write)
        status = os.waitpid(writer, 0)[1]
    if status:
        raise OSError("the user cannot be mapped into a new user namespace")


def _map_users(pid: int) -> None:
    """Write both maps of a process: `inside outside count` lines."""
    folder = Path(f"/proc/{pid}")
    if os.geteuid() == 0:
        both = f"0 0 1\n{INSIDE} {NOBODY} 1\n"
        try:
            (folder / "gid_map").write_text(both)
            (folder / "uid_map").write_text(both)
            return
        except OSError:
            pass  # root of a container that may only map itself
    (folder / "setgroups").write_text("deny")
    (folder / "gid_map").write_text(f"{INSIDE} {os.getegid()} 1\n")
    (folder / "uid_map").write_text(f"{INSIDE} {os.geteuid()} 1\n")


def enter_root(limits: Limits, packages: Sequence[str]) -> None:
    """Make a read-only root of the interpreter's folders and `packages`, and enter it.

    It also has /dev/null, /dev/urandom and an empty /tmp. The folders of packages are found in PACKAGES.
    """
    call("mount /", libc.mount(None, b"/", None, REC | PRIVATE, None))
    shown = {path: path for path in _interpreter()} | {f"{PACKAGES}/{os.path.basename(one)}": one for one in packages}
    sources = {place: os.open(path, os.O_PATH) for place, path in shown.items()}  # PLACE may hide them
    _mount("tmpfs", PLACE, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for path, descriptor in sources.items():
        target = Path(PLACE + path)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        _bind(f"/proc/self/fd/{descriptor}", str(target), device=path.startswith("/dev/"))
        os.close(descriptor)
    for path in ("/lib", "/lib64"):
        if os.path.islink(path) and not os.path.lexists(PLACE + path):
            os.symlink(os.readlink(path), PLACE + path)
    for folder in sources:  # packages that are installed beside the standard library
        for name in ("site-packages", "dist-packages"):
            if (Path(PLACE + folder) / name).is_dir():
                _mount("tmpfs", f"{PLACE}{folder}/{name}", "tmpfs", RDONLY | NOSUID | NODEV, "size=4k")
    inner = Path(PLACE + PLACE)
    inner.mkdir(exist_ok=True)
    _mount("tmpfs", str(inner), "tmpfs", NOSUID | NODEV | NOEXEC, f"mode=1777,size={limits.folder},nr_inodes=4096")
    os.chdir(PLACE)
    number = ctypes.c_long(PIVOT_ROOT[os.uname().machine])
    call("pivot_root", libc.syscall(number, b".", b"."))
    call("umount /", libc.umount2(b".", DETACH))
    _mount("", "/", "", BIND | REMOUNT | RDONLY | NOSUID | NODEV, "")
    os.chdir(PLACE)
    sys.path.append(PACKAGES)


def _interpreter() -> list[str]:
    """The folders of the standard library and of the shared libraries in use, the outer before the inner."""
    maps = [line.split(maxsplit=5) for line in (STATE / "maps").read_text().splitlines()]
    libraries = {os.path.dirname(line[5]) for line in maps if len(line) == 6 and ".so" in line[5]}
    folders = {path for path in {*sys.path, *libraries} if path.startswith("/") and os.path.isdir(path)}
    return [*sorted(folders), "/dev/null", "/dev/urandom"]


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    texts = [text.encode() if text else None for text in (source, kind, options)]
    call(f"mount {target}", libc.mount(texts[0], target.encode(), texts[1], flags, texts[2]))


def _bind(source: str, target: str, *, device: bool) -> None:
    _mount(source, target, "", BIND, "")
    given = os.statvfs(target).f_flag
    kept = sum(flag for bit, flag in LOCKED.items() if given & bit)  # a user namespace may not take these away
    _mount("", target, "", BIND | REMOUNT | RDONLY | NOSUID | kept | (0 if device else NODEV), "")


def drop(limits: Limits) -> None:
    """Give up all privileges, set the limits, and install the filter. Raises OSError."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break  # the last one the kernel knows
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(INSIDE, INSIDE, INSIDE)
        os.setresuid(INSIDE, INSIDE, INSIDE)
    libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(AMBIENT_CLEAR), 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAP_VERSION_3, 0)
    call("capset", libc.capset(header, (ctypes.c_uint32 * 6)()))
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_NPROC, limits.threads),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        most = resource.getrlimit(kind)[1]
        least = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (least, least))
    os.umask(0o077)
    call("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0))
    syscalls.deny(libc)
