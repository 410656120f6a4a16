"""Models in memory: loaded from a folder, or the Instruct with deltas grafted in memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.files import read_json_object, reading
from shadowft_core.grafting import Options, grafted_tensors
from shadowft_core.limits import CONFIG_BYTES
from shadowft_core.loading import load, load_model
from shadowft_core.weights import DTYPES, model_digest

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ONE_THREAD_PARAMETERS = 50_000_000  # up to this size, one thread is as fast as many and always gives the same bits


def load_folder(folder: Path) -> Any:
    """Load a Hugging Face folder as a causal or vision-language model in evaluation mode.

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
    weights, digests = {}, {}
    for name, array in grafted_tensors(instruct, deltas, options):
        digests[name] = described(array)
        weights[name] = as_torch(array)
    return _load(instruct, weights, None if options.dtype == "instruct" else options.dtype), model_digest(digests)


def described(array: np.ndarray) -> tuple[str, tuple[int, ...], str]:
    """Dtype (as in a header), shape and digest of a tensor, as `weights.model_digest` takes them."""
    data = hashlib.sha256(array.reshape(-1).view(np.uint8).data)
    return NAMES[array.dtype], array.shape, f"sha256:{data.hexdigest()}"


def as_torch(array: np.ndarray) -> Any:
    """A tensor on the CPU with the memory of `array`."""
    import torch

    dtype = getattr(torch, array.dtype.name)
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)


def _load(folder: Path, weights: dict[str, Any] | None, dtype: str | None = None) -> Any:
    """`dtype` is that of `weights`; None if it is the folder's."""
    import torch

    with quiet():
        from transformers import GenerationConfig

        config, kind = _class_of(folder)
        options = {}
        if weights is not None and (folder / "generation_config.json").is_file():
            settings = read_json_object(folder / "generation_config.json", CONFIG_BYTES)
            with reading(folder / "generation_config.json", "correct it, or save the model again"):
                options["generation_config"] = GenerationConfig.from_dict(settings)
        cuda = torch.cuda.is_available()
        precision = (dtype or "auto") if cuda else torch.float32
        model, info = load_model(kind, folder, weights, config=config, dtype=precision, **options)
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise EvaluationError(
            f"{folder}: weights and config.json disagree: {wrong!s:.400}; the folder is incomplete or mixed; "
            "download it again"
        )
    if model.num_parameters() <= ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    return model.to("cuda" if cuda else "cpu").eval()


def without_weights(folder: Path) -> Any:
    """The model that `load_folder` loads, but no memory for its parameters. Raises EvaluationError for another kind."""
    import torch

    with quiet(), torch.device("meta"):
        config, kind = _class_of(folder)
        return kind(config)


def _class_of(folder: Path) -> tuple[Any, Any]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    config = load(AutoConfig, folder)
    if shows_images(folder, config) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise EvaluationError(
                f"{folder}: {config.model_type} is not a causal language model; use a model that generates text"
            )
        return config, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def shows_images(folder: Path, config: Any) -> bool:
    """Whether a model can be shown images: transformers has a class for it, and the folder a processor."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    files = ("preprocessor_config.json", "processor_config.json")
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and any((folder / name).is_file() for name in files)
