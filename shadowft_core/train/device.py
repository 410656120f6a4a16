"""What the machine can do: refuses settings that it cannot honour, and sets threads and deterministic algorithms."""

import importlib.util
import os
import shutil
from typing import Any

import datasets
import torch
import transformers

from shadowft_core.errors import TrainError
from shadowft_core.params import Train
from shadowft_core.train.frozen import frozen_bytes_saved
from shadowft_core.train.methods import require_method
from shadowft_core.train.packing import fill
from shadowft_core.train.ranks import Filled

COMPILERS = ("c++", "g++", "clang++")


def require_available(params: Train, images: bool) -> None:
    """Raise TrainError if a setting cannot be honoured here. Loads nothing.

    `images` says that the data have images.
    """
    require_method(params)
    cuda = torch.cuda.is_available()
    for field, asked, package, extra, otherwise in (
        ("attention: flash_attention_2", params.attention == "flash_attention_2", "flash_attn", "flash", "sdpa"),
        ("liger: true", params.liger, "liger_kernel", "gpu", "false"),
    ):
        if asked and not cuda:
            raise TrainError(f"train.{field} needs a CUDA device, and there is none; set it to {otherwise}")
        if asked and importlib.util.find_spec(package) is None:
            raise TrainError(f"train.{field} needs {package}; install it: pip install 'shadowft[{extra}]'")
    if params.compile and not cuda and not any(map(shutil.which, COMPILERS)):
        raise TrainError("train.compile: true needs a C++ compiler on a CPU, and there is none; set it to false")
    if params.packing and images:
        raise TrainError("train.packing: true cannot pack rows with images; set it to false")


def is_deterministic(params: Train) -> bool:
    """The effective value of train.deterministic: as set, or else yes on a CPU and no on CUDA."""
    return not torch.cuda.is_available() if params.deterministic is None else params.deterministic


def set_up(params: Train) -> None:
    """Set the CPU threads and the algorithms of torch, and silence the libraries. Call it before CUDA is used."""
    deterministic = is_deterministic(params)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # no operation reads it; filling costs a pass each
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def effective(trainer: transformers.Trainer, network: Any, params: Train) -> dict[str, Any]:
    """How it was trained, for train.json. `network` is the trained model, before an adapter is merged."""
    rows = trainer.train_dataset.rows if isinstance(trainer.train_dataset, Filled) else trainer.train_dataset
    return {
        "device": trainer.args.device.type,
        "autocast": "bfloat16" if trainer.args.bf16 else None,
        "deterministic": is_deterministic(params),
        "attention": network.config.get_text_config()._attn_implementation,
        "frozen_bytes_saved": frozen_bytes_saved(network),
        "packing": fill(rows, params.max_length) if params.packing else None,
    }
