"""The verbs before a training: `preset` writes settings, `plan` says what they need, `preflight` measures the pair."""

from pathlib import Path
from typing import Annotated

import typer

from shadowft_core.cli.options import (
    PARAMS,
    PLANNING,
    STAGES,
    DataOption,
    JsonOption,
    ParamsOption,
    out_file,
    read_params,
)
from shadowft_core.cli.output import print_answer, say
from shadowft_core.cli.plans import planned, show_plan
from shadowft_core.cli.power import warn_of_few

verbs = typer.Typer()
preset = typer.Typer(help="Settings of the paper for its pairs, each a complete params.yaml.", no_args_is_help=True)
verbs.add_typer(preset, name="preset", rich_help_panel=PLANNING)


@verbs.command(rich_help_panel=PLANNING)
def plan(
    pair: Annotated[Path, typer.Option(help="folder made by `fetch`; only configs and headers are read")] = Path(
        "work/pair"
    ),
    data: Annotated[Path, typer.Option(help="folder made by `prepare`; only data-report.json is read")] = Path(
        "work/data"
    ),
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="plan a preset, without pair and data: its known shape, and 2,000 rows of 1,000 tokens"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, A100, H100, L4, ...; default: plan.device, else what this machine has")
    ] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="number of devices; default: train.launch")] = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Say what a training will need: memory by part, steps, time, money and disk.

    Loads no weights and writes nothing. Exit code 6 if it cannot fit; the error names a change of settings that fits.

    Example: shadowft plan --device H100

    Without weights and data: shadowft plan --preset qwen3-8b-lora --device H100 --devices 2
    """
    from shadowft_core.plan import require_fits

    settings = read_params(params)
    routes = planned(pair, data, preset, device, devices, settings)
    own = [] if preset else [name for name in settings.routes if name not in routes]
    if own:
        say(
            f"plan: {', '.join(own)}: train.command trains, so its memory, steps, time and price are not known",
            err=True,
        )
    if preset is None:
        warn_of_few("plan", settings, data)
    if as_json:
        print_answer("plan", {"routes": routes})
    else:
        show_plan(routes)
    require_fits(routes)


@verbs.command(rich_help_panel=STAGES)
def preflight(
    out: Annotated[Path, out_file("losses, gradients and sigma of both models before training, JSON")],
    pair: Annotated[Path, typer.Option(help="folder made by `fetch`")] = Path("work/pair"),
    data: DataOption = Path("work/data"),
    params: ParamsOption = PARAMS,
) -> None:
    """Measure Base and Instruct on the rows of the first training step: losses, and how alike their gradients are.

    Reads both models, one after the other, and the data; writes one JSON file. Trains nothing.

    Example: shadowft preflight --out work/preflight.json
    """
    from shadowft_core.train.preflight import preflight as measure

    p = read_params(params)
    measure(pair, data, p.train, out, p.render, replay=p.routes["shadow"].replay)


@preset.command("list")
def names(as_json: JsonOption = False) -> None:
    """List the presets: pair, method and published figures.

    Reads and writes no files.

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
        say(f"{found.name:24} {base} -> {found.instruct}" + (", published figures" if found.figures else ""))


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
