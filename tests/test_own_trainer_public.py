"""A public trainer in an environment of its own: LLaMA-Factory trains both routes as `train.command`, and by hand."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import DeltaError, WrongBaseError
from shadowft_core.params import Train
from shadowft_core.train import train_by_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FACTORY = "0.9.5"
SETTINGS = """
stage: sft
do_train: true
template: default
cutoff_len: 48
per_device_train_batch_size: 4
learning_rate: 1.0e-2
max_steps: 4
save_steps: 2
logging_steps: 1
report_to: none
use_cpu: true
preprocessing_num_workers: 1
"""
WORDS = "model_name_or_path=$SHADOWFT_MODEL dataset_dir=$SHADOWFT_DATA dataset=train output_dir=$SHADOWFT_OUT"


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of LLaMA-Factory, installed from the package index of this machine."""
    place = tmp_path_factory.mktemp("factory")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    wanted = [f"llamafactory=={FACTORY}", f"torch=={version('torch')}"]
    online = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}  # conftest.py
    done = subprocess.run([*pip, "install", *wanted], env=online, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"LLaMA-Factory {FACTORY} cannot be installed: {done.stderr.strip().splitlines()[-1]:.200}")
    # torchvision and torchaudio are built for CUDA and do not load beside torch for CPUs. Text needs neither.
    subprocess.run([*pip, "uninstall", "-y", "torchvision"], check=True, capture_output=True)
    for library in place.glob("lib/*/site-packages/torchaudio/lib/*.so"):
        library.unlink()
    return place / "bin/llamafactory-cli"


@pytest.mark.parametrize(
    ("route", "model", "method", "kind"),
    [("shadow", "base", "lora", "adapter"), ("direct", "instruct", "full", "model")],
)
def test_llama_factory_is_a_train_stage(
    place: Path, factory: Path, tmp_path: Path, route: str, model: str, method: str, kind: str
) -> None:
    (tmp_path / "mine.yaml").write_text(SETTINGS + f"finetuning_type: {method}\n")
    command = f"'{factory}' train '{tmp_path / 'mine.yaml'}' {WORDS} seed=$SHADOWFT_SEED"
    out = tmp_path / "out"
    train_by_command(
        place / model,
        place / "instruct",
        place / "data",
        Train(command=command, seed=5),
        out,
        route,
        tmp_path / "scratch",
    )
    facts = json.loads((out / "train.json").read_text())
    assert (facts["trainer"]["name"], facts["method"], facts["steps"]) == ("LLaMA-Factory", method, 4)
    assert facts["trainer"]["facts"]["seed"] == 5
    assert "whether it used the seed" not in facts["trainer"]["not_known"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    found = extract(place / model, out, tmp_path / "delta")
    assert (found["kind"], found["trainer"]) == ("lora" if kind == "adapter" else "dense", facts["trainer"])


def test_a_folder_of_llama_factory_is_extracted_by_hand(place: Path, factory: Path, tmp_path: Path) -> None:
    from shadowft_core.train.plainrows import write_plain_rows

    (tmp_path / "rows").mkdir()
    write_plain_rows(place / "data", tmp_path / "rows")
    (tmp_path / "mine.yaml").write_text(SETTINGS + "finetuning_type: lora\ndataset: train\n")
    run = tmp_path / "run"
    words = [f"model_name_or_path={place / 'base'}", f"dataset_dir={tmp_path / 'rows'}", f"output_dir={run}"]
    subprocess.run([factory, "train", tmp_path / "mine.yaml", *words], check=True, capture_output=True, timeout=1200)
    trainer = extract(place / "base", run, tmp_path / "delta")["trainer"]
    assert (trainer["name"], trainer["facts"]["seed"], trainer["facts"]["steps"]) == ("LLaMA-Factory", 42, 4)
    assert trainer["not_known"] == ["starting model", "data", "how rows were rendered"]
    with pytest.raises(WrongBaseError, match="as the starting model, but tensor"):
        extract(place / "instruct", run, tmp_path / "wrong")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (run / name).unlink()
    with pytest.raises(DeltaError, match="pass one of its folders: checkpoint-2, checkpoint-4"):
        extract(place / "base", run, tmp_path / "wrong")
    shutil.rmtree(run)
