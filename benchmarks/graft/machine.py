"""The machine: processor, memory, kernel, disk. Linux only."""

import os
import platform
from pathlib import Path


def describe(scratch: Path) -> dict[str, str]:
    """Facts by name; the disk is that of `scratch`."""
    processor = _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    memory = int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024
    return {
        "processor": f"{processor}, {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 1e9:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": _disk(scratch),
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
    }


def section(about: dict[str, str]) -> list[str]:
    """The lines of a result page that describe the machine."""
    return ["", "## Machine", "", *(f"- {key}: {value}" for key, value in about.items())]


def _field(file: str, key: str) -> str | None:
    lines = Path(file).read_text(encoding="utf-8").splitlines() if Path(file).is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _disk(path: Path) -> str:
    """File system and kind of the block device that holds a folder."""
    device = path.resolve().stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    kind = next((fields[fields.index("-") + 1] for fields in mounts if fields[2] == number), "unknown file system")
    block = Path(f"/sys/dev/block/{number}").resolve()
    queue = next((at / "queue" / "rotational" for at in (block, block.parent) if (at / "queue").is_dir()), None)
    if queue is None:
        return kind
    spinning = queue.read_text(encoding="utf-8").strip() == "1"
    return f"{kind} on {queue.parent.parent.name}, {'rotational' if spinning else 'not rotational'} by its driver"
