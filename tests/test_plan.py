"""`shadowft plan`: shapes, what autograd keeps, steps, refusals and the changes that they name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import CheckpointError, DataError, InputError, TrainError
from shadowft_core.params import Launch, Lora, Plan, Train, load_params
from shadowft_core.plan import (
    Device,
    Lengths,
    Shape,
    device,
    plan,
    read_lengths,
    require_fits,
    shape_of,
    shape_of_table,
)
from shadowft_core.plan.memory import Batch, Setting, activations, memory, per_token
from shadowft_core.presets import planned, presets, show
from shadowft_core.weights import open_checkpoint
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import Pair

LENGTHS = Lengths(100, (16.0, 32.0, 48.0, 64.0), counted=True)
PUBLISHED = {  # weights as the hub's pages count them; Qwen3's small models are counted with a head of their own there
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "gemma-3-4b": 4_300_079_472,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-27b": 27_432_406_640,
    "falcon3-1b": 1_669_408_768,
    "falcon3-3b": 3_227_655_168,
    "falcon3-7b": 7_455_550_464,
    "falcon3-10b": 10_305_653_760,
    "yi-6b": 6_061_035_520,
    "yi-coder-1.5b": 1_476_493_312,
    "yi-coder-9b": 8_829_407_232,
}


@pytest.mark.parametrize("pair", PUBLISHED)
def test_a_table_of_shapes_gives_the_published_number_of_weights(pair: str) -> None:
    """Biases are not in the table, so Qwen2.5 is off by 2e-5."""
    shape = next(shape_of_table(found.shape) for found in presets() if found.name == f"{pair}-lora")
    assert shape.weights == pytest.approx(PUBLISHED[pair], rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_shape_from_headers_equals_the_model(family: str, tied: bool, family_pair: Callable[..., Pair]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = family_pair(family, tied=tied).base
    shape = shape_of(open_checkpoint(folder))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert shape.weights == sum(p.numel() for p in network.parameters())
    assert Shape(**{**vars(shape), "total": None}).weights == pytest.approx(shape.weights, rel=0.01)
    assert (shape.tied, shape.stored) == (tied, 2)
    adapted = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    assert shape.adapter(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("masked", [False, True])
def test_activations_are_what_autograd_keeps(
    family: str, attention: Any, method: Any, masked: bool, family_pair: Callable[..., Pair]
) -> None:
    """The bytes that a forward pass saves, counted by PyTorch's hooks."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, length = family_pair(family).base, 48
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    decoder = network.model
    if method == "lora":
        get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    decoder.train()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mask = torch.ones(4, length, dtype=torch.long)
    mask[0, -8:] = 0 if masked else 1
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = decoder(input_ids=torch.full((4, length), 5), attention_mask=mask).last_hidden_state
    assert states.requires_grad
    train = Train(method=method, attention=attention, lora=Lora(rank=4))
    setting = Setting(shape_of(open_checkpoint(folder)), train, "cpu", 1, untrained=False)
    layers, _ = activations(setting, Batch(4, length, masked))
    assert layers == pytest.approx(sum(kept.values()), rel=0.1)
    assert per_token(setting, length, masked) > 0


def on(gigabytes: float, kind: str = "cuda") -> Device:
    return Device("a device", kind, gigabytes * 1e9, 1e14)


SHAPE = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, mlp=14336, vocabulary=128256, tied=False)
LONG = Lengths(1000, (100.0, 500.0, 1500.0, 4096.0), counted=True)


FULL = Train(method="full", batch_size=4, accumulation=2, max_length=4096, gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("gigabytes", "train", "change"),
    [
        (90, Train(batch_size=4, max_length=4096), "batch_size: 2, accumulation: 2"),
        (80, Train(batch_size=16, max_length=4096), "gradient_checkpointing: true"),
        (26, Train(batch_size=4, max_length=4096, gradient_checkpointing=True), "batch_size: 1, accumulation: 4"),
        (22, Train(batch_size=1, max_length=4096), "method: qlora, gradient_checkpointing: true"),
        (60, FULL, "launch: {processes: 4, strategy: fsdp}, batch_size: 1, accumulation: 8"),
        (30, FULL.model_copy(update={"accumulation": 1, "batch_size": 1}), "method: lora"),
    ],
)
def test_a_refusal_names_a_change_that_fits(gigabytes: float, train: Train, change: str) -> None:
    found = plan(SHAPE, train, LONG, on(gigabytes))
    assert not found["fits"]
    with pytest.raises(
        TrainError, match=r"route shadow: training needs [\d.]+ GB .* a device has [\d.]+ GB"
    ) as refused:
        require_fits({"shadow": found})
    assert str(refused.value).endswith(f"; set {found['change']}")
    changed = yaml.safe_load("{" + found["change"].replace("train.", "") + "}")
    assert changed == yaml.safe_load("{" + change + "}")
    settings = train.model_dump(exclude={"seeds"}) | changed
    assert plan(SHAPE, Train.model_validate(settings), LONG, on(gigabytes))["fits"]


def test_what_no_change_makes_fit_is_said() -> None:
    found = plan(SHAPE, Train(), LONG, on(1))
    assert (found["fits"], found["change"]) == (False, None)
    with pytest.raises(TrainError, match="use a larger device"):
        require_fits({"shadow": found})


def test_each_setting_changes_what_it_must() -> None:
    base = Train(batch_size=4, max_length=1024)
    first = plan(SHAPE, base, LONG, on(80))

    def peak(**changes: Any) -> int:
        return int(plan(SHAPE, base.model_copy(update=changes), LONG, on(80))["peak"])

    assert peak(gradient_checkpointing=True) < first["peak"] < peak(batch_size=8)
    assert peak(attention="eager") > first["peak"] > peak(method="qlora")
    assert peak(method="full") > 8e9 * 16
    assert peak(objective="dpo") > first["peak"]
    assert peak(lora=Lora(rank=256)) > first["peak"]
    assert plan(SHAPE, base, LONG, on(80), untrained=True)["memory"]["weights"] == pytest.approx(
        first["memory"]["weights"] + 2 * SHAPE.embedding * 2
    )
    assert plan(SHAPE, base.model_copy(update={"packing": True}), LONG, on(80))["padding"] < first["padding"]
    shared = base.model_copy(update={"batch_size": 1, "accumulation": 4})
    one = plan(SHAPE, shared, LONG, on(80))
    launch = Launch(processes=4, strategy="fsdp")
    fsdp = plan(SHAPE, shared.model_copy(update={"launch": launch}), LONG, on(80))
    assert fsdp["memory"]["weights"] == pytest.approx(one["memory"]["weights"] / 4, rel=1e-6)
    assert fsdp["seconds"] == pytest.approx(one["seconds"] / 4, rel=0.01)


def test_steps_tokens_and_price() -> None:
    train = Train(batch_size=4, accumulation=2, epochs=2, max_length=64)
    found = plan(SHAPE, train, LENGTHS, on(80), Plan(utilisation=0.5, price_per_hour=3.6))
    assert (found["steps"], found["sequences"]) == (26, 200)
    assert found["tokens"] == pytest.approx(200 * 0.5 * (0.5 * 48 + 0.45 * 80 + 0.05 * 112), rel=0.01)
    assert found["seconds"] == pytest.approx(found["operations"] / 1e14 / 0.5, abs=0.1)
    assert found["price"] == pytest.approx(found["seconds"] / 1000, abs=0.01)
    assert plan(SHAPE, train, LENGTHS, on(80))["price"] is None
    steps = plan(SHAPE, train.model_copy(update={"max_steps": 3}), LENGTHS, on(80))
    assert (steps["steps"], steps["sequences"]) == (3, 24)


def test_lengths_are_counted_tokens_or_an_estimate_that_says_so(tmp_path: Path) -> None:
    characters = {"min": 35, "median": 70, "p95": 105, "max": 140}
    report: dict[str, Any] = {
        "splits": {"train": 7},
        "characters": {"train": {"prompt": characters, "reply": characters}},
    }
    (tmp_path / "data-report.json").write_text(json.dumps(report))
    assert read_lengths(tmp_path) == Lengths(7, (50.0, 70.0, 90.0, 110.0), counted=False)
    report["tokens"] = {"train": {"min": 5, "median": 6, "p95": 7, "max": 8}}
    report["replay"] = {"rows_used": 3}
    (tmp_path / "data-report.json").write_text(json.dumps(report))
    assert read_lengths(tmp_path) == Lengths(10, (5.0, 6.0, 7.0, 8.0), counted=True, replayed=3)
    with pytest.raises(DataError, match="missing or incomplete; run `shadowft prepare`"):
        read_lengths(tmp_path / "nothing")
    estimate = plan(SHAPE, Train(max_length=512), Lengths(7, (1.0, 2.0, 3.0, 4.0), counted=False), on(80))
    assert "train.max_length 512" in " ".join(estimate["assumed"])
    setting = Setting(SHAPE, Train(max_length=512), "cuda", 1, untrained=False)
    assert estimate["peak"] == pytest.approx(sum(memory(setting, Batch(16, 512, True)).values()), abs=10)


def test_an_unknown_device_or_config_is_refused(tmp_path: Path, tiny_llama_pair: Pair) -> None:
    with pytest.raises(InputError, match=r"plan.device 'H900': unknown; use one of cpu, .*H100"):
        device("H900", 1)
    assert device("cpu", 2).flops == 2 * device("cpu", 1).flops
    model = open_checkpoint(tiny_llama_pair.base)
    (tmp_path / "config.json").write_text("{}")
    model.path = tmp_path
    with pytest.raises(CheckpointError, match=r"config\.json: no hidden_size, which the plan needs"):
        shape_of(model)


def test_the_text_of_a_preset_is_what_plan_computes(tmp_path: Path) -> None:
    for name in ("qwen3-8b-lora", "qwen3-14b-full", "gemma-3-27b-vision-lora"):
        text, found = " ".join(show(name).replace("\n#  ", "").split()), planned(name, "H100")
        assert f"{found['peak'] / 1e9:.0f} GB on each device, {found['seconds'] / 60:.0f} minutes a route" in text
        (tmp_path / "params.yaml").write_text(show(name))
        assert load_params(tmp_path / "params.yaml").plan == Plan()


@pytest.mark.parametrize("name", [found.name for found in presets()])
def test_a_preset_fits_the_devices_that_it_names(name: str) -> None:
    """On H100 with the processes of its train.launch."""
    assert planned(name, "H100")["fits"] or "too small: set" in show(name)


def test_the_verb_prints_a_table_or_json_and_refuses(shadowft: Shadowft) -> None:
    done = shadowft("plan", "--preset", "llama-3.2-1b-lora", "--device", "A100")
    assert done.code == 0, done.err
    assert "63 steps" in done.out
    assert "activations" in done.out
    found = json.loads(shadowft("plan", "--preset", "llama-3.2-1b-lora", "--device", "A100", "--json").out)
    assert found["routes"]["llama-3.2-1b-lora"]["steps"] == 63
    refused = shadowft("plan", "--preset", "qwen3-32b-lora", "--device", "L4")
    assert refused.code == 6
    assert "error: route qwen3-32b-lora: training needs" in refused.err
    shadowft("plan", "--preset", "llama-3.2-1b-lora", "--device", "nothing").refused(3, "plan.device 'nothing'")
    shadowft("plan", "--pair", "nowhere").refused(
        3, "nowhere: no such folder; in a workspace, `dvc repro fetch` makes it"
    )


def test_a_run_refuses_before_training_what_cannot_fit(tmp_path: Path, tiny_llama_pair: Pair) -> None:
    """With the memory that this machine really has."""
    from shadowft_core.pipeline.steps import require_memory

    pair, data = tmp_path / "pair", tmp_path / "data"
    pair.mkdir()
    data.mkdir()
    (pair / "base").symlink_to(tiny_llama_pair.base)
    (pair / "instruct").symlink_to(tiny_llama_pair.instruct)
    (pair / "pair.json").write_text('{"untrained_tokens": []}')
    report = {"splits": {"train": 9}, "tokens": {"train": {"min": 5, "median": 6, "p95": 7, "max": 60}}}
    (data / "data-report.json").write_text(json.dumps(report))
    shown: list[str] = []
    params = load_params(Path("params.yaml"))
    require_memory(params, pair, data, shown.append)
    assert shown[0].startswith("memory planned: 0.")
    large = params.model_copy(update={"train": Train(batch_size=2**24, max_length=64)})
    with pytest.raises(TrainError, match=r"route \w+: training needs .* GB .*; set train.batch_size: \d+"):
        require_memory(large, pair, data, shown.append)
    (pair / "pair.json").unlink()
    require_memory(params, pair, data, shown.append)
    assert shown[-1].startswith("memory was not planned: ")
