"""Correctness on the device, on a tiny pair: two trainings with equal bits, full, extract, graft.

Run `python -m benchmarks.gpu_check`. Prints one line of JSON a check; exit code 1 if one fails.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.training import make
from shadowft_core.params import Lora, Train
from shadowft_core.train import train

SETTINGS = Train(
    lora=Lora(rank=8, alpha=16), batch_size=4, max_steps=3, max_length=256, learning_rate=1e-3, deterministic=True
)


def main() -> int:
    """Run all checks."""
    failed = 0
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        make(place, 3, layers=2, width=64)
        model = place / "model"

        def trained(name: str, **change: object) -> dict[str, bytes]:
            train(model, model, place / "data", SETTINGS.model_copy(update=change), place / name)
            return {file.name: file.read_bytes() for file in sorted((place / name).rglob("*")) if file.is_file()}

        def shadowft(*command: object) -> bool:
            full = [sys.executable, "-m", "shadowft_core.cli", *map(str, command)]
            return subprocess.run(full, check=False).returncode == 0

        def say(check: str, passed: bool) -> None:
            nonlocal failed
            failed += not passed
            print(json.dumps({"check": check, "passed": passed, "cuda": torch.cuda.is_available()}), flush=True)

        say("two trainings have equal bytes", trained("one") == trained("two"))
        for change in ({"packing": True}, {"gradient_checkpointing": True}, {"deterministic": None}):
            say(f"{next(iter(change))} trains", bool(trained(next(iter(change)), **change)))
        trained("full", method="full", learning_rate=1e-5)
        for name, tuned in (("one", "adapter"), ("full", "model")):
            delta, out = place / f"delta-{name}", place / f"grafted-{name}"
            passed = shadowft("extract", "--base", model, "--tuned", place / name / tuned, "--out", delta)
            passed = passed and shadowft(
                "graft", "--instruct", model, "--delta", delta, "--scale", 1, "--onto-base", "--out", out
            )
            say(f"{name}: extract and graft", passed and (out / "receipt.json").is_file())
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
