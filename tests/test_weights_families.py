"""The table of families against transformers itself, and unknown families by their names."""

import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import pytest

from shadowft_core.weights import Family, open_checkpoint
from shadowft_core.weights.families import LINEAR
from shadowft_core.weights.families.table import table
from tests.families import generate as generator
from tests.families.oracle import linear_parameters, start
from tests.families.tiny import config_of

EMBEDDINGS = (
    "model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.tok_embeddings.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
    "gpt_neox.embed_in.weight",
)
HEADS = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "model.output.weight",
    "language_model.output.weight",
)
OTHERS = ("lm_head.bias", "model.embed_tokens_per_layer.weight")
NONE = (
    "model.layers.0.attention.output.weight",
    "bert.encoder.output.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.embed_tokens.weight_scale",
    "my_lm_head.weight",
)
FRESH = (
    "bart",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "jamba",
    "llama",
    "mixtral",
    "mllama",
    "qwen2_5_vl",
    "qwen2_moe",
)
SAVED = (
    "bloom",
    "deepseek_v3",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "llava",
    "mixtral",
    "mllama",
    "phimoe",
    "qwen2_5_vl",
    "t5",
)
TIE = "tie_word_embeddings"


def test_embeddings_and_heads_of_an_unknown_class_are_found_by_name() -> None:
    family = Family({"model_type": "unknown"}, ())
    names = EMBEDDINGS + HEADS + OTHERS + NONE
    assert tuple(filter(family.is_embedding, names)) == EMBEDDINGS
    assert tuple(filter(family.is_head, names)) == HEADS
    assert tuple(filter(family.is_vocabulary, names)) == EMBEDDINGS + HEADS + OTHERS


def test_the_table_matches_the_installed_transformers() -> None:
    assert table()["transformers"] == version("transformers"), "run python -m tests.families.generate"
    assert table()["types"] == generator.classes()


@pytest.mark.parametrize("model_type", FRESH)
def test_an_entry_matches_its_class(model_type: str) -> None:
    name = table()["types"][model_type]
    entry, kinds = generator.facts(generator.build(model_type, name))
    assert {key: value for key, value in table()["classes"][name].items() if key != "kinds"} == entry
    family = Family({"architectures": [name]}, ())
    assert {found: family.kind(found.replace("#", "3")) for found in kinds} == kinds


@pytest.fixture(scope="module", params=SAVED)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Family, set[str]]:
    """A tiny model, its family as read from the folder that save_pretrained wrote, and the names in its files."""
    model, folder = start(request.param, "float32"), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    return model, Family(checkpoint.config, checkpoint.names), set(checkpoint.names)


def test_names_map_to_those_in_files_and_back(saved: tuple[Any, Family, set[str]]) -> None:
    """Every parameter is found in the files under its name there, except experts stored in another layout."""
    model, family, names = saved
    assert family.known
    found = {name: family.in_files(name) for name, _ in model.named_parameters()}
    experts = {name for name in found if name.rpartition(".")[2] in family.experts}
    assert {name for name in found if found[name] not in names} <= experts
    whole = {name: there for name, there in found.items() if there in names}
    assert {there: family.in_memory(there) for there in whole.values()} == {
        there: name for name, there in whole.items()
    }


def test_the_longest_known_prefix_decides() -> None:
    """Bailing renames `attention`, and `attention.b_proj` differently."""
    rules = dict(table()["classes"]["BailingHybridForCausalLM"]["files"])
    family = Family({"architectures": ["BailingHybridForCausalLM"]}, ())
    assert {ours: family.in_files(ours) for ours in rules} == rules


def test_kinds_are_those_of_torch(saved: tuple[Any, Family, set[str]]) -> None:
    import torch

    model, family, names = saved
    linear = linear_parameters(model)
    for name, tensor in model.named_parameters():
        there = family.in_files(name)
        if tensor.ndim < 2 or "bias" in name or there not in names:
            continue
        kind, module = family.kind(there), model.get_submodule(name.rpartition(".")[0])
        assert kind == family.kind(name)
        assert (kind in LINEAR) == (name in linear), f"{name} is {kind}"
        assert (kind in ("embedding", "positions")) == isinstance(module, torch.nn.Embedding), f"{name} is {kind}"
        assert (kind == "head") == (module is model.get_output_embeddings()), f"{name} is {kind}"


def test_published_names_of_gpt2_lack_the_prefix() -> None:
    config = {"architectures": ["GPT2LMHeadModel"]}
    bare = Family(config, ["wte.weight", "h.0.attn.c_attn.weight", "h.0.ln_1.bias", "h.0.attn.bias"])
    assert bare.in_files("transformer.h.0.attn.c_attn.weight") == "h.0.attn.c_attn.weight"
    assert bare.in_memory("h.0.ln_1.bias") == "transformer.h.0.ln_1.bias"
    assert bare.in_memory("lm_head.weight") == "lm_head.weight"
    assert bare.kind("h.0.attn.c_attn.weight") == "conv1d"
    assert bare.ties() == {"lm_head.weight": "wte.weight"}


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom", "gemma3", "llava", "qwen2_5_vl"]
)
def test_ties_are_those_that_the_class_makes(model_type: str) -> None:
    """With every setting in config.json: the field true, false or missing, for the whole model and its text part."""
    import transformers

    name = table()["types"][model_type]
    plain = config_of(model_type).to_dict()
    states = [None, True, False]
    for whole in states:
        for text in states if "text_config" in plain else [None]:
            written = {key: value for key, value in plain.items() if key != TIE} | (
                {} if whole is None else {TIE: whole}
            )
            if "text_config" in plain:
                inner = {key: value for key, value in plain["text_config"].items() if key != TIE}
                written["text_config"] = inner | ({} if text is None else {TIE: text})
            model = getattr(transformers, name)._from_config(transformers.CONFIG_MAPPING[model_type].from_dict(written))
            head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
            family = Family(written | {"architectures": [name]}, ())
            assert bool(family.ties()) == (head is embedding), f"{TIE}: {whole}, in text_config: {text}"


def test_an_unknown_class_is_judged_by_its_config_and_names() -> None:
    """A head that is not stored is the embedding, unless the config says no; otherwise the weights decide."""
    both = ["model.embed_tokens.weight", "lm_head.weight"]
    for names, says, ties in (
        (both, {TIE: True}, None),
        (both, {}, None),
        (both[:1], {TIE: True}, {"lm_head.weight": "model.embed_tokens.weight"}),
        (both[:1], {}, {"lm_head.weight": "model.embed_tokens.weight"}),
        (both[:1], {TIE: False}, None),
        (["norm.weight"], {TIE: True}, None),
    ):
        family = Family({"model_type": "unknown"} | says, names)
        assert not family.known
        assert family.ties() == ties, f"{names} {says}"


def test_only_tensors_that_the_class_does_not_load_are_ignored() -> None:
    gpt2 = Family({"architectures": ["GPT2LMHeadModel"]}, ())
    assert gpt2.ignores("transformer.h.0.attn.bias")
    assert gpt2.ignores("h.11.attn.bias")
    assert not gpt2.ignores("transformer.h.0.attn.c_attn.bias")
    llama = Family({"architectures": ["LlamaForCausalLM"]}, ())
    assert llama.ignores("model.layers.0.self_attn.rotary_emb.inv_freq")
    within = Family({"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "gpt2"}}, ())
    assert within.ignores("model.language_model.h.0.attn.bias")
    assert not any(map(llama.ignores, ("model.norm.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.bias")))


def test_the_table_is_read_fast_and_without_torch() -> None:
    table.cache_clear()
    begun = time.process_time()
    table()
    assert time.process_time() - begun < 0.1
    code = "import sys, shadowft_core.weights.families; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", [name for name, entry in table()["classes"].items() if entry.get("files")])
def test_every_prefix_maps_to_that_in_files_and_back(name: str) -> None:
    entry = table()["classes"][name]
    files = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in entry["files"]}
    memory = {f"{start}.weight": f"{there}.weight" for start, there in entry.get("memory", [])}
    family = Family({"architectures": [name]}, ())
    assert {ours: family.in_files(ours) for ours in files} == files
    memory = memory or {theirs: ours for ours, theirs in files.items()}
    assert {theirs: family.in_memory(theirs) for theirs in memory} == memory


@pytest.mark.parametrize(
    ("model_type", "parameter", "stored"),
    [
        ("kimi_linear", "model.layers.0.self_attn.b_proj.weight", "model.layers.0.self_attn.b_proj.weight"),
        ("kimi_linear", "model.layers.0.self_attn.forget_gate.A_log", "model.layers.0.self_attn.A_log"),
        ("qianfan_ocr", "model.multi_modal_projector.linear_1.weight", "mlp1.1.weight"),
        ("qianfan_ocr", "model.multi_modal_projector.linear_2.weight", "mlp1.3.weight"),
    ],
)
def test_a_rule_for_one_name_changes_no_other(model_type: str, parameter: str, stored: str) -> None:
    family = Family({"model_type": model_type}, ())
    assert (family.in_files(parameter), family.in_memory(stored)) == (stored, parameter)
