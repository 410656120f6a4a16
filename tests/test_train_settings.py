"""Every field of `train` reaches the trainer, the adapter or the model, or a test named here shows what it does."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from shadowft_core.params import Train
from shadowft_core.train.encode import Encoded
from tests.fixtures.training import word_tokenizer, write_model

ROOT = Path(__file__).parent.parent
CHANGED = Train.model_validate(  # every field that READ reads differs from its default
    {
        "lora": {
            **{"rank": 4, "alpha": 12, "rslora": True, "dora": True, "dropout": 0.25},
            **{"targets": ("q_proj", "up_proj"), "modules_to_save": ("lm_head",)},
        },
        **{"epochs": 2.5, "max_steps": 7, "batch_size": 3, "accumulation": 2, "learning_rate": 0.003},
        **{"warmup": 0.5, "schedule": "linear", "seed": 5, "threads": 3},
    }
)


@dataclass
class Built:
    """A trainer for CHANGED, its model, and the learning rates of four steps, relative to the highest."""

    trainer: Any
    network: Any
    rates: list[float]
    threads: int

    @property
    def adapters(self) -> dict[str, Any]:
        return {name: module for name, module in self.network.named_modules() if hasattr(module, "lora_A")}

    def each(self, of: Callable[[Any], Any]) -> Any:
        """The value that all adapters have."""
        [value] = {of(module) for module in self.adapters.values()}
        return value


READ: dict[str, Callable[[Built], Any]] = {  # by field: the value that is in force
    "method": lambda b: "lora" if b.adapters else None,
    "lora.rank": lambda b: b.each(lambda m: m.lora_A["default"].weight.shape[0]),
    "lora.alpha": lambda b: b.each(lambda m: m.scaling["default"] * m.lora_A["default"].weight.shape[0] ** 0.5),
    "lora.rslora": lambda b: b.each(lambda m: m.scaling["default"]) == 12 / 4**0.5,
    "lora.dora": lambda b: b.each(lambda m: "default" in m.lora_magnitude_vector),
    "lora.dropout": lambda b: b.each(lambda m: m.lora_dropout["default"].p),
    "lora.targets": lambda b: tuple(sorted({name.rpartition(".")[2] for name in b.adapters})),
    "lora.modules_to_save": lambda b: tuple(
        name.rpartition(".")[2]
        for name, module in b.network.named_modules()
        if type(module).__name__ == "ModulesToSaveWrapper" and not name.endswith("embed_tokens")  # tied to the head
    ),
    "epochs": lambda b: b.trainer.args.num_train_epochs,
    "max_steps": lambda b: b.trainer.args.max_steps,
    "batch_size": lambda b: b.trainer.get_train_dataloader().batch_sampler.batch_size,
    "accumulation": lambda b: b.trainer.args.gradient_accumulation_steps,
    "learning_rate": lambda b: b.trainer.optimizer.defaults["lr"],
    "warmup": lambda b: b.rates.index(max(b.rates)) / 4,
    "schedule": lambda b: {(0, 0.5, 1, 0.5): "linear"}.get(tuple(round(rate, 6) for rate in b.rates)),
    "seed": lambda b: b.trainer.args.seed if b.trainer.args.seed == b.trainer.args.data_seed else None,
    "threads": lambda b: b.threads,
}
ELSEWHERE = {  # by field: a test of what it does
    "command": "test_train_command.py::test_a_script_trains_each_route_and_its_result_is_extracted",
    "osf.preserved": "test_train_methods.py::test_gradients_of_osf_are_orthogonal_to_what_is_preserved",
    "objective": "test_train_settings.py::test_beta_reaches_the_loss_on_preferences",
    "optimizer": "test_train_settings.py::test_the_optimizer_is_that_of_the_settings",
    "dpo.beta": "test_train_settings.py::test_beta_reaches_the_loss_on_preferences",
    "start": "test_train_start.py::test_a_lora_goes_on_from_the_factors_of_the_champion",
    "launch.processes": "test_train_launch.py::test_two_processes_train_as_one",
    "launch.nodes": "test_train_launch.py::test_two_nodes_train_one_model",
    "launch.strategy": "test_train_launch.py::test_two_processes_train_as_one",
    "packing": "test_train_packing.py::test_training_on_packs_learns_and_says_so",
    "gradient_checkpointing": "test_train_device.py::test_gradient_checkpointing_keeps_less_and_changes_no_bit",
    "attention": "test_train_device.py::test_the_effective_values_are_in_train_json",
    "deterministic": "test_train_device.py::test_the_effective_values_are_in_train_json",
    "liger": "test_train_device.py::test_what_this_machine_cannot_do_is_refused_before_the_model_is_read",
    "compile": "test_train_device.py::test_compiled_training_has_nearly_the_same_losses",
    "seeds": "test_seeds.py::test_a_further_seed_is_trained_and_scored_like_the_first",
    "max_length": "test_train_refused.py::test_rows_too_long_or_with_control_tokens_are_counted_and_left_out",
    "max_left_out": "test_train_refused.py::test_rows_too_long_or_with_control_tokens_are_counted_and_left_out",
}

UNTESTED = {  # fields without such a test yet; an entry goes when its test comes
    *("validation.steps", "validation.patience", "validation.keep"),
}


def fields(of: type[BaseModel], above: str = "") -> Iterator[str]:
    """The fields of a section and of its sections, as `lora.rank`."""
    for name, field in of.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def value_of(settings: Train, field: str) -> Any:
    value: Any = settings
    for step in field.split("."):
        value = getattr(value, step)
    return value


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "base", 1)


def built_for(base: Path, params: Train, scratch: Path) -> Built:
    """What `train` builds, with eight rows; the optimizer takes four steps without gradients."""
    import torch

    from shadowft_core.train.device import set_up
    from shadowft_core.train.methods import with_method
    from shadowft_core.train.models import load_model
    from shadowft_core.train.trainer import make_trainer

    threads = torch.get_num_threads()
    try:
        set_up(params)
        tokenizer = word_tokenizer()
        network = with_method(load_model(base, tokenizer, params=params), params)
        trainer = make_trainer(network, tokenizer, Encoded([[1, 2]] * 8, [[1, 2]] * 8), params, scratch)
        trainer.create_optimizer_and_scheduler(num_training_steps=4)
        rates = []
        for _ in range(4):
            rates.append(trainer.lr_scheduler.get_last_lr()[0] / params.learning_rate)
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        return Built(trainer, network, rates, torch.get_num_threads())
    finally:
        torch.set_num_threads(threads)


def arguments(params: Train, scratch: Path) -> Any:
    from shadowft_core.train.arguments import dpo_config, sft_config

    return sft_config(params, scratch) if params.objective == "sft" else dpo_config(params, scratch, precompute=False)


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_for(base, CHANGED, tmp_path_factory.mktemp("scratch"))


def test_no_field_is_without_a_test() -> None:
    """A new field needs an entry in READ, or in ELSEWHERE with the test that shows its effect."""
    assert set(fields(Train)) == READ.keys() | ELSEWHERE.keys() | UNTESTED
    for field, test in ELSEWHERE.items():
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{field}: no {test}"


@pytest.mark.parametrize("field", READ)
def test_a_field_reaches_the_trainer(built: Built, field: str) -> None:
    set_to = value_of(CHANGED, field)
    assert set_to != value_of(Train(), field) or field == "method"
    assert READ[field](built) == pytest.approx(set_to)


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, {"gradient_accumulation_steps": 1, "scaling": 2.0, "rates": [1, 1, 1, 1]}),
        ({}, {"weight_decay": 0, "max_grad_norm": 1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}),
        ({"lora": {"rank": 8, "alpha": 4}}, {"scaling": 0.5}),
        ({"lora": {"rank": 16, "alpha": 8, "rslora": True}}, {"scaling": 2.0}),
        ({"schedule": "linear"}, {"rates": [1, 0.75, 0.5, 0.25]}),
        ({"schedule": "cosine"}, {"rates": [1, 0.8535534, 0.5, 0.1464466]}),
        ({"warmup": 0.5}, {"rates": [0, 0.5, 1, 1]}),
        ({"epochs": 2.5}, {"num_train_epochs": 2.5, "max_steps": -1}),
    ],
    ids=str,
)
def test_rates_scales_and_optimizer_follow_the_settings(
    base: Path, tmp_path: Path, settings: dict[str, Any], trained: dict[str, Any]
) -> None:
    """`rates` are the learning rates of steps 0 to 3 of 4, relative to train.learning_rate."""
    plain = {"lora": {"rank": 8, "alpha": 16}, "schedule": "constant", "warmup": 0}
    built = built_for(base, Train.model_validate(plain | settings), tmp_path)
    assert len(built.adapters) == 14
    for field, expected in trained.items():
        if field == "rates":
            assert built.rates == pytest.approx(expected)
        elif field == "scaling":
            assert built.each(lambda module: module.scaling["default"]) == expected
        else:
            assert getattr(built.trainer.args, field) == expected


def test_the_optimizer_is_that_of_the_settings(built: Built, tmp_path: Path) -> None:
    """Whether the 8-bit one can run is tested where `train` refuses it."""
    from shadowft_core.train.arguments import sft_config

    assert type(built.trainer.optimizer).__name__ == "AdamW"
    assert sft_config(CHANGED, tmp_path).optim == "adamw_torch"
    assert sft_config(Train(optimizer="adamw_8bit"), tmp_path).optim == "adamw_bnb_8bit"


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_rows_of_a_step_are_shared_by_the_processes_of_all_nodes(tmp_path: Path, objective: str) -> None:
    given = {"objective": objective, "launch": {"processes": 2, "nodes": 2}, "accumulation": 8, "batch_size": 3}
    args = arguments(Train.model_validate(given | {"liger": True}), tmp_path)
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (3, 3)
    assert args.gradient_accumulation_steps == 2
    assert args.average_tokens_across_devices, "the mean of a step is over the tokens of all processes"
    assert args.ddp_find_unused_parameters, "an expert may get no token"
    assert args.use_liger_kernel
    assert args.fsdp in (None, [], False)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_gpu_computes_in_bfloat16_and_never_in_tf32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Mock: a CUDA device that is not there."""
    import torch

    from shadowft_core.train import arguments as module

    taken: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        module, {"sft": "SFTConfig", "dpo": "DPOConfig"}[objective], lambda **given: taken.update(given)
    )
    arguments(Train.model_validate({"objective": objective}), tmp_path)
    assert {name: taken[name] for name in ("bf16", "fp16", "tf32", "use_cpu")} == {
        **{"bf16": True, "fp16": False, "tf32": False, "use_cpu": False}
    }


def test_beta_reaches_the_loss_on_preferences(base: Path, tmp_path: Path) -> None:
    import numpy as np

    from shadowft_core.train.methods import with_method
    from shadowft_core.train.models import load_model
    from shadowft_core.train.trainer import make_trainer

    params = Train.model_validate({"objective": "dpo", "dpo": {"beta": 0.7}, "lora": {"rank": 4}})
    ids = [np.array([2, 5, 6, 7], np.int32)] * 4
    rows = Encoded(ids, [np.array([-100, -100, 6, 7], np.int32)] * 4, rejected=[np.array([8, 9], np.int32)] * 4)
    tokenizer = word_tokenizer()
    network = with_method(load_model(base, tokenizer), params)
    trainer = make_trainer(network, tokenizer, rows, params, tmp_path)
    assert type(trainer).__name__ == "PreferenceTrainer"
    assert trainer.beta == trainer.args.beta == 0.7
