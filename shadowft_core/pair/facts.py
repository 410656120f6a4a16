"""Compares configs, headers, tokenizers and templates of two models: reasons to refuse a pair, and warnings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import PairError, QuantisedError, SwappedError
from shadowft_core.loading import own_code
from shadowft_core.pair.layout import Match, head, match
from shadowft_core.pair.tokens import Vocabularies, compare_tokenizers
from shadowft_core.weights import FLOATS, Checkpoint, note_unknown
from shadowft_core.weights.settings import TokenizerConfig, read_settings

# Config fields that change the meaning of a weight and do not show in shapes.
_MUST_AGREE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
_PACKED = ("F8_E4M3", "F8_E5M2", "I8", "U8")  # fp8, int8, and four bits two to a byte


@dataclass(frozen=True)
class Comparison:
    """The comparison of a pair without its weights."""

    matches: list[Match]
    warned: list[str]
    facts: dict[str, dict[str, Any]]
    """of `base` and `instruct`: architecture, sizes, dtypes, tie, number of tokens, chat template, rope; JSON"""


def compare(
    base: Checkpoint, instruct: Checkpoint, ignore: Sequence[str] = (), standing: Sequence[str] = ()
) -> Comparison:
    """Compare two models without reading weights. `ignore` and `standing` as in `match`.

    Raises PairError with every reason to refuse in one line, or QuantisedError or SwappedError if a reason is one.
    Raises InputError for a wrong pattern.
    """
    for model in (base, instruct):
        note_unknown(model)
    refused = [*_quantised(base, instruct), *_settings(base, instruct)]
    warned: list[str] = []
    if _rope(base) != _rope(instruct):
        warned.append(f"rope is {_rope(base)} in the Base, {_rope(instruct)} in the Instruct")
    if base.family.setting("rms_norm_eps") != instruct.family.setting("rms_norm_eps"):
        warned.append(
            f"rms_norm_eps is {base.family.setting('rms_norm_eps')} and {instruct.family.setting('rms_norm_eps')}"
        )
    for name, model in (("Base", base), ("Instruct", instruct)):
        if code := own_code(model.path):
            warned.append(f"the {name} includes code, which is never run ({', '.join(code[:8])})")
    refused += _templates(base.path, instruct.path)
    matches: list[Match] = []
    found = Vocabularies(base, instruct)
    try:
        warned += compare_tokenizers(base, instruct, found)
        matches, misfits, odd = match(base, instruct, found, ignore, standing)
        refused += [PairError(reason) for reason in misfits]
        warned += odd
    except PairError as error:
        refused.append(error)
    if refused:
        kind = next((type(reason) for reason in refused if type(reason) is not PairError), PairError)
        reasons = "; ".join(map(str, refused))
        raise kind(f"{base.path} and {instruct.path} may not be paired: {reasons}")
    sides = zip(("base", "instruct"), (base, instruct), found.sizes, strict=True)
    return Comparison(matches, warned, {role: _describe(model, size) for role, model, size in sides})


def _describe(model: Checkpoint, tokens: int) -> dict[str, Any]:
    infos = [model.info(name) for name in model.names]
    return {
        "model_type": model.config.get("model_type"),
        "architectures": model.config.get("architectures"),
        "tensors": len(infos),
        "weights": sum(info.size for info in infos),
        "dtypes": sorted({info.dtype for info in infos}),
        "tied": head(model) is None,
        "tokens": tokens or None,
        "chat_template": has_template(model.path),
        "rope": _rope(model),
    }


def has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return bool(read_settings(folder, "tokenizer_config.json", TokenizerConfig).templates)


def _quantised(base: Checkpoint, instruct: Checkpoint) -> Iterator[PairError | QuantisedError]:
    for name, model in (("Base", base), ("Instruct", instruct)):
        if model.config.get("quantization_config"):
            yield QuantisedError(f"the {name} is quantised; use the original weights")
        for tensor in model.names:
            dtype = model.info(tensor).dtype
            if dtype in _PACKED or dtype == "F64":
                kind = QuantisedError if dtype in _PACKED else PairError
                yield kind(f"the {name} has {tensor} as {dtype}; expected {', '.join(FLOATS)}")
                break


def _settings(base: Checkpoint, instruct: Checkpoint) -> Iterator[PairError]:
    for key in _MUST_AGREE:
        ours, theirs = base.family.setting(key), instruct.family.setting(key)
        if ours != theirs:
            yield PairError(f"{key} is {ours!r:.80} in the Base, {theirs!r:.80} in the Instruct")


def _templates(base: Path, instruct: Path) -> Iterator[PairError]:
    if not has_template(instruct):
        if has_template(base):
            yield SwappedError("the Instruct has no chat template; are Base and Instruct swapped?")
        else:
            yield PairError("the Instruct has no chat template")
    if not (instruct / "tokenizer.json").is_file() and not (instruct / "tokenizer.model").is_file():
        yield PairError("the Instruct has no tokenizer.json and no tokenizer.model")


def _rope(model: Checkpoint) -> dict[str, Any]:
    """Rope settings in one form: newer configs have rope_parameters, older ones rope_theta and rope_scaling."""
    rope = {**(model.family.setting("rope_scaling") or {}), **(model.family.setting("rope_parameters") or {})}
    if (theta := model.family.setting("rope_theta")) is not None:
        rope.setdefault("rope_theta", theta)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope
