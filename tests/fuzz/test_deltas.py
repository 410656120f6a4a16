"""Damaged deltas and adapters."""

import json
import shutil
from pathlib import Path

from shadowft_core.delta import extract, open_delta
from shadowft_core.files import canonical_json, file_digest
from tests.fuzz.damage import json_damage, safetensors_damage
from tests.fuzz.harness import WORKERS, Target, fuzzed
from tests.test_delta_format import adapter, make, models


def make_delta(kind: str, folder: Path) -> None:
    shutil.copytree(make(folder.parent / "made", kind), folder, dirs_exist_ok=True)


def read_delta(folder: Path) -> None:
    delta = open_delta(folder)
    delta.verify()
    for name in delta.names:
        delta.read(name)
    delta.base_sample()
    delta.base_token_marks()


def seal_delta(folder: Path) -> None:
    """The certificate names the digest of the damaged sample of the Base."""
    file, sample = folder / "delta.json", folder / "base.safetensors"
    try:
        fields = json.loads(file.read_bytes())
        fields["base"]["sample"] = file_digest(sample) if sample.is_file() else "missing"
        file.write_bytes(canonical_json(fields))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return


def make_adapter(folder: Path) -> None:
    models(folder)
    shutil.rmtree(folder / "tuned")
    adapter(folder / "adapter")


def read_adapter(folder: Path) -> None:
    extract(folder / "base", folder / "adapter", folder.parent / "out")


CERTIFICATE = {"delta.json": json_damage, "base.safetensors": safetensors_damage}
WEIGHTS = {name: {**CERTIFICATE, f"{name}.safetensors": safetensors_damage} for name in ("dense", "factors")}
test_hostile_deltas_and_adapters = fuzzed(
    *(
        Target(
            f"delta {kind}",
            lambda folder, kind=kind: make_delta(kind, folder),
            read_delta,
            WEIGHTS[file],
            seal=seal_delta,
        )
        for kind, file in (("compressed", "dense"), ("float32", "dense"), ("lora", "factors"))
    ),
    Target(
        "adapter",
        make_adapter,
        read_adapter,
        {"adapter/adapter_config.json": json_damage, "adapter/adapter_model.safetensors": safetensors_damage},
        allowed=WORKERS,
    ),
)
