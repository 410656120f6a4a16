"""Follows a training: a line per optimizer step for metrics.jsonl, a live file, a bar or lines on stderr."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from shadowft_core.errors import TrainError, say

REWARDS = {  # of preferences: names in TRL's logs and in metrics.jsonl
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
}
Line = dict[str, float]


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Collects a line per step and shows it; raises TrainError if a loss or gradient norm is not finite.

    On a terminal it shows a bar, elsewhere at most one line per second. `live` is a file that gets each line with
    `seconds` since this process began its steps and `tokens_per_second` of the step. `on_line` gets the same.
    """

    def __init__(
        self, live: Path | None = None, on_line: Callable[[Mapping[str, float]], None] = lambda _: None
    ) -> None:
        self.lines: list[Line] = []
        self.rows_of_step: Callable[[], str] = lambda: ""
        self.last_good: Callable[[], str] = lambda: "none"
        self._live, self._on_line = live, on_line
        self._first = 0  # steps before this process
        self._shows = True  # only rank 0 does
        self._began = self._shown = self._stepped = time.monotonic()
        self._bar: Bar | None = None

    def go_on(self, lines: list[Line]) -> None:
        """Go on after these lines of an earlier process."""
        self.lines = list(lines)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock and the bar."""
        self._began = self._stepped = time.monotonic()
        self._first, self._shows = state.global_step, state.is_world_process_zero
        if self._first and self._shows:
            say(f"train: resumed at step {self._first} of {state.max_steps}")
        if sys.stderr.isatty() and self._shows:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=state.max_steps, completed=self._first)
            self._bar.start()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar, also after an error."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Keep the line of a step and show it."""
        if "loss" not in logs:
            return
        step, loss, norm = state.global_step, float(logs["loss"]), float(logs["grad_norm"])
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise TrainError(
                    f"step {step}: {name} is {value}; rows: {self.rows_of_step()}; last good checkpoint: "
                    f"{self.last_good()}; lower train.learning_rate ({args.learning_rate:g}), or mend the rows"
                )
        line = {
            "step": step,
            "epoch": logs["epoch"],
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": logs["learning_rate"],
            "tokens": int(logs["num_tokens"]),
            **{name: logs[key] for key, name in REWARDS.items() if key in logs},
        }
        before = self.lines[-1]["tokens"] if self.lines else 0
        self.lines.append(line)
        if self._shows:
            self._show(line, state.max_steps, line["tokens"] - before)

    def _show(self, line: Line, steps: int, tokens: float) -> None:
        now, step = time.monotonic(), int(line["step"])
        rate = tokens / max(now - self._stepped, 1e-9)
        self._stepped = now
        self._tell(line | {"tokens_per_second": round(rate, 1)})
        shown = f"step {step}/{steps} loss {line['loss']:.3f}"
        speed = f"lr {line['learning_rate']:.2e} {rate:.0f} tokens/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, description=f"{shown} {speed}")
        elif now - self._shown >= 1 or step in {1, self._first + 1, steps}:
            self._shown = now
            left = (now - self._began) / (step - self._first) * (steps - step)
            say(f"{shown} eta {left:.0f}s {speed}")

    def validated(self, step: int, loss: float | None) -> float | None:
        """Pass the validation loss measured after training to `on_line`; returns it."""
        if loss is not None:
            self._on_line({"step": step, "valid_loss": loss})
        return loss

    def measured(self, step: int, loss: float) -> None:
        """Add the validation loss after a step to its line, and show it."""
        self.lines[-1]["valid_loss"] = loss
        if self._shows:
            self._tell({"step": step, "valid_loss": loss})
            say(f"train: step {step}: validation loss {loss:.3f}")

    def _tell(self, line: Line) -> None:
        timed = line | {"seconds": round(time.monotonic() - self._began, 3)}
        if self._live:
            with self._live.open("a") as file:
                file.write(json.dumps(timed) + "\n")
        self._on_line(timed)

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
                f"{choices} {of} ({chance:.3f}): the model is destroyed; lower train.learning_rate ({rate:g}); last "
                f"checkpoint: {self.last_good()}"
            )
