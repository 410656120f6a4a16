"""Answers to the tasks of two public benchmarks, HumanEval and MBPP, judged by their tests."""

import ast
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.sandbox import extract
from shadowft_core.sandbox.limits import Limits
from shadowft_core.sandbox.running import LIMITS, Program, Verdict, run

HUMANEVAL = ("prompt", "test", "entry_point")
NO_PROGRAM = Verdict("failed", "no program in the answer")


@dataclass(frozen=True)
class Grade:
    """`strict`: the answer as the task asks for it passes. `lenient`: so does the program found anywhere in it.

    `parsed`: a program was found that defines what the tests call. `verdict` is the lenient one's.
    """

    strict: bool
    lenient: bool
    parsed: bool
    verdict: Verdict


def grade(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[str], *, prefilled: bool = False, limits: Limits = LIMITS
) -> list[Grade]:
    """Judge one answer to each row, running the programs side by side.

    `prefilled`: the prompt ended in an open code block, which the answers go on with.
    Raises DataError for a row that is none of HumanEval or MBPP, and what `run` raises.
    """
    asked = list(zip(rows, answers, strict=True))
    programs = [
        program_of(row, extract.continuation(_beginning(row), answer, prefilled=prefilled)) for row, answer in asked
    ]
    strict = run(programs, limits)
    found = [
        extract.program(_beginning(row), answer, wanted(program), prefilled=prefilled)
        for (row, answer), program in zip(asked, programs, strict=True)
    ]
    again = {  # what passed is right in either form
        at: program_of(rows[at], source)
        for at, source in enumerate(found)
        if source is not None and strict[at].kind != "passed" and source != programs[at].source
    }
    lenient = dict(zip(again, run(list(again.values()), limits), strict=True))
    grades = []
    for at, verdict in enumerate(strict):
        passed = verdict.kind == "passed"
        final = verdict if passed else lenient.get(at, NO_PROGRAM if found[at] is None else verdict)
        grades.append(Grade(passed, final.kind == "passed", passed or found[at] is not None, final))
    return grades


def program_of(row: Mapping[str, Any], source: str) -> Program:
    """The program `source` with the tests of a row.

    A row of HumanEval has prompt, test and entry_point; the tests may also use the helper functions of the prompt. One
    of MBPP has code and test_list, and may have test_setup_code or test_imports; the tests take from the program what
    the reference `code` defines. Raises DataError for any other row.
    """
    try:
        if all(isinstance(row.get(key), str) for key in HUMANEVAL):
            return Program(source, row["test"], (row["entry_point"],), helpers(row["prompt"]), "check")
        if isinstance(row.get("code"), str) and row.get("test_list"):
            setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
            tests = "\n".join([_lines(setup), *row["test_list"]])  # the set-up may use classes of the program
            return Program(source, tests, defined(row["code"]), imports(row["code"], tests))
    except (SyntaxError, TypeError) as error:
        raise DataError(f"task {row.get('task_id')!r}: its tests cannot be read: {error}; correct the data") from None
    raise DataError(
        f"a row with the fields {', '.join(sorted(row)):.300}; scorer: code needs prompt, test and entry_point "
        "(HumanEval) or code and test_list (MBPP)"
    )


def require_tests(row: Mapping[str, Any]) -> None:
    """Raise DataError for a row whose tests cannot be run. Every answer to it would be wrong."""
    tests = program_of(row, "").tests  # of MBPP they are parsed there
    if "entry_point" not in row:
        return
    try:
        found = defined(tests)
    except SyntaxError as error:
        raise DataError(f"task {row.get('task_id')!r}: its tests cannot be read: {error}; correct the data") from None
    if "check" not in found:
        raise DataError(f"task {row.get('task_id')!r}: its tests do not define the function check; correct the data")


def wanted(program: Program) -> tuple[str, ...]:
    """The names of a program that its tests use, the one that is tested last."""
    used = _used(program.tests)
    return tuple(name for name in program.names if name in used) or program.names


def _beginning(row: Mapping[str, Any]) -> str:
    """The beginning of the program, which HumanEval's prompts are; MBPP's are text."""
    return str(row["prompt"]) if "entry_point" in row else ""


def helpers(prompt: str) -> str:
    """The imports and complete functions of a prompt, without the function to be written, which is its last."""
    return ast.unparse(ast.Module(extract.parse(_lines(prompt) + "\n    pass\n")[:-1], []))


def defined(code: str) -> tuple[str, ...]:
    """The functions and classes that a program defines."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tuple(dict.fromkeys(node.name for node in extract.parse(_lines(code)) if isinstance(node, kinds)))


def imports(code: str, tests: str) -> str:
    """The imports of the reference code whose names the tests use."""
    used, found = _used(tests), []
    for node in extract.parse(_lines(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
            found += [node] if node.names else []
    return ast.unparse(ast.Module(list(found), []))


def _used(code: str) -> set[str]:
    nodes = (node for top in extract.parse(code) for node in ast.walk(top))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _lines(text: str) -> str:
    return textwrap.dedent(text).replace("\r\n", "\n")
