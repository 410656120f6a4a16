"""What one would script without this project, as whole processes: `python -m benchmarks.graft.peers NAME ...`.

    state-dicts  BASE TUNED INSTRUCT OUT    three state dicts read with safetensors, one file written
    peft         INSTRUCT ADAPTER OUT       merge_and_unload
    sigma        BASE INSTRUCT              one tensor at a time, prints the figure

All calculate in float32 and round once.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path


def state_dicts(base: Path, tuned: Path, instruct: Path, out: Path) -> None:
    from safetensors.torch import load_file, save_file

    def state(folder: Path) -> dict:
        return {n: t for shard in sorted(folder.glob("*.safetensors")) for n, t in load_file(shard).items()}

    b, t, i = state(base), state(tuned), state(instruct)
    grafted = {n: (i[n].float() + (t[n].float() - b[n].float())).to(i[n].dtype) for n in i}
    shutil.copytree(instruct, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    save_file(grafted, out / "model.safetensors", metadata={"format": "pt"})


def peft(instruct: Path, adapter: Path, out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(instruct, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(instruct).save_pretrained(out)


def sigma(base: Path, instruct: Path) -> None:
    from safetensors import safe_open

    def tensors(folder: Path) -> dict:
        files = [safe_open(shard, "pt") for shard in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118  not a dict

    ours, theirs = tensors(base), tensors(instruct)
    apart = total = 0.0
    for name, file in ours.items():
        b, i = file.get_tensor(name).float(), theirs[name].get_tensor(name).float()
        apart += (b - i).abs().sum().item()
        total += b.abs().sum().item() + i.abs().sum().item()
    print(apart / total)


PEERS: dict[str, Callable[..., None]] = {
    "state-dicts": state_dicts,
    "peft": peft,
    "sigma": sigma,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](*map(Path, sys.argv[2:]))
