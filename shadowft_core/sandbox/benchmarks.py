"""The programs of two public benchmarks, HumanEval and MBPP, from their rows."""

import ast
import textwrap
from collections.abc import Mapping
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.sandbox.running import Program

HUMANEVAL = ("prompt", "test", "entry_point")
MBPP = ("code", "test_list")


def program_of(row: Mapping[str, Any], source: str) -> Program:
    """The program `source` with the tests of a row.

    A row of HumanEval has prompt, test and entry_point; the tests may also use the helper functions of the prompt. One
    of MBPP has code and test_list, and test_setup_code or test_imports; the tests take from the program what the
    reference `code` defines. Raises DataError for any other row.
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
        f"a row with the fields {', '.join(sorted(row))}; scorer: code needs prompt, test and entry_point (HumanEval) "
        "or code and test_list (MBPP)"
    )


def helpers(prompt: str) -> str:
    """The imports and complete functions of a prompt, without the function to be written, which is its last."""
    body = ast.parse(_lines(prompt) + "\n    pass\n").body
    return ast.unparse(ast.Module(body[:-1], []))


def defined(code: str) -> tuple[str, ...]:
    """The functions and classes that a program defines."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tuple(dict.fromkeys(node.name for node in ast.parse(_lines(code)).body if isinstance(node, kinds)))


def imports(code: str, tests: str) -> str:
    """The imports of the reference code whose names the tests use."""
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    found = []
    for node in ast.parse(_lines(code)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
            found += [node] if node.names else []
    return ast.unparse(ast.Module(list(found), []))


def _lines(text: str) -> str:
    return textwrap.dedent(text).replace("\r\n", "\n")
