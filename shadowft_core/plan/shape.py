"""The shape of a model: what decides its memory and its work, from a config and headers or from a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadowft_core.errors import CheckpointError
from shadowft_core.weights import Checkpoint

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}
LONGEST = 1 << 31  # of any length in a config


@dataclass(frozen=True)
class Shape:
    """A decoder. Lengths in elements; `mlp` is that of one expert if there are experts.

    `stored` are bytes per weight on disk; `gated` is False for an MLP of two matrices. `wide_embedding`: the class of
    the embedding computes in the weight's dtype, so that a frozen one is kept in float32 (Gemma). `qk_norm`: queries
    and keys are normalised. `norms` are norms per layer. `others` are weights beside the decoder, such as a vision
    tower. `total` is the number of weights by the headers.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    experts: int = 0
    experts_per_token: int = 1
    gated: bool = True
    qk_norm: bool = False
    norms: int = 2
    wide_embedding: bool = False
    others: int = 0
    stored: float = 2
    total: int | None = None

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def attention(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of the attention of one layer."""
        h = self.hidden
        return [(h, self.queries), (h, self.keys), (h, self.keys), (self.queries, h)]

    @property
    def expert(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of the MLP, or of one expert, of one layer."""
        return [(self.hidden, self.mlp)] * (2 if self.gated else 1) + [(self.mlp, self.hidden)]

    @property
    def linear(self) -> int:
        """Weights of the linear layers outside experts and head."""
        dense = 0 if self.experts else _size(self.expert)
        return self.layers * (_size(self.attention) + dense + (self.hidden * self.experts))

    @property
    def in_experts(self) -> int:
        return self.layers * self.experts * _size(self.expert)

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights: `total` by the headers, else computed (without biases)."""
        norms = self.hidden * (self.norms * self.layers + 1) + (2 * self.head_dim * self.layers if self.qk_norm else 0)
        computed = self.linear + self.in_experts + self.embedding * (1 if self.tied else 2) + norms + self.others
        return self.total or computed

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on all linear layers, as PEFT makes it.

        Gate and up projection of an expert are one matrix, whose factors have twice the rank.
        """
        found = sum(a + b for a, b in self.attention)
        if self.experts:
            found += self.experts * (2 * (self.hidden + 2 * self.mlp) + self.mlp + self.hidden)
            found += self.hidden + self.experts  # the router
        else:
            found += sum(a + b for a, b in self.expert)
        return self.layers * rank * found

    def work(self) -> int:
        """Weights that one token is multiplied with: a forward pass takes two operations for each."""
        active = self.layers * self.experts_per_token * _size(self.expert) if self.experts else 0
        return self.linear + active + self.embedding


def _size(layers: list[tuple[int, int]]) -> int:
    return sum(a * b for a, b in layers)


def shape_of(model: Checkpoint) -> Shape:
    """The shape of a checkpoint, from config.json and the headers.

    Raises CheckpointError if config.json lacks a field that the plan needs, or has one that is no length.
    """
    path, config = model.path / "config.json", model.config
    text: Mapping[str, Any] = config.get("text_config") or config

    def field(*names: str, default: int | None = None) -> int:
        for name in names:
            if (found := text.get(name)) is not None:
                if type(found) is not int or not (default is None) <= found < LONGEST:
                    raise CheckpointError(
                        f"{path}: {name} is {found!r:.80}, expected a whole number from {int(default is None)} to "
                        f"{LONGEST - 1}; use a model with such a config"
                    )
                return found
        if default is None:
            raise CheckpointError(f"{path}: no {names[0]}, which the plan needs; use a model with such a config")
        return default

    hidden, heads = field("hidden_size"), field("num_attention_heads")
    kind = str(text.get("model_type", config.get("model_type", "")))
    infos = [model.info(name) for name in model.names]
    total = sum(info.size for info in infos)
    experts = field("num_experts", "num_local_experts", "n_routed_experts", default=0)
    mlp = field("moe_intermediate_size", "intermediate_size") if experts else field("intermediate_size")
    shape = Shape(
        layers=field("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=field("num_key_value_heads", default=heads),
        head_dim=field("head_dim", default=hidden // heads),
        mlp=mlp,
        vocabulary=field("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", kind.startswith("gemma")))),
        experts=experts,
        experts_per_token=field("num_experts_per_tok", default=1),
        gated=any("gate" in name or "gate_up" in name for name in model.names),
        qk_norm=any("q_norm" in name for name in model.names),
        norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
        wide_embedding=kind.startswith("gemma"),
        stored=sum(info.nbytes for info in infos) / max(total, 1),
        total=total,
    )
    decoder = Shape(**{**vars(shape), "total": None}).weights
    return Shape(**{**vars(shape), "others": max(0, total - decoder) if config.get("vision_config") else 0})


def shape_of_table(facts: Mapping[str, Any]) -> Shape:
    """The shape of a preset: the fields of its table."""
    gemma = "vision" in facts
    fields = {name: value for name, value in facts.items() if name != "vision"}
    return Shape(**fields, others=facts.get("vision", 0), norms=4 if gemma else 2, wide_embedding=gemma)
