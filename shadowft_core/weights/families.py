"""What is known of each model family: ties, kinds of module, names in memory and in files, expert layouts.

The facts are those of the pinned transformers, in families.json (written by infra/families.py), so that rooms which
read weights need neither torch nor transformers. A family that is not in the table is judged by its config and by
the names that published models share. How names are read is said here once: the writer of the table calls the same
`without_numbers`, `renamed` and `endings`.

The experts of a mixture are stored in one of two layouts:

- one by one, a matrix each: `experts.N.gate_proj|up_proj|down_proj.weight`, or Mixtral's `w1|w3|w2`;
- fused, all in one tensor: `experts.gate_up_proj` (experts, 2 * intermediate, hidden), gate above up, and
  `experts.down_proj` (experts, hidden, intermediate), so that every matrix is one run of bytes.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|tok_embeddings|wte|word_embeddings|embed_in|shared|embed_tokens_per_layer)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|^((language_)?model\.)?output\.weight$")
_ROUTER = re.compile(r"(^|\.)(router|mlp\.gate|block_sparse_moe\.gate|moe\.gate)\.weight$")
_EXPERT = re.compile(r"(.+\.experts)\.\d+\.(\w+)\.weight")
_MATRIX = re.compile(r"(^|\.)(\w*proj|\w*fc\d*|wqkv|w[123qkvo]|W_pack|query_key_value|dense\w*|c_attn)\.weight$")
_NO_MATRIX = re.compile(r"(?i)embed(?!\w*proj)|position|norm|router|(^|\.)(wpe|(\w*_)?ln\w*|gate)\.weight$")
KINDS = ("linear", "conv1d", "experts", "embedding", "positions", "head", "router", "other")
LINEAR = ("linear", "conv1d", "experts")
"""the kinds that scope `linear` covers: all matrices but embeddings, heads, norms and routers"""
_FUSED = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


class Experts(NamedTuple):
    """How a stack of experts, one parameter in memory, is stored in files."""

    turned: bool
    """in memory a matrix is (inputs, outputs), as PEFT reads it"""
    parts: tuple[str, ...] = ()
    """names of the matrices stored one by one, in the order in which their outputs are joined; empty: stored fused"""
    transposed: bool = False
    """in files every matrix is the transpose of the one in memory"""


class SingleExperts(NamedTuple):
    """Experts stored one by one: the block they lie in (fused: `.mlp.`), and what its matrices are called."""

    block: str
    gate: str
    up: str
    down: str


@cache
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    return found


class Family:
    """The class of a model as its config names it; `names` are the tensors of its files."""

    def __init__(self, config: Mapping[str, Any], names: Collection[str]) -> None:
        self._config, self._names = config, names
        self._kinds: dict[str, str | None] = {}
        self._entries = list(_entries(config))
        main = self._entries[0] if self._entries and _class_of(config) else {}
        self.known = bool(main)
        """whether the class is in the table; if not, names and config decide"""
        self.title = _class_of(config) or str(config.get("model_type") or "a family without a name")
        self._files: dict[str, str] = dict(main.get("files", []))
        self._memory: dict[str, str] = (
            dict(main["memory"]) if "memory" in main else {f: m for m, f in self._files.items()}
        )
        self._prefix: str = main.get("prefix", "" if main else "model")
        self._ties: list[dict[str, Any]] = main.get("ties", [])
        self._ignored = [re.compile(pattern) for entry in self._entries for pattern in entry.get("ignored", [])]
        self.experts = {
            name: Experts(way["turned"], tuple(way.get("parts", ())), way.get("transposed", False))
            for entry in reversed(self._entries)
            for name, way in entry.get("experts", {}).items()
        }
        """by the last word of the parameter's name"""
        self.converted = {pattern for entry in self._entries for pattern in entry.get("converted", [])}
        """patterns of parameters stored in a layout that only transformers can convert"""

    def kind(self, name: str) -> str | None:
        """The kind (`KINDS`) of a matrix, by its name in memory or in files; None when unknown."""
        shown = without_numbers(name)  # layers and experts are alike
        if shown not in self._kinds:
            found = self._kind(name)
            self._kinds[shown] = "experts" if found == "linear" and _EXPERT.fullmatch(name) else found
        return self._kinds[shown]

    def _kind(self, name: str) -> str | None:
        ends = list(endings(without_numbers(name)))
        for entry in self._entries:
            if found := next((entry["kinds"][end] for end in reversed(ends) if end in entry.get("kinds", {})), None):
                return str(found)
        if found := next((table()["kinds"][end] for end in ends if end in table()["kinds"]), None):
            return str(found)
        guesses = ((_EMBEDDING, "embedding"), (_HEAD, "head"), (_ROUTER, "router"), (_MATRIX, "linear"))
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
        sizes = [size for path in ("vocab_size", "text_config.vocab_size") if (size := _field(self._config, path))]
        return self.is_vocabulary(name) or (not self.known and len(shape) == 2 and shape[0] in sizes)

    def is_linear(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether `linear` means this tensor: a matrix, or the bias of one, of the kinds in `LINEAR`.

        For an unknown module: every matrix whose name is not that of an embedding, head, norm or router.
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
        if bias and self.known:  # of a norm: the table has no kind of what is no matrix
            return False
        return matrices[0].endswith(".weight") and len(shape) <= 2 and not _NO_MATRIX.search(matrices[0])

    def in_files(self, parameter: str) -> str:
        """The name in files of a parameter of the loaded model; the name itself where the files do not hold it."""
        begun = renamed(parameter, self._files)
        bare = begun.removeprefix(f"{self._prefix}.")
        mixtral = parameter if self.known else parameter.replace(".mlp.", ".block_sparse_moe.")
        candidates = (begun, parameter, bare, f"{self._prefix}.{begun}", mixtral)
        return next((name for name in candidates if name in self._names), begun)

    def in_memory(self, name: str) -> str:
        """The name in the loaded model of a tensor of the files that is a parameter of its own there."""
        found = renamed(name, self._memory)
        if found == name and self._bare and self.kind(name) != "head":
            return f"{self._prefix}.{name}"
        return found

    def parameter(self, name: str) -> str:
        """The parameter of the loaded model that a tensor of the files is, or is part of (one expert's matrix)."""
        found = self.in_memory(name)
        if single := _EXPERT.fullmatch(found):
            for last in {*self.experts, *_FUSED}:
                if any(single[2] in parts for parts in self.parts(last)):
                    block = single[1] if self.known else single[1].replace(".block_sparse_moe.", ".mlp.")
                    return f"{block}.{last}"
        return found

    def parts(self, last: str) -> list[tuple[str, ...]]:
        """Possible names of an expert's matrices where the fused parameter `last` is stored expert by expert."""
        if self.known:
            return [self.experts[last].parts] if last in self.experts and self.experts[last].parts else []
        return [tuple(getattr(names, part) for part in _FUSED[last]) for names in SINGLE_EXPERTS if last in _FUSED]

    def is_converted(self, parameter: str) -> bool:
        """Whether a parameter is stored in a layout that only transformers can convert."""
        return without_numbers(parameter) in self.converted

    @property
    def _bare(self) -> bool:
        """Whether the files leave out the prefix of the base model, as GPT-2's on the hub do."""
        if not (self.known and self._prefix) or self._files:
            return False
        return not any(n.startswith(f"{self._prefix}.") for n in self._names)

    @property
    def says_tied(self) -> bool | None:
        """What config.json itself says, whatever the class does with it; None when it says nothing."""
        paths = ("tie_word_embeddings", "text_config.tie_word_embeddings")
        return next((bool(v) for path in paths if (v := _field(self._config, path)) is not None), None)

    def ties(self) -> dict[str, str] | None:
        """Tied tensors of the files, each with the one that stands for both; None where only the weights can tell.

        The one that stands for both is the embedding, or what is stored in its place where the embedding is not.
        """
        if self.known:
            pairs = [
                pair
                for tie in self._ties
                if _state(self._config, tie["fields"]) in tie["tied"]
                for pair in tie["pairs"]
            ]
            return self._by_stored([(self.in_files(target), self.in_files(source)) for target, source in pairs])
        embeddings = [name for name in self._names if self.is_embedding(name)]
        if len(embeddings) == 1 and not any(self.is_head(name) for name in self._names) and self.says_tied is not False:
            return {"lm_head.weight": embeddings[0]}
        return None

    def ties_within(self, name: str) -> bool:
        """Whether a tied tensor is tied by a part of the model that has a config of its own, not by the whole."""
        whole = [pair for tie in self._ties if "within" not in tie for pair in tie["pairs"]]
        return self.known and not any(name in map(self.in_files, pair) for pair in whole)

    def tied_by_class(self) -> set[str]:
        """Tensors of the files that the class ties whatever config.json says."""
        return {
            self.in_files(name) for tie in self._ties if not tie["fields"] for pair in tie["pairs"] for name in pair
        }

    def _by_stored(self, pairs: list[tuple[str, str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in dict.fromkeys(source for _, source in pairs):
            alike = [source, *(target for target, whose in pairs if whose == source)]
            home = next((name for name in alike if name in self._names), source)
            found |= {name: home for name in alike if name != home}
        return found

    def ignores(self, name: str) -> bool:
        """Whether the class does not load a tensor of a file: rotary buffers, prediction layers."""
        return any(pattern.search(name) for pattern in self._ignored)


def _entries(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The table's entries of the class and of its text model, the outer one first."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if name := _class_of(part):
            yield table()["classes"][name]


def _class_of(config: Mapping[str, Any]) -> str | None:
    """The class that transformers' Auto classes choose for a config: by model_type first, then by architectures."""
    kind, named, classes = config.get("model_type"), config.get("architectures"), table()["classes"]
    if isinstance(kind, str) and kind in table()["types"]:
        return str(table()["types"][kind])
    return str(named[0]) if isinstance(named, list) and named and named[0] in classes else None


def _field(config: Mapping[str, Any], path: str) -> Any:
    for step in path.split("."):
        if not isinstance(config, Mapping) or step not in config:
            return None
        config = config[step]
    return config


def _state(config: Mapping[str, Any], fields: Collection[str]) -> str:
    values = [_field(config, path) for path in fields]
    return "".join("-" if value is None else "T" if value else "F" for value in values)


def without_numbers(name: str) -> str:
    """`#` for every number of a layer or an expert; a layer of a sequence, `mlp.0.weight`, keeps its own."""
    return re.sub(r"(?<=\.)\d+(?=\.(?!(weight|bias)$)|$)", "#", name)


def renamed(name: str, rules: Mapping[str, str]) -> str:
    """A name with its longest known prefix replaced; a number that `#` stands for is kept."""
    if not rules:
        return name
    steps = name.split(".")
    shown = without_numbers(name).split(".")
    for length in range(len(steps), 0, -1):
        if (found := rules.get(".".join(shown[:length]))) is not None:
            numbers = iter([s for s, p in zip(steps[:length], shown[:length], strict=True) if p == "#"])
            return ".".join([next(numbers) if s == "#" else s for s in found.split(".")] + steps[length:])
    return name


def endings(name: str) -> Iterator[str]:
    """The suffixes of a name in whole steps, shortest first; `weight` or `bias` is never one by itself."""
    steps = name.split(".")
    for length in range(2 if steps[-1] in ("weight", "bias") else 1, len(steps) + 1):
        yield ".".join(steps[-length:])


def _single(entry: Mapping[str, Any]) -> SingleExperts | None:
    ways = entry.get("experts", {})
    parts = [*ways.get("gate_up_proj", {}).get("parts", ()), *ways.get("down_proj", {}).get("parts", ())]
    if len(parts) != 3:
        return None
    blocks = [theirs for ours, theirs in entry.get("files", []) if re.search(r"\.mlp(\.router)?$", ours)]
    block = ".block_sparse_moe." if any(".block_sparse_moe" in name for name in blocks) else ".mlp."
    return SingleExperts(block, *parts)


EXPERTS = {kind: way for kind, name in table()["types"].items() if (way := _single(table()["classes"][name]))}
"""by model type, for the families with the fused layout above; others interleave or transpose their experts"""
SINGLE_EXPERTS = tuple(sorted(set(EXPERTS.values())))
