"""The command `shadowft`: its verbs, errors and exit codes. A verb imports the other rooms only when it runs."""

import os
import re
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shadowft_core.cli import (
    comparing,
    data,
    doctor,
    inspect,
    planning,
    power,
    promotion,
    registry,
    scoring,
    stages,
    store,
    suites,
    workspaces,
)
from shadowft_core.cli.output import print_error
from shadowft_core.cli.versions import print_versions
from shadowft_core.cli.workspace import filled_in, run_code_of_workspace
from shadowft_core.environment import set_variables
from shadowft_core.errors import ShadowError, one_line
from shadowft_core.terminal import guard_output

INTERRUPTED = 130  # exit code after Ctrl-C, by the convention of shells
MISTAKE = 70  # exit code after an exception that no verb expects, by the convention of sysexits.h
TRACEBACK = "SHADOWFT_TRACEBACK"  # environment variable: shows such an exception whole
EMPTY = re.compile("--[a-z-]+=")
RENAMED = {  # (verb, old word): new spelling; without a word the verb itself
    ("retrain", ""): "run",
    ("version", ""): "--version --verbose",
    ("store", "verify"): "store check",
    ("store", "gc"): "store prune",
    ("store", "--uri"): "--store",
    ("extract", "--store"): "--storage",
    ("export", "--recipe"): "export models:/NAME@ALIAS",
}


class Verbs(TyperGroup):
    """The group of all verbs. It refuses an empty value, and an old spelling, and then names the new one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. An old spelling is a usage error; so is an empty value: as a path it would be `.`."""
        for word in args:
            if not word or EMPTY.fullmatch(word):
                after = f"after {word}" if word else "between the arguments"
                ctx.fail(
                    f"an empty value {after}; perhaps a variable of the shell is not set. Leave an option out instead"
                )
        for (verb, old), new in RENAMED.items():
            candidates = args[1:] if old.startswith("-") else args[1:2] if old else [""]
            if args[:1] == [verb] and any(word.partition("=")[0] == old for word in candidates):
                ctx.fail(f"`{f'{verb} {old}'.strip()}` is no longer accepted; use `{new}`")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="shadowft",
    cls=Verbs,
    help="Tune the Base, graft the delta on the Instruct, judge the result. dvc.yaml shows how the stages connect.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    invoke_without_command=True,
)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="with --version: add Python, the main libraries and the arithmetic in use")
    ] = False,
) -> None:
    """Handle the options that need no verb."""
    if version:
        print_versions(verbose)
        raise typer.Exit
    if verbose:
        context.fail("`--verbose` goes with `--version`")
    if context.invoked_subcommand is None:
        context.fail("no verb; `shadowft --help` lists them")


for group in (
    workspaces,
    stages,
    scoring,
    planning,
    power,
    data,
    suites,
    store,
    registry,
    promotion,
    comparing,
    inspect,
    doctor,
):
    app.add_typer(group.verbs)


def main() -> None:
    """Run the command line and exit. A ShadowError becomes one line on stderr and its exit code.

    No verb reads stdin. Libraries and child processes that read it get an end of file.
    """
    set_variables()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    as_json = "--json" in sys.argv
    guard_output("utf-8" if as_json else None)
    if not sys.warnoptions:  # hides the deprecation warnings of libraries; `python -W` shows them
        warnings.simplefilter("ignore")
    code: int | str | None
    try:
        run_code_of_workspace()
        code = app(filled_in(sys.argv[1:]), prog_name="shadowft", standalone_mode=False)
        if code == INTERRUPTED:
            message = "interrupted; no partial output is left, run the same command again"
            print_error("KeyboardInterrupt", message, INTERRUPTED, as_json)
    except SystemExit as end:  # of a run, which has said why
        code = end.code
    except typer.TyperException as error:  # a usage error
        code = error.exit_code
        if as_json:
            print_error("UsageError", error.format_message(), error.exit_code, as_json)
        else:
            from typer.rich_utils import rich_format_error

            error.message = one_line(error.message)
            rich_format_error(error)  # type: ignore[arg-type]
    except ShadowError as error:
        print_error(type(error).__name__, str(error), error.exit_code, as_json)
        sys.exit(error.exit_code)
    except OSError as error:
        code = 1
        message = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        print_error(type(error).__name__, message, code, as_json)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        code = MISTAKE
        print_error(type(error).__name__, _mistake(error), code, as_json)
    sys.exit(code)


def _mistake(error: Exception) -> str:
    """What to say of an exception that is no ShadowError, which is a mistake of this program."""
    places = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = [place for place in places if place[0].partition(".")[0] == "shadowft_core"]
    module, line = (ours or places)[-1]
    return (
        f"{type(error).__name__} in {module}, line {line}: {error}; this is a mistake in shadowft, please report it; "
        f"with {TRACEBACK}=1 the same command shows the traceback"
    )
