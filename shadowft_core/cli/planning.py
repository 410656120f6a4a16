"""The verbs before a training: `preset` writes settings."""

from typing import Annotated

import typer

from shadowft_core.cli.options import PLANNING, JsonOption
from shadowft_core.cli.output import print_answer

verbs = typer.Typer()
preset = typer.Typer(help="Settings of the paper for its pairs, each a complete params.yaml.", no_args_is_help=True)
verbs.add_typer(preset, name="preset", rich_help_panel=PLANNING)


@preset.command("list")
def names(as_json: JsonOption = False) -> None:
    """List the presets: pair, method and published figures.

    Reads nothing of yours; writes nothing.

    Example: shadowft preset list
    """
    from shadowft_core.presets import presets

    if as_json:
        rows = [
            {
                "name": found.name,
                "base": found.base,
                "instruct": found.instruct,
                "licence": found.licence,
                "method": found.train.method,
                "figures": list(found.figures),
            }
            for found in presets()
        ]
        print_answer("preset.list", {"presets": rows})
        return
    for found in presets():
        base = found.base or "no public Base"
        print(f"{found.name:24} {base} -> {found.instruct}" + (", published figures" if found.figures else ""))


@preset.command()
def show(
    wanted: Annotated[str, typer.Argument(metavar="PRESET", help="a name that `shadowft preset list` prints")],
    resolve: Annotated[
        bool, typer.Option("--resolve", help="ask the hub for the current commits, in place of REVISION")
    ] = False,
) -> None:
    """Print a preset: a complete params.yaml with comments.

    Without --resolve the references end in @REVISION, which `fetch` refuses by name.

    Example: shadowft preset show qwen3-8b-lora > params.yaml

    With the commits of today: shadowft preset show qwen3-8b-lora --resolve > params.yaml
    """
    from shadowft_core.presets import show as written
    from shadowft_core.remote.hub import current_commit

    print(written(wanted, current_commit) if resolve else written(wanted), end="")
