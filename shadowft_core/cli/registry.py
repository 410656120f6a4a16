"""The verbs that register a run and make model folders from registered recipes."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadowft_core.cli.options import (
    PARAMS,
    PARAMS_FILE,
    REGISTRY,
    IgnoreOption,
    JsonOption,
    OntoBaseOption,
    ParamsOption,
    StoreOption,
    UnrelatedOption,
    WorkOption,
    out_folder,
    read_params,
    read_store,
    waivers_of,
)
from shadowft_core.cli.output import print_answer, say
from shadowft_core.errors import InputError

if TYPE_CHECKING:
    from shadowft_core.params import Store

verbs = typer.Typer()

REFERENCE = "models:/NAME@ALIAS"
REFERENCE_HELP = "a registered version: models:/NAME@ALIAS or models:/NAME/NUMBER"
INSTRUCT = "folder of the Instruct; default: the one in the recipe"


class Target(StrEnum):
    """What `export` writes."""

    MERGED = "merged"
    VLLM = "vllm"


@verbs.command(rich_help_panel=REGISTRY)
def register(
    work: WorkOption = Path("work"),
    lock: Annotated[Path, typer.Option(help="the dvc.lock of the run")] = Path("dvc.lock"),
    pending: Annotated[bool, typer.Option("--pending", help="only send the registrations in var/pending")] = False,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Register the recipe of a run in MLflow as a new version with the alias `challenger`.

    Reads the outputs of all stages; writes the delta, recipe and verdict to the store and the run to MLflow. Nothing
    is registered if the candidate is the champion itself; the version printed is then the champion's.
    Exit code 11 if MLflow does not answer: the registration waits in var/pending until the next `register`.

    Example: shadowft register --work work
    """
    from shadowft_core import registry

    settings = read_params(params)
    if pending:
        versions = registry.register_pending(settings.registry)
    else:
        git = registry.git_state(lock.absolute().parent)
        versions = [registry.register(settings, work, lock, params or PARAMS_FILE, git)]
    if as_json:
        print_answer("registration", {"versions": [asdict(version) for version in versions]})
        return
    for version in versions:
        say(f"models:/{version.name}/{version.number}")
    if not versions:
        say("no registration waits")


@verbs.command(rich_help_panel=REGISTRY)
def materialize(
    reference: Annotated[str, typer.Argument(metavar=REFERENCE, help=REFERENCE_HELP)],
    out: Annotated[Path, out_folder("a complete Hugging Face model")],
    instruct: Annotated[Path | None, typer.Option(help=INSTRUCT)] = None,
    store: StoreOption = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a registered model from its recipe, bit for bit.

    Reads the recipe, its deltas and the Instruct; writes a model folder whose digest equals the recipe's.

    Example: shadowft materialize models:/shadowft-pico@champion --out my_model
    """
    from shadowft_core import promotion

    settings, elsewhere = read_params(params), _elsewhere(store, params)
    recipe = promotion.materialize(reference, out, settings.registry, elsewhere or settings.store, instruct, elsewhere)
    if as_json:
        print_answer("model", {"reference": reference, "out": str(out), "digest": recipe["digest"]})
    else:
        say(f"{out}: {recipe['digest']}, as registered")


@verbs.command(rich_help_panel=REGISTRY)
def export(
    target: Annotated[Target, typer.Option("--for", help="merged: a complete model; vllm: a LoRA adapter")],
    out: Annotated[Path, out_folder("a model or an adapter")],
    reference: Annotated[str | None, typer.Argument(metavar=REFERENCE, help=REFERENCE_HELP)] = None,
    delta: Annotated[
        str | None, typer.Option(metavar="DIR@SCALE", help="instead: folder made by `extract`, and its scale")
    ] = None,
    instruct: Annotated[Path | None, typer.Option(help=INSTRUCT)] = None,
    max_lora_rank: Annotated[int, typer.Option(min=1, help="the --max-lora-rank of the vLLM server")] = 512,
    store: StoreOption = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Write a folder that a server can load: a complete model, or the delta as a LoRA adapter for vLLM.

    Reads a registered version, or a delta and the Instruct; writes a folder.
    An adapter needs a LoRA delta on linear layers at one scale; any other delta is refused with the reason.

    Example: shadowft export models:/shadowft-pico@champion --for vllm --out my_adapter

    Example: shadowft export --delta my_delta@0.75 --instruct my_instruct --for vllm --out my_adapter
    """
    if (delta is None) == (reference is None):
        raise InputError("export: pass either models:/NAME@ALIAS or --delta DIR@SCALE")
    if delta is not None:
        made = _export_delta(target, delta, instruct, out, max_lora_rank)
    else:
        made = _export_version(target, str(reference), instruct, out, max_lora_rank, store, params)
    merged = target is Target.MERGED
    if as_json:
        result = {"digest": made["digest"]} if merged else {"adapter_config": made}
        print_answer("export", {"for": target.value, "out": str(out), **result})
    else:
        say(f"{out}: {made['digest'] if merged else 'an adapter for ' + made['base_model_name_or_path']}")


@verbs.command(rich_help_panel=REGISTRY)
def regraft(
    recipe: Annotated[Path, typer.Option(help="recipe.json of a grafted folder or of a registered version")],
    instruct: Annotated[Path, typer.Option(help="folder of another Instruct of the same Base, such as a new release")],
    out: Annotated[Path, out_folder("a complete Hugging Face model, recipe.json, receipt.json")],
    delta: Annotated[
        list[Path] | None,
        typer.Option(help="folder of a delta of the recipe; repeatable; default: from the recipe's store"),
    ] = None,
    onto_base: OntoBaseOption = False,
    unrelated: UnrelatedOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Graft the deltas of a recipe on another Instruct of the same Base. The new recipe needs its own verdict.

    Reads the recipe, its deltas and the new Instruct; writes a model folder. --json prints its recipe.

    Example: shadowft regraft --recipe work/grafted/shadow/recipe.json --instruct my_newer_instruct
    --delta work/delta/shadow --out my_model
    """
    from shadowft_core.registry import regraft as room

    made = room.regraft(recipe, instruct, delta or [], out, waivers_of(onto_base, unrelated), ignore or ())
    if as_json:
        print_answer("recipe", made)


def _export_delta(target: Target, delta: str, instruct: Path | None, out: Path, max_rank: int) -> dict[str, Any]:
    from shadowft_core.export import export_adapter
    from shadowft_core.grafting import graft, parse_delta

    folder, scale = parse_delta(delta)
    if scale is None or instruct is None:
        raise InputError(
            f"--delta {delta}: expected DIR@SCALE, for instance my_delta@0.75, together with --instruct DIR"
        )
    if target is Target.MERGED:
        return graft(instruct, [(folder, scale)], out)
    return export_adapter(instruct, [(folder, scale)], out, max_rank=max_rank)


def _export_version(
    target: Target, version: str, instruct: Path | None, out: Path, max_rank: int, uri: str | None, params: Path | None
) -> dict[str, Any]:
    import tempfile

    from shadowft_core.export import export_adapter
    from shadowft_core.grafting import options_of
    from shadowft_core.promotion import materialize as rebuilt
    from shadowft_core.promotion import recipe_named
    from shadowft_core.registry import ingredients, store_for

    read, store = read_params(params), _elsewhere(uri, params)
    if target is Target.MERGED:
        return rebuilt(version, out, read.registry, store or read.store, instruct, store)
    recipe = recipe_named(version, read.registry, store or read.store)
    reference = str(recipe["instruct"]["ref"])  # a server knows hub names and folders
    named = reference.removeprefix("hf:").partition("@")[0] if reference.startswith("hf:") else None
    with tempfile.TemporaryDirectory() as parts:
        folder, deltas = ingredients(recipe, Path(parts), instruct, store or store_for(recipe, read.store))
        return export_adapter(folder, deltas, out, options_of(recipe), named, max_rank)


def _elsewhere(uri: str | None, params: Path | None) -> "Store | None":
    return None if uri is None else read_store(params, uri)
