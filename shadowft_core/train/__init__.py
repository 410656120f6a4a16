"""The training stage: TRL tunes one model under the Instruct's tokenizer and chat template.

models.py loads and saves the model. frozen.py keeps frozen weights in the dtype of the checkpoint. methods.py chooses
what is trained. rows.py reads the rows and encode.py turns them into ids and labels. start.py adds a champion.
tokens.py finds tokens that the model never trained and sets their weights. trainer.py runs TRL. images.py makes batches
with images. probe.py counts replies that end. samples.py writes the first sequences as text. These modules import torch
and transformers, so `train` imports them when it is called.

command.py runs the user's own trainer instead; plainrows.py writes its rows, watched.py finds the files it names.

launch.py starts several processes and cluster.py finds the nodes; agent.py is a program that runs torchrun's agent;
ranks.py gives several processes the rows of one.
"""

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from shadowft_core.errors import say
from shadowft_core.files import (
    canonical_json,
    new_folder,
    write_atomically,
    write_json_atomically,
)
from shadowft_core.params import Checkpoint, Render, Train
from shadowft_core.rendering import load_renderer, shows_images
from shadowft_core.train.checkpoints import open_checkpoints
from shadowft_core.train.command import train_by_command
from shadowft_core.train.copies import CopiesOf, require_copies
from shadowft_core.train.launch import Place, reporting, run_alone, run_processes, starts_processes
from shadowft_core.train.memory import as_retried, memory_checked, retried
from shadowft_core.train.pairs import preference_facts
from shadowft_core.train.rows import data_digest, encoded_rows, split_files
from shadowft_core.train.watched import require_runnable, require_watched
from shadowft_core.weights import Checkpoint as Model
from shadowft_core.weights import open_checkpoint

__all__ = [
    "Accept",
    "reporting",
    "require_runnable",
    "require_watched",
    "run_alone",
    "run_processes",
    "starts_processes",
    "train",
    "train_by_command",
]

Accept = Callable[[Path, Path | Mapping[str, tuple[int, ...]]], None]
"""called before the first step with the model and what will be saved: an adapter folder, or shapes by tensor name"""

OnLine = Callable[[Mapping[str, float]], None]
Follow = Callable[[Mapping[str, Any]], AbstractContextManager[OnLine]]
"""takes everything that the training depends on; its context manager gives the function to call with each line"""


def unfollowed(_: Mapping[str, Any]) -> AbstractContextManager[OnLine]:
    """Follow nothing."""
    return nullcontext(lambda _: None)


RENDER = Render()
VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")


@retried
def train(
    model: Path,
    instruct: Path,
    data: Path,
    params: Train,
    out: Path,
    accept: Accept = lambda *_: None,
    render: Render = RENDER,
    *,
    replay: bool = True,
    start: Path | None = None,
    follow: Follow = unfollowed,
    checkpoint: Checkpoint | None = None,
    copies_of: CopiesOf | None = None,
) -> None:
    """Tune `model` on the conversations in `data` (made by `prepare`) and write the folder `out`.

    `out` gets train.json (inputs and results), metrics.jsonl (one line per optimizer step), samples.jsonl (the first
    sequences as text, in learned and other pieces) and either adapter/ (LoRA, float32, adapter_model.safetensors and
    adapter_config.json) or model/ (a whole float32 checkpoint). The files have no paths and no times, so the same
    inputs, seed and thread count on the same CPU give the same bytes. The duration is printed to stderr.

    `osf`, and an adapter that `extract` cannot take, are merged in float32 and give model/. A model with a vision tower
    keeps it and its projector as they are.

    All routes use the same arithmetic: float32, on CUDA with bfloat16 autocast; frozen weights may be stored in 16 bits
    (frozen.py). They share the order of rows, the adapter initialisation, AdamW without weight decay, and gradients
    clipped at norm 1.

    With `replay`, it also trains on the rows of replay.parquet, if `prepare` wrote it.

    `render.template_tokens` sets what happens to control tokens of the data that the model never trained and the
    Instruct did. With `from_instruct`, the model has the Instruct's weights for them during training. The saved weights
    have only the change by training.

    With `params.start` champion, it starts from `model` and the champion's delta in `start`, a folder made by the stage
    start: the factors of a LoRA are those of the new adapter, any other delta is added to the weights in float32. What
    is saved has the whole change against `model`.

    With `checkpoint`, the state is saved during the steps, and an interrupted run resumes from it; on a CPU the result
    has the same bytes. The checkpoints are removed when `out` is in place. With `checkpoint.store`, `copies_of` has to
    return their copies in a store, from the name of their folder.

    `follow` gets the lines of metrics.jsonl as they come, with seconds and tokens per second.

    `accept` is called before the first step. It raises if `extract` could not use the weights that will be saved
    (`delta.require_extractable`), so that no hours are lost.

    Raises TrainError (too few usable rows, a vocabulary that does not fit, untrained tokens that are refused or cannot
    be trained, a loss or gradient that is not finite, a loss that rises to that of a guess, other processes or devices
    than in `params.launch`, out of memory), StoppedError (a signal), CheckpointError and DataError; then `out` is
    unchanged.

    With several processes, each calls this function; only rank 0 writes `out`.
    """
    from shadowft_core.train.device import effective, require_available, set_up
    from shadowft_core.train.methods import can_be_whole, with_method
    from shadowft_core.train.models import hands_over_model, load_to_train, planned_model, save_model
    from shadowft_core.train.probe import stop_probe
    from shadowft_core.train.progress import Progress
    from shadowft_core.train.ranks import collect, strategy_used, take_place
    from shadowft_core.train.samples import decoded_samples
    from shadowft_core.train.saving import devices
    from shadowft_core.train.start import add_delta, read_start, set_factors
    from shadowft_core.train.tokens import borrow_rows, described, trained_rows, untrained_in_rows
    from shadowft_core.train.trainer import (
        fit,
        make_trainer,
        padding_id,
    )

    require_copies(checkpoint, copies_of)
    images = any(map(shows_images, split_files(data, params, replay)))
    require_available(params, images)
    where, began, begin = take_place(params.launch), time.monotonic(), read_start(params, start)
    set_up(params)
    starting, teacher = open_checkpoint(model), open_checkpoint(instruct)  # before hours of rendering
    renderer = load_renderer(instruct, render)
    tokenizer, processor = renderer.tokenizer, renderer.processor if images else None
    rows, valid, counts = encoded_rows(data, renderer, params, replay, processor is not None)
    untrained = untrained_in_rows(starting, teacher, renderer, rows)
    if untrained:
        say(f"train: {described(untrained, starting, render.template_tokens)}")
    network = load_to_train(starting, tokenizer, params, processor is not None, vocabulary=not untrained)
    borrowed = borrow_rows(network, untrained, teacher) if render.template_tokens == "from_instruct" else []
    add_delta(network, starting, begin)
    token_rows = (
        trained_rows(network, untrained) if params.method != "full" and render.template_tokens == "train" else None
    )
    shapes = planned_model(network) if can_be_whole(params, token_rows) else None
    network = set_factors(with_method(network, params, token_rows, bool(borrowed)), starting, begin)
    whole = hands_over_model(network, shapes, params, lambda planned: accept(model, planned))
    inputs = {
        "start": begin.facts,
        **_inputs(params, render, starting, teacher, renderer.template_digest, data_digest(data)),
    }
    identity = inputs | {
        "sequences": [rows.digest(), valid.digest()],
        "borrowed_from": teacher.digest() if borrowed else None,
        "devices": devices(where),
    }
    with (
        open_checkpoints(checkpoint, identity, where.rank, copies_of) as checkpoints,
        follow(identity) if where.rank == 0 else unfollowed(identity) as on_line,
        _destination(out, where) as folder,
    ):
        fitting, progress = as_retried(params, checkpoints), Progress(checkpoints.live, on_line)
        probe = stop_probe(valid, getattr(network.config.get_text_config(), "max_position_embeddings", None))
        with memory_checked(fitting, model, checkpoints, where.world == 1):
            trainer = make_trainer(network, tokenizer, rows, fitting, checkpoints.saving, processor, valid, where)
            probed = network, renderer.stops, padding_id(tokenizer), trainer.args.bf16
            before = probe.stopped(*probed) if probe and where.rank == 0 else 0
            measured = fit(trainer, network, progress, checkpoints, params.validation)
            stops = probe.record(before, probe.stopped(*probed)) if probe else None
        collect(network, where, only_trained=not whole)
        if where.rank:
            return
        for weights in borrowed if whole else ():
            weights.give_back()
        how = effective(trainer, network, params)  # before an adapter is merged
        save_model(network, whole, folder)
        facts = inputs | {
            "rows": counts,
            "steps": trainer.state.global_step,
            "tokens": progress.lines[-1]["tokens"],
            "first_loss": progress.lines[0]["loss"],
            "last_loss": progress.lines[-1]["loss"],
            **measured,
            "preferences": preference_facts(rows, progress.lines),
            "stops": stops,
            "untrained_tokens": [token.as_json() for token in untrained],
            **how,
            "processes": where.world,
            "strategy": strategy_used(network, where),
            "rows_per_step": params.batch_size * params.accumulation,
            "after_out_of_memory": checkpoints.smaller,
        }
        _write(folder, facts, progress.lines, decoded_samples(rows, tokenizer))
    _print_result(facts, time.monotonic() - began)


def _inputs(
    params: Train, render: Render, model: Model, instruct: Model, template_digest: str, data_digest: str
) -> dict[str, Any]:
    """What train.json says of the inputs of a run."""
    return {
        "format": 1,
        "objective": params.objective,
        "method": params.method,
        "settings": params.model_dump(mode="json", exclude={"seeds", "command"}),  # this is one training, with TRL
        "render": render.model_dump(mode="json"),
        "seed": params.seed,
        "model_digest": model.digest(),
        "tokenizer_digest": instruct.tokenizer_digest(),
        "template_digest": template_digest,
        "data_digest": data_digest,
        "versions": {name: importlib.metadata.version(name) for name in _versioned(params)},
    }


def _destination(out: Path, where: Place) -> AbstractContextManager[Path]:
    """The folder `out`, to be published; for other ranks than 0, which write nothing, the current folder."""
    return new_folder(out) if where.rank == 0 else nullcontext(Path())


def _versioned(params: Train) -> tuple[str, ...]:
    """The libraries whose versions the result may depend on."""
    quantised = params.method == "qlora" or params.optimizer == "adamw_8bit"
    return (*VERSIONS, "bitsandbytes") if quantised else VERSIONS


def _write(folder: Path, facts: Mapping[str, Any], steps: Iterable[Any], samples: Iterable[Any]) -> None:
    write_json_atomically(folder / "train.json", facts)
    for name, values in (("metrics", steps), ("samples", samples)):
        write_atomically(folder / f"{name}.jsonl", b"".join(canonical_json(value) + b"\n" for value in values))


def _print_result(facts: Mapping[str, Any], seconds: float) -> None:
    say(f"train: {facts['steps']} steps, loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f}, {seconds:.0f} s")
    if pairs := facts["preferences"]:
        say(
            f"train: {pairs['pairs']} pairs; in the last step, {pairs['last_accuracy']:.0%} of the chosen replies "
            f"gained more than the rejected ones, margin {pairs['last_margin']:.3f}"
        )
    if stops := facts["stops"]:
        say(
            f"train: of {stops['prompts']} replies to validation questions, {stops['stopped_before']} ended within "
            f"{stops['max_new_tokens']} tokens before training, {stops['stopped_after']} after it"
        )
