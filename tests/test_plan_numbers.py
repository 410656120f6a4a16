"""Single numbers of the plan: what each setting adds to memory, work, price and disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.params import Checkpoint, Launch, Lora, Osf, Params, Plan, Train, load_params
from shadowft_core.plan import Device, Lengths, Shape, device, plan, plan_params
from shadowft_core.plan.memory import Setting, trained_weights
from shadowft_core.plan.work import disk, work

SHAPE = Shape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=96, vocabulary=1000, tied=False)
LENGTHS = Lengths(100, (16.0, 32.0, 48.0, 64.0), counted=True)
GPU, CPU = (Device("a device", kind, 80e9, 1e14) for kind in ("cuda", "cpu"))


def setting(shape: Shape = SHAPE, **changes: Any) -> Setting:
    return Setting(shape, Train.model_validate({"batch_size": 4, "lora": {"rank": 8}} | changes), "cuda", 1, False)


def planned(on: Device = GPU, settings: Plan | None = None, devices: int = 1, **changes: Any) -> dict[str, Any]:
    return plan(SHAPE, setting(**changes).train, LENGTHS, on, settings, devices=devices)


def test_the_weights_that_are_trained() -> None:
    plain = trained_weights(setting())
    assert plain == SHAPE.adapter(8)
    assert trained_weights(setting(lora=Lora(rank=8, dora=True))) == plain + 2 * (64 + 32 + 32 + 64 + 96 + 96 + 64)
    assert trained_weights(setting(lora=Lora(rank=8, modules_to_save=("lm_head",)))) == plain + 64_000
    most, least = (trained_weights(setting(method="osf", osf=Osf(preserved=share))) for share in (0.25, 0.75))
    assert most == pytest.approx(3 * least, abs=3)
    tower = Shape(**{**vars(SHAPE), "others": 500})
    assert trained_weights(setting(tower, method="full")) == trained_weights(setting(method="full")) == SHAPE.weights


def test_memory_of_optimizers_and_processes() -> None:
    plain, trained = planned()["memory"], SHAPE.adapter(8)
    assert plain["optimizer"] == 8 * trained
    assert planned(optimizer="adamw_8bit")["memory"]["optimizer"] == 2 * trained
    shards = planned(devices=2, accumulation=2, launch=Launch(processes=2, strategy="fsdp"))["memory"]
    assert shards["optimizer"] == 4 * trained
    assert shards["gathered"] > 0
    assert planned(CPU, devices=4)["available"] == CPU.memory / 4
    assert planned(devices=4)["available"] == GPU.memory
    assert device("H100", 1).memory == 0.92 * 80e9


def test_work_of_methods_and_objectives() -> None:
    plain = work(setting(), LENGTHS)
    assert work(setting(gradient_checkpointing=True), LENGTHS).operations > plain.operations
    assert work(setting(method="full"), LENGTHS).operations > plain.operations
    pairs = work(setting(objective="dpo"), LENGTHS)
    assert (pairs.tokens, pairs.padded) == (2 * plain.tokens, 2 * plain.padded)
    assert work(setting(max_length=24), LENGTHS).padded <= 24 * plain.sequences
    full = Lengths(95, (100.0,) * 4, counted=True)
    assert work(setting(packing=True, max_length=100), full).sequences == 100  # a pack is 95 % full


def test_every_device_is_paid_and_every_checkpoint_takes_space() -> None:
    settings = Plan(price_per_hour=1e9)
    one, four = (planned(settings=settings, devices=count) for count in (1, 4))
    assert four["price"] == pytest.approx(one["price"], rel=0.1)  # a quarter of the time, four devices
    sizes = [disk(setting(), Checkpoint(keep=keep), 1)["checkpoints"] for keep in (1, 3)]
    assert sizes == [12 * SHAPE.adapter(8), 36 * SHAPE.adapter(8)]


def test_each_route_is_planned_with_its_own_model_and_settings() -> None:
    params = load_params(Path("params.yaml"))
    routes = {
        "shadow": {"model": "base"},
        "direct": {"model": "instruct", "graft": "--onto-base"},
        "direct_full": {"model": "instruct", "graft": "--onto-base", "train": {"method": "full", "batch_size": 4}},
    }
    params = Params.model_validate(params.model_dump(exclude_unset=True) | {"routes": routes})
    larger = replace(SHAPE, layers=SHAPE.layers + 1, total=None)
    found = plan_params(params, {"base": SHAPE, "instruct": larger}, LENGTHS, GPU, True)
    alone = {
        name: plan(shape, params.train_for(name), LENGTHS, GPU, params.plan, untrained=untrained)
        for name, shape, untrained in (
            ("shadow", SHAPE, True),
            ("direct", larger, False),
            ("direct_full", larger, False),
        )
    }
    assert found == alone
    parts = {name: one["memory"] for name, one in found.items()}
    assert (found["direct"]["steps"], found["direct_full"]["steps"]) == (21, 75)
    assert plan(SHAPE, params.train, LENGTHS, GPU, untrained=False)["memory"] != parts["shadow"]


def test_a_route_without_replay_is_planned_without_the_replay_rows() -> None:
    params = load_params(Path("params.yaml"))
    lengths = replace(LENGTHS, replayed=40)
    found = plan_params(params, {"base": SHAPE, "instruct": SHAPE}, lengths, GPU, False)
    sequences = {name: one["sequences"] for name, one in found.items()}
    assert sequences == {"shadow": 180, "direct": 180, "direct_replay": 300}
