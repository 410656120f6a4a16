"""The benchmarks of training run, and both sides have the same losses."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.training import ROOT, app


@pytest.mark.slow
def test_ours_and_trl_have_the_same_losses(tmp_path: Path) -> None:
    small = ["--steps", "2", "--rounds", "1", "--layers", "1", "--no-earlier", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, small)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "training.json").read_text())
    assert found["bits"]["trl"] < 1e-6
    assert all(len(samples[0]["losses"]) == 2 and samples[0]["peak"] > 0 for samples in found["arms"].values())
    assert "| ours | " in (tmp_path / "training.md").read_text()


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu_with_tiny_shapes(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "benchmarks/gpu.sh", "--dry-run"],
        env=os.environ | {"OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu-none.jsonl").read_text().splitlines()]
    assert all(line.get("passed", True) and "error" not in line for line in lines)
    assert {"wide+det", "frozen", "trl", "frozen+pack+gc+b16"} <= {line.get("arm") for line in lines}
