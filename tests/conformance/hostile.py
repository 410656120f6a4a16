"""Changes that break the files of a model folder, or add code to it."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

from shadowft_core.weights import INDEX, SINGLE
from tests.conformance.inputs import Change, config, sharded
from tests.conformance.oracle import tensors_of
from tests.fixtures.models import write_weights

MARKER = "code-ran"
"""the folder that is made by code in a model folder if it runs"""


def index_outside(role: str) -> Change:
    """The index names a shard outside the folder."""

    def change(case: Path) -> None:
        sharded(role, 2)(case)
        index = json.loads((case / role / INDEX).read_text())
        last = sorted(set(index["weight_map"].values()))[-1]
        (case / role / last).rename(case / "outside.safetensors")
        outside = {n: "../outside.safetensors" if f == last else f for n, f in index["weight_map"].items()}
        (case / role / INDEX).write_text(json.dumps(index | {"weight_map": outside}))

    return change


def duplicate_key(role: str, name: str, other: str) -> Change:
    """The header holds `name` twice; the second entry points at the bytes of `other`."""

    def change(case: Path) -> None:
        file = case / role / SINGLE
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        text = json.dumps(header).rstrip("}") + "}, " + json.dumps({name: header[other]})[1:]
        file.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data[8 + length :])

    return change


def truncated(role: str) -> Change:
    def change(case: Path) -> None:
        sharded(role, 2)(case)
        last = sorted((case / role).glob("*.safetensors"))[-1]
        os.truncate(last, last.stat().st_size - 100)

    return change


def stale_shard(role: str, name: str) -> Change:
    """The folder holds a shard of an earlier save that the index does not name."""

    def change(case: Path) -> None:
        sharded(role, 2)(case)
        old = case / "old"
        old.mkdir()
        write_weights(old, {name: 2 * tensors_of(case / role)[name]})
        (old / SINGLE).rename(case / role / "model-00003-of-00003.safetensors")
        old.rmdir()

    return change


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickle_only(role: str) -> Change:
    """Only pytorch_model.bin; unpickling it makes the marker."""

    def change(case: Path) -> None:
        (case / role / SINGLE).unlink()
        (case / role / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(case / MARKER)))

    return change


def own_code(role: str) -> Change:
    """config.json names modeling code in the folder; importing it makes the marker."""

    def change(case: Path) -> None:
        code = f"import os\nos.mkdir({str(case / MARKER)!r})\n"
        for name in ("configuration_own.py", "modeling_own.py"):
            (case / role / name).write_text(code)
        auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
        config(role, auto_map=auto)(case)

    return change
