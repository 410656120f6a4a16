"""The verbs that make a workspace and run the flow in it."""

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from shadowft_core.cli.options import START, EndpointOption, StoreOption
from shadowft_core.cli.output import say
from shadowft_core.cli.workspace import run_code_of
from shadowft_core.errors import InputError

if TYPE_CHECKING:
    from shadowft_core.workspace.making import Made

verbs = typer.Typer()
HERE = Path(".")


@verbs.command(rich_help_panel=START)
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="folder to make or, if it is a workspace, to run")
    ] = Path("shadowft-demo"),
) -> None:
    """Make a workspace with a tiny embedded pair, and run everything in it: train, graft, judge, register.

    Takes a few minutes on two cores, the first time two more; needs no GPU, no network and no settings. The second time
    it only runs what is out of date.

    Example: shadowft demo

    In a folder of your choice: shadowft demo first-look
    """
    if not (folder / "dvc.yaml").is_file():
        from shadowft_core.workspace.making import demo as make

        tell(make(folder))
    run_in(folder)
    if folder.resolve() != Path.cwd():
        say(f"these paths and commands belong to the folder {folder}: `cd {quote(str(folder))}` first")
    say(
        "then change a setting in params.yaml, and `shadowft run` again. With models and data of your own: "
        "`shadowft init mine --base DIR --instruct DIR --data FILE`"
    )


@verbs.command(rich_help_panel=START)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to make, new or empty")] = HERE,
    base: Annotated[
        str | None, typer.Option(help="the pretrained model: a folder, hf:OWNER/NAME@REVISION, s3://BUCKET/PREFIX")
    ] = None,
    instruct: Annotated[
        str | None, typer.Option(help="the chat model that was made from it, named as the Base")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="your rows: a file, copied and tracked by DVC; a folder, which stays where it is; hf:... or s3://..., "
            "downloaded and tracked"
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="settings of `shadowft preset list`; its models too, unless you name others")
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="bring an existing workspace to this version of shadowft")
    ] = False,
) -> None:
    """Make a workspace: a folder with git, DVC, settings, stages, a schedule and a flow of your own.

    Checks what you name before it writes anything. What you do not name is to be filled in, in params.yaml. Then
    `shadowft run` runs everything.

    Example: shadowft init mine --base ./Qwen3-4B-Base --instruct ./Qwen3-4B --data rows.jsonl

    Models and settings of the paper: shadowft init mine --preset qwen3-4b-lora --data rows.jsonl

    After `pip install --upgrade shadowft`: shadowft init --upgrade mine
    """
    if upgrade:
        from shadowft_core.workspace import upgrade as bring

        if any((base, instruct, data, preset)):
            raise typer.BadParameter("--upgrade takes no other option; edit params.yaml to change the settings")
        for line in bring(folder).lines() or ["nothing to do: the workspace is that of this version"]:
            say(line)
        return
    from shadowft_core.workspace.making import init as make

    made = make(folder, base, instruct, data, preset)
    tell(made)
    here = folder.resolve() == Path.cwd()
    first = f"fill in {folder / 'params.yaml'}, then " if made.to_fill else ""
    say(f"next: {first}" + ("" if here else f"cd {quote(str(folder))} && ") + "shadowft run")


@verbs.command(rich_help_panel=START)
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the workspace, or a checkout of the project")] = HERE,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
    name: Annotated[str | None, typer.Option(help="name of the registered model; default: registry.name")] = None,
) -> None:
    """Bring all stages up to date, publish the delta, register the recipe, and show the verdict.

    Runs the flow in flows/retrain.py of the workspace, which is yours to change. If PREFECT_API_URL is set, the run is
    recorded there; otherwise a Prefect server runs as long as the flow. Exit code 0 with any verdict, 11 when
    everything is done but a registration waits for MLflow, 130 when interrupted: the next run resumes.

    Example: shadowft run

    Another folder, store and name: shadowft run mine --store s3://my-bucket/deltas --name my-model
    """
    run_in(folder, store, endpoint, name)


def run_in(folder: Path, store: str | None = None, endpoint: str | None = None, name: str | None = None) -> None:
    """Run the flow of a workspace; first bring the numbers of its stages up to date."""
    flow = folder / "flows/retrain.py"
    if not flow.is_file():
        raise InputError(
            f"{flow}: no such file; run `shadowft run` in a workspace or name its folder; `shadowft init` makes one, "
            "`shadowft demo` shows one"
        )
    run_code_of(folder)
    from shadowft_core import workspace
    from shadowft_core.pipeline.command import run_flow

    workspace.require_usable_path(folder)
    if (folder / workspace.STAGES).is_file() and (changes := workspace.upgrade(folder)):
        for line in changes.lines():
            say(f"upgrade: {line}", err=True)
        say(f"upgrade: commit {workspace.STAGES} and these files", err=True)
    run_flow(flow, folder, store, endpoint, name)


def tell(made: "Made") -> None:
    """Say what a new workspace has, and what is still to be filled in."""
    say(f"{made.folder}: a workspace, with git and DVC; README.md says what each file is")
    for note in made.notes:
        say(f"  {note}")
    if made.to_fill:
        say(f"  to fill in, in {made.folder / 'params.yaml'}: {', '.join(made.to_fill)}")
    sys.stdout.flush()  # into a pipe, these lines would follow those of the run
