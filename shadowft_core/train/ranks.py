"""Several processes, one training: the same rows in every optimizer step as with one process, whatever their number.

accelerate deals the micro-batches out in turn, and repeats rows until all processes have equally many. Here, blank rows
come after the last row of an epoch instead: nothing in them is learned, and the collator removes them. So the sum of
the losses, over the number of learned tokens of all processes, is that of one process.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from shadowft_core.errors import TrainError
from shadowft_core.params import Launch
from shadowft_core.rendering import IGNORED
from shadowft_core.train.launch import Place, placed

BLANK = "blank"  # column of the row that fills a micro-batch


class Filled(torch.utils.data.Dataset):  # type: ignore[misc]  # torch is not typed here
    """The rows, and as many blank rows as complete the last micro-batches of all processes."""

    def __init__(self, rows: Any, multiple: int) -> None:
        self.rows, self.real = rows, len(rows)
        self._length = -(-self.real // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: int) -> dict[str, Any]:
        return dict(self.rows[at]) if at < self.real else {**self.rows[0], BLANK: True}


class FilledSampler(torch.utils.data.Sampler):  # type: ignore[misc]
    """The order of one process (accelerate's, from the seed and the epoch), then the blank rows."""

    def __init__(self, rows: Filled, seed: int, epoch: Callable[[], int]) -> None:
        """`epoch` returns the epoch that begins. accelerate's `set_epoch` does not reach here in a resumed epoch."""
        self._rows, self._epoch = rows, epoch
        self._order = SeedableRandomSampler(range(rows.real), data_seed=seed)

    def __iter__(self) -> Iterator[int]:
        self._order.set_epoch(self._epoch())
        yield from self._order
        yield from range(self._rows.real, len(self._rows))

    def __len__(self) -> int:
        return len(self._rows)


class FilledCollator:
    """Leaves blank rows out of a batch. A batch of blank rows only becomes one row without learned tokens."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        real = [row for row in rows if BLANK not in row]
        shown = real or [{name: value for name, value in rows[0].items() if name != BLANK}]
        batch: dict[str, torch.Tensor] = self._collator(shown)
        if not real and "labels" in batch:
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return batch


class RankedTrainer:
    """Mixed into a trainer of TRL, before it, for one of several processes (`share_out`)."""

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> FilledSampler:
        return FilledSampler(self.train_dataset, self.args.data_seed, lambda: int(self.state.epoch or 0))

    def get_eval_dataloader(self: Any, eval_dataset: Any = None) -> Any:
        """Batches of this process in the order of the rows."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = Filled(given, self.args.eval_batch_size * self.args.world_size)
        self._left_to_evaluate = rows.real
        return super().get_eval_dataloader(rows)  # type: ignore[misc]

    def evaluation_loop(self: Any, *arguments: Any, **options: Any) -> Any:
        """The mean loss as with one process: each batch counts by its real rows."""

        def every(losses: torch.Tensor) -> torch.Tensor:
            found = self.accelerator.gather(losses)[: self._left_to_evaluate]
            self._left_to_evaluate -= len(found)
            return found

        self.gather_function = every
        return super().evaluation_loop(*arguments, **options)  # type: ignore[misc]

    def real_batches(self: Any, count: int) -> list[bool]:
        """For each of the `count` micro-batches of this process in the step that begins, whether it is not blank."""
        everywhere = count * self.args.world_size
        real = everywhere - (self._blank if self.accelerator.gradient_state.end_of_dataloader else 0)
        return [at < real for at in range(self.args.process_index, everywhere, self.args.world_size)]

    def log(self: Any, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Take the tokens of blank batches out of TRL's count."""
        if self._metrics["train"].get("num_tokens"):
            tokens = self._blank * self._blank_tokens * int(self.state.epoch)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens - tokens]
        super().log(logs, *arguments, **options)  # type: ignore[misc]


def share_out(trainer: Any) -> None:
    """Make `trainer` that of one of several processes; the group of processes must exist."""
    if trainer.args.fsdp and not trainer.is_fsdp_enabled:
        # accelerate ignores FSDP on CPUs, in silence; FSDP2 itself runs there.
        state = trainer.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        trainer.is_fsdp_enabled = True
    size, world = trainer.args.train_batch_size, trainer.args.world_size
    trainer.__class__ = type(type(trainer).__name__, (RankedTrainer, type(trainer)), {})
    trainer.data_collator = FilledCollator(trainer.data_collator)
    trainer.train_dataset = Filled(trainer.train_dataset, size * world)
    trainer._blank = (len(trainer.train_dataset) - trainer.train_dataset.real) // size  # batches per epoch
    batch = trainer.data_collator([trainer.train_dataset[0]])
    # As TRL counts them, or PackedTokens.
    trainer._blank_tokens = int(batch["tokens"] if "tokens" in batch else batch["attention_mask"].sum())


def fsdp_config() -> dict[str, Any]:
    """FSDP2 by accelerate: each decoder layer (the model's `_no_split_modules`) is a unit."""
    return {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}


def take_place(launch: Launch) -> Place:
    """The place of this process, with a device of its own where there are CUDA devices.

    With several devices and one process, transformers would wrap the model in DataParallel, which raises the batch.
    Raises TrainError if the processes have not been started, or not one for each device.
    """
    place, found = placed(launch), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.world == 1 and found > 1:
        raise TrainError(
            f"{found} CUDA devices are visible, but train.launch.processes is 1; set it to {found}, or "
            "CUDA_VISIBLE_DEVICES to the number of one device"
        )
    if 0 < found < launch.processes:
        raise TrainError(
            f"train.launch.processes is {launch.processes}, but {found} CUDA devices are visible to each process; set "
            f"it to {found}, or CUDA_VISIBLE_DEVICES to as many numbers"
        )
    if found:
        torch.cuda.set_device(place.local_rank)
    return place


def strategy_used(network: Any, place: Place) -> str | None:
    """What the trained model was: `fsdp` if it is cut, else `ddp`; None for one process."""
    if place.world == 1:
        return None
    return "fsdp" if isinstance(network, FSDPModule) else "ddp"


def collect(network: Any, place: Place, only_trained: bool) -> None:
    """End the group of processes; rank 0 has the whole parameters again, in CPU memory, where FSDP had cut them.

    All processes must call it. With `only_trained`, frozen parameters stay cut.
    """
    if place.world == 1:
        return
    whole: dict[int, torch.nn.Parameter] = {}  # a tied parameter stays tied
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a unit without resharding may still hold the weights of the last forward pass
    for module in network.modules():
        for name, held in list(module._parameters.items()):
            if not isinstance(held, DTensor) or (only_trained and not held.requires_grad):
                continue
            if id(held) not in whole:
                full = held.detach().full_tensor()
                whole[id(held)] = torch.nn.Parameter(full.cpu() if place.rank == 0 else full[:0], held.requires_grad)
            if place.rank == 0:
                module._parameters[name] = whole[id(held)]
    torch.distributed.destroy_process_group()
