"""Follows a training: a line per optimizer step, and errors if the loss shows that the model is lost."""

import math
import sys
import time
from typing import Any

import numpy as np
from transformers import TrainerCallback

from shadowft_core.errors import TrainError

REWARDS = {  # of preferences: names in TRL's logs and in metrics.jsonl
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
}


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Collects a line per step, prints about one per second, and raises TrainError if a loss is not finite."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self._began = self._shown = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        step, loss, norm = state.global_step, float(logs["loss"]), float(logs["grad_norm"])
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise TrainError(f"step {step}: {name} is {value}; lower train.learning_rate ({args.learning_rate:g})")
        self.lines.append(
            {
                "step": step,
                "epoch": logs["epoch"],
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": logs["learning_rate"],
                "tokens": int(logs["num_tokens"]),
                **{name: logs[key] for key, name in REWARDS.items() if key in logs},
            }
        )
        now = time.monotonic()
        if now - self._shown >= 1 or step in {1, state.max_steps}:
            self._shown = now
            left = (now - self._began) / step * (state.max_steps - step)
            print(f"step {step}/{state.max_steps} loss {loss:.3f} eta {left:.0f}s", file=sys.stderr, flush=True)

    def require_learning(self, choices: int, rate: float, of: str = "tokens") -> None:
        """Raises TrainError if the training destroyed the model. `choices` is the number of tokens, or of replies (2).

        That is so if the mean loss of the last tenth of the steps is at least that of a uniform guess, ln(choices)
        nats, less 1 %, and the first loss was lower by a tenth of it. A model with random weights starts near a guess.
        """
        losses, chance = [line["loss"] for line in self.lines], math.log(choices)
        last = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        if last >= 0.99 * chance and last > losses[0] + 0.1 * chance:
            raise TrainError(
                f"the loss rose from {losses[0]:.3f} to {last:.3f}, as high as that of a uniform guess among "
                f"{choices} {of} ({chance:.3f}): the model is destroyed; lower train.learning_rate ({rate:g})"
            )
