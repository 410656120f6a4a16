"""Models in memory: loaded from a folder, or the Instruct with deltas grafted in memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.files import read_json_object
from shadowft_core.graft import Options, grafted_tensors
from shadowft_core.loading import load, load_model
from shadowft_core.weights import DTYPES, model_digest

ONE_THREAD_PARAMETERS = 50_000_000  # up to this size, one thread is as fast as many and always gives the same bits


def load_folder(folder: Path) -> Any:
    """Load a Hugging Face folder as a causal language model in evaluation mode.

    On a CUDA device, the model has the dtype of the weights; on the CPU, float32.
    Raises EvaluationError for another kind of model and for missing or unexpected weights, CheckpointError as
    `loading.load_model` does.
    """
    return _load(folder, None)


def load_grafted(instruct: Path, deltas: Sequence[tuple[Path, float]], options: Options) -> tuple[Any, str]:
    """The Instruct with `scale * delta` added, as `load_folder` would load the grafted folder, and its model digest.

    The tensors come from `graft.grafted_tensors` with these `options`: the same bits that `shadowft graft` writes.
    Raises what `grafted_tensors` and `load_folder` raise.
    """
    import torch

    names = {numpy_dtype: name for name, numpy_dtype in DTYPES.items()}
    weights, digests = {}, {}
    for name, array in grafted_tensors(instruct, deltas, options):
        data = bytearray(array.tobytes())  # a copy, as the stream may reuse its buffer
        digests[name] = (names[array.dtype], array.shape, f"sha256:{hashlib.sha256(data).hexdigest()}")
        torch_dtype = getattr(torch, array.dtype.name)
        empty = torch.empty(array.shape, dtype=torch_dtype)
        weights[name] = torch.frombuffer(data, dtype=torch_dtype).reshape(array.shape) if data else empty
    return _load(instruct, weights), model_digest(digests)


def _load(folder: Path, weights: dict[str, Any] | None) -> Any:
    import torch

    with quiet():
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

        config = load(AutoConfig, folder)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise EvaluationError(
                f"{folder}: {config.model_type} is not a causal language model; use a model that generates text"
            )
        options = {}
        if weights is not None and (folder / "generation_config.json").is_file():
            settings = read_json_object(folder / "generation_config.json")
            options["generation_config"] = GenerationConfig.from_dict(settings)
        cuda = torch.cuda.is_available()
        model, info = load_model(
            MODEL_FOR_CAUSAL_LM_MAPPING[type(config)],
            folder,
            weights,
            config=config,
            dtype="auto" if cuda else torch.float32,
            **options,
        )
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise EvaluationError(
            f"{folder}: weights and config.json disagree: {wrong!s:.400}; the folder is incomplete or mixed, "
            "get it again"
        )
    if model.num_parameters() <= ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    return model.to("cuda" if cuda else "cpu").eval()
