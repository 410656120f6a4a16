"""An exported adapter equals the graft: PEFT loads it onto the Instruct and gets the same weights and logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from shadowft_core.delta import extract
from shadowft_core.errors import AdapterError, DeltaError, GraftError, InputError
from shadowft_core.export import export_adapter, lint
from shadowft_core.grafting import Merge, Options, graft
from shadowft_core.weights import SINGLE, build_header, open_checkpoint, open_safetensors, write_safetensors
from tests.fixtures.models import Pair, shifted
from tests.fixtures.runs import Released

ROOT = Path(__file__).parent.parent
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def trained_adapter(base: Path, out: Path, **settings: Any) -> None:
    """An adapter as PEFT saves it, all factors filled with seeded noise as after a training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(tensor, std=0.2)
        model.save_pretrained(out)


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory, family_pair: Callable[..., Pair]) -> tuple[Pair, Path]:
    """A float32 pair and a delta with two ranks and two scalings; one layer of k_proj only."""
    pair = family_pair("llama", dtype="float32")
    folder = tmp_path_factory.mktemp("lora")
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"o_proj": 8},
        "alpha_pattern": {"q_proj": 3},
        "target_modules": r".*(q_proj|o_proj|down_proj|layers\.1\.self_attn\.k_proj)",
    }
    trained_adapter(pair.base, folder / "adapter", **settings)
    extract(pair.base, folder / "adapter", folder / "delta")
    return pair, folder / "delta"


def test_peft_merges_the_export_to_the_grafted_weights(lora: tuple[Pair, Path], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    pair, delta = lora
    config = export_adapter(pair.instruct, [(delta, 0.75)], tmp_path / "adapter")
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert config["target_modules"] == sorted(
        name.removesuffix(".weight") for name in json.loads((delta / "delta.json").read_bytes())["tensors"]
    )
    assert config["base_model_name_or_path"] == str(pair.instruct)
    graft(pair.instruct, [(delta, 0.75)], tmp_path / "grafted")

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    wanted = load(tmp_path / "grafted")
    tokens = torch.arange(5, 45).reshape(2, 20)
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(load(pair.instruct), tmp_path / "adapter").eval()
        logits, expected = adapted(tokens).logits, wanted(tokens).logits
        before = load(pair.instruct)(tokens).logits
    merged = adapted.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in wanted.state_dict().items():
        # B is rounded once more than in the graft, and PEFT sums the product in float32: a few units of 2^-24
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
        changed += not torch.equal(tensor, before_tensors(pair.instruct)[name])
    assert changed == 7
    assert float((expected - before).abs().max()) > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def before_tensors(folder: Path) -> dict[str, Any]:
    import torch

    model = open_checkpoint(folder)
    return {name: torch.from_numpy(model.read(name).astype(np.float32)) for name in model.names}


def test_layers_that_are_all_covered_are_targeted_by_name(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    trained_adapter(tiny_llama_pair.base, tmp_path / "a", r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    extract(tiny_llama_pair.base, tmp_path / "a", tmp_path / "delta")
    config = export_adapter(tiny_llama_pair.instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out", max_rank=8)
    assert config["target_modules"] == ["q_proj", "up_proj"]
    one = config | export_adapter(
        tiny_llama_pair.instruct,
        [(tmp_path / "delta", 1.0)],
        tmp_path / "scoped",
        options=Options(scope=["*q_proj*"]),
        reference="A/B",
    )
    assert (one["target_modules"], one["base_model_name_or_path"]) == (["q_proj"], "A/B")


def test_anything_but_a_single_lora_is_refused(lora: tuple[Pair, Path], tmp_path: Path) -> None:
    pair, delta = lora
    out = tmp_path / "adapter"
    trained_adapter(pair.base, tmp_path / "second", r=2, lora_alpha=4, target_modules=["q_proj"])
    extract(pair.base, tmp_path / "second", tmp_path / "other")
    with pytest.raises(AdapterError, match="2 deltas with a scale other than 0, expected one for an adapter; use"):
        export_adapter(pair.instruct, [(delta, 1.0), (tmp_path / "other", 0.5)], out)
    with pytest.raises(AdapterError, match="merge rule dare is not a sum"):
        export_adapter(pair.instruct, [(delta, 1.0)], out, Options(merge=Merge("dare", 0.5, 1)))
    with pytest.raises(AdapterError, match="0 deltas with a scale"):
        export_adapter(pair.instruct, [(delta, 0.0)], out)
    with pytest.raises(AdapterError, match=r"--max-lora-rank 4 is not one of 8, 16, 32, .*vllm/config/lora\.py"):
        export_adapter(pair.instruct, [(delta, 1.0)], out, max_rank=4)
    with pytest.raises(AdapterError, match=r"times \S+e\+39 overflows float32"):
        export_adapter(pair.instruct, [(delta, 1e39)], out)
    with pytest.raises(GraftError, match="scale nan"):
        export_adapter(pair.instruct, [(delta, float("nan"))], out)
    shifted(pair.base, tmp_path / "tuned", 0.01, seed=2)
    extract(pair.base, tmp_path / "tuned", tmp_path / "dense")
    with pytest.raises(AdapterError, match=r"is not a LoRA of .* \(\w+\); use `shadowft export --for merged`"):
        export_adapter(pair.instruct, [(tmp_path / "dense", 1.0)], out)
    damaged = shutil.copytree(delta, tmp_path / "damaged")
    raw = bytearray((damaged / "factors.safetensors").read_bytes())
    raw[-1] ^= 1
    (damaged / "factors.safetensors").write_bytes(raw)
    with pytest.raises(DeltaError, match=r"delta\.json has sha256:"):
        export_adapter(pair.instruct, [(damaged, 1.0)], out)
    assert not [path for path in tmp_path.iterdir() if "adapter" in path.name]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"peft_type": "IA3"}, "the adapter is LoRA: peft_type is 'IA3'"),
        ({"r": 512}, "shapes: "),
        ({"r": 600}, "rank within the server's limit: r is 600, the server accepts 1 to 512"),
        ({"modules_to_save": ["lm_head"]}, "no module is saved whole: modules_to_save is ['lm_head']"),
        ({"use_dora": True}, "no DoRA: use_dora is True"),
        ({"bias": "all"}, "no bias: bias is 'all'"),
        ({"lora_alpha": 0}, "alpha is a number: lora_alpha is 0"),
        ({"rank_pattern": {"q_proj": 2}}, "one rank for all modules: rank_pattern is {'q_proj': 2}"),
        ({"alpha_pattern": {"q_proj": 2}}, "one alpha for all modules: alpha_pattern is"),
        ({"fan_in_fan_out": True}, "weights are not transposed: fan_in_fan_out is True"),
        ({"base_model_name_or_path": ""}, "the Instruct is named: base_model_name_or_path is empty"),
        ({"target_modules": ...}, "rank, alpha and targets are given: target_modules missing"),
    ],
)
def test_each_rule_finds_its_error_and_names_its_source(
    lora: tuple[Pair, Path], tmp_path: Path, change: dict[str, Any], rule: str
) -> None:
    pair, delta = lora
    export_adapter(pair.instruct, [(delta, 1.0)], tmp_path / "a")
    assert lint(tmp_path / "a", pair.instruct) == []
    config = json.loads((tmp_path / "a" / CONFIG).read_bytes()) | change
    (tmp_path / "a" / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value != ...}))
    found = lint(tmp_path / "a", pair.instruct)
    assert [line for line in found if line.startswith(rule)], found
    assert all("vllm" in line for line in found)


def test_tensors_that_a_server_cannot_place_are_found(lora: tuple[Pair, Path], tmp_path: Path) -> None:
    pair, delta = lora
    export_adapter(pair.instruct, [(delta, 1.0)], tmp_path / "a")
    real = open_safetensors(tmp_path / "a" / WEIGHTS)
    arrays = {name: real.read(name) for name in real.names}
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def with_tensors(tensors: dict[str, np.ndarray]) -> list[str]:
        (tmp_path / "a" / WEIGHTS).unlink()
        header = build_header({name: ("F32", array.shape) for name, array in tensors.items()})
        write_safetensors(tmp_path / "a" / WEIGHTS, header, lambda name: iter([tensors[name].reshape(-1)]))
        return lint(tmp_path / "a", pair.instruct)

    assert with_tensors(arrays) == []
    lone = with_tensors({name: array for name, array in arrays.items() if name != first})
    assert "tensor names: model.layers.0.self_attn.q_proj has only one of its two factors" in lone[0]
    magnitude = with_tensors(arrays | {first.replace("lora_A", "lora_magnitude_vector"): arrays[first][0]})
    assert "is not a LoRA factor of a linear layer" in magnitude[0]
    head = {f"base_model.model.lm_head.lora_{f}.weight": arrays[first.replace("A.w", f"{f}.w")] for f in "AB"}
    assert "target modules: lm_head is of kind `head`, not a linear layer" in with_tensors(arrays | head)[0]
    second = first.replace("lora_A", "lora_B")
    for name, rest in ((first, np.s_[:, 1:]), (first, np.s_[1:]), (second, np.s_[:, 1:]), (second, np.s_[1:])):
        cut = with_tensors(arrays | {name: np.ascontiguousarray(arrays[name][rest])})
        assert "shapes: model.layers.0.self_attn.q_proj has B x A of" in cut[0], (name, rest)
    with_tensors(arrays)
    for name in ("adapter_model.bin", "adapter_model.pt", "optimizer.pkl"):
        (tmp_path / "a" / name).write_bytes(b"")
        assert f"weights are safetensors: {name} is a pickle" in lint(tmp_path / "a", pair.instruct)[0]
        (tmp_path / "a" / name).unlink()


def test_the_verb_exports_a_delta_both_ways(lora: tuple[Pair, Path], tmp_path: Path) -> None:
    from shadowft_core.cli import app

    pair, delta = lora
    words = ["export", "--delta", f"{delta}@0.5", "--instruct", str(pair.instruct)]
    done = CliRunner().invoke(app, [*words, "--for", "merged", "--out", str(tmp_path / "merged"), "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["digest"] == open_checkpoint(tmp_path / "merged").digest()
    assert (tmp_path / "merged" / SINGLE).is_file()
    done = CliRunner().invoke(app, [*words, "--for", "vllm", "--out", str(tmp_path / "adapter")])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [CONFIG, WEIGHTS]
    assert "--enable-lora --max-lora-rank 8" in done.stderr
    for wrong in (["--delta", str(delta)], ["models:/a/1", "--delta", "d@1"], []):
        with pytest.raises(InputError):
            CliRunner().invoke(app, ["export", "--for", "vllm", "--out", "x", *wrong], catch_exceptions=False)


def test_a_registered_version_is_exported(released: Released, tmp_path: Path) -> None:
    import yaml

    from shadowft_core.cli import app

    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"store": released.store.model_dump(), "registry": released.registry.model_dump()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    words = ["export", f"models:/{released.name}/1", "--params", str(tmp_path / "params.yaml")]
    done = CliRunner().invoke(app, [*words, "--for", "merged", "--out", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    digest = released.client.get_model_version(released.name, "1").tags["shadowft.model"]
    assert open_checkpoint(tmp_path / "merged").digest() == digest
    with pytest.raises(AdapterError, match=r"is not a LoRA of .* \(\w+\); use `shadowft export --for merged`"):
        CliRunner().invoke(app, [*words, "--for", "vllm", "--out", str(tmp_path / "adapter")], catch_exceptions=False)
    assert not (tmp_path / "adapter").exists()
