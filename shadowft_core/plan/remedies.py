"""Finds a change of the settings that makes a training fit, by trying them."""

from collections.abc import Iterator
from typing import Any

from shadowft_core.params import Train
from shadowft_core.plan.devices import Device
from shadowft_core.plan.memory import Batch, Setting, memory
from shadowft_core.plan.work import Lengths

FSDP = (2, 4, 8, 16, 32)


def batch_of(setting: Setting, lengths: Lengths) -> Batch:
    """The largest micro-batch: with the longest row if tokens were counted, else of `max_length` tokens."""
    train = setting.train
    longest = train.max_length
    if lengths.counted and not train.packing:
        longest = min(longest, round(lengths.levels[3]))
    masked = train.packing or (train.batch_size > 1 and lengths.levels[0] < lengths.levels[3])
    return Batch(train.batch_size, longest, masked)


def changes(setting: Setting, lengths: Lengths, on: Device) -> str | None:
    """The smallest of the tried changes that makes it fit, as settings of params.yaml; None if none does."""
    for words, changed, devices in _tried(setting.train, setting.devices, on.kind):
        tried = Setting(setting.shape, changed, on.kind, devices, setting.untrained)
        shared = devices if on.kind == "cpu" else 1
        if sum(memory(tried, batch_of(tried, lengths)).values()) * shared <= on.memory:
            return words
    return None


def _tried(train: Train, devices: int, kind: str) -> Iterator[tuple[str, Train, int]]:
    """Changes, those that keep the result first: words, settings, devices."""
    smaller = list(_smaller(train))
    for words, changed in smaller:
        yield words, changed, devices
    dense = smaller[-1] if smaller else ("", train)
    rest = f"{dense[0]}, " if dense[0] else ""
    if kind == "cuda" and train.method in ("lora", "full"):
        for processes in FSDP:
            for before, start in (("", train), (rest, dense[1])):
                if processes > devices and start.accumulation % processes == 0:
                    launch = start.launch.model_copy(update={"processes": processes, "strategy": "fsdp"})
                    words = f"{before}train.launch: {{processes: {processes}, strategy: fsdp}}"
                    yield words, start.model_copy(update={"launch": launch}), processes
    if kind == "cuda" and train.method == "lora":
        yield "train.method: qlora", train.model_copy(update={"method": "qlora"}), devices
        yield f"{rest}train.method: qlora", dense[1].model_copy(update={"method": "qlora"}), devices
    if train.method in ("full", "osf"):
        yield "train.method: lora", train.model_copy(update={"method": "lora"}), devices
        yield f"{rest}train.method: lora", dense[1].model_copy(update={"method": "lora"}), devices


def _smaller(train: Train) -> Iterator[tuple[str, Train]]:
    """Less memory with the same sequences an optimizer step: checkpointing, halved batches, both."""
    halves = []
    batch, accumulation = train.batch_size, train.accumulation
    while batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        halves.append((batch, accumulation))
    checkpointed: dict[str, Any] = {"gradient_checkpointing": True}
    if halves:
        yield _with(train, *halves[0], {})
    if not train.gradient_checkpointing:
        yield "train.gradient_checkpointing: true", train.model_copy(update=checkpointed)
    for batch, accumulation in halves[1:]:
        yield _with(train, batch, accumulation, {})
    if not train.gradient_checkpointing:
        for batch, accumulation in halves:
            yield _with(train, batch, accumulation, checkpointed)


def _with(train: Train, batch: int, accumulation: int, more: dict[str, Any]) -> tuple[str, Train]:
    words = f"train.batch_size: {batch}, train.accumulation: {accumulation}"
    words += ", train.gradient_checkpointing: true" if more else ""
    return words, train.model_copy(update={"batch_size": batch, "accumulation": accumulation, **more})
