"""What tensor names mean: rows of tokens by a table of names, experts by what transformers itself converts."""

import pytest

from shadowft_core.checkpoint import EXPERTS, is_embedding, is_head, is_vocabulary

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


def test_rows_of_tokens_are_known_by_name() -> None:
    names = EMBEDDINGS + HEADS + OTHERS + NONE
    assert tuple(filter(is_embedding, names)) == EMBEDDINGS
    assert tuple(filter(is_head, names)) == HEADS
    assert tuple(filter(is_vocabulary, names)) == EMBEDDINGS + HEADS + OTHERS


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_conversion_is_that_of_transformers(kind: str) -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    block, gate, up, down = EXPERTS[kind]
    mapping = get_checkpoint_conversion_mapping(kind)
    assert mapping is not None
    found = {
        converter.target_patterns[0].rpartition(".")[2]: (
            [pattern.rpartition("*.")[2] for pattern in converter.source_patterns],
            [(type(operation), operation.dim) for operation in converter.operations],
        )
        for converter in mapping
        if isinstance(converter, WeightConverter)
    }
    assert found == {
        "gate_up_proj": ([f"{gate}.weight", f"{up}.weight"], [(MergeModulelist, 0), (Concatenate, 1)]),
        "down_proj": ([f"{down}.weight"], [(MergeModulelist, 0)]),
    }
    renamed = [c.source_patterns[0] for c in mapping if c.target_patterns == [".mlp."]]
    assert renamed == ([] if block == ".mlp." else [block])
