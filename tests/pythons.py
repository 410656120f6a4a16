"""`make test-pythons`: in every Python that pyproject.toml allows and this machine has, the pins resolve, and the rooms
without torch pass their tests in an environment of their own, without torch.

    python -m tests.pythons [PYTHON ...]    programs or paths; default python3.11 python3.12 python3.13
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("python3.11", "python3.12", "python3.13")
TORCH = re.compile(  # torch, what is built on it, and CUDA, whose versions torch pins
    r"(torch|nvidia|cuda|triton|transformers|trl|peft|accelerate|lm-eval)\b"
)
TESTS = (
    "kernels files_atomic files_folder files_ordered_map params verdict_* looks store_backends weights_match selection"
)
WITH_MODELS = "tests/test_selection.py::test_real_sweeps_of_two_routes_agree_on_their_items"  # makes models with torch
UV = ("uv", "pip")


def main(names: list[str]) -> int:
    """Check each Python; returns 1 if one failed or none was found."""
    found = {name: path for name in names if (path := program(name))}
    for name in set(names) - found.keys():
        print(f"{name}: not installed here, skipped")
    failed = [name for name, path in found.items() if not passes(path)]
    print(f"passed: {', '.join(sorted(found.keys() - set(failed))) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed) or not found)


def program(name: str) -> str | None:
    """The path of a Python, also one of pyenv that is not active; None if there is none that runs."""
    version = name.removeprefix("python")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (shutil.which(name), *pyenv.glob(f"{version}.*/bin/python")):
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(path)
    return None


def passes(python: str) -> bool:
    """Resolve, install what is needed without torch, and run the tests."""
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    folder = ROOT / ".venv/pythons" / version
    print(f"== Python {version}", flush=True)
    extras = [word for extra in ("dev", "real", "math", "ifeval", "server") for word in ("--extra", extra)]
    pins = ["--python", python, "-c", "constraints.txt", "--no-header", "--no-annotate"]
    resolved = subprocess.run(
        [*UV, "compile", "-q", *pins, *extras, "pyproject.toml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if resolved.returncode:
        return False
    lines = [line for line in resolved.stdout.splitlines() if not TORCH.match(line)]
    known = {line.partition("=")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    if loose := sorted(name for line in lines if (name := re.split(r"[=\[]", line)[0]) not in known):
        print(f"constraints.txt does not pin {', '.join(loose)}")
        return False
    if not (folder / "bin/python").exists():
        subprocess.run(["uv", "venv", "-q", "--python", python, folder], check=True)
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(lines), encoding="utf-8")
    install = [*UV, "install", "-q", "--no-deps", "--python", folder / "bin/python"]
    for what in (["-r", wanted], ["-e", "."]):
        subprocess.run([*install, *what], cwd=ROOT, check=True)
    tests = sorted(str(path) for name in TESTS.split() for path in ROOT.glob(f"tests/test_{name}.py"))
    pytest = [folder / "bin/python", "-m", "pytest", "-q", "--deselect", WITH_MODELS, *tests]
    return subprocess.run(pytest, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PYTHONS)))
