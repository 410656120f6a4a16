"""Public facts of devices, and the free memory of this machine."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from shadowft_core.errors import InputError

CPU = "cpu"
# Memory in bytes and dense bfloat16 FLOP/s with float32 sums, from the data sheets of NVIDIA.
_DEVICES = {
    "A10": (24e9, 125e12),
    "A100-40": (40e9, 312e12),
    "A100": (80e9, 312e12),
    "L4": (24e9, 121e12),
    "L40S": (48e9, 362e12),
    "RTX4090": (24e9, 165e12),
    "H100": (80e9, 989e12),
    "H200": (141e9, 989e12),
    "B200": (180e9, 2250e12),
}
CPU_FLOPS = 80e9  # float32 of one core: 32 operations a cycle (AVX2, two FMA units) at 2.5 GHz
USABLE = 0.92  # of a GPU's memory: the rest is the driver's, and gaps of torch's allocator
UTILISATION = {
    "cuda": (0.35, "an assumption; 0.41 of 989 TFLOP/s is the best published for LoRA on 8B (NVIDIA NeMo AutoModel)"),
    "cpu": (0.4, "an assumption"),
}


@dataclass(frozen=True)
class Device:
    """A kind of device: memory that a training can use in bytes (of the machine, if a CPU), FLOP/s of one."""

    name: str
    kind: str
    memory: float
    flops: float


def device(name: str | None, threads: int) -> Device:
    """The device of a name; without one, what this machine has. Raises InputError for an unknown name."""
    if name is None:
        return here(threads)
    if name.lower() == CPU:
        return Device(CPU, "cpu", free_memory(), CPU_FLOPS * threads)
    known = {known.lower(): known for known in _DEVICES}
    if name.lower() not in known:
        raise InputError(f"plan.device {name!r}: unknown; use one of {', '.join([CPU, *_DEVICES])}")
    memory, flops = _DEVICES[known[name.lower()]]
    return Device(known[name.lower()], "cuda", memory * USABLE, flops)


def here(threads: int) -> Device:
    """The first GPU of this machine with its free memory, as nvidia-smi tells; else the CPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        name, free = told.splitlines()[0].rsplit(",", 1)
        memory = float(free) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return Device(CPU, "cpu", free_memory(), CPU_FLOPS * threads)
    plain = name.upper().replace(" ", "").replace("GEFORCE", "")
    fitting = [known for known in _DEVICES if known.split("-")[0] in plain]
    flops = _DEVICES[max(fitting, key=len)][1] if fitting else 0.0
    return Device(name, "cuda", memory * USABLE, flops)


def free_memory() -> float:
    """Bytes that a new process can use: available memory, or what the limit of the control group leaves."""
    import psutil

    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left = int((group / limit).read_text()) - int((group / used).read_text()) + _cached(group / limit)
        except (OSError, ValueError):  # no such control group, or `max`
            continue
        free = min(free, float(left))
    return free


def _cached(limit: Path) -> int:
    """Bytes of files that the control group counts as used and gives up when memory is short."""
    try:
        stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
    except OSError:
        return 0
    return int(stat.get("inactive_file", 0))
