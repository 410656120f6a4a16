"""Writes a preset as a params.yaml with comments."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadowft_core.params import Train

NO_BASE = "No Base of this pair is public: set fetch.base to the folder of a Base that you have."
PAGE = """\
# {name}: settings of Shadow-FT (arXiv 2505.12716); written by `shadowft preset show`.
{notes}
routes:
  shadow: {{model: base, graft: ""}}
  direct: {{model: instruct, graft: --onto-base}}    # the control; delete it to skip the second training

fetch:
  base: {base}
  instruct: {instruct}

prepare:
  data: {data}
  valid: 0.01        # as in the authors' scripts
  dev: 0.05          # held out to choose the scale
  test: 0.1          # held out for the verdict

render:
  thinking: keep
  system: refuse
  template_tokens: from_instruct

train:
  method: {train.method}
{method}  epochs: 1
  batch_size: {train.batch_size}
  accumulation: {train.accumulation}   # x batch_size: 32 sequences an optimizer step, over all processes
  learning_rate: {rate}
  warmup: 0.1
  schedule: cosine
  max_length: 4096     # tokens; the authors use 16384 for long data
  gradient_checkpointing: true
  seeds: [42]        # the authors set none; 42 is the default of their trainer
  launch: {{processes: {train.launch.processes}, nodes: 1, strategy: {train.launch.strategy}}}

checkpoint:
  minutes: 10

plan:
  device: null         # what this machine has; or H100, A100, ...
  price_per_hour: null   # of one device

extract:
  ignore: []

sweep:
  domain: [heldout_dev]
  guards: []         # dev tasks of evaluate.tasks that must not get worse

graft:
  scale: sweep       # the paper grafts at scale 1

evaluate:
  tasks: my_tasks    # a folder of lm-evaluation-harness task files
  domain: [heldout]
  guards: []         # what must not get worse; without a task here, the verdict cannot see harm
  limit: null
  batch_size: 16

verdict:
  margin: 0.03
  metrics:           # of heldout, in nats per byte
    logprob_per_byte: {{margin: 0.02, margin_each: 0.04, worthwhile: 0.01}}

store:
  uri: var/store

registry:
  name: shadowft-{name}
"""


@dataclass(frozen=True)
class Preset:
    """One pair and one way to train it. `base` is None if no Base of the pair is public."""

    name: str
    base: str | None
    instruct: str
    licence: str
    shape: dict[str, Any]
    train: Train
    images: bool
    figures: tuple[str, ...]


def written(preset: Preset, commits: Mapping[str, str], expected: str) -> str:
    """The text of params.yaml. `commits` has the revision of each repository."""
    train = preset.train
    references = {repo: f"hf:{repo}@{commit}" for repo, commit in commits.items()}
    method = ""
    if train.method == "lora":
        lora = train.lora
        method = f"  lora: {{rank: {lora.rank}, alpha: {lora.alpha:g}, rslora: false}}   # scale 2\n"
    return PAGE.format(
        name=preset.name,
        notes=_notes(preset, expected),
        base=references[preset.base] if preset.base else f"path/to/{preset.instruct.split('/')[1]}-Base",
        instruct=references[preset.instruct],
        data="my_rows_with_images  # a folder" if preset.images else "my_rows.jsonl",
        train=train,
        method=method,
        rate=f"{train.learning_rate:.0e}".replace("e-0", "e-"),
    )


def _notes(preset: Preset, expected: str) -> str:
    notes = [] if preset.base else [NO_BASE]
    notes.append(f"Licence of the models: {preset.licence}.")
    if preset.images:
        notes.append("Rows with images train the language model only; tower and projector stay as they are.")
    published = "; ".join(preset.figures) or "not published in the sources that we have"
    notes.append(f"Published figures, by sources that quote the paper: {published}.")
    if expected:
        notes.append(expected)
    return "".join(
        f"{line}\n"
        for note in notes
        for line in textwrap.wrap(note, 118, initial_indent="# ", subsequent_indent="#   ")
    )
