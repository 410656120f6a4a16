"""Preferences as pairs of sequences, and what they require of the settings and of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import TrainError
from shadowft_core.params import Train
from shadowft_core.rendering import IGNORED, Renderer, RowError, prepared_rows, render_pair
from shadowft_core.train.encode import Encoded

PAIRED = (
    "have a rejected reply",
    "set train.objective: dpo, or learn the chosen replies alone with prepare.columns: {rejected: unused}",
)
UNPAIRED = (
    "have no rejected reply",
    "remove them from the data and from prepare.replay, or set train.objective: sft",
)
PICTURED = ("have images", "remove them from the data, or set train.objective: sft")


def encode_pairs(path: Path, renderer: Renderer, max_length: int) -> Encoded:
    """Encode the preferences in a parquet file made by `prepare`, which has no other rows (`require_kind`).

    Leaves out, and counts with its source, a row that the renderer refuses. Leaves out and counts a pair if one of its
    sequences has more than `max_length` tokens; nothing is truncated. Raises DataError if the file cannot be read.
    """
    import numpy as np

    encoded = Encoded()
    for messages, tools, source, rejected in prepared_rows(path):
        encoded.read += 1
        try:
            pair = render_pair(messages, rejected or {}, tools, renderer)
        except RowError as reason:
            encoded.refuse(reason, source)
            continue
        if len(pair) > max_length:
            encoded.too_long += 1
            continue
        encoded.used += 1
        encoded.input_ids.append(np.array(pair.prompt + pair.chosen, np.int32))
        encoded.labels.append(np.array([IGNORED] * len(pair.prompt) + pair.chosen, np.int32))
        encoded.rejected.append(np.array(pair.rejected, np.int32))
        encoded.origins.append([source])
    return encoded


def require_kind(path: Path, objective: str) -> None:
    """Raises TrainError unless all rows of a file made by `prepare` are of the kind that the objective learns.

    That is, for dpo rows with a rejected reply and without images, for sft rows without a rejected reply.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.is_file():
        return  # whoever reads it says so
    wrong: dict[tuple[str, str], list[str]] = {}
    rows = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = ("source", "rejected", "images")
        names = [name for name in columns if name in file.schema_arrow.names]  # older folders lack some
        for batch in file.iter_batches(columns=names):
            rows += len(batch)
            none = pa.array([False] * len(batch))
            paired, pictured = (batch[name].is_valid() if name in names else none for name in columns[1:])
            found = {PAIRED: paired} if objective == "sft" else {UNPAIRED: pc.invert(paired), PICTURED: pictured}
            for reason, mask in found.items():
                wrong.setdefault(reason, []).extend(batch["source"].filter(mask).to_pylist())
    for (problem, remedy), sources in wrong.items():
        if sources:
            raise TrainError(
                f"{path}: train.objective is {objective}, but {len(sources)} of {rows} rows {problem} (first "
                f"{sources[0]}); {remedy}"
            )


def require_settings(params: Train) -> None:
    """Raises TrainError for settings that the objective dpo cannot honour."""
    if params.objective != "dpo":
        return
    if params.packing:
        raise TrainError("train.packing: true packs single replies, and train.objective is dpo; set it to false")
    precomputed = params.method not in ("lora", "qlora") or params.lora.modules_to_save
    if precomputed and params.launch.strategy == "fsdp":
        raise TrainError(
            "train.launch.strategy is fsdp, but the reference of dpo is then computed on a whole model (train.method "
            f"{params.method}); set the strategy to ddp, or the method to lora without modules_to_save"
        )
    if params.method == "qlora" and params.lora.modules_to_save:
        raise TrainError(
            f"train.lora.modules_to_save is {', '.join(params.lora.modules_to_save)}, but dpo with qlora trains the "
            "adapter alone; leave it empty, or set train.method to lora"
        )


def preference_facts(rows: Encoded, lines: Sequence[dict[str, float]]) -> dict[str, Any] | None:
    """`preferences` of train.json, from the lines of the steps; None if no pairs were trained.

    The reward of a reply is beta times the change of its log-probability by training. `accuracy` is the share of pairs
    whose chosen reply has the higher reward, `margin` the mean difference of both; before the first step both are 0.
    """
    if not rows.rejected:
        return None
    facts: dict[str, Any] = {"pairs": len(rows.rejected)}
    for when, line in (("first", lines[0]), ("last", lines[-1])):
        facts |= {f"{when}_{name}": line[name] for name in ("accuracy", "margin")}
    return facts
