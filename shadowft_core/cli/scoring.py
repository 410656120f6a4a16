"""The verbs of the stages in dvc.yaml that score, judge and report."""

from pathlib import Path
from typing import Annotated

import typer

from shadowft_core.cli.options import (
    OUTPUT,
    PARAMS,
    STAGES,
    AllowCodeOption,
    DataOption,
    InstructOption,
    ParamsOption,
    WorkOption,
    further_file,
    out_file,
    out_folder,
    read_params,
    read_params_with_code,
    read_verdict_params,
)
from shadowft_core.cli.output import say
from shadowft_core.errors import InputError

verbs = typer.Typer()


@verbs.command(rich_help_panel=STAGES)
def sweep(
    instruct: InstructOption,
    delta: Annotated[Path, typer.Option(help="folder made by `extract`")],
    data: DataOption,
    out: Annotated[Path, out_file("the chosen scale and the curve, JSON")],
    allow_code: AllowCodeOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Choose the scale of a delta by scoring dev items. Writes no weights.

    Reads the Instruct, the delta and the dev tasks; writes one JSON file. Task files can run code of their own only
    with --allow-code-execution. After an interruption, the same command resumes.

    Example: shadowft sweep --instruct work/pair/instruct --delta work/delta/shadow --data work/data --out sweep.json
    """
    from shadowft_core.sweep import sweep as choose_scale

    settings = read_params_with_code(params, allow_code)
    choose_scale(instruct, delta, data, settings.sweep, settings.evaluate, out, settings.render)


@verbs.command(rich_help_panel=STAGES)
def evaluate(
    instruct: InstructOption,
    data: DataOption,
    out: Annotated[Path, out_folder("one folder of scores for each arm")],
    delta: Annotated[
        Path | None, typer.Option(help="folder made by `extract`: score its arms instead of the Instruct")
    ] = None,
    grafted: Annotated[Path | None, typer.Option(help="folder made by `graft` from the same delta")] = None,
    route: Annotated[
        str, typer.Option(help="name of the route; its arms are called ROUTE and ROUTE_scaled")
    ] = "shadow",
    allow_code: AllowCodeOption = False,
    champion: Annotated[
        bool,
        typer.Option(
            "--champion",
            help="score the ledger's champion and, if it is better, the best earlier one; only grafts on this Instruct",
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="with --champion: name of the registered model; default: registry.name"),
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Score the Instruct, both arms of one delta, or the champions, with lm-evaluation-harness.

    Reads the models and the task folder; writes scores and items. Task files can run code of their own only with
    --allow-code-execution. Answers are kept as they arrive: after an interruption, the same command resumes. With
    --champion, nothing is written if there is no champion.

    Example: shadowft evaluate --instruct work/pair/instruct --data work/data --out work/scores/instruct

    Example: shadowft evaluate --champion --instruct work/pair/instruct --data work/data --out work/scores/champion
    """
    from shadowft_core import evaluate as room

    settings = read_params_with_code(params, allow_code)
    for given in (instruct, data, Path(settings.evaluate.tasks), delta, grafted):
        if given is not None and given.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds {given}, which is read, and would be replaced; choose another --out")
    if champion:
        if delta or grafted:
            raise InputError("--champion: scores only the champion; leave out --delta and --grafted")
        from shadowft_core.champions import score_champions
        from shadowft_core.promotion import history

        registry = settings.registry
        if name and name != registry.name:  # unlike the model of the params file it cannot be new, only misspelt
            registry = registry.named(name)
            history(registry, settings.store)
        score_champions(registry, settings.store, settings.evaluate, settings.render, instruct, data, out)
        return
    if name:
        raise InputError(f"--name {name}: chooses the champion to score; add --champion, or leave it out")
    room.evaluate(instruct, data, delta, grafted, route, settings.evaluate, out, settings.render)


@verbs.command(rich_help_panel=STAGES)
def seeds(
    model: Annotated[Path, typer.Option(help="the model that the route tunes")],
    instruct: InstructOption,
    data: DataOption,
    grafted: Annotated[Path, typer.Option(help="folder made by `graft` from the first seed; its scale is used")],
    route: Annotated[str, typer.Option(help="route of the params file")],
    out: Annotated[Path, out_folder("seeds.json, and scores of the arms of each further seed")],
    begin: Annotated[Path, typer.Option("--start", help="folder made by `start`")] = Path("work/start"),
    allow_code: AllowCodeOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Train, extract and score a route again with each further seed of train.seeds.

    The first seed ships; the further ones show how much of a difference between two ways of tuning is due to chance in
    training. With one seed, nothing is trained. After an interruption, the same command resumes.

    Example: shadowft seeds --model work/pair/base --instruct work/pair/instruct --data work/data
    --grafted work/grafted/shadow --route shadow --out work/seeds/shadow
    """
    from shadowft_core.seeds import further_seeds

    settings = read_params_with_code(params, allow_code)
    options = [] if params is None else ["--params", str(params)]
    further_seeds(model, instruct, data, begin, grafted, route, settings, out, options)


@verbs.command(rich_help_panel=STAGES)
def look(
    scores: Annotated[Path, typer.Option(help="folder with the folders made by `evaluate`")],
    out: Annotated[Path, out_file("number of the look, earlier looks, champions, commit and costs, JSON")],
    recipe: Annotated[
        list[Path] | None, typer.Option(help="recipe.json: the candidate is the arm whose model it makes; repeatable")
    ] = None,
    candidate: Annotated[Path | None, typer.Option(help="candidate.json: names the candidate")] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Count how often the test items were judged, before the verdict is computed, for `verdict --run`.

    Reads scores, ledger and store. Writes one JSON file and, unless this candidate was judged on these items before, an
    entry to the store. Exit code 8 if the store does not answer, 9 if its record of looks is damaged.

    Example: shadowft look --scores work/scores --recipe work/grafted/shadow/recipe.json --out work/run.json
    """
    from shadowft_core.promotion import look as room

    settings = read_params(params)
    routes = list(settings.routes)
    room.look(scores, routes, settings.registry, settings.store, out, candidate, recipe or [])


@verbs.command(rich_help_panel=STAGES)
def select(
    sweeps: Annotated[Path, typer.Option(help="folder with ROUTE.json of every route, made by `sweep`")],
    out: Annotated[Path, out_file("the candidate and all points of all routes, JSON")],
    params: ParamsOption = PARAMS,
) -> None:
    """Choose the candidate among the arms of all routes, by their scores on dev items.

    Reads the sweep files; writes one JSON file. If no arm that keeps the guards beats the Instruct, it names none, and
    the verdict is hold.

    Example: shadowft select --sweeps work/sweep --out work/candidate.json
    """
    from shadowft_core.selection import select as choose_candidate

    settings = read_params(params)
    fixed = None if settings.graft.scale == "sweep" else settings.graft.scale
    found = choose_candidate(sweeps, settings.routes, settings.sweep.tolerance, out, fixed)
    say(f"select: {found.reason}", err=True)


@verbs.command(rich_help_panel=STAGES)
def verdict(
    out: Annotated[Path, out_file("the verdict, JSON")],
    scores: Annotated[Path | None, typer.Option(help="folder with the folders made by `evaluate`")] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            help="in place of --scores: a parquet file with the columns suite (`domain` or the name of a guard), task, "
            "item_id, arm, score, and optionally cluster and seed; the arm `instruct` is the reference"
        ),
    ] = None,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="recipe.json: the candidate is the arm whose model it makes; repeatable")
    ] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="ARM|FILE", help="the arm that may ship, or candidate.json, which names it")
    ] = None,
    further: Annotated[
        Path | None,
        typer.Option("--seeds", help="folder with the folders made by `seeds`, which claims about the method pool"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="run.json: champions and earlier looks; default: a first look at these items")
    ] = None,
    metrics: Annotated[Path | None, further_file("the numbers that compare runs, JSON")] = None,
    junit: Annotated[Path | None, further_file("the claims as test cases, JUnit XML")] = None,
    markdown: Annotated[Path | None, further_file("the verdict as a page, Markdown")] = None,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code", help="exit with 0, 11 or 12 for promote, hold or undecided", rich_help_panel=OUTPUT
        ),
    ] = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Decide, with paired statistics, whether the candidate should ship.

    Reads the scores of all arms; writes the decision (promote, hold or undecided). Each of them is exit code 0, unless
    --exit-code is given. Without --run, the champion is compared if its scores are below the folder `champion`. With
    --items no other stage is needed, nor any section of the params but `verdict`.

    Example: shadowft verdict --scores work/scores --candidate work/candidate.json --out work/verdict.json

    Example: shadowft verdict --items scores.parquet --candidate mine --out verdict.json --exit-code
    """
    from shadowft_core import verdict as room
    from shadowft_core.files import write_atomically
    from shadowft_core.forgetting.text import visible

    if (scores is None) == (items is None):
        given = "neither was given" if scores is None else f"both were given, {scores} and {items}"
        raise InputError(f"--scores, --items: {given}; give one of them, a folder of scores or a parquet file")
    if scores is not None:
        named = Path(candidate) if candidate is not None and candidate.endswith(".json") else candidate
        settings = read_params(params)
        routes = list(settings.routes)
        judged = room.verdict(
            scores,
            recipe or [],
            routes,
            settings.verdict,
            out,
            metrics,
            candidate=named,
            run=run,
            seeds=further,
        )
    else:
        if candidate is None or recipe or run or further:
            raise InputError(
                "--items takes --candidate ARM, and neither --recipe, --run nor --seeds; name the arm that may ship"
            )
        from shadowft_core.verdict.itemfile import verdict_of_items

        judged = verdict_of_items(Path(str(items)), candidate, read_verdict_params(params), out, metrics)
    if junit is not None:
        write_atomically(junit, room.junit(judged))
    if markdown is not None:
        write_atomically(markdown, room.markdown(judged).encode("utf-8"))
    ships = "ships" if judged["decision"] == "promote" else "stays"
    say(f"verdict: {judged['decision']}; {judged['arm']} {ships}", err=True)
    if items is not None:  # a run shows the reasons at its end, and on the report
        for reason in judged["reasons"]:
            say(f"  {visible(reason)}", err=True)
    if exit_code:
        raise typer.Exit({"promote": 0, "hold": 11, "undecided": 12}[judged["decision"]])


@verbs.command(rich_help_panel=STAGES)
def report(
    work: WorkOption,
    out: Annotated[Path, out_file("the page, HTML")],
    plots: Annotated[
        Path | None,
        typer.Option(help="folder to write: the points of the figures, for `dvc plots`", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Write the page that a person reads before promoting a version.

    Reads the outputs of all stages; writes one HTML file that opens without a network.

    Example: shadowft report --work work --out work/report.html
    """
    from shadowft_core import report as room

    room.report(work, out, plots)
