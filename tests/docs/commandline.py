"""The page of verbs: what each does, its arguments and options, examples, exit codes."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from shadowft_core import errors
from shadowft_core.cli import app
from tests.docs.text import code, codes, prose, table
from tests.fixtures.cli import leaf_verbs

HEAD = """# The command line

`python -m tests.docs.generate` writes this page from the code; a test compares them. `shadowft VERB --help` prints the
same in a terminal.

- The folder or file that `--out` names is complete or absent. An existing one is **replaced with everything in it**.
- Without `--params`, a verb reads `params.yaml` in the current folder, or uses the built-in defaults.
  [params.yaml](params.md) lists the settings.
- `--json` prints one line of JSON, errors too: [JSON](../json.md).
- An error is one line on stderr, and has an [exit code](#exit-codes).

"""
TYPES = {"": "", "<str>": "text", "<path>": "path", "<file>": "path", "<int>": "integer", "<float>": "number"}
EXAMPLE = re.compile(r"^(?P<title>.*?):\s+(?P<command>(?:[A-Z_]+=\S+ )*shadowft .*)$")
ENDINGS = {
    0: "success",
    1: "an error of the operating system; `diff`: the models differ",
    2: "usage: an unknown verb or option, a missing argument",
    70: "a mistake in shadowft, please report it; with SHADOWFT_TRACEBACK=1 the same command shows the traceback",
    130: "interrupted by Ctrl-C; the same command goes on or begins again",
}


def page() -> str:
    """The whole page."""
    groups = _groups()
    parts = [HEAD]
    for group, verbs in groups.items():
        rows = ((f"[`{verb}`](#{_anchor(verb)})", prose(_sentence(command))) for verb, command in verbs.items())
        parts.append(f"**{group}**\n\n{table(('verb', 'does'), rows)}\n")
    group: Any = get_command(app)
    rows = _rows(group, group.make_context("shadowft", [], resilient_parsing=True))
    parts.append(f"## shadowft\n\n{prose(group.help)}\n\n{table(('option', 'value', 'default', 'meaning'), rows)}\n")
    for verbs in groups.values():
        parts += [_verb(verb, command) for verb, command in verbs.items()]
    return "".join([*parts, _exit_codes()]).rstrip("\n") + "\n"


def _groups() -> dict[str, dict[str, Any]]:
    """Verbs by the group that `shadowft --help` shows them in."""
    group: Any = get_command(app)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for verb, command in leaf_verbs().items():
        found[group.commands[verb.split()[0]].rich_help_panel][verb] = command
    return found


def _anchor(verb: str) -> str:
    return f"shadowft-{verb.replace(' ', '-')}"


def _sentence(command: Any) -> str:
    return str(command.help).split("\n\n")[0]


def _verb(verb: str, command: Any) -> str:
    context = command.make_context(f"shadowft {verb}", [], resilient_parsing=True)
    rows = _rows(command, context)
    head = f"## shadowft {verb}\n\n" + "\n".join(_paragraphs(str(command.help)))
    return f"{head}\n{table(('argument or option', 'value', 'default', 'meaning'), rows)}\n"


def _rows(command: Any, context: Any) -> list[tuple[str, str, str, str]]:
    return [_parameter(one, context) for one in command.params if not one.hidden]


def _paragraphs(text: str) -> Iterator[str]:
    """The help of a verb: sentences, and commands as code."""
    for paragraph in text.split("\n\n"):
        first, *rest = paragraph.splitlines()
        if found := EXAMPLE.match(first):
            yield f"{prose(found['title'])}:\n\n    {found['command']}\n"
            yield from (f"{prose(line)}\n" for line in rest)
        else:
            yield f"{prose(paragraph)}\n"


def _parameter(parameter: Any, context: typer.Context) -> tuple[str, str, str, str]:
    spelled = str(parameter.get_help_record(context)[0])
    if parameter.param_type_name == "argument":
        name, value = (parameter.metavar or parameter.name.upper()).strip("[]."), ""
        name = f"{name}..." if parameter.nargs < 0 else name
    else:
        name, _, value = spelled.replace(" / ", "/").partition(" ")
    given = parameter.default
    default = "required" if parameter.required else "" if given in (None, "") or given is False else code(given)
    return codes(name, "/" if name.startswith("-") else "|"), _value(value, parameter), default, prose(parameter.help)


def _value(shown: str, parameter: Any) -> str:
    """What may be given, from the form in which --help shows it."""
    shown = re.sub(r"^<(?:list\[)?(.*?)\]?>$", r"<\1>", shown).lower() if shown.startswith("<") else shown
    if shown.endswith(" range>"):
        low, high = parameter.min, parameter.max
        number = TYPES[shown.replace(" range", "")]
        return f"{number}, at least {low}" if high is None else f"{number} from {low} to {high}"
    return TYPES.get(shown) or codes(shown.strip("<>"), "|")


def _exit_codes() -> str:
    """Exit codes with the errors that have them, in the words of the module errors."""
    said = dict(re.findall(r"(\w+Error) {2,}(.+)", str(errors.__doc__)))
    rows = [(str(number), "", prose(text)) for number, text in ENDINGS.items()]
    for name, text in said.items():
        error = getattr(errors, name)
        if "exit_code" in vars(error):
            below = [one for one in said if issubclass(getattr(errors, one), error)]
            same = [code(one) for one in below if getattr(errors, one).exit_code == error.exit_code]
            rows.append((str(error.exit_code), ", ".join(same), prose(text)))
    rows.sort(key=lambda row: int(row[0]))
    note = "A process that a signal ends has 128 plus the number of the signal.\n"
    return f"## Exit codes\n\n{table(('code', 'errors', 'meaning'), rows)}\n{note}"
