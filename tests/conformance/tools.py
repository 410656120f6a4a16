"""Runs a tool, which is a command line, on the folders of a case."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowft_core.errors import ShadowError

ROOT = Path(__file__).parent.parent.parent
LIMIT = 300  # seconds for a model of a few hundred kilobytes

_EXTRACT = "shadowft extract --base {base} --tuned {tuned} --out {work}/delta"
_GRAFT = "shadowft graft --instruct {instruct} --delta {work}/delta --scale 1 --out {out}"


def _mergekit(settings: str, *roles: str) -> str:
    """task_arithmetic over {base}, with the %s of `settings` filled by the folders of `roles`."""
    models = ", ".join(2 * ['{"model": "%s", "parameters": {"weight": 1}}'])
    start = f'"merge_method": "task_arithmetic", "base_model": "%s", "models": [{models}], "dtype": "float32"'
    folders = " ".join(("{base}", "{tuned}", "{instruct}", *roles))
    return (
        f"""printf '{{{start}, "out_dtype": "{{dtype}}"{settings}}}' {folders} > {{work}}/config.yaml"""
        " && {python} -m mergekit.scripts.run_yaml {work}/config.yaml {out} --lazy-unpickle"
    )


NAMED: dict[str, tuple[str, ...]] = {
    "shadowft": (f"{_EXTRACT} && {_GRAFT}", f"{_EXTRACT} && {_GRAFT}".replace("{tuned}", "{adapter}")),
    "shadowft-one-pass": ("shadowft graft --instruct {instruct} --base {base} --tuned {tuned} --scale 1 --out {out}",),
    "mergekit": (_mergekit(""),),
    "mergekit-tokenizer": (_mergekit(', "tokenizer": {"source": "%s"}', "{instruct}"),),
    "peft": ("{here} -m benchmarks.graft.peers peft {instruct} {adapter} {out}",),
    "state-dicts": ("{here} -m benchmarks.graft.peers state-dicts {base} {tuned} {instruct} {out}",),
}
"""Commands of a tool by name: one with {tuned} for full fine-tunes, one with {adapter} for LoRA."""


@dataclass(frozen=True)
class Answer:
    """Exit code, last line of stderr, and the error that a tool raised in this process."""

    code: int
    last_line: str
    error: type[ShadowError] | None = None


Tool = Callable[[Path, bool, str], Answer | None]
"""(folder of a case, whether it has an adapter, the Instruct's dtype) -> the answer; None: not a case for the tool"""


def shadowft(case: Path, adapter: bool, dtype: str) -> Answer:
    """The commands of `shadowft`, run in this process: a start of Python for every case would take minutes."""
    return _in_this_process(NAMED["shadowft"][adapter], case, dtype)


def one_pass(case: Path, adapter: bool, dtype: str) -> Answer | None:
    """As `shadowft`, without a stored delta; cases with an adapter are not for it."""
    return None if adapter else _in_this_process(NAMED["shadowft-one-pass"][0], case, dtype)


def _in_this_process(template: str, case: Path, dtype: str) -> Answer:
    from shadowft_core.cli import app

    for step in _fill(template, case, dtype).split(" && "):
        try:
            app(shlex.split(step)[1:], standalone_mode=False)
        except ShadowError as error:
            return Answer(error.exit_code, str(error), type(error))
    return Answer(0, "")


def processes(templates: Sequence[str], python: str = sys.executable) -> Tool:
    """A tool by its command templates. {python} in them is the interpreter that can import the tool."""

    def run(case: Path, adapter: bool, dtype: str) -> Answer | None:
        fitting = [one for one in templates if ("{adapter}" if adapter else "{tuned}") in one]
        if not fitting:
            return None
        command = _fill(fitting[0], case, dtype, python)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        quiet = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(
                command,
                shell=True,
                cwd=ROOT,
                env=os.environ | quiet,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(124, f"still running after {LIMIT} s")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return Answer(done.returncode, lines[-1] if lines else "")

    return run


def _fill(template: str, case: Path, dtype: str, python: str = sys.executable) -> str:
    places = {role: case / role for role in ("base", "tuned", "instruct", "adapter", "work")}
    places |= {"out": case / "made" / "out", "here": Path(sys.executable), "python": Path(python)}
    for name, path in places.items():
        template = template.replace("{" + name + "}", shlex.quote(str(path)))
    return template.replace("{dtype}", dtype)
