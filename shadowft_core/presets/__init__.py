"""Settings of the paper (arXiv 2505.12716) for its pairs, as complete params.yaml files with comments.

pairs.yaml has the facts of each pair, text.py writes the file. The name of a preset is PAIR-METHOD, such as
qwen3-8b-lora.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from shadowft_core import plan
from shadowft_core.errors import InputError
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.params import Launch, Lora, Train
from shadowft_core.presets.text import Preset, written

__all__ = ["REVISION", "Preset", "planned", "preset", "presets", "show"]

REVISION = "REVISION"  # in place of the 40 hex digits of a commit; `fetch` refuses it by name
ROWS = plan.Lengths(2000, (100.0, 600.0, 2400.0, 4096.0), counted=True)
ROWS_ASSUMED = "2,000 rows of 1,000 tokens on average, the longest 4096 (the paper's count is not published)"
VARIANTS = ("lora", "full", "vision-lora")


def presets() -> tuple[Preset, ...]:
    """All presets, by family and size."""
    return tuple(
        _preset(pair, variant, facts)
        for pair, facts in _pairs().items()
        for variant in VARIANTS
        if not (variant == "full" and facts["processes"] is None)
        and not (variant == "vision-lora" and "vision" not in facts["shape"])
    )


def preset(name: str) -> Preset:
    """The preset of a name. Raises InputError, with the presets whose names are like it."""
    known = {found.name: found for found in presets()}
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, 3, 0.5) or list(known)[:3]
        raise InputError(f"preset {name!r}: unknown; near it are {', '.join(near)}; `shadowft preset list` names all")
    return known[name]


def planned(name: str, device: str | None, devices: int | None = None) -> dict[str, Any]:
    """The plan of a preset from its table of shapes, for ROWS. Raises InputError for an unknown name or device."""
    found = preset(name)
    on = plan.device(device, found.train.threads)
    told = plan.plan(plan.shape_of_table(found.shape), found.train, ROWS, on, devices=devices)
    return told | {"assumed": [*told["assumed"], ROWS_ASSUMED]}


def expected(name: str) -> str:
    """What memory and time to expect on H100, for the comment in the preset."""
    told = planned(name, "H100")
    count = f"{told['devices']} x H100" if told["devices"] > 1 else "one H100"
    if not told["fits"]:
        count += f" (too small: set {told['change']})" if told["change"] else " (too small)"
    return (
        f"Expected by `shadowft plan --preset {name} --device H100`: {told['peak'] / 1e9:.0f} GB on each device, "
        f"{told['seconds'] / 60:.0f} minutes a route on {count}, for {ROWS_ASSUMED}."
    )


def show(name: str, commit: Callable[[str], str] = lambda _: REVISION) -> str:
    """A complete params.yaml for the preset, with comments.

    `commit` gives the 40 hex digits of the revision of a repository on the hub. Raises InputError for an unknown
    name, and what `commit` raises.
    """
    found = preset(name)
    return written(found, {repo: commit(repo) for repo in (found.base, found.instruct) if repo}, expected(name))


@cache
def _pairs() -> dict[str, dict[str, Any]]:
    pairs: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_name("pairs.yaml"))
    return pairs


def _preset(pair: str, variant: str, facts: dict[str, Any]) -> Preset:
    vision = variant == "vision-lora"
    return Preset(
        name=f"{pair}-{variant}",
        base=facts["base"],
        instruct=facts["instruct"],
        licence=facts["licence"],
        shape=facts["shape"],
        train=_settings(variant, facts),
        images=vision,
        figures=tuple(facts.get("vision_figures" if vision else "figures", ())),
    )


def _settings(variant: str, facts: dict[str, Any]) -> Train:
    """The settings of the authors' scripts: 32 rows an optimizer step, alpha twice the rank."""
    given = facts.get("train", {})
    rank, batch = given.get("rank", 128), given.get("batch_size", 2)
    full = variant == "full"
    processes = facts["processes"] if full else 1
    return Train(
        method="full" if full else "lora",
        lora=Lora(rank=rank, alpha=2 * rank),
        learning_rate=1e-5 if full else given.get("learning_rate", 2e-4),
        batch_size=batch,
        accumulation=32 // batch,
        warmup=0.1,
        max_length=4096,
        gradient_checkpointing=True,
        launch=Launch(processes=processes, strategy="fsdp" if processes > 1 else "ddp"),
        seeds=(42,),
    )
