"""Loads the model to train, adds an adapter to it, and saves it for `extract`."""

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.core_model_loading import revert_weight_conversion

from shadowft_core import loading
from shadowft_core.errors import CheckpointError, TrainError
from shadowft_core.files import read_json_object, write_json_atomically
from shadowft_core.params import Train

OTHERWISE = "set render.template_tokens to from_instruct, or train.method to full"


def load_model(model: Path, tokenizer: Any, images: bool = False) -> Any:
    """The model in float32, complete, with a row of its embedding for every id of the tokenizer.

    With `images`, loads the class that takes images; the other class has only the language model in some families.
    Raises CheckpointError if weights are missing or misshapen, TrainError if the vocabulary does not fit.
    """
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    network, info = loading.load_model(loader, model, dtype=torch.float32)
    if lost := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise CheckpointError(f"{model}: tensor {lost[0]} is missing or misshapen ({len(lost)} in all); fetch it again")
    highest, size = max(tokenizer.get_vocab().values()), network.get_input_embeddings().num_embeddings
    if highest >= size:
        raise TrainError(
            f"{model}: embeds ids below {size}, the Instruct's tokenizer gives ids up to {highest}; "
            "this Base and this Instruct do not belong together"
        )
    network.config.use_cache = False
    return network


def with_adapter(network: Any, params: Train, token_rows: dict[str, list[int]] | None = None) -> Any:
    """The model with a new LoRA adapter on all linear layers. Only the adapter is trained.

    `token_rows` (ids by module name) are rows of embedding and head to train as well. Raises TrainError if PEFT cannot
    train them.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=params.lora.rank,
        lora_alpha=params.lora.alpha,
        use_rslora=params.lora.rslora,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
        trainable_token_indices=token_rows or None,
    )
    transformers.set_seed(params.seed)  # right before A is drawn, so both routes start from the same adapter
    try:
        adapted = get_peft_model(network, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        if not token_rows:
            raise
        raise TrainError(
            f"PEFT cannot train rows of {', '.join(token_rows)} ({' '.join(str(error).split()):.200}); {OTHERWISE}"
        ) from None
    head = network.get_output_embeddings()
    if token_rows and hasattr(head, "token_adapter"):
        if head.original_module.bias is not None:
            raise TrainError(f"rows of a head with a bias cannot be trained; {OTHERWISE}")
        head.bias = None  # TRL reads it, PEFT's wrapper lacks it
    return adapted


def planned_weights(network: Any, params: Train, scratch: Path) -> Path | dict[str, tuple[int, ...]]:
    """What `save_model` will write: an adapter folder under `scratch`, or the shapes of a checkpoint by tensor name."""
    if params.method == "lora":
        save_model(network, params, scratch)
        return scratch / "adapter"
    unsaved = {*(network._keys_to_ignore_on_save or ()), *network.all_tied_weights_keys}
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items() if name not in unsaved}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(network, shapes).items()}


def save_model(network: Any, params: Train, folder: Path) -> None:
    """Write adapter/ (lora) or model/ (full) into the folder, without paths, so that equal runs give equal bytes."""
    if params.method == "full":
        network.save_pretrained(folder / "model")
        return
    adapter = folder / "adapter"
    network.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # a model card that names paths
    config = read_json_object(adapter / "adapter_config.json")
    # train.json has the model's digest; a path would make the bytes depend on the machine. PEFT writes the targets in
    # the order of a set, which differs from process to process.
    config |= {"base_model_name_or_path": "", "target_modules": sorted(config["target_modules"])}
    write_json_atomically(adapter / "adapter_config.json", config)
