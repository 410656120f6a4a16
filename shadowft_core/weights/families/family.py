"""The facts about a model's class: from the table or, for an unknown class, from its config and published names."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from shadowft_core.weights.families.experts import FUSED_PARTS, KNOWN_NAMES, SINGLE, Storage, fused_block, single_block
from shadowft_core.weights.families.names import (
    EMBEDDING,
    HEAD,
    MATRIX,
    NO_MATRIX,
    ROUTER,
    endings,
    renamed,
    without_numbers,
)
from shadowft_core.weights.families.table import class_of, entries, field, table, tie_state

KINDS = ("linear", "conv1d", "experts", "embedding", "positions", "head", "router", "other")
LAYERS = ("linear", "conv1d")
"""kinds of single layers: servers can apply an adapter's factors to them, but differ in how they treat experts"""
LINEAR = (*LAYERS, "experts")
"""the kinds that scope `linear` covers"""


class Family:
    """The facts about the class that a config names; `names` are the tensors in the model's files."""

    def __init__(self, config: Mapping[str, Any], names: Collection[str]) -> None:
        self._config, self._names = config, names
        self._kinds: dict[str, str | None] = {}
        self._entries = list(entries(config))
        main = self._entries[0] if self._entries and class_of(config) else {}
        self.known = bool(main)
        """whether the class is in the table; otherwise names and config decide"""
        self.title = class_of(config) or str(config.get("model_type") or "a family without a name")
        self._files: dict[str, str] = dict(main.get("files", []))
        self._memory: dict[str, str] = (
            dict(main["memory"]) if "memory" in main else {f: m for m, f in self._files.items()}
        )
        self._prefix: str = main.get("prefix", "" if main else "model")
        self._ties: list[dict[str, Any]] = main.get("ties", [])
        self._ignored = [re.compile(pattern) for entry in self._entries for pattern in entry.get("ignored", [])]
        self.experts = {
            name: Storage(way["turned"], tuple(way.get("parts", ())), way.get("transposed", False))
            for entry in reversed(self._entries)
            for name, way in entry.get("experts", {}).items()
        }
        """how experts are stored, by the last word of the parameter's name"""
        self.converted = {pattern for entry in self._entries for pattern in entry.get("converted", [])}
        """patterns of parameters stored in a layout that only transformers can convert"""

    def kind(self, name: str) -> str | None:
        """The kind (`KINDS`) of a matrix, by its name in memory or in files; None when unknown."""
        pattern = without_numbers(name)  # layers and experts are alike
        if pattern not in self._kinds:
            found = self._kind(name)
            self._kinds[pattern] = "experts" if found == "linear" and SINGLE.fullmatch(name) else found
        return self._kinds[pattern]

    def _kind(self, name: str) -> str | None:
        ends = list(endings(without_numbers(name)))
        for entry in self._entries:
            if found := next((entry["kinds"][end] for end in reversed(ends) if end in entry.get("kinds", {})), None):
                return str(found)
        if found := next((table()["kinds"][end] for end in ends if end in table()["kinds"]), None):
            return str(found)
        guesses = ((EMBEDDING, "embedding"), (HEAD, "head"), (ROUTER, "router"), (MATRIX, "linear"))
        return next((kind for pattern, kind in guesses if pattern.search(name)), None)

    def is_embedding(self, name: str) -> bool:
        return self.kind(name) == "embedding" and "per_layer" not in name

    def is_head(self, name: str) -> bool:
        return self.kind(name) == "head"

    def is_vocabulary(self, name: str) -> bool:
        """Whether axis 0 counts token ids: embeddings, heads and their biases, embeddings per layer."""
        whole = re.sub(r"\.bias$", ".weight", name)
        return self.kind(whole) in ("embedding", "head") if whole == name else self.is_head(whole)

    def has_token_rows(self, name: str, shape: tuple[int, ...]) -> bool:
        """`is_vocabulary`; for a family not in the table, also a matrix with as many rows as the vocabulary."""
        sizes = [size for path in ("vocab_size", "text_config.vocab_size") if (size := field(self._config, path))]
        return self.is_vocabulary(name) or (not self.known and len(shape) == 2 and shape[0] in sizes)

    def is_linear(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether scope `linear` covers this tensor: a matrix of a kind in `LINEAR`, or its bias.

        In an unknown module, every matrix that is not named as an embedding, head, norm or router.
        """
        matrices = [name]
        if bias := re.fullmatch(r"(.+)([._])bias", name):
            matrices = [f"{bias[1]}.weight"] if bias[2] == "." else [bias[1], f"{bias[1]}_weight"]
            if self._names and not any(matrix in self._names for matrix in matrices):
                return False
        elif len(shape) < 2:
            return False
        if kind := next((kind for matrix in matrices if (kind := self.kind(matrix))), None):
            return kind in LINEAR
        if bias and self.known:  # of a norm: the table lists matrices only
            return False
        return matrices[0].endswith(".weight") and len(shape) <= 2 and not NO_MATRIX.search(matrices[0])

    def in_files(self, parameter: str) -> str:
        """A parameter's name in the files, from its name in the loaded model; a guess when the files lack it."""
        begun = renamed(parameter, self._files)
        bare = begun.removeprefix(f"{self._prefix}.")
        mixtral = parameter if self.known else single_block(parameter)
        candidates = (begun, parameter, bare, f"{self._prefix}.{begun}", mixtral)
        return next((name for name in candidates if name in self._names), begun)

    def in_memory(self, name: str) -> str:
        """A tensor's name in the loaded model, from its name in the files; for an expert's matrix, see `parameter`."""
        found = renamed(name, self._memory)
        if found == name and self._bare and self.kind(name) != "head":
            return f"{self._prefix}.{name}"
        return found

    def parameter(self, name: str) -> str:
        """The parameter of the loaded model that holds this tensor of the files, such as one expert's matrix."""
        found = self.in_memory(name)
        if single := SINGLE.fullmatch(found):
            for last in {*self.experts, *FUSED_PARTS}:
                if any(single[2] in parts for parts in self.parts(last)):
                    block = single[1] if self.known else fused_block(single[1])
                    return f"{block}.{last}"
        return found

    def parts(self, last: str) -> list[tuple[str, ...]]:
        """Possible names of an expert's matrices when the fused parameter `last` is stored expert by expert."""
        if self.known:
            return [self.experts[last].parts] if last in self.experts and self.experts[last].parts else []
        return [
            tuple(getattr(names, part) for part in FUSED_PARTS[last]) for names in KNOWN_NAMES if last in FUSED_PARTS
        ]

    def is_converted(self, parameter: str) -> bool:
        """Whether a parameter is stored in a layout that only transformers can convert."""
        return without_numbers(parameter) in self.converted

    @property
    def _bare(self) -> bool:
        """Whether the files leave out the prefix of the base model, as GPT-2's on the hub do."""
        if not (self.known and self._prefix) or self._files:
            return False
        return not any(n.startswith(f"{self._prefix}.") for n in self._names)

    def setting(self, key: str) -> Any:
        """A config field of the language model: from `text_config` where the config itself has none."""
        return self._config.get(key, field(self._config, f"text_config.{key}"))

    @property
    def config_tie(self) -> bool | None:
        """The tie field of config.json, which the class may ignore; None when it is not set."""
        paths = ("tie_word_embeddings", "text_config.tie_word_embeddings")
        return next((bool(v) for path in paths if (v := field(self._config, path)) is not None), None)

    def ties(self) -> dict[str, str] | None:
        """Tied tensors of the files, each with the one that represents both; None when only the weights can tell.

        The representative is the embedding if it is stored, else the tied tensor that is.
        """
        if self.known:
            pairs = [
                pair
                for tie in self._ties
                if tie_state(self._config, tie["fields"]) in tie["tied"]
                for pair in tie["pairs"]
            ]
            return self._by_stored([(self.in_files(target), self.in_files(source)) for target, source in pairs])
        embeddings = [name for name in self._names if self.is_embedding(name)]
        if (
            len(embeddings) == 1
            and not any(self.is_head(name) for name in self._names)
            and self.config_tie is not False
        ):
            return {"lm_head.weight": embeddings[0]}
        return None

    def ties_within(self, name: str) -> bool:
        """Whether a submodel with its own config makes this tie, rather than the whole model."""
        whole = [pair for tie in self._ties if "within" not in tie for pair in tie["pairs"]]
        return self.known and not any(name in map(self.in_files, pair) for pair in whole)

    def tied_by_class(self) -> set[str]:
        """Tensors of the files that the class ties regardless of config.json."""
        return {
            self.in_files(name) for tie in self._ties if not tie["fields"] for pair in tie["pairs"] for name in pair
        }

    def _by_stored(self, pairs: list[tuple[str, str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in dict.fromkeys(source for _, source in pairs):
            alike = [source, *(target for target, other in pairs if other == source)]
            home = next((name for name in alike if name in self._names), source)
            found |= {name: home for name in alike if name != home}
        return found

    def ignores(self, name: str) -> bool:
        """Whether the class skips a tensor of the files, such as a rotary buffer or a prediction layer."""
        return any(pattern.search(name) for pattern in self._ignored)
