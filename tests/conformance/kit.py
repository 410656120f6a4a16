"""Runs a tool on a case: makes the folders, runs the tool, judges its exit code and output folder."""

import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.conformance.cases import Case, Expected, Judged
from tests.conformance.hostile import MARKER
from tests.conformance.inputs import Start
from tests.conformance.oracle import difference, one_layout, tensors_of
from tests.conformance.tools import Answer, Tool


class Verdict(StrEnum):
    PASS = "pass"
    ROUNDING = "rounding"  # exit code 0 and a complete folder, but another order of sums or one extra rounding
    WRONG = "wrong folder"  # exit code 0, but another file differs, or loading prints a warning
    SILENT = "silently wrong"  # exit code 0 and other weights, or a missing delta
    ACCEPTS = "accepts"  # exit code 0 for inputs that must be refused
    REFUSED = "refuses"  # an error for inputs that should be grafted
    LEFT = "leaves a folder"  # a right refusal that leaves an output folder
    NOT_ASKED = "-"


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    note: str
    answer: Answer | None


class Kit:
    """Runs cases in folders below one folder; builds each start once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start = functools.cache(self._built)

    def run(self, case: Case, tool: Tool) -> Outcome:
        with tempfile.TemporaryDirectory(prefix=f"{case.id}-", dir=self.folder) as name:
            folder = Path(name)
            shutil.copytree(self._start(repr(case.start), case.start), folder, dirs_exist_ok=True)
            for change in case.changes:
                change(folder)
            for empty in ("work", "made"):
                (folder / empty).mkdir()
            dtype = json.loads((folder / "instruct" / "config.json").read_text()).get("dtype", "bfloat16")
            answer = tool(folder, case.start.adapter is not None, dtype)
            if answer is None:
                return Outcome(Verdict.NOT_ASKED, "", None)
            verdict, note = _judge(case, folder, answer)
            return Outcome(verdict, note.replace(f"{folder}/", ""), answer)

    def _built(self, _key: str, start: Start) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="start-", dir=self.folder))
        start.build(folder)
        return folder


def _judge(case: Case, folder: Path, answer: Answer) -> tuple[Verdict, str]:
    made, out = folder / "made", folder / "made" / "out"
    if (folder / MARKER).exists():
        return Verdict.SILENT, "ran code that came with the weights"
    if answer.code != 0:
        if case.expected == Expected.EQUAL:
            return Verdict.REFUSED, answer.last_line
        left = sorted(path.name for path in made.rglob("*") if path.is_file() or path == out)
        return (Verdict.LEFT, f"{', '.join(left)}; {answer.last_line}") if left else (Verdict.PASS, answer.last_line)
    if case.expected == Expected.REFUSED:
        return Verdict.ACCEPTS, ""
    if not out.is_dir():
        return Verdict.SILENT, "exit code 0 and no folder"
    if case.judged == Judged.WEIGHTS:
        return _weights(case, folder, out)
    complaint = _JUDGES[case.judged](folder / "instruct", out)
    return (Verdict.WRONG, complaint) if complaint else (Verdict.PASS, "")


def _weights(case: Case, folder: Path, out: Path) -> tuple[Verdict, str]:
    expected, found, instruct = case.oracle(folder), tensors_of(out), tensors_of(folder / "instruct")
    other_layout = found.keys() != expected.keys()
    if other_layout:
        expected, found, instruct = (one_layout(tensors) for tensors in (expected, found, instruct))
    gap = difference(expected, found, instruct)
    if not (gap.misplaced or gap.entries):
        return Verdict.PASS, "under other names" if other_layout else ""
    return (Verdict.ROUNDING if gap.rounding else Verdict.SILENT), str(gap)


def _files(instruct: Path, out: Path) -> str:
    complaints = []
    for file in sorted(path.relative_to(instruct) for path in instruct.rglob("*") if path.is_file()):
        if not file.name.endswith((".safetensors", ".index.json")):
            if not (out / file).is_file():
                complaints.append(f"{file} is missing")
            elif (out / file).read_bytes() != (instruct / file).read_bytes():
                complaints.append(f"{file} differs")
    return ", ".join(complaints)


def _loads(instruct: Path, out: Path) -> str:
    from tests.fixtures.models import load_model

    try:
        warnings = load_model(out)[1]
    except Exception as error:  # any failure to load is the finding
        return f"does not load: {error}".splitlines()[0]
    return " ".join("; ".join(reversed(warnings)).split())


def _tied(instruct: Path, out: Path) -> str:
    from tests.fixtures.models import load_model

    model = load_model(out)[0]
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return "" if head.data_ptr() == embedding.data_ptr() else "head and embedding are two tensors"


_JUDGES = {Judged.FILES: _files, Judged.LOADS: _loads, Judged.TIED: _tied}
