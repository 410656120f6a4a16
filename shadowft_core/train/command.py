"""A training by the user's own command, `train.command`, in place of TRL: for both routes, any trainer.

The command gets what it needs in the environment (`VARIABLES`); `$SHADOWFT_MODEL` and the like are also replaced in its
arguments. No shell runs it. Its result is tried with `extract` before it is published.
"""

import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.delta import extract, losses, read_tuned
from shadowft_core.errors import ShadowError, TrainError
from shadowft_core.files import (
    canonical_json,
    file_digest,
    make_folder,
    new_folder,
    process,
    write_atomically,
    write_json_atomically,
)
from shadowft_core.files.stopping import stoppable
from shadowft_core.params import Train
from shadowft_core.train.plainrows import write_plain_rows
from shadowft_core.train.rows import data_digest
from shadowft_core.train.watched import named_files, program
from shadowft_core.weights import open_checkpoint

VARIABLES = ("MODEL", "INSTRUCT", "DATA", "OUT", "ROUTE", "SEED")
PREFIX = "SHADOWFT_"
_KEPT = re.compile(  # the files of a result: weights, configs, the tokenizer
    r"adapter_config\.json|.*\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer.*\.json|tokenizer\.model|spiece\.model|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json"
    r"|added_tokens\.json|chat_template\.jinja|(pre)?processor_config\.json"
)
STOPPED = "train.command was stopped by {signal}, with all its processes; run again to begin again"


def train_by_command(
    model: Path,
    instruct: Path,
    data: Path,
    params: Train,
    out: Path,
    route: str,
    scratch: Path,
    *,
    replay: bool = True,
    ignore: Sequence[str] = (),
) -> None:
    """Run `params.command` to tune `model`, and write the folder `out` from its result.

    The command gets absolute paths: SHADOWFT_MODEL (to tune), SHADOWFT_INSTRUCT (tokenizer and chat template),
    SHADOWFT_DATA (`plainrows.write_plain_rows`), SHADOWFT_OUT (an empty folder for the result); and SHADOWFT_ROUTE and
    SHADOWFT_SEED. Its output goes to stderr. `out` gets adapter/ or model/, train.json and, from the trainer's own log,
    metrics.jsonl. `ignore` are patterns for `extract`. The command works in `scratch`, which is emptied first, and
    removed at the end unless the command fails or its result is refused.

    Raises TrainError for an unknown program or variable and an exit code other than 0, StoppedError after SIGTERM or
    SIGINT, and what `extract` raises; `out` is unchanged then, and no process of the command is left.
    """
    words, began = params.words, open_checkpoint(model)
    command = params.command or ""
    if unused := params.unused():
        print(f"train: train.command trains; these settings have no effect: {', '.join(unused)}", file=sys.stderr)
    with new_folder(out) as folder:  # its lock also guards `scratch`
        shutil.rmtree(scratch, ignore_errors=True)
        rows, result = scratch / "data", scratch / "out"
        make_folder(rows)
        make_folder(result)
        write_plain_rows(data, rows, replay)
        values = (model, instruct, rows, result, route, params.seed)
        given = {
            f"{PREFIX}{name}": str(value.resolve() if isinstance(value, Path) else value)
            for name, value in zip(VARIABLES, values, strict=True)
        }
        arguments = [_filled(word, given) for word in words]
        started_from = {name: file_digest(Path(name)) for name in named_files(words)}
        _run([program(arguments[0]), *arguments[1:]], given, result)
        try:
            extract(model, result, scratch / "delta", standing=ignore)
            shutil.rmtree(scratch / "delta")
            found = read_tuned(result)
            kind = "adapter" if found.adapter else "model"
            facts = {
                "format": 1,
                "command": command,
                "files": started_from,
                "seed": params.seed,
                "model_digest": began.digest(),
                "tokenizer_digest": open_checkpoint(instruct).tokenizer_digest(),
                "data_digest": data_digest(data),
                "start": {"start": "scratch"},
                **_told(found.told.trainer, kind, params.seed),
            }
        except ShadowError as error:
            raise type(error)(f"train.command: {error}; its output stays in {result} until the next run") from None
        _keep(found.weights, folder / kind)
        lines = losses(result)
        write_json_atomically(folder / "train.json", facts)
        if lines:
            write_atomically(folder / "metrics.jsonl", b"".join(canonical_json(line) + b"\n" for line in lines))
        left = sorted(place.name for place in result.iterdir())
    shutil.rmtree(scratch)
    dropped = f"; not kept: {', '.join(left[:8])}{' ...' if len(left) > 8 else ''}" if left else ""
    print(f"train: kept {kind}/{dropped}", file=sys.stderr)


def _filled(word: str, given: Mapping[str, str]) -> str:
    """A word of the command with the variables replaced. Raises TrainError for one that does not exist."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in given:
            raise TrainError(f"train.command: ${name} is not set; there are {', '.join(f'${one}' for one in given)}")
        return given[name]

    return re.sub(rf"\$\{{({PREFIX}\w+)\}}|\$({PREFIX}\w+)", value, word)


def _run(command: Sequence[str], given: Mapping[str, str], result: Path) -> None:
    """Run a command with `given` in its environment. Raises TrainError unless it ends with 0, StoppedError."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    last = ""
    with stoppable(STOPPED):
        guard = process.start(
            command, env={**os.environ, **given, "PATH": path, "PYTHONUNBUFFERED": "1"}, grace=process.SAVING
        )
        try:
            for line in guard.stdout or ():
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip() or last
            code = guard.wait()
        finally:
            process.stop(guard)
            if guard.stdout:
                guard.stdout.close()
    if code:
        known = code - 128 in set(signal.Signals)
        how = f"was killed by {signal.Signals(code - 128).name}" if known else f"ended with exit code {code}"
        said = f"; its last line: {last:.300}" if last else ", without a message"
        raise TrainError(f"train.command {how}{said}; its output stays in {result} until the next run")


def _told(trainer: Mapping[str, Any] | None, kind: str, seed: int) -> dict[str, Any]:
    """The fields of train.json about the training itself, as far as the trainer's files have them."""
    found = dict(trainer or {"name": None, "facts": {}, "not_known": [], "unreadable": []})
    facts = found["facts"]
    lacks = [what for what, name in (("steps", "steps"), ("losses", "last_loss")) if facts.get(name) is None]
    if facts.get("seed") != seed:
        lacks.append("whether it used the seed")
        if "seed" in facts:
            print(f"train: the files of the command say seed {facts['seed']}, given was {seed}", file=sys.stderr)
    found["not_known"] = [*lacks, "whether it used these rows, and how it rendered them"]
    return {
        "method": facts.get("method") or ("full" if kind == "model" else "lora"),
        **{name: facts.get(name) for name in ("steps", "tokens", "first_loss", "last_loss", "valid_loss")},
        "versions": facts.get("versions") or {},
        "trainer": found,
    }


def _keep(weights: Path, folder: Path) -> None:
    """Move the files of a result into a new folder. A link is followed, so that nothing points out of it."""
    folder.mkdir()
    for file in sorted(weights.iterdir()):
        if file.is_file() and _KEPT.fullmatch(file.name):
            if file.is_symlink():
                shutil.copyfile(file, folder / file.name)
                file.unlink()
            else:
                shutil.move(file, folder / file.name)
