"""Hostile adapters: expressions that take long, fields of another type or range, deltas that are not finite."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core import limits
from shadowft_core.delta import extract, open_delta
from shadowft_core.delta.format import LARGEST
from shadowft_core.delta.patterns import Patterns
from shadowft_core.delta.settings import Settings
from shadowft_core.errors import AdapterError, CheckpointError, NotFiniteError, ShadowError
from shadowft_core.weights import write_checkpoint
from tests.fixtures.models import write_model

Q, EMBED = "model.layers.{}.self_attn.q_proj", "model.embed_tokens"
LAYERS = 40
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_version": "0.21.0"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"{Q.format(n)}.weight": rng.standard_normal((4, 4)).astype(np.float32) for n in range(LAYERS)}
    tensors[f"{EMBED}.weight"] = rng.standard_normal((6, 4)).astype(np.float32)
    return write_model(tmp_path_factory.mktemp("hostile") / "base", tensors, model_type="llama", vocab_size=6)


def adapter(folder: Path, config: dict[str, Any] | bytes, **more: np.ndarray) -> Path:
    ones = np.ones((2, 4), np.float32)
    tensors = {f"base_model.model.{Q.format(n)}.lora_A.weight": ones for n in range(LAYERS)}
    tensors |= {f"base_model.model.{Q.format(n)}.lora_B.weight": ones.T for n in range(LAYERS)}
    folder.mkdir()
    write_checkpoint(folder, (tensors | more).items())
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    text = config if isinstance(config, bytes) else json.dumps(PLAIN | config).encode()
    (folder / "adapter_config.json").write_bytes(text)
    return folder


SLOW = r"(\w|\.|[a-z])*[?!]"
ODD = [
    r"(?R)",
    r"(?:q_prok){e<=1}",
    r"\p{L}+",
    r"[[:alpha:]]+",
    r"a(*SKIP)b",
    r"(?|a|b)",
    r"\Lx",
    r"(?<n>a)",
    "(?&a)",
    r"a\0",
    r"(a)\10",
]
ODD += [r"(?x)a b", r"(?L)a", r"(?V1)a", r"(?P<x>a)(?P>x)"]
FIELDS: list[tuple[dict[str, Any] | bytes, str]] = [
    ({"r": True}, "r: Input should be a valid integer"),
    ({"r": 2.0}, "r: Input should be a valid integer"),
    ({"r": 65_537}, "r: Input should be less than or equal to 65536"),
    ({"r": -1}, "r: Input should be greater"),
    ({"r": 3}, r"\(4, 2\) x \(2, 4\), expected \(4, 3\)"),
    ({"lora_alpha": True}, "lora_alpha: Input should be a valid number"),
    ({"lora_alpha": -1}, "lora_alpha: Input should be greater than 0"),
    ({"lora_alpha": 1e308}, "scaling of .* is 5e.307, more than float32 holds"),
    ({"alpha_pattern": {"q_proj": 1e39}}, "scaling of .* is 5e.38, more than float32"),
    (json.dumps(PLAIN).replace("4", "1e999").encode(), "more than float64 can hold"),
    (json.dumps(PLAIN).replace("4", "NaN").encode(), "NaN is not a JSON number"),
    (json.dumps(PLAIN).replace("4", '4, "r": 2').encode(), "duplicate key"),
    ({"peft_type": ["LORA"]}, r"peft_type=\['LORA'\], expected LORA"),
    ({"use_dora": "no"}, "use_dora: Input should be a valid boolean"),
    ({"use_rslora": 1}, "use_rslora: Input should be a valid boolean"),
    ({"lora_bias": "none"}, "lora_bias: Input should be a valid boolean"),
    ({"target_modules": 7}, "target_modules"),
    ({"target_modules": [7]}, "target_modules"),
    ({"target_modules": {"q_proj": 1}}, "target_modules"),
    ({"layers_to_transform": [-1]}, "layers_to_transform"),
    ({"layers_to_transform": "all"}, "layers_to_transform"),
    ({"layers_to_transform": True}, "layers_to_transform"),
    ({"rank_pattern": [2]}, "rank_pattern"),
    ({"rank_pattern": {"q_proj": True}}, "rank_pattern"),
    ({"modules_to_save": ["a"] * 2000}, "modules_to_save: List should have at most 1000 items"),
    ({"layers_pattern": ["a"] * 1001}, "layers_pattern.*List should have at most 1000 items"),
    ({"target_parameters": ["a"] * 1001}, "target_parameters: List should have at most 1000 items"),
    ({"trainable_token_indices": {str(n): [1] for n in range(1001)}}, r"trainable_token_indices\.list"),
    ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj: Input should be greater than 0"),
    ({"trainable_token_indices": {"a": [1.5]}}, "trainable_token_indices"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj: Input should be greater"),
    ({"init_lora_weights": 1}, "init_lora_weights"),
    ({"init_lora_weights": None}, "init_lora_weights"),
    ({"init_lora_weights": "pissa_niter_" + "9" * 400}, "init_lora_weights='pissa_niter_9"),
    ({"init_lora_weights": "pissa_niter_12345"}, "init_lora_weights='pissa_niter_12345' changed the Base"),
    ({"init_lora_weights": "x" * 5000}, "init_lora_weights='x+ changed the Base"),
    ({"peft_type": "x" * 5000}, "peft_type='x+, expected LORA"),
    ({"x" * 5000: "y" * 5000}, "x+='y+ has no exact delta here"),
    ({"alpha_pattern": {f"q_proj|{'b' * 2000}": 1, "q_proj": 2}}, r"alpha_pattern has 'q_proj\|b+: 1 and 'q_proj': 2"),
    ({"peft_version": 0.21}, "peft_version: Input should be a valid string"),
    ({"task_type": 5}, "task_type"),
    (b'{"a": "' + b"x" * limits.CONFIG_BYTES + b'"}', "the limit is"),
    ({"target_modules": "a" * 10_001}, "10001 characters, the limit is 10000"),
    ({"target_modules": "(a{1000}){1000}"}, "1.5e.07 characters once its repeats are expanded"),
    ({"target_modules": "(a{1000}){1000}b{0}"}, "characters once its repeats are expanded"),
    ({"target_modules": "a{999999}" * 100}, "inf characters once its repeats are expanded"),
    ({"target_modules": "a{" + "9" * 5000 + "}"}, "malformed"),
    ({"target_modules": "(" * 3000 + "a" + ")" * 3000}, "recursion"),
    ({"target_modules": "(q_proj"}, r"target_modules: pattern '\(q_proj'"),
    ({"exclude_modules": SLOW}, "more than 0.2 s to match model.layers"),
    ({"target_modules": SLOW}, "more than 0.2 s to match model.layers"),
    ({"rank_pattern": {SLOW: 4}}, "more than 0.2 s to match model.layers"),
    ({"alpha_pattern": {SLOW: 4}}, "more than 0.2 s to match model.layers"),
    ({"layers_to_transform": [0], "layers_pattern": [SLOW]}, "more than 0.2 s to match model.layers"),
    ({"exclude_modules": "(?R)"}, "exclude_modules: pattern"),
    ({"rank_pattern": {"(?R)": 4}}, "rank_pattern: pattern"),
    ({"alpha_pattern": {"(?R)": 4}}, "alpha_pattern: pattern"),
    ({"layers_pattern": ["(?R)"]}, "layers_pattern: pattern"),
    ({"layers_pattern": "(?R)"}, "layers_pattern: pattern"),
    *(({"target_modules": odd}, "Python's `re` lacks or interprets differently") for odd in ODD),
]


@pytest.mark.parametrize(("config", "said"), FIELDS)
def test_a_config_is_refused_soon_and_by_its_field(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] | bytes, said: str
) -> None:
    monkeypatch.setattr("shadowft_core.delta.patterns.PATTERN_SECONDS", 0.2)
    source, begun = adapter(tmp_path / "adapter", config), time.monotonic()
    with pytest.raises((AdapterError, CheckpointError), match=said) as caught:
        extract(base, source, tmp_path / "delta")
    assert time.monotonic() - begun < 5
    assert "adapter" in str(caught.value)
    assert len(str(caught.value)) < 900
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("ids", [[-1], [6], [400_000_000], [10**40], [1, 1], [*range(300_000)]])
def test_trained_tokens_are_of_the_vocabulary(base: Path, tmp_path: Path, ids: list[int]) -> None:
    rows = {f"base_model.model.{EMBED}.token_adapter.trainable_tokens_delta": np.ones((len(ids), 4), np.float32)}
    source = adapter(tmp_path / "adapter", {"trainable_token_indices": ids}, **rows)
    with pytest.raises(AdapterError, match=r"trainable_token_indices names token .* twice or outside of the 6 rows"):
        extract(base, source, tmp_path / "delta")


def test_a_delta_that_is_not_finite_is_not_written(base: Path, tmp_path: Path) -> None:
    """Every scaling and factor is finite, and their product is not."""
    shapes = {"A": (2, 4), "B": (4, 2)}
    large = {
        f"base_model.model.{Q.format(n)}.lora_{part}.weight": np.full(shape, 1e20, np.float32)
        for n in range(LAYERS)
        for part, shape in shapes.items()
    }
    source = adapter(tmp_path / "adapter", {"lora_alpha": 1e38}, **large)
    with pytest.raises(NotFiniteError, match=r"tensor model\.layers.* more than float32 holds"):
        extract(base, source, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "notes.txt"])
def test_an_adapter_has_its_own_files(base: Path, tmp_path: Path, name: str) -> None:
    source = adapter(tmp_path / "adapter", {})
    (tmp_path / "secret").write_bytes((source / name).read_bytes() if (source / name).exists() else b"")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ShadowError, match=f"{re.escape(name)}: a link that leads out"):
        extract(base, source, tmp_path / "delta")


def test_one_adapter_has_one_budget_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowft_core.delta.patterns.PATTERNS_SECONDS", 0.02)
    patterns = Patterns(tmp_path)
    modules = (f"{'ab' * 10}{number}" for number in range(100_000))
    with pytest.raises(AdapterError, match=r"the file's patterns took .* s, the limit is 0\.02"):
        all(patterns.matches(r"(a|b|ab)*(c|d)?(\d+)*x", module) is None for module in modules)
    monkeypatch.setattr("shadowft_core.delta.patterns.PATTERNS_SECONDS", 0.0)
    with pytest.raises(AdapterError, match=r"the file's patterns took .* s, the limit is 0;"):
        Patterns(tmp_path).check("target_modules", ".*_proj")  # reading it takes time, too


def test_a_match_and_an_adapter_have_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterError, match=r"more than 1 s to match model") as caught:
        Patterns(tmp_path).matches(f"{SLOW}|{'b' * 900}", "model" * 200)
    assert len(str(caught.value)) - len(str(tmp_path)) < 300
    monkeypatch.setattr("shadowft_core.delta.patterns.time.thread_time", iter([0.0, 0.0, 0.0, 30.5]).__next__)
    with pytest.raises(AdapterError, match=r"the file's patterns took 30\.5 s, the limit is 30;"):
        Patterns(tmp_path).matches("a", "a")


WRITTEN = [  # expressions that PEFT, its users and other trainers write
    *("q_proj", "model.layers.1.self_attn.q_proj", "", r".*\.(q|v)_proj", r"model\.layers\.(0|1)\.self_attn\.q_proj"),
    *(r".*layers\.[0-9]{1,2}\..*q_proj$", r"^(?!.*visual).*(?:q_proj|k_proj)$", r"[^.]*\.layers\.\d+\.[a-z_]+\.q_proj"),
    r"(?:.*?(?:language|text).*?(?:self_attn|attn).*?(?:q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.q_proj)",
    *(r"(?i).*Q_PROJ", r".*\.q_proj|.*\.up_proj", r"(.*\.)?(a|q)_proj", r"a{2,3}?b*+", r"[]q.]+_proj", r"[\w.]+"),
    *(r".*(?<=self_attn\.)q_proj", r"(?P<x>model)\..*"),
]
MODULES = [Q.format(0), Q.format(11), "q_proj", "model.visual.q_proj", "model.LAYERS.q_proj", "aab", "", "a]q_proj"]


@pytest.mark.parametrize("pattern", WRITTEN)
def test_what_people_write_means_the_same_as_in_python(tmp_path: Path, pattern: str) -> None:
    patterns = Patterns(tmp_path)
    patterns.check("target_modules", pattern)
    for module in MODULES:
        assert (patterns.matches(pattern, module) is None) == (re.fullmatch(pattern, module) is None), module
        if not pattern.startswith("(?i)"):  # PEFT cannot use such a one as a key
            ours = patterns.matches(pattern, module, r"(.*\.)?({})")
            assert (ours is None) == (re.match(rf"(.*\.)?({pattern})$", module) is None), module


def test_the_largest_scaling_is_taken_and_a_version_has_four_digits(tmp_path: Path) -> None:
    config = {"r": 1, "lora_alpha": LARGEST, "peft_version": "9" * 5000 + ".1"}
    settings = Settings(adapter(tmp_path / "adapter", config) / "adapter_config.json")
    assert settings.rank_and_scaling(Q.format(0)) == (1, LARGEST)
    assert settings.peft is None


def test_a_sound_adapter_is_taken(base: Path, tmp_path: Path) -> None:
    config = {
        "target_modules": r".*\.q_proj",
        "rank_pattern": {Q.format(0): 2},
        "alpha_pattern": {"q_proj": 6.0, r"self_attn\.q_proj": 6.0},
        "init_lora_weights": "eva",
        "eva_config": {"rho": 2.0},
    }
    extract(base, adapter(tmp_path / "adapter", config), tmp_path / "delta")
    factors = open_delta(tmp_path / "delta").factors(f"{Q.format(3)}.weight")
    assert factors is not None
    assert (factors.rank, factors.scaling) == (2, 3.0)
