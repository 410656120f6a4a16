"""Loads the model to train, and saves the result for `extract`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.core_model_loading import revert_weight_conversion

from shadowft_core import loading
from shadowft_core.errors import AdapterError, CheckpointError, ShadowError, TrainError, say
from shadowft_core.files import read_json_object, write_json_atomically
from shadowft_core.params import Train
from shadowft_core.train.frozen import keep_narrow, stored_dtype
from shadowft_core.train.methods import merged, quantisation
from shadowft_core.train.saving import writing
from shadowft_core.weights import Checkpoint

PLAIN = Train()
SHARD = "5GB"  # bytes of a file of a saved model, at most, unless one tensor is larger


def load_model(
    model: Path, tokenizer: Any, images: bool = False, params: Train = PLAIN, dtype: torch.dtype = torch.float32
) -> Any:
    """The model in `dtype`, complete, with a row of its embedding for every id of the tokenizer.

    With train.method qlora, its linear layers are held in 4 bits.

    With `images`, loads the class that takes images; the other class has only the language model in some families.
    Raises CheckpointError if weights are missing or misshapen, TrainError if the vocabulary does not fit.
    """
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    options: dict[str, Any] = {"quantization_config": found} if (found := quantisation(params)) else {}
    if params.attention != "sdpa":  # transformers takes sdpa, or eager for a family without it
        options["attn_implementation"] = params.attention
    network, info = loading.load_model(loader, model, dtype=dtype, **options)
    if lost := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise CheckpointError(f"{model}: tensor {lost[0]} is missing or misshapen ({len(lost)} in all); fetch it again")
    highest, size = max(tokenizer.get_vocab().values()), network.get_input_embeddings().num_embeddings
    if highest >= size:
        raise TrainError(
            f"{model}: embeds ids below {size}, the Instruct's tokenizer gives ids up to {highest}; "
            "this Base and this Instruct do not belong together"
        )
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # of bitsandbytes
            module.support_avx512bf16_for_cpu = False  # else evaluation would repack the weights and round their scales
    network.config.use_cache = False
    return network


def load_to_train(checkpoint: Checkpoint, tokenizer: Any, params: Train, images: bool, vocabulary: bool) -> Any:
    """Like `load_model`, for training: with the method lora, frozen weights keep the checkpoint's dtype (frozen.py).

    Those of embedding and head do so only if `vocabulary`, since their rows may change. The model computes in float32,
    and is never whole in float32 unless the checkpoint has several dtypes.
    """
    if params.method != "lora":
        return load_model(checkpoint.path, tokenizer, images, params)
    network = load_model(checkpoint.path, tokenizer, images, params, stored_dtype(checkpoint))
    keep_narrow(network, params.lora.modules_to_save, vocabulary)
    return network


def planned_model(network: Any) -> dict[str, tuple[int, ...]]:
    """The shapes that a whole checkpoint of this model will have, by tensor name. Call it before PEFT wraps it."""
    unsaved = {*(network._keys_to_ignore_on_save or ()), *network.all_tied_weights_keys}
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items() if name not in unsaved}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(network, shapes).items()}


def hands_over_model(
    network: Any, shapes: dict[str, tuple[int, ...]] | None, params: Train, accept: Callable[[Any], None]
) -> bool:
    """Whether `save_model` shall write a whole model rather than an adapter.

    That is so for full and osf, and for an adapter that `extract` cannot take though it can be merged. `accept` gets
    the folder of the untrained adapter or `shapes` of `planned_model`, and raises what `extract` would. Without
    `shapes` an adapter cannot be merged.
    """
    if params.method in ("full", "osf"):
        accept(shapes)
        return True
    with tempfile.TemporaryDirectory() as scratch:
        save_model(network, False, Path(scratch))
        try:
            accept(Path(scratch) / "adapter")
            return False
        except AdapterError as error:
            if shapes is None:
                raise
            try:
                accept(shapes)
            except ShadowError:
                raise error from None
            say(f"train: the adapter will be merged into the model: {error}")
            return True


def save_model(network: Any, whole: bool, folder: Path) -> None:
    """Write model/ or adapter/ into the folder, without paths, so that equal runs give equal bytes.

    model/ is float32. An adapter is added to the weights in float32; every other weight keeps its bits.

    Raises TrainError if the disk is full.
    """
    with writing(folder / ("model" if whole else "adapter")):
        _save(network, whole, folder)


def _save(network: Any, whole: bool, folder: Path) -> None:
    if whole:
        model = merged(network) if hasattr(network, "merge_and_unload") else network
        model.save_pretrained(folder / "model", max_shard_size=SHARD)
        return
    adapter = folder / "adapter"
    network.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # a model card that names paths
    config = read_json_object(adapter / "adapter_config.json")
    # train.json has the model's digest; a path would make the bytes depend on the machine. PEFT writes the targets in
    # the order of a set, which differs from process to process.
    config |= {"base_model_name_or_path": "", "target_modules": sorted(config["target_modules"])}
    write_json_atomically(adapter / "adapter_config.json", config)
