"""The table: one row per case, with its inputs and the expected outcome."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import ml_dtypes
import numpy as np

from shadowft_core import errors
from tests.conformance import hostile, inputs, oracle
from tests.conformance.inputs import TOKENS, Change, Start, edit
from tests.conformance.oracle import Oracle

Errors = type[errors.ShadowError] | tuple[type[errors.ShadowError], ...]


class Expected(StrEnum):
    EQUAL = "equal"  # to the oracle, bit for bit
    REFUSED = "refused"  # exit code not 0, and no output folder
    EITHER = "equal or refused"


class Judged(StrEnum):
    WEIGHTS = "weights"
    FILES = "every other file of the Instruct is copied byte for byte"
    LOADS = "transformers loads it without a warning"
    TIED = "head and embedding are one tensor when loaded"


@dataclass(frozen=True)
class Case:
    group: str
    id: str
    about: str
    expected: Expected
    start: Start
    changes: tuple[Change, ...]
    oracle: Oracle = oracle.plain
    error: Errors = errors.ShadowError
    """what `shadowft` raises when it refuses the case"""
    judged: Judged = Judged.WEIGHTS


CASES: list[Case] = []
LLAMA, TIED, HALF = Start(), Start(tied=True), Start(dtype="float16")
MIXTRAL = Start("mixtral")
LORA = Start(adapter={})
EMBEDDING, HEAD = oracle.VOCABULARY
SQUARE, WIDE = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
NORM, MLP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
EXPERT = [f"model.layers.1.block_sparse_moe.experts.2.{name}.weight" for name in ("w1", "w2", "w3")]
F32, NAN, INFINITY = np.float32, float("nan"), float("inf")
NEW = (*TOKENS, "<new0>", "<new1>", "<new2>", "<new3>")


def _add(expected: Expected) -> Callable[..., None]:
    def add(group: str, name: str, about: str, *changes: Change, start: Start = LLAMA, **more: object) -> None:
        CASES.append(Case(group, name, about, expected, start, changes, **more))  # type: ignore[arg-type]

    return add


equal, refused, either = _add(Expected.EQUAL), _add(Expected.REFUSED), _add(Expected.EITHER)

G = "Families, full fine-tune"
for family in ("llama", "qwen2", "qwen3", "mistral", "phi3", "internlm2", "mixtral", "qwen3_moe", "qwen2_vl"):
    equal(G, family, "every tensor changed", start=Start(family))
for family in ("gemma3_text", "gemma3"):
    equal(G, family, "every tensor changed, tied", start=Start(family, tied=True))
for family in ("mixtral", "qwen3_moe"):
    equal(G, f"{family}-fused", "experts in one tensor", start=Start(family, fused=True))

G = "Families, LoRA"
for family in ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text"):
    start = Start(family, tied=family.startswith("gemma"), adapter={})
    equal(G, f"lora-{family}", "rank 4, all linear layers", start=start, oracle=oracle.adapted)
for family in ("mixtral", "qwen3_moe"):
    start = Start(family, adapter={"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]})
    equal(G, f"lora-{family}", "rank 4, attention", start=start, oracle=oracle.adapted)
equal(G, "lora-rslora", "alpha / sqrt(rank)", start=Start(adapter={"use_rslora": True}), oracle=oracle.adapted)
patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}}
equal(G, "lora-patterns", "rank and alpha by module", start=Start(adapter=patterns), oracle=oracle.adapted)
saved = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]}
either(G, "lora-saved-head", "modules_to_save: the head", start=Start(adapter=saved), oracle=oracle.adapted)

G = "Dtypes and shards"
equal(G, "float16", "all three", start=HALF)
equal(G, "float32", "all three", edit("tuned", inputs.jiggle), start=Start(dtype="float32"))
equal(G, "masters", "tuned model in float32", edit("tuned", inputs.cast(F32), inputs.jiggle))
wide = (edit("instruct", inputs.cast(F32), inputs.jiggle), inputs.config("instruct", dtype="float32"))
equal(G, "wide-instruct", "Instruct in float32", *wide, start=Start(dtype="bfloat16"))
equal(G, "mixed-dtypes", "one norm of the Instruct in float32", edit("instruct", inputs.cast(F32, NORM)))
for role in ("base", "tuned", "instruct"):
    equal(G, f"shards-{role}", f"{role} in three shards", inputs.sharded(role, 3))

G = "Tied heads"
equal(G, "tied", "no head in any file", start=TIED)
stored = inputs.add(HEAD, like=EMBEDDING)
equal(G, "tied-stored", "the Instruct stores its tied head", edit("instruct", stored), start=TIED, oracle=oracle.tied)
equal(G, "tied-stored-tuned", "the tuned model stores its tied head", edit("tuned", stored), start=TIED)
untie = (edit("instruct", stored, inputs.jiggle), inputs.config("instruct", tie_word_embeddings=False))
equal(G, "tied-to-untied", "Base tied, Instruct not", *untie, start=TIED, oracle=oracle.tied)
tie = (edit("instruct", inputs.drop(HEAD)), inputs.config("instruct", tie_word_embeddings=True))
refused(
    G,
    "untied-to-tied",
    "two deltas for one tied tensor of the Instruct",
    *tie,
    error=errors.MisfitError,
)
torn = edit("tuned", stored, inputs.put(HEAD, 1.0))
refused(G, "tied-torn", "tied by config, yet head and embedding differ", torn, start=TIED, error=errors.CheckpointError)

G = "Rows by token"
token = {"oracle": oracle.by_token}
equal(G, "rows-padded", "Instruct padded by 8 rows", inputs.vocabulary(padding=8), **token)
equal(G, "rows-more", "four added tokens and 4 padding rows", inputs.vocabulary(NEW, 4), **token)
equal(G, "rows-more-tied", "the same, tied", inputs.vocabulary(NEW, 4), start=TIED, **token)
equal(G, "rows-fewer", "the Instruct lacks four tokens", inputs.vocabulary(TOKENS[:60]), **token)
turned = (*TOKENS[:2], TOKENS[4], TOKENS[2], TOKENS[3], *TOKENS[5:])
equal(G, "rows-permuted", "three added tokens change places", inputs.vocabulary(turned), **token)
renamed = (*TOKENS[:40], "<tool>", *TOKENS[41:])
equal(G, "rows-reused", "one id means another token", inputs.vocabulary(renamed), **token)
padded = (inputs.vocabulary(padding=8, role="base"), inputs.vocabulary(padding=8, role="tuned"))
equal(G, "rows-padded-base", "Base padded by 8 rows", *padded, **token)
more = inputs.vocabulary(NEW, 4)
equal(G, "rows-more-lora", "an adapter does not touch rows", more, start=LORA, oracle=oracle.adapted)
no_tokenizer = [inputs.without(role, "tokenizer.json") for role in ("base", "instruct")]
equal(G, "rows-unnamed", "no tokenizer.json anywhere, equal rows", *no_tokenizer)
for role, change in zip(("base", "instruct"), no_tokenizer, strict=True):
    unknown = (inputs.vocabulary(NEW, 4), change)
    refused(G, f"rows-unknown-{role}", f"more rows, no tokenizer in {role}", *unknown, error=errors.TokenMismatchError)

G = "Experts"
fuse = edit("instruct", inputs.relayout(oracle.fuse))
mixed = {"oracle": oracle.converted}
for family in ("mixtral", "qwen3_moe"):
    either(G, f"mixed-{family}", "split Base, fused Instruct", fuse, start=Start(family), **mixed)
    split = edit("instruct", inputs.relayout(functools.partial(oracle.split, old=family == "mixtral")))
    fused = Start(family, fused=True)
    either(G, f"mixed-{family}-back", "fused Base, split Instruct", split, start=fused, **mixed)
fuse = edit("tuned", inputs.relayout(oracle.fuse))
either(G, "mixed-tuned", "split Base, fused tuned model", fuse, start=MIXTRAL, **mixed)
for role in ("tuned", "instruct"):
    dropped = edit(role, inputs.drop(*EXPERT))
    refused(G, f"dropped-{role}", f"{role} lacks one expert", dropped, start=MIXTRAL, error=errors.TensorMissingError)
fewer = edit("instruct", *(inputs.shorten(f"model.layers.1.mlp.experts.{n}") for n in ("gate_up_proj", "down_proj")))
refused(
    G,
    "dropped-fused",
    "instruct has one fewer",
    fewer,
    start=Start("mixtral", fused=True),
    error=errors.TensorMissingError,
)

G = "Inputs that do not fit"
for role in ("tuned", "instruct"):
    lost = edit(role, inputs.drop(MLP))
    refused(G, f"missing-{role}", f"a tensor missing in {role}", lost, error=errors.TensorMissingError)
    extra = edit(role, inputs.add("model.layers.2.mlp.up_proj.weight", like=MLP))
    refused(G, f"extra-{role}", f"an extra tensor in {role}", extra, error=errors.TensorMissingError)
    other = edit(role, inputs.rename(MLP, MLP.replace("up_proj", "w3")))
    refused(G, f"renamed-{role}", f"a tensor renamed in {role}", other, error=errors.TensorMissingError)
    turned_wide = edit(role, inputs.transpose(WIDE))
    refused(G, f"transposed-{role}", "a rectangular matrix", turned_wide, error=errors.ShapeMismatchError)
    turned_square = edit(role, inputs.transpose(SQUARE))
    refused(
        G,
        f"transposed-square-{role}",
        "a square matrix, whose shape still fits",
        turned_square,
        error=errors.UnrelatedError,
    )
    foreign = inputs.another_seed(role)
    refused(G, f"foreign-{role}", f"{role}: other weights, equal shapes", foreign, error=errors.UnrelatedError)
foreign = inputs.another_seed("base")
refused(G, "foreign-base", "delta of another Base", foreign, error=errors.UnrelatedError)
mistral = inputs.replace("instruct", Start("mistral"), "instruct")
refused(G, "family-alike", "a Mistral Instruct of the same names and shapes", mistral, error=errors.UnrelatedError)
phi = inputs.replace("instruct", Start("phi3"), "instruct")
refused(G, "family", "a Phi3 Instruct", phi, error=errors.TensorMissingError)
swapped = (inputs.record, inputs.swap)
refused(
    G, "swapped", "Base and Instruct swapped; tuned/train.json names the Base", *swapped, error=errors.WrongBaseError
)
newer = (inputs.record, inputs.nearby("base"))
refused(G, "newer-base", "a near relative of the Base that tuned/train.json names", *newer, error=errors.WrongBaseError)
refused(G, "onto-base", "the Instruct is the Base", inputs.copy("base", "instruct"), error=errors.OntoBaseError)
onto_base = {"start": LORA, "error": errors.OntoBaseError}
refused(G, "onto-base-lora", "the same with an adapter", inputs.copy("base", "instruct"), **onto_base)
foreign_lora = {"start": LORA, "error": errors.UnrelatedError}
refused(G, "foreign-lora", "an adapter, an Instruct of other weights", inputs.another_seed("instruct"), **foreign_lora)
phi_adapter = inputs.replace("adapter", Start("phi3", adapter={}), "adapter")
refused(G, "adapter-family", "the adapter of a Phi3", phi_adapter, start=LORA, error=errors.AdapterError)
half = inputs.edit_adapter(inputs.drop(f"base_model.model.{MLP.replace('.weight', '.lora_A.weight')}"))
refused(G, "adapter-half", "one factor is missing", half, start=LORA, error=errors.AdapterError)
name = f"base_model.model.{MLP.removesuffix('.weight')}"
gone = inputs.edit_adapter(inputs.drop(f"{name}.lora_A.weight", f"{name}.lora_B.weight"))
refused(G, "adapter-module", "both factors of a module are missing", gone, start=LORA, error=errors.AdapterError)

G = "Numbers"
refused(G, "zero", "the tuned model is the Base", inputs.copy("base", "tuned"), error=errors.ZeroDeltaError)
nothing = inputs.edit_adapter(inputs.zero("lora_B"))
refused(G, "zero-lora", "an adapter before its first step", nothing, start=LORA, error=errors.ZeroDeltaError)
for role in ("base", "tuned", "instruct"):
    for word, value in (("nan", NAN), ("infinity", INFINITY)):
        poison = edit(role, inputs.put(SQUARE, value))
        refused(G, f"{word}-{role}", f"one {word} in {role}", poison, error=errors.NotFiniteError)
poison_lora = inputs.edit_adapter(inputs.put(f"{name}.lora_B.weight", NAN))
refused(G, "nan-lora", "one nan in a factor", poison_lora, start=LORA, error=errors.NotFiniteError)
heights = {"base": 40000.0, "tuned": 60000.0, "instruct": 60000.0}
high = [edit(role, inputs.put(SQUARE, value)) for role, value in heights.items()]
refused(G, "overflow", "60000 + 20000 in float16", *high, start=HALF, error=errors.CastOverflowError)

G = "Quantised weights"
for role in ("base", "tuned", "instruct"):
    quantised = inputs.config(role, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(G, f"quantised-{role}", f"{role}: a quantization_config", quantised, error=errors.QuantisedError)
    refused(
        G,
        f"int8-{role}",
        f"a matrix of {role} in int8",
        edit(role, inputs.eight_bits(SQUARE)),
        error=errors.QuantisedError,
    )
    fp8 = edit(role, inputs.cast(ml_dtypes.float8_e4m3fn, SQUARE))
    refused(G, f"fp8-{role}", f"a matrix of {role} in float8", fp8, error=errors.QuantisedError)

G = "Broken or hostile files"
lying = {"error": errors.CheckpointError}
for role in ("tuned", "instruct"):
    refused(G, f"index-outside-{role}", f"{role}: index with ../", hostile.index_outside(role), **lying)
    double = hostile.duplicate_key(role, SQUARE, SQUARE.replace(".0.", ".1."))
    refused(G, f"duplicate-{role}", f"{role}: a duplicate key in a header", double, **lying)
    refused(G, f"truncated-{role}", f"{role}: a shard 100 bytes short", hostile.truncated(role), **lying)
    refused(G, f"stale-{role}", f"{role}: a shard that no index names", hostile.stale_shard(role, SQUARE), **lying)
    refused(G, f"pickle-{role}", f"{role}: only a pickle, which runs code", hostile.pickle_only(role), **lying)
equal(G, "own-code", "the Instruct comes with modeling code, which must not run", hostile.own_code("instruct"))

G = "The finished folder"
templates = inputs.more_files("instruct")
for name, start in (("", LLAMA), ("-lora", LORA)):
    equal(G, f"files{name}", Judged.FILES, templates, start=start, judged=Judged.FILES)
    equal(G, f"loads{name}", Judged.LOADS, start=start, judged=Judged.LOADS)
equal(G, "loads-vision", Judged.LOADS, start=Start("gemma3", tied=True), judged=Judged.LOADS)
equal(G, "loads-more-rows", Judged.LOADS, inputs.vocabulary(NEW, 4), judged=Judged.LOADS)
for name, start in (("", TIED), ("-lora", Start(tied=True, adapter={}))):
    equal(G, f"stays-tied{name}", Judged.TIED, start=start, judged=Judged.TIED)
equal(G, "stays-tied-stored", Judged.TIED, edit("instruct", stored), start=TIED, judged=Judged.TIED)
