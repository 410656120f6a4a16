"""The program in an answer: as the task asks for it (strict), and wherever it stands in the answer (lenient).

Both give one program and never look at the tests, so no answer gets a second try.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

FENCE = re.compile(r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[\w+#.-]*+)[^\n]*+\n", re.MULTILINE)
PYTHON = {"", "python", "python3", "py", "py3", "python-repl", "ipython"}
FIRST = re.compile(r"(def |async def |class |import |from \w|@)")
LONGEST = 30_000  # characters of an answer that are read: Python's parser can take seconds for what is made to be slow
STARTS = 50  # lines of running text at which a program may start
PARSED = 400_000  # characters that are parsed in all while a program is looked for in running text
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
KEPT = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def continuation(prompt: str, answer: str, *, prefilled: bool) -> str:
    """The strict form: the prompt and the answer, up to the end of a code block that the prompt opened."""
    return prompt + (answer.partition("```")[0] if prefilled else answer)


def program(prompt: str, answer: str, names: tuple[str, ...], *, prefilled: bool = False) -> str | None:
    """The lenient form: the program that an answer shows, or None if it shows none that defines the last of `names`.

    `prompt` is the beginning of the program, or empty. Of several blocks of code the last that defines the name counts,
    with the definitions and imports of those before it. If none does, a block, or an answer without blocks, may be the
    rest of the prompt's last function, with or without its indentation. Statements that only try the program out
    (print, assert, a call of it) are left out.
    """
    text = answer.replace("\r\n", "\n")[:LONGEST]
    pieces = list(_blocks(f"```python\n{text}" if prefilled else text))
    if not pieces:
        plain = re.sub(r"\[(BEGIN|DONE)\]", "", text)
        pieces = [_within(plain, names) or plain]
    bodies = [_statements(textwrap.dedent(piece)) or [] for piece in pieces]
    last = max((at for at, body in enumerate(bodies) if _defines(body, names)), default=None)
    if last is not None:
        kept = [*_beginning(prompt), *(node for body in bodies[:last] for node in body if isinstance(node, KEPT))]
        kept += [node for node in bodies[last] if not _tries_out(node, names)]
    else:
        before = text.partition("```")[0].strip("\n")  # some models close a block that nobody opened
        rests = [*reversed(pieces), *([before] if before[:1].isspace() else [])]
        kept = next((body for piece in rests if prompt and (body := _rest(prompt, piece))), [])
    future = [node for node in kept if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    try:
        code = ast.unparse(ast.Module([*future, *(node for node in kept if node not in future)], []))
    except (RecursionError, ValueError):
        return None
    return code or None


def _blocks(text: str) -> Iterator[str]:
    """The Python code between fences; an open block goes on to the end."""
    at = 0
    while start := FENCE.search(text, at):
        end = re.compile(rf"^[ \t]*{start['fence']}[ \t]*$", re.MULTILINE).search(text, start.end())
        if start["language"].lower() in PYTHON:
            yield text[start.end() : end.start() if end else len(text)]
        at = end.end() if end else len(text)


def _rest(prompt: str, piece: str) -> list[ast.stmt] | None:
    """The prompt with a piece of code as the rest of its last function: as it is, first line moved, or all moved."""
    if not piece.strip():
        return None
    first, _, rest = piece.strip("\n").partition("\n")
    if first[:1].isspace():
        whole = piece
    elif all(line[:1].isspace() for line in rest.split("\n") if line):
        whole = f"    {first}\n{rest}"
    else:
        whole = textwrap.indent(textwrap.dedent(piece).strip("\n"), "    ")
    return _statements(f"{prompt.rstrip()}\n{whole}")


def _within(text: str, names: tuple[str, ...]) -> str | None:
    """The program in running text: from a line that starts one, as far as it parses."""
    lines, left = text.split("\n"), PARSED
    if (whole := _statements(text)) and _defines(whole, names):
        return text
    for start in [at for at, line in enumerate(lines) if FIRST.match(line)][:STARTS]:
        end = len(lines)
        while end > start:
            piece = "\n".join(lines[start:end])
            left -= len(piece)  # one line repeated without end fails anew for every line that is left out
            if left < 0:
                return None
            try:
                body = parse(piece)
            except SyntaxError as error:
                end = min(end - 1, start + (error.lineno or 1) - 1)
            except (ValueError, RecursionError, MemoryError):
                break
            else:
                if _defines(body, names):
                    return piece
                break
    return None


def parse(code: str) -> list[ast.stmt]:
    """The statements of a program, without warnings about it. Raises what `ast.parse` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code).body


def _statements(code: str) -> list[ast.stmt] | None:
    try:
        return parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines(body: list[ast.stmt], names: tuple[str, ...]) -> bool:
    """Whether the last of the names is defined, by a definition or an assignment."""
    for node in body:
        if isinstance(node, Definition) and node.name == names[-1]:
            return True
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == names[-1] for target in targets):
            return True
    return False


def _beginning(prompt: str) -> list[ast.stmt]:
    """The imports and complete functions of a prompt, without the function to be written, which is its last."""
    return (_statements(prompt + "\n    pass\n") or [])[:-1]


def _tries_out(node: ast.stmt, names: tuple[str, ...]) -> bool:
    """Whether a statement only shows or checks what the program does."""
    if isinstance(node, ast.For | ast.While | ast.With | ast.If):
        return all(_tries_out(inner, names) for inner in (*node.body, *getattr(node, "orelse", ())))
    if not isinstance(node, ast.Expr):
        return isinstance(node, ast.Assert)
    call = node.value.func if isinstance(node.value, ast.Call) else node.value
    return (isinstance(call, ast.Name) and call.id in {"print", "main", "input", *names}) or isinstance(
        call, ast.Constant
    )
