"""The training stage: TRL tunes one model under the Instruct's tokenizer and chat template."""

from collections.abc import Callable, Mapping
from pathlib import Path

from shadowft_core.params import Train

Accept = Callable[[Path, Path | Mapping[str, tuple[int, ...]]], None]
"""called before the first step with the model and what will be saved: an adapter folder, or shapes by tensor name"""


def train(model: Path, instruct: Path, data: Path, params: Train, out: Path, accept: Accept = lambda *_: None) -> None:
    """Tune `model` on the conversations in `data` (made by `prepare`) and write the folder `out`.

    `out` gets train.json (what went in, what came out), metrics.jsonl (one line an optimizer step) and either
    adapter/ (LoRA on all linear layers, float32, adapter_model.safetensors and adapter_config.json) or model/ (a whole
    float32 checkpoint). Same inputs, seed and thread count on the same CPU give the same bytes in every file: paths and
    times are kept out, the seconds a run took are told on stderr only.

    Both routes go through the same arithmetic: float32 weights (bfloat16 autocast on CUDA only), the same order of
    rows, the same adapter initialisation, AdamW without weight decay, gradients clipped at norm 1.

    `accept` is called before the first step and raises when what will be saved cannot be used
    (`delta.require_extractable`): better then than after hours.

    Raises TrainError (nothing to learn from, a row the template cannot mark, a vocabulary that does not fit, a loss or
    gradient that is not finite, out of memory), CheckpointError and DataError; then `out` is not touched.
    """
    from shadowft_core.train.run import run

    run(model, instruct, data, params, out, accept)
