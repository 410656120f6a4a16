"""The machine: memory, GPU, and folders that must take what is written."""

import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import disk_usage

from shadowft_core.doctor.finding import FAIL, OK, WARN, Finding

LEAST_FREE = 10**9  # bytes; a run refuses to start with less
WRITTEN = 1 << 20  # bytes written to see whether a folder takes them, and removed again


def memory(params: Path) -> list[Finding]:
    """The memory that a new process can use."""
    from shadowft_core.plan.devices import free_memory

    return [Finding("memory", OK, f"{free_memory() / 1e9:.1f} GB free; `shadowft plan` says what a training needs")]


def gpu(params: Path) -> list[Finding]:
    """The first GPU that the driver shows, and whether the installed torch can use one."""
    from shadowft_core.plan.devices import CPU, here

    found = here(1)
    if found.name == CPU:
        return [Finding("gpu", OK, "none; training and evaluation run on the CPU")]
    said = f"{found.name}, {found.memory / 1e9:.0f} GB usable"
    try:
        built = version("torch")
    except PackageNotFoundError:
        return [Finding("gpu", OK, said)]  # `versions` reports it
    if built.endswith("+cpu"):
        return [Finding("gpu", WARN, f"{said}, but torch {built} is built for the CPU", "install torch for CUDA")]
    return [Finding("gpu", OK, said)]


def disk(params: Path) -> list[Finding]:
    """The workspace and the cache: whether they can be written, and the space that is free."""
    from shadowft_core.files import cache_folder

    here = writable("workspace", Path.cwd(), "run in a folder of your own")
    return [here, writable("cache", cache_folder(), "set SHADOWFT_CACHE to a folder of your own")]


def writable(check: str, folder: Path, remedy: str) -> Finding:
    """Whether a folder, or the nearest one above it that exists, takes a file, which is removed again."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(WRITTEN))
            file.flush()
        free = disk_usage(existing).free
    except OSError as error:
        return Finding(check, FAIL, f"{folder}: cannot be written ({error.strerror})", f"free some space, or {remedy}")
    if free < LEAST_FREE:
        said = f"{folder}: {free / 1e9:.1f} GB free, a run needs {LEAST_FREE / 1e9:.0f} GB or more"
        return Finding(check, FAIL, said, f"free some space, or {remedy}")
    return Finding(check, OK, f"{folder}: {free / 1e9:.1f} GB free")
