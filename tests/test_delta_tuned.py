"""Folders made by a training must hold exactly one result."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import DeltaError
from tests.test_delta_layout import Q, model, refused, tensors
from tests.test_graft import F32


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["adapter_config.json", "model.safetensors"], ("adapter_config.json", "model.safetensors")),
        (["adapter_config.json", "model-00001-of-00002.safetensors"], ("adapter_config.json", "model-00001-of-00002")),
        (["adapter_model.safetensors", "model.safetensors"], ("adapter_model.safetensors", "model.safetensors")),
        (["adapter_config.json", "pytorch_model.bin"], ("adapter_config.json", "pytorch_model.bin")),
        (["adapter/adapter_config.json", "model/model.safetensors"], ("adapter/", "model/")),
        (["adapter/adapter_config.json", "model.safetensors"], ("adapter/", "model.safetensors")),
        (["model/model.safetensors", "model.safetensors"], ("model/", "model.safetensors")),
        (["model/model.safetensors", "adapter_config.json"], ("model/", "adapter_config.json")),
        (["model/model.safetensors", "model/adapter_config.json"], ("model/adapter_config.json", "model/model.safet")),
        (
            ["adapter/adapter_config.json", "adapter/consolidated.safetensors"],
            ("adapter/adapter_config.json", "adapter/c"),
        ),
    ],
    ids="+".join,
)
def test_a_folder_with_two_kinds_of_result_is_refused(tmp_path: Path, files: list[str], named: tuple[str, str]) -> None:
    base = model(tmp_path / "base", tensors(0, width=16))
    weights = model(tmp_path / "weights", tensors(1, width=16)) / "model.safetensors"
    for file in files:
        place = tmp_path / "tuned" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".safetensors":
            shutil.copyfile(weights, place)
            (place.parent / "config.json").write_text(json.dumps({"model_type": "llama"}))
        else:
            place.write_text("{}")
    words = f"contains both {named[0]}", f" and {named[1]}", "remove one"
    refused(tmp_path, base, tmp_path / "tuned", DeltaError, *words)


def test_subfolders_of_a_trainer_are_ignored(tmp_path: Path) -> None:
    base = model(tmp_path / "base", tensors(0, width=16))
    tuned = model(tmp_path / "tuned", tensors(1, width=16))
    for part in ("checkpoint-1", "runs"):
        model(tuned / part, tensors(2, width=16))
        (tuned / part / "adapter_config.json").write_text("{}")
    (tuned / "training_args.bin").write_bytes(b"not read")
    extract(base, tuned, tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    expected = tensors(1, width=16)[Q].astype(F32) - tensors(0, width=16)[Q].astype(F32)
    np.testing.assert_array_equal(delta.read(Q), expected)
