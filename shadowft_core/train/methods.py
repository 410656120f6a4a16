"""The training methods: which weights train, and how the result of each becomes one that `extract` can read.

`lora` and `qlora` train PEFT's LoRA, `osf` its orthogonal subspace fine-tuning, `full` every weight. A model that reads
images or sound keeps the parts outside of its language model as they are, whatever the method.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from peft import LoraConfig, OSFConfig, get_peft_model
from transformers import BitsAndBytesConfig

from shadowft_core.errors import TrainError, say
from shadowft_core.params import Train

OTHERWISE = "set render.template_tokens to from_instruct, or train.method to full"
EXTRA = "pip install 'shadowft[gpu]'"


def require_method(params: Train) -> None:
    """Raise TrainError if the method or the optimizer cannot run here. Loads nothing."""
    cuda = torch.cuda.is_available()
    if params.optimizer == "adamw_8bit" and not cuda:
        raise TrainError("train.optimizer is adamw_8bit, which needs a CUDA device; there is none, set it to adamw")
    for field, value in (("method", params.method), ("optimizer", params.optimizer)):
        if value in ("qlora", "adamw_8bit") and importlib.util.find_spec("bitsandbytes") is None:
            raise TrainError(f"train.{field} is {value}, which needs bitsandbytes; install it: {EXTRA}")
    if params.method in ("qlora", "osf") and params.launch.strategy == "fsdp":
        # FSDP2 replaces the parameters, so that OSF's hooks on them would not run; 4-bit weights do not shard.
        raise TrainError(f"train.method {params.method} does not run with train.launch.strategy fsdp; set it to ddp")


def quantisation(params: Train) -> BitsAndBytesConfig | None:
    """How to load the frozen linear layers of qlora: NF4 with double quantisation (arXiv 2305.14314, section 3).

    They multiply in bfloat16 on CUDA and in float32 on a CPU. Head, embeddings, norms and experts are not quantised.
    """
    if params.method != "qlora":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def with_method(
    network: Any, params: Train, token_rows: dict[str, list[int]] | None = None, borrowed: bool = False
) -> Any:
    """The model in which the weights that the method trains require gradients, and no others.

    `token_rows` (ids by module name) are rows of embedding and head that lora and qlora train as well; `borrowed` says
    that some rows have the Instruct's values. Prints to stderr what is adapted and what is not. Raises TrainError if a
    name of train.lora matches nothing, or PEFT cannot train it.
    """
    apart = outside_language_model(network)
    if apart:
        say(f"train: only the language model is trained, not {', '.join(apart)}")
    if params.method == "full":
        for name in apart:
            network.get_submodule(name).requires_grad_(False)
        return network
    linear = _linear_layers(network, apart)
    if params.method == "osf":
        if token_rows:
            raise TrainError("train.method osf cannot train rows of tokens; set render.template_tokens: from_instruct")
        config = _osf_config(network, params, linear)
    elif borrowed and params.lora.modules_to_save:
        raise TrainError(
            "train.lora.modules_to_save: the saved module could hold the Instruct's rows of untrained tokens; set "
            "render.template_tokens to train"
        )
    else:
        config = _lora_config(network, params, apart, token_rows)
    transformers.set_seed(params.seed)  # right before A is drawn, so both routes start from the same adapter
    try:
        adapted = get_peft_model(network, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        if token_rows:
            raise TrainError(
                f"PEFT cannot train rows of {', '.join(token_rows)} ({reason:.200}); {OTHERWISE}"
            ) from None
        if params.lora.targets != "all-linear" or params.lora.modules_to_save:
            raise TrainError(f"PEFT cannot adapt what train.lora names: {reason:.300}; change the names") from None
        raise
    head = network.get_output_embeddings()
    if token_rows and hasattr(head, "token_adapter"):
        if head.original_module.bias is not None:
            raise TrainError(f"rows of a head with a bias cannot be trained; {OTHERWISE}")
        head.bias = None  # TRL reads it, PEFT's wrapper lacks it
    _print_adapted(adapted, apart)
    return adapted


def merged(network: Any) -> Any:
    """The model with the adapter added to its weights, in float32. A weight without adapter keeps its bits."""
    for parameter in network.parameters():
        parameter.data = parameter.data.float()
    return network.merge_and_unload()


def can_be_whole(params: Train, token_rows: Any) -> bool:
    """Whether the trained weights can be handed over as a whole model, exactly.

    Not after qlora, which has the weights in 4 bits, and not with trained rows or modules, which may be tied: PEFT's
    merge adds to tied weights twice.
    """
    plain = not params.lora.modules_to_save and not token_rows
    return params.method in ("full", "osf") or (params.method == "lora" and plain)


def outside_language_model(network: Any) -> list[str]:
    """The outermost modules with weights that belong neither to the language model nor to the head: a vision tower,
    its projector, an audio tower. None for a model that reads only text."""
    if network.config.get_text_config() is network.config:
        return []
    kept = {network.get_decoder(), network.get_output_embeddings()}

    def walk(module: Any, path: str) -> Iterable[str]:
        if module in kept:
            return
        if path and not any(inner in kept for inner in module.modules()):
            if next(module.parameters(), None) is not None:
                yield path
            return
        for name, child in module.named_children():
            yield from walk(child, f"{path}.{name}" if path else name)

    return list(walk(network, ""))


def _linear_layers(network: Any, apart: list[str]) -> list[str]:
    """The names of all linear layers of the language model but the head."""
    kinds, head = (torch.nn.Linear, transformers.pytorch_utils.Conv1D), network.get_output_embeddings()
    found = (name for name, module in network.named_modules() if isinstance(module, kinds) and module is not head)
    return [name for name in found if not f"{name}.".startswith(tuple(f"{part}." for part in apart))]


def _lora_config(network: Any, params: Train, apart: list[str], token_rows: dict[str, list[int]] | None) -> LoraConfig:
    lora = params.lora
    if lora.targets != "all-linear":
        _require_named(network, lora.targets, apart)
    _require_saved(network, lora.modules_to_save)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=lora.targets if lora.targets == "all-linear" else list(lora.targets),
        exclude_modules="|".join(rf"{re.escape(part)}(\..*)?" for part in apart) or None,
        modules_to_save=list(lora.modules_to_save) or None,
        trainable_token_indices=token_rows or None,
        ensure_weight_tying=any(_ending(_tied_modules(network), name) for name in lora.modules_to_save),
    )


def _osf_config(network: Any, params: Train, linear: list[str]) -> OSFConfig:
    for name in linear:
        layer = network.get_submodule(name)
        if not isinstance(layer, torch.nn.Linear):  # PEFT would leave it out in silence
            raise TrainError(
                f"train.method osf adapts layers of the class Linear, and {name} is a {type(layer).__name__}; set "
                "train.method to lora or full"
            )
        small = min(layer.weight.shape)
        if int(small * params.osf.preserved) == 0:
            raise TrainError(
                f"train.osf.preserved {params.osf.preserved} keeps none of the {small} singular directions of {name}; "
                f"set it to at least {1 / small:.2g}"
            )
    return OSFConfig(task_type="CAUSAL_LM", effective_rank=params.osf.preserved, target_modules=linear)


def _require_named(network: Any, targets: Iterable[str], apart: list[str]) -> None:
    """Every target must be the end of a module's name, as PEFT matches it, in the language model."""
    names = [name for name, _ in network.named_modules() if name]
    inside = [name for name in names if not f"{name}.".startswith(tuple(f"{part}." for part in apart))]
    head = network.get_output_embeddings()
    headed = {name for name, module in network.named_modules() if module is head} | set(_tied_modules(network))
    for target in targets:
        if found := _ending(headed, target):
            raise TrainError(
                f"train.lora.targets: {found[0]} is the head or tied to it, whose weight TRL reads without an adapter; "
                "name it in train.lora.modules_to_save"
            )
        if _ending(inside, target):
            continue
        if found := _ending(names, target):
            raise TrainError(f"train.lora.targets: {target} is only in {found[0]}, outside the language model")
        raise TrainError(f"train.lora.targets: no layer is named {target}; {_near(target, inside)}")


def _require_saved(network: Any, names: Iterable[str]) -> None:
    """Every name must match whole words of a module's name: PEFT also takes `norm` for `input_layernorm`."""
    modules = [name for name, _ in network.named_modules(remove_duplicate=False) if name]
    for saved in names:
        found = _ending(modules, saved)
        if not found:
            raise TrainError(f"train.lora.modules_to_save: no module is named {saved}; {_near(saved, modules)}")
        if more := sorted({name for name in modules if name.endswith(saved)} - set(found)):
            raise TrainError(f"train.lora.modules_to_save: {saved} also matches {more[0]}; write more of the name")


def _tied_modules(network: Any) -> set[str]:
    """The modules that share a weight, such as embedding and head."""
    return {name.rpartition(".")[0] for pair in network.all_tied_weights_keys.items() for name in pair}


def _ending(names: Iterable[str], end: str) -> list[str]:
    return [name for name in names if name == end or name.endswith(f".{end}")]


def _near(name: str, names: Iterable[str]) -> str:
    """The remedy: names that are spelt alike, or the last parts of all names."""
    last = sorted({one.rpartition(".")[2] for one in names if not one.rpartition(".")[2].isdigit()})
    near = difflib.get_close_matches(name, dict.fromkeys([*last, *names]), 3, 0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(last)}"


def _print_adapted(network: Any, apart: list[str]) -> None:
    """Say which matrices train, and which of the language model no adapter reaches: experts, except where PEFT knows
    that an earlier transformers held them as layers."""
    layers = {name.partition(".lora_A.")[0] for name, _ in network.named_modules() if ".lora_A." in name}
    layers |= {name.partition(".osf_svd")[0] for name, _ in network.named_parameters() if ".osf_svd" in name}
    kinds = sorted({name.replace(".base_layer", "").rpartition(".")[2] for name in layers})
    say(f"train: adapts {len(layers)} matrices: {', '.join(kinds)}")
    tensors = dict(network.named_parameters())
    firsts = {name: t for name, t in tensors.items() if ".lora_A." in name and t.ndim == 2}
    pairs = [(a.shape, tensors[name.replace(".lora_A.", ".lora_B.")].shape) for name, a in firsts.items()]
    if over := [min(a[1], b[0]) for a, b in pairs if a[0] > min(a[1], b[0])]:
        say(
            f"train: train.lora.rank {pairs[0][0][0]} is above the smaller dimension of {len(over)} of {len(pairs)} "
            f"matrices (the least is {min(over)}); there it takes memory and adds nothing"
        )
    named = network.get_base_model().named_parameters()
    inside = ((n, p) for n, p in named if not n.startswith(tuple(f"{part}." for part in apart)))
    if experts := [n for n, p in inside if p.ndim == 3 and ".base_layer." not in n]:
        say(
            f"train: {len(experts)} tensors of experts stay as they are, such as {experts[0]}; train.method full "
            "trains them"
        )
