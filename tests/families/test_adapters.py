"""Adapters saved by PEFT: Base and delta must equal PEFT's merge, or one line must name the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import ShadowError
from shadowft_core.grafting import ONTO_BASE, Options, graft
from tests.families.oracle import load, start
from tests.families.rows import EXACT, ROWS, Row

pytestmark = pytest.mark.families


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Path]:
    """The float32 Base of a row, made once."""
    made: dict[str, Path] = {}

    def make(row: Row) -> Path:
        key = f"{row.family} {row.model}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(row.family)
            start(row.family, "float32", **row.model).save_pretrained(made[key])
        return made[key]

    return make


def adapt(base: Path, row: Row, out: Path) -> Any:
    """An adapter in which every trainable value changed, and the PEFT model as trained."""
    import peft
    import torch

    sizes = {"r": 4, "lora_alpha": 8} if row.tuner == "Lora" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(peft, f"{row.tuner}Config")(**sizes, **row.settings, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(load(base), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    step = 0.1 * parameter.abs() if "modules_to_save" in name else 0.02
                    parameter.add_(step * torch.randn_like(parameter))
    adapted.save_pretrained(out)
    return adapted.eval()


def onto_base(base: Path, tuned: Path, folder: Path) -> Any:
    """Base and delta, as transformers loads them."""
    extract(base, tuned, folder / "delta")
    graft(base, [(folder / "delta", 1.0)], folder / "grafted", Options(waivers=(ONTO_BASE,)))
    return load(folder / "grafted")


def require_alike(model: Any, wanted: Any, base: Path, limit: float) -> None:
    """Every tensor within the limit, as a share of its largest change, and the last bit of the sum; what PEFT did not
    change, bit for bit."""
    import torch

    was, ours, theirs = (one.state_dict() for one in (load(base), model, wanted))
    assert was.keys() == ours.keys() == theirs.keys()
    moved = 0
    for name, before in was.items():
        if torch.equal(theirs[name], before):
            assert torch.equal(ours[name], before), f"{name} is not trained and moved"
            continue
        old, mine, merged = (tensor.numpy() for tensor in (before, ours[name], theirs[name]))
        change, off = np.abs(merged - old).max(), (np.abs(mine - merged) - np.spacing(np.abs(merged))).max()
        assert off <= limit * change, f"{name} is off by {off:.1e} of {change:.1e}"
        moved += 1
    assert moved, "PEFT changed nothing"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_adapter_is_exact_or_refused_with_a_remedy(row: Row, base_of: Callable[[Row], Path], tmp_path: Path) -> None:
    import peft
    import torch

    base = base_of(row)
    adapted = adapt(base, row, tmp_path / "adapter")
    if row.outcome != EXACT:
        with pytest.raises(ShadowError, match=row.outcome) as refusal:
            extract(base, tmp_path / "adapter", tmp_path / "delta")
        assert not list(tmp_path.glob("*delta*"))
        if "merge_and_unload" in str(refusal.value):
            merged = adapted.merge_and_unload()
            merged.save_pretrained(tmp_path / "merged")
            require_alike(onto_base(base, tmp_path / "merged", tmp_path), merged, base, 1e-6)
        return
    model = onto_base(base, tmp_path / "adapter", tmp_path)
    if "tied" in row.what:  # PEFT's merge adds twice to a tied tensor; the trained model does not
        ids = torch.arange(3, 23)[None]
        with torch.no_grad():
            ours, theirs = (one.eval()(input_ids=ids).logits for one in (model, adapted))
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    else:
        merged = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter").merge_and_unload()
        require_alike(model, merged, base, row.limit)
