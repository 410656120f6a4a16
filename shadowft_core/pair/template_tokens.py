"""Finds the tokens in the chat template of an Instruct, and in its stop ids, that the Base never trained."""

from collections.abc import Mapping

from shadowft_core.files import read_regular
from shadowft_core.limits import CONFIG_BYTES
from shadowft_core.weights import Checkpoint, UntrainedToken, read_vocabulary, untrained_tokens
from shadowft_core.weights.entries import TEMPLATES
from shadowft_core.weights.settings import AddedToken, GenerationConfig, Token, TokenizerConfig, read_settings

PADDING = 64  # rows after the vocabulary that are read, as a sample of unused rows
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


def untrained_in_base(base: Checkpoint, instruct: Checkpoint) -> list[UntrainedToken]:
    """The tokens that the chat template writes or that end a reply, and that the Base never trained.

    Reads a few rows of both models. Empty without a tokenizer.json; `pair` warns of that separately.
    """
    found = read_vocabulary(instruct.path)
    if found is None:
        return []
    words, added = found
    stops = _stops(instruct, words)
    texts = _templates(instruct)
    config = read_settings(instruct.path, "tokenizer_config.json", TokenizerConfig)
    named = {_content(getattr(config, name)) for name in _NAMED if name in texts}
    used = {number for number in added if (words[number] in texts or words[number] in named)} | stops
    after = max(words, default=-1) + 1
    unused = (added - used) | set(range(after, after + PADDING))
    return untrained_tokens(base, instruct, {number: words[number] for number in used}, stops, unused)


def _templates(instruct: Checkpoint) -> str:
    """All chat templates of a folder, joined."""
    files = [instruct.path / "chat_template.jinja", *sorted((instruct.path / TEMPLATES).glob("*.jinja"))]
    texts = [read_regular(file, CONFIG_BYTES).decode("utf-8", "replace") for file in files if file.exists()]
    for name in ("chat_template.json", "tokenizer_config.json"):
        texts += read_settings(instruct.path, name, TokenizerConfig).templates
    return "\n".join(texts)


def _stops(instruct: Checkpoint, words: Mapping[int, str]) -> set[int]:
    """The ids that end a reply, the same as those of `rendering.stop_ids`."""
    numbers = set(read_settings(instruct.path, "generation_config.json", GenerationConfig).stops)
    eos = _content(read_settings(instruct.path, "tokenizer_config.json", TokenizerConfig).eos_token)
    return {number for number, text in words.items() if number in numbers or text == eos}


def _content(token: Token) -> str | None:
    """The text of a special token. tokenizer_config.json has it as text, or as an object with `content`."""
    return token.content if isinstance(token, AddedToken) else token
