"""How tensor names are read: numbers, prefixes and suffixes, and the names that published models share.

tests/families/generate.py writes the table with the same functions.
"""

import re
from collections.abc import Iterator, Mapping

EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|tok_embeddings|wte|word_embeddings|embed_in|shared|embed_tokens_per_layer)\.weight$"
)
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|^((language_)?model\.)?output\.weight$")
ROUTER = re.compile(r"(^|\.)(router|mlp\.gate|block_sparse_moe\.gate|moe\.gate)\.weight$")
MATRIX = re.compile(r"(^|\.)(\w*proj|\w*fc\d*|wqkv|w[123qkvo]|W_pack|query_key_value|dense\w*|c_attn)\.weight$")
NO_MATRIX = re.compile(r"(?i)embed(?!\w*proj)|position|norm|router|(^|\.)(wpe|(\w*_)?ln\w*|gate)\.weight$")
_OTHER_INPUTS = re.compile(
    r"(^|\.)(visual|vision\w*|image\w*|multi_modal\w*|mm_projector|embed_vision|audio\w*|embed_audio)\."
)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def is_language(name: str) -> bool:
    """Whether a tensor belongs to the language model rather than to a vision or audio part or its projector."""
    return _OTHER_INPUTS.search(name) is None


def layer_of(name: str) -> str | None:
    """The number of the layer that holds a tensor; None outside the layers."""
    found = _LAYER.search(name)
    return found[1] if found else None


def module_of(name: str) -> str:
    """The last word of the name of a tensor's module, such as `q_proj`."""
    return re.sub(r"\.(weight|bias)$", "", name).rsplit(".", 1)[-1]


def without_numbers(name: str) -> str:
    """The name with `#` for the number of a layer or an expert; a number within a sequence (`mlp.0.weight`) stays."""
    return re.sub(r"(?<=\.)\d+(?=\.(?!(weight|bias)$)|$)", "#", name)


def renamed(name: str, rules: Mapping[str, str]) -> str:
    """The name with its longest known prefix replaced; the numbers that `#` matches stay."""
    if not rules:
        return name
    steps = name.split(".")
    shown = without_numbers(name).split(".")
    for length in range(len(steps), 0, -1):
        if (found := rules.get(".".join(shown[:length]))) is not None:
            numbers = iter([s for s, p in zip(steps[:length], shown[:length], strict=True) if p == "#"])
            return ".".join([next(numbers) if s == "#" else s for s in found.split(".")] + steps[length:])
    return name


def endings(name: str) -> Iterator[str]:
    """The suffixes of a name in whole steps, shortest first; `weight` or `bias` is never a suffix on its own."""
    steps = name.split(".")
    for length in range(2 if steps[-1] in ("weight", "bias") else 1, len(steps) + 1):
        yield ".".join(steps[-length:])
