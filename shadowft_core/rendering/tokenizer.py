"""Loads the Instruct's tokenizer with its chat template, for training and evaluation."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import TrainError
from shadowft_core.files import read_json_object
from shadowft_core.loading import load
from shadowft_core.rendering.images import load_processor
from shadowft_core.rendering.samples import Renderer
from shadowft_core.rendering.template import dated, require_texts
from shadowft_core.weights.settings import GenerationConfig, read_settings

if TYPE_CHECKING:
    from shadowft_core.params import Render


def load_renderer(instruct: Path, settings: "Render") -> Renderer:
    """The renderer of an Instruct folder. Raises what `load_tokenizer` and `Renderer` raise."""
    tokenizer = load_tokenizer(instruct)
    return Renderer(tokenizer, stop_ids(tokenizer, instruct), settings, partial(load_processor, instruct))


def load_tokenizer(instruct: Path) -> Any:
    """The tokenizer of an Instruct folder. Its chat template writes a fixed date (`template.dated`).

    Raises CheckpointError if it cannot be read, TrainError if it has no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = load(AutoTokenizer, instruct)
    template = tokenizer.chat_template
    if not template and (instruct / "chat_template.json").is_file():  # older folders keep that of the processor there
        template = read_json_object(instruct / "chat_template.json").get("chat_template")
    if not template:
        raise TrainError(f"{instruct}: the tokenizer has no chat template; check fetch.instruct")
    require_texts(template)
    if isinstance(template, dict):
        tokenizer.chat_template = {name: dated(text) for name, text in template.items()}
    else:
        tokenizer.chat_template = dated(template)
    return tokenizer


def stop_ids(tokenizer: Any, instruct: Path) -> set[int]:
    """The ids that end a reply: the tokenizer's eos and every eos of generation_config.json.

    Raises CheckpointError for one that is no id of a token.
    """
    listed = read_settings(instruct, "generation_config.json", GenerationConfig).stops
    return {one for one in (tokenizer.eos_token_id, *listed) if one is not None}
