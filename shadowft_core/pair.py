"""May this Base and this Instruct be paired? And the fetch stage, which resolves, checks and pins both.

What would make a grafted model wrong is refused; what is merely unusual is a warning with both values. The distance is
sigma = sum|B - I| / (sum|B| + sum|I|), the ratio of sums over all tensors (0: identical, 1: unrelated; Shadow-FT,
section 3). Published pairs lie between 0.003 and 0.1.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import (
    CHUNK,
    FLOATS,
    INDEX,
    WORKERS,
    Checkpoint,
    new_folder,
    open_checkpoint,
    read_json_object,
    read_vocabulary,
    write_json_atomically,
)
from shadowft_core.errors import InputError, PairError
from shadowft_core.params import Fetch

SIGMA_NEAR, SIGMA_FAR = 0.001, 0.1
PAIR = "pair.json"
# Config fields that shapes do not show and that change what a weight means.
_MUST_AGREE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
_SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken"]
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class _Facts:
    """What can be known of a model without its weights."""

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """name to (dtype, shape), without a head that is tied to the embedding"""
    tied: bool


def check_pair(base: Path, instruct: Path) -> dict[str, Any]:
    """Check a Base folder against an Instruct folder: headers, configs and tokenizers first, then all weights.

    Returns `{"verdict": "ok"|"warn", "reasons": [...], "sigma": {"overall", "layers": {...}, "modules": {...}},
    "tokenizer_digest", "base": {"digest"}, "instruct": {"digest"}}`, the tokenizer being the Instruct's.
    Raises PairError with all reasons in one line when the pair is refused, CheckpointError for an unusable folder.
    """
    ours, theirs = open_checkpoint(base), open_checkpoint(instruct)
    reasons = _check_facts(_facts(ours), _facts(theirs))
    sigma = _sigma(ours, theirs)
    digests = ours.digest(), theirs.digest()
    if digests[0] == digests[1]:
        raise PairError(f"{base} and {instruct} are the same model, {digests[0]}; pass the Base and its Instruct")
    if sigma["overall"] > SIGMA_FAR:
        reasons.append(f"sigma {sigma['overall']:.4f} is above {SIGMA_FAR}: the two are far apart, a graft is a gamble")
    if sigma["overall"] < SIGMA_NEAR:
        reasons.append(f"sigma {sigma['overall']:.5f} is below {SIGMA_NEAR}: the two hardly differ")
    return {
        "verdict": "warn" if reasons else "ok",
        "reasons": reasons,
        "sigma": sigma,
        "tokenizer_digest": theirs.tokenizer_digest(),
        "base": {"digest": digests[0]},
        "instruct": {"digest": digests[1]},
    }


def fetch(params: Fetch, out: Path) -> None:
    """The stage: resolve both references, check the pair, write base/, instruct/ and pair.json into `out`.

    Files on the same file system are hard links. What headers, configs and tokenizers can refuse is refused before the
    weights are downloaded or copied. Raises PairError, CheckpointError, InputError; `out` is then as it was.
    """
    references = {"base": params.base, "instruct": params.instruct}
    if all(reference.startswith("hf:") for reference in references.values()):
        facts = [_hub_facts(reference) for reference in references.values()]
        _check_facts(*facts)
    resolved = {role: resolve(reference) for role, reference in references.items()}
    result = check_pair(resolved["base"][0], resolved["instruct"][0])
    record = {"format": 1, **result}
    with new_folder(out) as folder:
        for role, (source, label) in resolved.items():
            _link(open_checkpoint(source), folder / role)
            record[role] = {"ref": references[role], "label": label, **result[role]}
        write_json_atomically(folder / PAIR, record)


def resolve(reference: str) -> tuple[Path, str]:
    """The folder and the label (empty for a model as published) of a reference; made or downloaded if need be.

    A reference is a folder, `hf:OWNER/NAME@REVISION` with 40 hex digits, `pico:base|instruct` or `smollm2:...`.
    Raises InputError for anything else, and for a hub that does not answer.
    """
    kind, _, name = reference.partition(":")
    if kind == "pico":
        if name not in ("base", "instruct"):
            raise InputError(f"{reference}: unknown; use pico:base or pico:instruct")
        from shadowft_core.pico import build_pair

        return build_pair() / name, "embedded tiny pair"
    if kind == "smollm2":
        from shadowft_core.smollm2 import resolve as resolve_smollm2

        return resolve_smollm2(reference)
    if kind == "hf":
        return _download(reference, [*_SMALL_FILES, *_hub_headers(reference)]), ""
    folder = Path(reference)
    if not folder.is_dir():
        raise InputError(
            f"{reference}: no such folder; use a model folder, hf:OWNER/NAME@REVISION or pico:base|instruct"
        )
    return folder, ""


def model_label(model: Path) -> str:
    """The label that `fetch` recorded for work/pair/base or work/pair/instruct; empty when there is no record."""
    record = model.parent / PAIR
    if not record.is_file():
        return ""
    return str(read_json_object(record).get(model.name, {}).get("label", ""))


def _facts(model: Checkpoint) -> _Facts:
    tied = model.tied
    tensors = {n: (model.info(n).dtype, model.info(n).shape) for n in model.names if not (tied and n == tied[0])}
    return _Facts(model.path, model.config, tensors, tied is not None)


def _check_facts(base: _Facts, instruct: _Facts) -> list[str]:
    """Warnings of all checks that need no weights. Raises PairError naming every reason to refuse."""
    refused: list[str] = []
    warned: list[str] = []
    for key in _MUST_AGREE:
        ours, theirs = _setting(base, key), _setting(instruct, key)
        if ours != theirs:
            refused.append(f"{key} is {ours!r} in the Base, {theirs!r} in the Instruct")
    if base.tied != instruct.tied:
        refused.append(f"tie_word_embeddings is {base.tied} in the Base, {instruct.tied} in the Instruct")
    for name, facts in (("Base", base), ("Instruct", instruct)):
        if facts.config.get("quantization_config"):
            refused.append(f"the {name} is quantised; take the original weights")
        odd = [tensor for tensor, (dtype, _) in facts.tensors.items() if dtype.startswith("F8") or dtype == "F64"]
        if odd:
            refused.append(f"the {name} holds {odd[0]} as {facts.tensors[odd[0]][0]}; {', '.join(FLOATS)} are wanted")
    refused += _tensor_misfits(base, instruct)
    if _rope(base) != _rope(instruct):
        warned.append(f"rope is {_rope(base)} in the Base, {_rope(instruct)} in the Instruct")
    if _setting(base, "rms_norm_eps") != _setting(instruct, "rms_norm_eps"):
        warned.append(f"rms_norm_eps is {_setting(base, 'rms_norm_eps')} and {_setting(instruct, 'rms_norm_eps')}")
    if not _has_template(instruct.folder):
        swapped = "; are Base and Instruct swapped?" if _has_template(base.folder) else ""
        refused.append(f"the Instruct has no chat template{swapped}")
    _compare_tokenizers(base.folder, instruct.folder, refused, warned)
    if refused:
        raise PairError(f"{base.folder} and {instruct.folder} may not be paired: {'; '.join(refused)}")
    return warned


def _tensor_misfits(base: _Facts, instruct: _Facts) -> Iterator[str]:
    for name, ours, theirs in (("Base", base, instruct), ("Instruct", instruct, base)):
        if only := [tensor for tensor in ours.tensors if tensor not in theirs.tensors]:
            yield f"{len(only)} tensors stand only in the {name}, the first is {only[0]}"
    both = [name for name in base.tensors if name in instruct.tensors]
    if shapes := [name for name in both if base.tensors[name][1] != instruct.tensors[name][1]]:
        one, other = base.tensors[shapes[0]][1], instruct.tensors[shapes[0]][1]
        yield f"{len(shapes)} shapes differ, the first is {shapes[0]}: {one} in the Base, {other} in the Instruct"


def _setting(facts: _Facts, key: str) -> Any:
    text = facts.config.get("text_config")
    return facts.config.get(key, text.get(key) if isinstance(text, dict) else None)


def _rope(facts: _Facts) -> dict[str, Any]:
    """Rope settings in one spelling: newer configs hold rope_parameters, older ones rope_theta and rope_scaling."""
    rope = {**(_setting(facts, "rope_scaling") or {}), **(_setting(facts, "rope_parameters") or {})}
    if (theta := _setting(facts, "rope_theta")) is not None:
        rope.setdefault("rope_theta", theta)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json_object(config).get("chat_template"))


def _compare_tokenizers(base: Path, instruct: Path, refused: list[str], warned: list[str]) -> None:
    """Compare by token id: a delta of an embedding row is meant for the token that had this id in training."""
    files = [folder / "tokenizer.json" for folder in (base, instruct)]
    if not files[1].is_file() and not (instruct / "tokenizer.model").is_file():
        refused.append("the Instruct has no tokenizer.json and no tokenizer.model")
        return
    if not all(file.is_file() for file in files):
        warned.append("the vocabularies were not compared: both need a tokenizer.json")
        return
    ours, theirs = (read_json_object(file) for file in files)
    (words, added), (their_words, their_added) = (read_vocabulary(folder) or ({}, set()) for folder in (base, instruct))
    differing = sorted(i for i in words.keys() & their_words.keys() if words[i] != their_words[i])
    hard = [i for i in differing if i not in added or i not in their_added]
    for ids, reasons in ((hard, refused), ([i for i in differing if i not in hard], warned)):
        if ids:
            example = f"{ids[0]} is {words[ids[0]]!r} in the Base, {their_words[ids[0]]!r} in the Instruct"
            reasons.append(f"{len(ids)} token ids name different tokens, the first is {example}")
    if only := words.keys() - their_words.keys():
        warned.append(f"{len(only)} token ids stand only in the Base, the first is {min(only)} {words[min(only)]!r}")
    if only := their_words.keys() - words.keys():
        warned.append(
            f"{len(only)} token ids only in the Instruct, the first is {min(only)} {their_words[min(only)]!r}"
        )
    for part in ("normalizer", "pre_tokenizer"):
        if ours.get(part) != theirs.get(part):
            warned.append(f"the tokenizers differ in their {part}")


def _sigma(base: Checkpoint, instruct: Checkpoint) -> dict[str, Any]:
    """Overall, per layer and per kind of module, each a ratio of sums. Leaves the digests of all tensors behind."""
    names = [name for name in instruct.names if name in base and instruct.info(name).dtype in FLOATS]

    def sums(name: str) -> tuple[float, float]:
        apart = total = 0.0
        for (_, b), (_, i) in zip(
            base.chunks(name, 2 * CHUNK, hashed=True), instruct.chunks(name, 2 * CHUNK, hashed=True), strict=True
        ):
            x, y = b.astype(np.float32), i.astype(np.float32)
            total += float(np.abs(x).sum(dtype=np.float64)) + float(np.abs(y).sum(dtype=np.float64))
            x -= y
            apart += float(np.abs(x, out=x).sum(dtype=np.float64))
        if not np.isfinite(total):
            raise PairError(f"tensor {name} of {base.path} or {instruct.path} holds NaN or infinity; use intact models")
        return apart, total

    groups: dict[str, dict[str, list[float]]] = {"layers": {}, "modules": {}}
    overall = [0.0, 0.0]
    with ThreadPoolExecutor(WORKERS) as pool:
        for number, (name, (apart, total)) in enumerate(zip(names, pool.map(sums, names), strict=True), 1):
            if number % 100 == 0:
                print(f"fetch: tensor {number}/{len(names)} compared", file=sys.stderr)
            layer = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
            module = re.sub(r"\.(weight|bias)$", "", name).rsplit(".", 1)[-1]
            lists = [overall, groups["modules"].setdefault(module, [0.0, 0.0])]
            if layer:
                lists.append(groups["layers"].setdefault(layer[1], [0.0, 0.0]))
            for pair in lists:
                pair[0] += apart
                pair[1] += total
    ratio = {group: {key: _ratio(pair) for key, pair in found.items()} for group, found in groups.items()}
    return {"overall": _ratio(overall), **ratio}


def _ratio(pair: list[float]) -> float:
    return float(f"{pair[0] / pair[1]:.9g}") if pair[1] else 0.0


def _link(model: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    index = [Path(INDEX)] if (model.path / INDEX).is_file() else []
    for relative in [*map(Path, model.shards), *index, *model.other_files()]:
        source, target = (model.path / relative).resolve(), folder / relative
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)


def _hub_facts(reference: str) -> _Facts:
    """Side files and headers of a model on the hub, without its weights."""
    folder = _download(reference, _SMALL_FILES)
    headers = _hub_headers(reference).values()
    config = read_json_object(folder / "config.json")
    tied = bool(_setting(_Facts(folder, config, {}, False), "tie_word_embeddings"))
    tensors = {name: (t.dtype, tuple(t.shape)) for header in headers for name, t in header.tensors.items()}
    if tied:
        tensors.pop("lm_head.weight", None)
    return _Facts(folder, config, tensors, tied)


def _hub_headers(reference: str) -> dict[str, Any]:
    """Header by file, of exactly the weight files that the model is loaded from."""
    from huggingface_hub import HfApi

    repo, revision = _hub_name(reference)
    with _online(reference):
        return dict(HfApi().get_safetensors_metadata(repo, revision=revision).files_metadata)


def _download(reference: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    repo, revision = _hub_name(reference)
    with _online(reference):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def _hub_name(reference: str) -> tuple[str, str]:
    match = _HUB.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference}: not pinned; use hf:OWNER/NAME@REVISION with the 40 hex digits of a commit")
    return match["repo"], match["revision"]


@contextmanager
def _online(reference: str) -> Iterator[None]:
    """Lift the hub's offline switch for one call. Raises InputError in one line when the hub does not deliver."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    except Exception as error:  # the hub's library raises errors of four libraries
        reason = " ".join(str(error).split())
        raise InputError(
            f"{reference}: the hub does not deliver it ({reason:.200}); download it and pass a folder"
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = before
