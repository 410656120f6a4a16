"""The verbs of the stages in dvc.yaml that make data, weights and models; scoring.py has the others."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from shadowft_core.cli.following import by_command, copied_to, followed_as
from shadowft_core.cli.options import (
    PARAMS,
    PARAMS_FILE,
    STAGES,
    TUNED,
    DataOption,
    IgnoreOption,
    InstructOption,
    JsonOption,
    OntoBaseOption,
    ParamsOption,
    TokenizerOption,
    UnrelatedOption,
    finite,
    further_file,
    measuring,
    out_folder,
    read_params,
    waivers_of,
)
from shadowft_core.cli.output import print_answer, say
from shadowft_core.cli.power import warn_of_few
from shadowft_core.cli.tables import show_delta
from shadowft_core.limits import SEED

verbs = typer.Typer()
PAIR = Path("work/pair/pair.json")


@verbs.command(rich_help_panel=STAGES)
def fetch(
    out: Annotated[Path | None, out_folder("pair.json, base/, instruct/")] = None,
    origin: Annotated[
        Path | None, further_file("digests of the sources of a generated pair, in place of models")
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Resolve and pin both models and check that they may be paired.

    Reads the two references in `fetch` of the params file; writes both models. Exit code 4 if the pair is refused.

    Example: shadowft fetch --out work/pair
    """
    from shadowft_core import pair

    if (out is None) == (origin is None):
        raise typer.BadParameter("pass either --out or --origin")
    settings = read_params(params)
    if out is not None:
        pair.fetch(settings.fetch, out, settings.extract.ignore)
    elif origin is not None:
        pair.write_origin(settings.fetch, origin)


@verbs.command(rich_help_panel=STAGES)
def prepare(
    out: Annotated[Path, out_folder("train, valid, dev and test .parquet, data-report.json, dropped.jsonl")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="a data file or a folder, in place of prepare.data and prepare.replay; repeatable"),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="task folder; its items are removed from the data; default: evaluate.tasks")
    ] = None,
    max_bad: Annotated[
        float | None, typer.Option(min=0, max=0.999, help="largest share of bad rows; default: prepare.max_bad")
    ] = None,
    tokenizer: TokenizerOption = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Read, validate, deduplicate, decontaminate and split the data; writes four parquet files and a report.

    Example: shadowft prepare --data my_rows.jsonl --max-bad 0.99 --out my_data

    Several files: shadowft prepare --data rows_1.jsonl --data rows_2.csv --out my_data
    """
    from shadowft_core import prepare as room
    from shadowft_core.params import Prepare

    settings = read_params(params, **{"prepare": Prepare(data="-")} if data else {})  # `data` is read in its place
    places = data or [Path(settings.prepare.data)]
    given: dict[str, float | None] = {} if max_bad is None else {"max_bad": max_bad}
    if data and settings.prepare.replay:
        given["replay"] = None
        say(
            "prepare: rows of --data are prepared without those of prepare.replay; to have both, set prepare.data",
            err=True,
        )
    if tasks is None and (not data or params or PARAMS_FILE.exists()):
        tasks = Path(settings.evaluate.tasks)
    measure = measuring(tokenizer, settings) if tokenizer else None
    parts = (settings.evaluate, settings.sweep) if params or PARAMS_FILE.exists() else ()
    names = tuple(name for part in parts for name in (*part.domain, *part.guards))
    room.prepare(places, tasks, settings.prepare.model_copy(update=given), out, measure, names)
    if parts:
        warn_of_few("prepare", settings, out, tasks)


@verbs.command(rich_help_panel=STAGES)
def start(
    out: Annotated[Path, out_folder("start.json, and delta/ if a route starts from the champion")],
    pair: Annotated[Path, typer.Option(help="pair.json of this run; the champion must have its Base")] = PAIR,
    params: ParamsOption = PARAMS,
) -> None:
    """Pin where training starts: at the model itself, or at the champion's delta (train.start in the params file).

    Reads the ledger and the store; writes a folder for `train --start`.

    Example: shadowft start --out work/start
    """
    from shadowft_core.promotion import start as room

    p = read_params(params)
    if any(p.train_for(route).start == "champion" for route in p.routes):
        room.write_champion(p.registry, p.store, pair, out)
    else:
        room.write_scratch(out)


@verbs.command(rich_help_panel=STAGES)
def train(
    model: Annotated[Path, typer.Option(help="the model to tune: the Base, or the Instruct for the control")],
    instruct: InstructOption,
    data: DataOption,
    out: Annotated[Path, out_folder("adapter/ or model/, train.json, metrics.jsonl")],
    route: Annotated[str | None, typer.Option(help="route of the params file: apply its settings and `replay`")] = None,
    replay: Annotated[bool, typer.Option(help="also train on replay.parquet, if `prepare` wrote it")] = True,
    begin: Annotated[
        Path | None, typer.Option("--start", help="folder made by `start`; needed with train.start champion")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=SEED, help="its seed; default: the first of train.seeds")
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Tune one model with TRL on replies (loss on assistant tokens only) or on preferences, or run `train.command`.

    Reads model, data, and the Instruct's tokenizer and chat template; writes an adapter or a tuned model. With
    train.launch it starts several processes, or is one of those that torchrun or srun started. After an interruption,
    the same command resumes.

    Example: shadowft train --model work/pair/base --instruct work/pair/instruct --data work/data --out my_tuned

    The settings of a further route: shadowft train --route direct_full --model work/pair/instruct ...
    """
    from shadowft_core import train as room
    from shadowft_core.delta import require_extractable

    p = read_params(params)
    settings = (p.train_for(route) if route is not None else p.train).with_seed(seed)
    replay = replay and (route is None or p.routes[route].replay)
    if settings.command is not None:
        by_command(model, instruct, data, settings, out, p, route, seed, replay)
        return
    if room.starts_processes(settings.launch):
        room.run_processes(settings.launch, sys.argv[1:])
        return
    with room.reporting(settings.launch):
        room.train(
            model,
            instruct,
            data,
            settings,
            out,
            require_extractable,
            p.render,
            replay=replay,
            start=begin,
            checkpoint=p.checkpoint,
            copies_of=copied_to(p.store) if p.checkpoint.store else None,
            follow=followed_as(f"{route or out.name}{'' if seed is None else f', seed {seed}'}", p, params),
        )


@verbs.command(rich_help_panel=STAGES)
def extract(
    base: Annotated[Path, typer.Option(help="folder of the model before tuning")],
    tuned: Annotated[Path, typer.Option(help=TUNED)],
    out: Annotated[Path, out_folder("delta.json and safetensors files")],
    lowrank: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR",
            callback=finite,
            help="store the smallest factors with |D - BA| / |D| <= ERROR in every tensor",
        ),
    ] = None,
    storage: Annotated[
        Literal["compressed", "bfloat16", "float32"],
        typer.Option(help="how exact differences are stored: smallest, fastest, or readable by any tool"),
    ] = "compressed",
    unrelated: UnrelatedOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Extract the exact weight delta: LoRA factors as they are, anything else as a float32 difference.

    Reads two models, or a model and an adapter; writes a delta folder. Only --lowrank makes the delta inexact.

    Kind lora: shadowft extract --base work/pair/base --tuned my_adapter --out my_delta
    (plain LoRA, rsLoRA, PiSSA, OLoRA; the factors are kept)

    Kind dense: shadowft extract --base work/pair/base --tuned my_checkpoint --out my_delta
    (a full training; an adapter with DoRA, modules_to_save, trained tokens or biases, merged into its Base first)
    (if the Base was quantised in training, pass it dequantised)

    Kind lowrank: shadowft extract --base work/pair/base --tuned my_checkpoint --lowrank 0.05 --out my_delta
    (approximates any delta within the given error: 0.05 keeps 99.75 % of every tensor's energy)

    Tensors on one side only: shadowft extract --base my_base --tuned my_checkpoint --ignore 'mtp.*' --out my_delta
    (recorded in the delta and applied by its grafts; for a whole project set extract.ignore)
    """
    from shadowft_core import delta

    standing = () if ignore else read_params(params).extract.ignore
    facts = delta.extract(base, tuned, out, storage, lowrank, unrelated, ignore or (), standing)
    if as_json:
        print_answer("delta", {"out": str(out), "delta_kind": facts.pop("kind"), **facts})
    else:
        show_delta(out, facts)


@verbs.command(rich_help_panel=STAGES)
def graft(
    instruct: InstructOption,
    out: Annotated[Path, out_folder("a complete Hugging Face model, recipe.json, receipt.json")],
    delta: Annotated[
        list[str] | None, typer.Option(metavar="DIR[@SCALE]", help="folder made by `extract`; repeatable")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="with --tuned: graft their difference without storing a delta")
    ] = None,
    tuned: Annotated[Path | None, typer.Option(help="with --base: folder of a checkpoint, not of an adapter")] = None,
    sweep: Annotated[Path | None, typer.Option(help="sweep file to read scale and scope from")] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="scale of a delta without @SCALE; default: from the params or the sweep file"
        ),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(metavar="all|linear|PATTERN", help="tensors to graft; patterns are repeatable")
    ] = None,
    scale_for: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=SCALE", help="scale of matching tensors; repeatable, the last match wins"),
    ] = None,
    merge: Annotated[str, typer.Option(metavar="sum|ties|dare", help="how to merge several deltas")] = "sum",
    density: Annotated[
        float | None, typer.Option(callback=finite, help="share of entries that ties or dare keeps")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="random seed of dare")] = None,
    onto_base: OntoBaseOption = False,
    unrelated: UnrelatedOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Write Instruct + scale * delta, added in float32 and rounded once.

    Reads the Instruct and one or more deltas; writes a complete model folder. --json prints its recipe.

    Example: shadowft graft --instruct work/pair/instruct --delta work/delta/shadow --scale 0.75 --out my_model

    Two deltas: shadowft graft --instruct I --delta maths@0.6 --delta code@0.4 --merge ties --density 0.2 --out O

    Without storing a delta: shadowft graft --instruct I --base B --tuned T --scale 1 --out O
    """
    from shadowft_core.delta import Difference, open_difference
    from shadowft_core.grafting import Merge, Options, chosen, parse_delta, parse_scale_for
    from shadowft_core.grafting import graft as run

    if (base is None) != (tuned is None) or not (delta or base):
        raise typer.BadParameter("pass --delta, or --base and --tuned together")
    deltas: list[tuple[Path | Difference, float | None]] = [parse_delta(text) for text in delta or ()]
    p = read_params(params)
    if base and tuned:
        deltas.append((open_difference(base, tuned, unrelated, ignore or p.extract.ignore), None))
    options = Options(
        merge=Merge(merge, density, seed),
        scale_for=[parse_scale_for(text) for text in scale_for or ()],
        waivers=waivers_of(onto_base, unrelated),
        ignore=ignore or (),
    )
    scaled, options = chosen(deltas, options, p.graft, sweep, scale, scope or ())
    recipe = run(instruct, scaled, out, options)
    if as_json:
        print_answer("recipe", recipe)
