"""Counts how many greedy replies to validation questions the model ends, before and after training.

Twice, it generates one batch of at most `PROMPTS` replies with at most `2 * LONGEST` tokens. So it takes at most 256
forward passes of 20 tokens, whatever the model and the data.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from shadowft_core.rendering import IGNORED
from shadowft_core.train.encode import Encoded

PROMPTS = 20
LONGEST = 64  # tokens of a reference reply; questions with longer ones are not used


@dataclass(frozen=True)
class StopProbe:
    """Prompts (the ids before the last reply of a sequence), and the largest number of tokens to generate for each."""

    prompts: list[np.ndarray]
    max_new_tokens: int

    def stopped(self, network: Any, stops: set[int], pad: int, bfloat16: bool) -> int:
        """The number of prompts whose greedy reply contains one of the ids `stops`."""
        model = network.get_base_model() if hasattr(network, "get_base_model") else network
        config, training = model.generation_config, model.training
        width = max(map(len, self.prompts))
        ids = np.full((len(self.prompts), width), pad)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
        model.generation_config = GenerationConfig(  # without the model's settings: no sampling, no penalties
            max_new_tokens=self.max_new_tokens, do_sample=False, eos_token_id=sorted(stops), pad_token_id=pad
        )
        model.eval()
        if hasattr(network, "unshard"):  # FSDP gathers the weights of this unit before its own forward pass only
            network.unshard()
        try:
            with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                given = {"input_ids": ids, "attention_mask": mask}
                out = model.generate(**{name: torch.tensor(v, device=model.device) for name, v in given.items()})
        finally:
            model.generation_config = config
            model.train(training)
        return int(np.isin(out[:, width:].cpu().numpy(), sorted(stops)).any(axis=1).sum())

    def record(self, before: int, after: int) -> dict[str, int]:
        """`stops` of train.json, from the counts before and after training."""
        counts = {"prompts": len(self.prompts), "stopped_before": before, "stopped_after": after}
        return counts | {"max_new_tokens": self.max_new_tokens}


def stop_probe(valid: Encoded, positions: int | None) -> StopProbe | None:
    """A probe with the first validation questions that have a short reply and no images; None if there are none.

    `max_new_tokens` is twice the length of the longest of these replies, but fits into `positions`, the model's largest
    number of tokens.
    """
    found = []
    shown = valid.files or [[]] * len(valid.input_ids)
    for ids, labels, images in zip(valid.input_ids, valid.labels, shown, strict=True):
        if images:
            continue
        learned = np.flatnonzero(labels != IGNORED)
        first = int(learned[np.flatnonzero(np.diff(learned) > 1)[-1] + 1 if (np.diff(learned) > 1).any() else 0])
        length = int(learned[-1]) + 1 - first
        if first and length <= LONGEST and (positions is None or first + 2 * length <= positions):
            found.append((ids[:first], length))
        if len(found) == PROMPTS:
            break
    if not found:
        return None
    prompts, most = [prompt for prompt, _ in found], 2 * max(length for _, length in found)
    return StopProbe(prompts, most if positions is None else min(most, positions - max(map(len, prompts))))
