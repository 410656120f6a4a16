"""Finds the tokens in the chat template of an Instruct, and in its stop ids, that the Base never trained."""

from collections.abc import Mapping
from typing import Any

from shadowft_core.files import read_json_object
from shadowft_core.weights import Checkpoint, UntrainedToken, read_vocabulary, untrained_tokens

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
    config = _optional(instruct, "tokenizer_config.json")
    named = {_content(config.get(name)) for name in _NAMED if name in texts}
    used = {number for number in added if (words[number] in texts or words[number] in named)} | stops
    after = max(words, default=-1) + 1
    unused = (added - used) | set(range(after, after + PADDING))
    return untrained_tokens(base, instruct, {number: words[number] for number in used}, stops, unused)


def _templates(instruct: Checkpoint) -> str:
    """All chat templates of a folder, joined."""
    files = [instruct.path / "chat_template.jinja", *(instruct.path / "additional_chat_templates").glob("*.jinja")]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    for name in ("chat_template.json", "tokenizer_config.json"):
        held = _optional(instruct, name).get("chat_template")
        texts += [held] if isinstance(held, str) else [str(one.get("template")) for one in held or []]
    return "\n".join(texts)


def _stops(instruct: Checkpoint, words: Mapping[int, str]) -> set[int]:
    """The ids that end a reply, the same as those of `rendering.stop_ids`."""
    listed = _optional(instruct, "generation_config.json").get("eos_token_id")
    numbers = listed if isinstance(listed, list) else [listed]
    eos = _content(_optional(instruct, "tokenizer_config.json").get("eos_token"))
    return {number for number, text in words.items() if number in numbers or text == eos}


def _content(token: Any) -> Any:
    """The text of a special token. tokenizer_config.json has it as text, or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _optional(model: Checkpoint, name: str) -> dict[str, Any]:
    file = model.path / name
    return read_json_object(file) if file.is_file() else {}
