"""The command line: one verb per stage, act and look. A room is imported when its verb runs: `--help` is instant."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from shadowft_core.cli.inspect import looks
from shadowft_core.cli.registry import releases
from shadowft_core.cli.store import (
    PARAMS,
    IgnoreOption,
    JsonOption,
    OntoBaseOption,
    ParamsOption,
    UnrelatedOption,
    acts,
    print_json,
    read_params,
    waivers_of,
)
from shadowft_core.cli.workspace import filled_in, run_code_of_workspace
from shadowft_core.errors import ShadowError

app = typer.Typer(
    name="shadowft",
    help="Tune the Base, graft the delta on the Instruct, judge the result. Read dvc.yaml for the map of the road.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(acts)
app.add_typer(releases)
app.add_typer(looks)

INTERRUPTED = 130  # the exit code a shell expects after Ctrl-C


@app.command(rich_help_panel="Stages")
def fetch(
    out: Annotated[Path | None, typer.Option(help="folder to make: pair.json, base/, instruct/")] = None,
    origin: Annotated[
        Path | None, typer.Option(help="JSON file to write instead: digests of the sources of a generated pair")
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Resolve and pin both models and check that they may be paired.

    Example: shadowft fetch --out work/pair
    """
    from shadowft_core.pair import fetch as run
    from shadowft_core.pair import write_origin

    if (out is None) == (origin is None):
        raise typer.BadParameter("pass either --out or --origin")
    if out is not None:
        p = read_params(params)
        run(p.fetch, out, p.extract.ignore)
    elif origin is not None:
        write_origin(read_params(params).fetch, origin)


@app.command(rich_help_panel="Stages")
def prepare(
    out: Annotated[Path, typer.Option(help="folder to make: train, valid, dev, test .parquet and data-report.json")],
    data: Annotated[
        Path | None, typer.Option(help="one file or a folder of json, jsonl or parquet files; default: prepare.data")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="task folder, whose items no training row may contain; default: evaluate.tasks")
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Read, validate, normalise, deduplicate, decontaminate and split the data.

    Example: shadowft prepare --data my_rows.jsonl --tasks my_tasks --out work/data
    """
    from shadowft_core.params import Prepare
    from shadowft_core.prepare import prepare as run

    p = read_params(params, **{"prepare": Prepare(data=str(data))} if data else {})
    run(data or Path(p.prepare.data), tasks or Path(p.evaluate.tasks), p.prepare, out)


@app.command(rich_help_panel="Stages")
def train(
    model: Annotated[Path, typer.Option(help="the model to tune: the Base, or the Instruct for the control")],
    instruct: Annotated[Path, typer.Option(help="the Instruct, whose tokenizer and chat template are used")],
    data: Annotated[Path, typer.Option(help="folder made by `prepare`")],
    out: Annotated[Path, typer.Option(help="folder to make: adapter/ or model/, train.json, metrics.jsonl")],
    params: ParamsOption = PARAMS,
) -> None:
    """Tune one model with TRL: LoRA or full, loss on assistant tokens only.

    Example: shadowft train --model work/pair/base --instruct work/pair/instruct --data work/data --out my_tuned
    """
    from shadowft_core.delta import require_extractable
    from shadowft_core.train import train as run

    run(model, instruct, data, read_params(params).train, out, accept=require_extractable)


@app.command(rich_help_panel="Stages")
def extract(
    base: Annotated[Path, typer.Option(help="the model before tuning")],
    tuned: Annotated[Path, typer.Option(help="folder made by `train`, an adapter folder or a checkpoint folder")],
    out: Annotated[Path, typer.Option(help="folder to make: delta.json and safetensors")],
    lowrank: Annotated[
        float | None,
        typer.Option(metavar="ERROR", help="store the smallest factors with |D - BA| / |D| <= ERROR in every tensor"),
    ] = None,
    store: Annotated[
        Literal["compressed", "bfloat16", "float32"],
        typer.Option(help="how differences are kept, all exact: smallest, fastest, or readable by any tool"),
    ] = "compressed",
    unrelated: Annotated[
        bool, typer.Option("--unrelated", help="waive the check that no matrix moved by more than its own norm")
    ] = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Take the weight delta, exactly: LoRA factors as they are, anything else as a float32 difference.

    Kind lora: shadowft extract --base work/pair/base --tuned my_adapter --out my_delta
    (plain LoRA, rsLoRA, PiSSA, OLoRA; the factors are kept)

    Kind dense: shadowft extract --base work/pair/base --tuned my_checkpoint --out my_delta
    (a full training; adapters with DoRA, modules_to_save, trained tokens or biases, merged into their own
    Base first; was it quantised in training, pass it dequantised)

    Kind lowrank: shadowft extract --base work/pair/base --tuned my_checkpoint --lowrank 0.05 --out my_delta
    (any of them, lowered to an error you allow: 0.05 keeps 99.75 % of every tensor's energy)

    Tensors on one side only: shadowft extract --base my_base --tuned my_checkpoint --ignore 'mtp.*' --out my_delta
    (recorded in the delta and honoured by its grafts; for a project set extract.ignore)
    """
    from shadowft_core.delta import extract as run

    standing = () if ignore else read_params(params).extract.ignore
    facts = run(base, tuned, out, store, lowrank, unrelated, ignore or (), standing)
    if as_json:
        typer.echo(json.dumps({"format": 1, **facts}))
    else:
        forms = ", ".join(f"{count} {form}" for form, count in facts["tensors"].items())
        typer.echo(f"{out}: kind {facts['kind']}, tensors: {forms}; {facts['bytes']} bytes, error {facts['error']:g}")
        for reason, sides in facts["ignored"].items():
            for side, names in sides.items():
                typer.echo(f"  {len(names)} only in the {side}, {reason}: {', '.join(names[:3])}")
        for name, rows in facts["tokens"].items():
            typer.echo(
                f"  {name}: {rows['matched']} rows matched by token; not carried: {rows['tuned_only']['rows']} "
                f"of tokens only in the tuned model, {rows['base_only']['rows']} only in the Base"
            )


@app.command(rich_help_panel="Stages")
def sweep(
    instruct: Annotated[Path, typer.Option(help="the untouched Instruct")],
    delta: Annotated[Path, typer.Option(help="folder made by `extract`")],
    data: Annotated[Path, typer.Option(help="folder made by `prepare`, for tasks that read held-out rows")],
    out: Annotated[Path, typer.Option(help="JSON file to write")],
    params: ParamsOption = PARAMS,
) -> None:
    """Choose the scale on dev items. No weights are written.

    Example: shadowft sweep --instruct work/pair/instruct --delta work/delta/shadow --data work/data --out sweep.json
    """
    from shadowft_core.sweep import sweep as run

    p = read_params(params)
    run(instruct, delta, data, p.sweep, p.evaluate, out)


@app.command(rich_help_panel="Stages")
def graft(
    instruct: Annotated[Path, typer.Option(help="the untouched Instruct")],
    out: Annotated[Path, typer.Option(help="folder to make: a complete Hugging Face model, recipe.json, receipt.json")],
    delta: Annotated[
        list[str] | None, typer.Option(metavar="DIR[@SCALE]", help="folder made by `extract`; repeatable")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="with --tuned: take their difference, and keep no delta")] = None,
    tuned: Annotated[
        Path | None, typer.Option(help="what was tuned from --base: a checkpoint, or a folder made by `train`")
    ] = None,
    sweep: Annotated[Path | None, typer.Option(help="take scale and scope from this sweep file")] = None,
    scale: Annotated[float | None, typer.Option(help="scale of a delta without its own; else params, sweep")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(metavar="all|linear|PATTERN", help="which tensors travel; patterns repeatable")
    ] = None,
    scale_for: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=SCALE", help="another scale for these tensors; the last wins")
    ] = None,
    merge: Annotated[str, typer.Option(metavar="sum|ties|dare", help="how several deltas become one")] = "sum",
    density: Annotated[float | None, typer.Option(help="share of entries that ties or dare keeps")] = None,
    seed: Annotated[int | None, typer.Option(help="of dare's drops")] = None,
    onto_base: OntoBaseOption = False,
    unrelated: UnrelatedOption = False,
    ignore: IgnoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the recipe")] = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Write Instruct + scale * delta, added in float32 and rounded once.

    Example: shadowft graft --instruct work/pair/instruct --delta work/delta/shadow --scale 0.75 --out my_model

    Two deltas: shadowft graft --instruct my_instruct --delta maths@0.6 --delta code@0.4 --merge ties --density 0.2
    --out my_model

    In one pass, no delta kept: shadowft graft --instruct my_instruct --base my_base --tuned my_tuned --scale 1
    --out my_model
    """
    from shadowft_core.delta import Difference, open_difference
    from shadowft_core.graft import Merge, Options, parse_delta, parse_scale_for
    from shadowft_core.graft import graft_stage as run

    if (base is None) != (tuned is None) or not (delta or base):
        raise typer.BadParameter("pass --delta, or --base and --tuned together")
    deltas: list[tuple[Path | Difference, float | None]] = [parse_delta(text) for text in delta or ()]
    p = read_params(params)
    if base and tuned:
        deltas.append((open_difference(base, tuned, unrelated, ignore or p.extract.ignore), None))
    recipe = run(
        instruct,
        deltas,
        out,
        p.graft,
        Options(
            merge=Merge(merge, density, seed),
            scale_for=[parse_scale_for(text) for text in scale_for or ()],
            waivers=waivers_of(onto_base, unrelated),
            ignore=ignore or (),
        ),
        sweep,
        scale,
        scope or (),
    )
    if as_json:
        print_json(recipe)


@app.command(rich_help_panel="Stages")
def evaluate(
    instruct: Annotated[Path, typer.Option(help="the untouched Instruct")],
    data: Annotated[Path, typer.Option(help="folder made by `prepare`, for tasks that read held-out rows")],
    out: Annotated[Path, typer.Option(help="folder to make: one folder per arm")],
    delta: Annotated[Path | None, typer.Option(help="judge the arms of this delta; without it, the Instruct")] = None,
    grafted: Annotated[Path | None, typer.Option(help="the grafted folder of the same delta")] = None,
    route: Annotated[str, typer.Option(help="shadow or direct: names the arms ROUTE and ROUTE_scaled")] = "shadow",
    params: ParamsOption = PARAMS,
) -> None:
    """Score the Instruct, or both arms of one delta, with lm-evaluation-harness.

    Example: shadowft evaluate --instruct work/pair/instruct --data work/data --out work/scores/instruct
    """
    from shadowft_core.evaluate import evaluate as run

    run(instruct, data, delta, grafted, route, read_params(params).evaluate, out)


@app.command(rich_help_panel="Stages")
def verdict(
    scores: Annotated[Path, typer.Option(help="folder of score folders")],
    recipe: Annotated[Path, typer.Option(help="recipe.json of the candidate")],
    out: Annotated[Path, typer.Option(help="JSON file to write")],
    metrics: Annotated[Path | None, typer.Option(help="JSON file to write: the few numbers for comparing runs")] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Decide, with paired statistics, whether the graft beats the untouched Instruct and direct tuning.

    Example: shadowft verdict --scores work/scores --recipe work/grafted/shadow/recipe.json --out work/verdict.json
    """
    from shadowft_core.verdict import verdict as run

    p = read_params(params)
    run(scores, recipe, list(p.routes), p.verdict, out, metrics)


@app.command(rich_help_panel="Stages")
def report(
    work: Annotated[Path, typer.Option(help="folder with the outputs of all stages")],
    out: Annotated[Path, typer.Option(help="HTML file to write")],
    plots: Annotated[
        Path | None, typer.Option(help="folder to make: the figures' points as JSON, for `dvc plots`")
    ] = None,
) -> None:
    """Write the one page a person reads before signing. Opens from disk, without a network.

    Example: shadowft report --work work --out work/report.html
    """
    from shadowft_core.report import report as run

    run(work, out, plots)


def main() -> None:
    """Run the command line; a ShadowError is one line on stderr and its exit code.

    No verb reads stdin. Libraries and child processes that prompt there get an end of file, so no prompt is answered.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if not sys.warnoptions:  # libraries announce their own deprecations; `python -W` brings them back
        warnings.simplefilter("ignore")
    try:
        run_code_of_workspace()
        app(filled_in(sys.argv[1:]), prog_name="shadowft")
    except ShadowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:  # typer turns Ctrl-C into a silent exit
        if end.code == INTERRUPTED:
            print("error: interrupted; nothing half-written is left, run the same command again", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
