"""What tensor names mean: rows of tokens by a table of names, experts by what transformers itself converts."""

from shadowft_core.checkpoint import Family

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


def test_rows_of_tokens_are_known_by_name_where_the_class_is_not() -> None:
    family = Family({"model_type": "nobody_knows"}, ())
    names = EMBEDDINGS + HEADS + OTHERS + NONE
    assert tuple(filter(family.is_embedding, names)) == EMBEDDINGS
    assert tuple(filter(family.is_head, names)) == HEADS
    assert tuple(filter(family.is_vocabulary, names)) == EMBEDDINGS + HEADS + OTHERS
