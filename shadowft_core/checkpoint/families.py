"""What tensor names mean in the model families known here: which tensors have token rows, how experts are stored.

Names only; no file is read. A row of an embedding or head stands for a token id (axis 0). The experts of a mixture are
stored in one of two layouts:

- one by one, a matrix each: `experts.N.gate_proj|up_proj|down_proj.weight`, or Mixtral's `w1|w3|w2`;
- fused, all in one tensor: `experts.gate_up_proj` (experts, 2 * intermediate, hidden), gate above up, and
  `experts.down_proj` (experts, hidden, intermediate), so that every matrix is one run of bytes.

The correspondence is that of transformers 5.23 (conversion_mapping.py: MergeModulelist(0), then Concatenate(1)).
"""

import re
from typing import NamedTuple

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings|wte|word_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.(weight|bias)$|^((language_)?model\.)?output\.weight$")
_OTHER = re.compile(r"(^|\.)embed_tokens_per_layer\.weight$")


class SingleExperts(NamedTuple):
    """Experts stored one by one: the block they lie in (fused: `.mlp.`), and what its matrices are called."""

    block: str
    gate: str
    up: str
    down: str


_QWEN = SingleExperts(".mlp.", "gate_proj", "up_proj", "down_proj")
_MIXTRAL = SingleExperts(".block_sparse_moe.", "w1", "w3", "w2")
SINGLE_EXPERTS = (_QWEN, _MIXTRAL)
# By model type, those whose fused layout is the one above; others interleave or transpose their experts.
EXPERTS = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "flex_olmo", "glm4_moe", "dots1"), _QWEN),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "hunyuan_v1_moe"), _QWEN),
}


def is_embedding(name: str) -> bool:
    return _EMBEDDING.search(name) is not None


def is_head(name: str) -> bool:
    return _HEAD.search(name) is not None and not name.endswith(".bias")


def is_vocabulary(name: str) -> bool:
    """Whether axis 0 counts token ids: embeddings, heads and their biases, embeddings per layer."""
    return any(pattern.search(name) for pattern in (_EMBEDDING, _HEAD, _OTHER))
