"""The only caller of transformers' loaders. Never runs code of a model folder, and loads only its safetensors weights.

By default transformers asks on stdin whether to run Python files of the folder (`auto_map`). Without asking, it adds an
adapter from the same folder, loads the weights file that the config names, and downloads attention kernels.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, wraps
from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object, within
from shadowft_core.limits import CONFIG_BYTES, LAYERS, TOKENIZER_SECONDS

_SIDE_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_REPEATED = (
    *("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "depth"),
    *("num_decoder_layers", "num_experts", "num_local_experts", "n_routed_experts"),
)
_HALF = re.compile("[\ud800-\udfff]")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def load(loader: Any, folder: Path, **options: Any) -> Any:
    """Call `loader.from_pretrained(folder, **options)` of a transformers class with local files, without running code.

    If the folder names code and transformers has a class for the model, that class is used.
    Raises CheckpointError with a one-line message when the folder would add a kernel, an adapter or other weights, when
    its config asks for more modules than any model has, when a link in it leads out of it, when only its own code could
    load it, and when loading fails.
    """
    from shadowft_core.weights.tokenizerfile import check_tokenizer

    _require_plain(folder)
    check_tokenizer(folder)
    limit_chat_templates()
    limit_tokenizers()
    return _call(loader, folder, folder, **options)


def limit_chat_templates() -> None:
    """Have transformers render chat templates within limits (files/templates.py), in this process and its forks.

    A template that exceeds one raises TemplateLimit, a TemplateError of jinja2.
    """
    from transformers.utils import chat_template_utils

    chat_template_utils._compile_jinja_template = _chat_template


@cache
def limit_tokenizers() -> None:
    """Have transformers call the tokenizers library within TOKENIZER_SECONDS, in this process and its forks.

    Expressions in tokenizer.json can keep the library busy for hours, and a damaged file makes it panic. Both raise
    CheckpointError.
    """
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    for name in ("_encode_plus", "_decode"):
        setattr(TokenizersBackend, name, _limited(getattr(TokenizersBackend, name)))


def _limited(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *given: Any, **named: Any) -> Any:
        where = Path(self.name_or_path) / "tokenizer.json"
        texts = list(_texts([*given, *named.values()]))
        seconds = TOKENIZER_SECONDS + sum(map(len, texts)) / 20_000
        try:
            return within(seconds, lambda: method(self, *given, **named))
        except TimeoutError:
            raise CheckpointError(
                f"{where}: took more than {seconds:.3g} s for one text or batch; use another tokenizer"
            ) from None
        except BaseException as error:
            if isinstance(error, TypeError) and any(map(_HALF.search, texts)):
                raise CheckpointError(
                    f"{where}: half a character (a surrogate) has no tokens; correct the chat template or the text"
                ) from None
            if type(error) is not Exception and type(error).__name__ != "PanicException":  # the library has both
                raise
            raise CheckpointError(f"{where}: damaged: {' '.join(str(error).split()):.300}; save it again") from None

    return call


@lru_cache
def _chat_template(text: str) -> Any:
    """The compiled template; takes the place of transformers' own function, whose filters and globals it has."""
    from transformers.utils import chat_template_utils

    from shadowft_core.files.templates import limited

    return limited(chat_template_utils._cached_compile_jinja_template("").environment).from_string(text)


def load_model(loader: Any, folder: Path, weights: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    """Like `load`, for a model: returns it with transformers' lists missing_keys, unexpected_keys, mismatched_keys.

    The weights are the folder's safetensors, or `weights` (tensors by name) instead.
    """
    _require_plain(folder)
    source = folder if weights is None else None
    if weights is not None:
        options["state_dict"] = weights
    loaded: tuple[Any, Any] = _call(loader, folder, source, use_safetensors=True, output_loading_info=True, **options)
    return loaded


def own_code(folder: Path) -> list[str]:
    """The code that the folder names, as `FILE: auto_map REFERENCE`, in the order of the files."""
    found = []
    for name in _SIDE_FILES:
        if (folder / name).is_file() and (named := read_json_object(folder / name, CONFIG_BYTES).get("auto_map")):
            found += [f"{name}: auto_map {reference:.100}" for reference in dict.fromkeys(_texts(named))]
    return found


def require_loadable(folder: Path, tokenizer: bool) -> None:
    """Raise CheckpointError when the folder names code and transformers has no config class for the model.

    With `tokenizer`, also when transformers has no tokenizer class for it.
    """
    if own_code(folder):
        from transformers import AutoConfig, AutoTokenizer

        for loader in (AutoConfig, AutoTokenizer)[: 1 + tokenizer]:
            load(loader, folder)


def _call(loader: Any, folder: Path, source: Path | None, **options: Any) -> Any:
    from transformers import __version__

    try:
        return loader.from_pretrained(source, local_files_only=True, trust_remote_code=False, **options)
    except BaseException as error:  # configs and tokenizers can make it raise almost anything
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the tokenizers library
            raise
        reason = " ".join(str(error).split())
        if code := own_code(folder):
            raise CheckpointError(
                f"{folder / code[0]}: code that comes with a model is never run, and transformers {__version__} alone "
                f"cannot load this one; use a model that transformers supports ({reason:.100})"
            ) from None
        raise CheckpointError(f"{folder}: cannot be loaded: {reason or type(error).__name__:.300}") from None


def _require_plain(folder: Path) -> None:
    # Not at the top: they import numpy, and programs set its variables first.
    from shadowft_core.weights.entries import require_own_files
    from shadowft_core.weights.settings import SpecialTokens, TokenizerConfig, read_config, read_settings

    if not folder.is_dir():  # transformers would take it for a name on the hub
        raise CheckpointError(f"{folder}: no such folder; expected a Hugging Face model folder")
    require_own_files(folder)
    read_settings(folder, "tokenizer_config.json", TokenizerConfig)  # transformers ends on others much later
    read_settings(folder, "special_tokens_map.json", SpecialTokens)
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: transformers would add this adapter to the weights of the model in the "
            "same folder; move the adapter to a separate folder"
        )
    read_settings(folder, "tokenizer_config.json", TokenizerConfig)
    path = folder / "config.json"
    if not path.is_file():
        return
    for key, value in _settings(read_config(folder)):
        if key in _REPEATED and isinstance(value, int) and not 0 <= value <= LAYERS:
            raise CheckpointError(f"{path}: {key} is {value:.4g}, expected at most {LAYERS}; use another model")
        if key == "transformers_weights" and value:
            raise CheckpointError(
                f"{path}: transformers_weights is {value!r}, but only model.safetensors and its index are read; "
                "rename the weights and remove the field"
            )
        if key in _KERNELS and (kernel := next((text for text in _texts(value) if "/" in text), None)):
            raise CheckpointError(f"{path}: {key} is {kernel!r}, and downloaded code is never run; remove the field")


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a config and of its nested configs."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from _settings(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
