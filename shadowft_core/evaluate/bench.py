"""Tasks and scores, through lm-evaluation-harness.

A `Bench` builds its tasks once. Every model gets the same items, rendered prompts and chat template, greedy decoding
and the same seeds, so the scores of two models can be paired item by item.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from shadowft_core.errors import EvaluationError, TrainError
from shadowft_core.evaluate.engines import Arm
from shadowft_core.evaluate.heldout import render_heldout
from shadowft_core.evaluate.items import SHOWN, Item, Role, TaskScore
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Evaluate, Render
from shadowft_core.rendering import Renderer, load_renderer
from shadowft_core.suites import TaskFiles

PER_BYTE = "logprob_per_byte"
SEED = 0
RENDER = Render()
FATAL_WARNINGS = ("truncat", "label index", "removing the system role")  # the harness only warns of a wrong score


class Bench:
    """Tasks, tokenizer and chat template of one run. Made by `open_bench`."""

    def __init__(
        self, renderer: Renderer, tasks: dict[str, Any], roles: dict[str, Role], params: Evaluate, rendered: Set[str]
    ) -> None:
        """`rendered` names the tasks whose items are rendered already, with the rendering of the training."""
        self.tokenizer, self._tasks, self._roles, self._params = renderer.tokenizer, tasks, roles, params
        self._rendered = rendered
        self.template_digest = renderer.template_digest

    @property
    def likelihood(self) -> list[str]:
        """The tasks that are scored by log-likelihood."""
        return [name for name, task in self._tasks.items() if task.OUTPUT_TYPE != "generate_until"]

    def score(self, arm: Arm, label: str) -> dict[str, TaskScore]:
        """Score one model on every task; `label` names it in the progress lines.

        Raises EvaluationError when a task fails, has no items, truncates a prompt or gives no usable score per item.
        """
        return {name: self._score(arm.lm, label, name) for name in self._tasks}

    def _score(self, lm: Any, label: str, name: str) -> TaskScore:
        task = self._tasks[name]
        lm.set_cache_hook(_Progress(f"{label} {name}", task, sys.stderr))
        with _one_line(f"task {name}"):
            samples = _run(lm, task, name, self._params.limit, template=name not in self._rendered)
            chosen = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
            metric = PER_BYTE if task.OUTPUT_TYPE == "loglikelihood" else chosen[0]["metrics"][0]
            if not task.higher_is_better().get(metric, True):
                raise EvaluationError(
                    f"task {name}: lower {metric} is better; list first a metric where higher is better"
                )
            copies: dict[str, int] = {}
            items = []
            for sample in chosen:
                digest = _item_digest(sample)
                copies[digest] = copies.get(digest, -1) + 1  # an item twice in a task: both count, in file order
                items.append(
                    Item(
                        item=f"{digest}#{copies[digest]}" if copies[digest] else digest,
                        score=_item_score(name, metric, sample),
                        prompt=str(sample["arguments"][0][0])[-SHOWN:],
                        output=_output(task, sample)[:SHOWN],
                    )
                )
        return TaskScore(self._roles[name], metric, tuple(sorted(items, key=lambda item: item.item)))


@contextmanager
def open_bench(
    instruct: Path, data: Path, params: Evaluate, domain: Sequence[str], guards: Sequence[str], render: Render = RENDER
) -> Iterator[Bench]:
    """Build the named tasks with the tokenizer and chat template of the Instruct.

    `{data}` in a task file means `data`, the folder made by `prepare`. The datasets library uses a temporary cache,
    which is deleted when the block ends.

    Raises EvaluationError for a tokenizer without chat template, an unknown task, a task named as both domain and
    guard, a missing or empty data file, or a task that samples.
    """
    roles: dict[str, Role] = dict.fromkeys(guards, "guard")
    for name in domain:
        if name in roles:
            raise EvaluationError(
                f"task {name}: is named both as domain and as guard; keep one of the two in params.yaml"
            )
        roles[name] = "domain"
    files = TaskFiles(Path(params.tasks))
    paths = {name: files.path(name) for name in sorted(roles)}
    with TemporaryDirectory(prefix="shadowft-") as cache:
        renderer, rendered, tasks = _renderer(instruct, render), Path(cache, "rendered"), {}
        if any(map(files.is_heldout, roles)):
            render_heldout(renderer, data, rendered)
        for name, path in paths.items():
            with _one_line(f"task {name} ({path})"), quiet():
                tasks[name] = files.build(name, rendered if files.is_heldout(name) else data, Path(cache))
        yield Bench(renderer, tasks, roles, params, rendered=set(filter(files.is_heldout, roles)))


class _Progress:
    """Prints progress. It replaces the harness's cache of answers, which is called with every answer."""

    def __init__(self, label: str, task: Any, stream: TextIO) -> None:
        self._label, self._task, self._stream = label, task, stream
        self._done, self._printed = 0, time.monotonic()

    def add_partial(self, attr: str, request: Any, answer: Any) -> None:
        self._done += 1
        requests = sum(instance.repeats for instance in self._task.instances)
        if self._done == requests or time.monotonic() - self._printed >= 1:
            items = len({instance.doc_id for instance in self._task.instances})
            print(f"{self._label} {self._done * items // requests}/{items}", file=self._stream, flush=True)
            self._printed = time.monotonic()


def _renderer(instruct: Path, render: Render) -> Renderer:
    try:
        with quiet():
            return load_renderer(instruct, render)
    except TrainError as error:
        raise EvaluationError(str(error)) from None


def _run(lm: Any, task: Any, name: str, limit: int | None, *, template: bool) -> list[dict[str, Any]]:
    """Score one task and return its logged samples.

    Calls `lm_eval.evaluate` because `simple_evaluate` also lists the installed packages, runs git and queries a hub.
    """
    import random

    import lm_eval
    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)  # the generator that task files use
    torch.manual_seed(SEED)
    task.set_fewshot_seed(seed=SEED)
    with quiet() as warnings:
        results = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    for warning in warnings:
        if any(text in warning.lower() for text in FATAL_WARNINGS):
            raise EvaluationError(f"task {name}: {warning:.300}; the score would be wrong, shorten or repair the items")
    samples: list[dict[str, Any]] = results["samples"][name]
    if not samples:
        raise EvaluationError(f"task {name}: no items, expected 1 or more; check its test_split and process_docs")
    return samples


def _item_digest(sample: dict[str, Any]) -> str:
    from lm_eval.utils import handle_non_serializable

    doc = json.loads(json.dumps(sample["doc"], default=handle_non_serializable))
    return bytes_digest(canonical_json({"doc": doc, "prompt": [arguments[0] for arguments in sample["arguments"]]}))


def _item_score(name: str, metric: str, sample: dict[str, Any]) -> float:
    """For a loglikelihood task, nats per UTF-8 byte of the reply; for any other, its first metric, in [0, 1]."""
    if metric == PER_BYTE:
        reply = sample["arguments"][0][1]
        if not reply:
            raise EvaluationError(f"task {name}: an item has an empty reply; remove it from the data")
        score = float(sample["filtered_resps"][0][0]) / len(reply.encode("utf-8"))
        if not math.isfinite(score):
            raise EvaluationError(
                f"task {name}: the log-likelihood of an item is {score}; the model's weights are damaged"
            )
        return score
    value = sample[metric]
    if isinstance(value, (tuple, list, dict)) or not 0 <= float(value) <= 1:
        raise EvaluationError(
            f"task {name}: {metric} is {value!r:.80} for an item, expected a number from 0 to 1; "
            "list another metric first"
        )
    return float(value)


def _output(task: Any, sample: dict[str, Any]) -> str:
    """The model's answer: its text, the likeliest choice, or the log-likelihood of the reference reply."""
    if task.OUTPUT_TYPE == "generate_until":
        return str(sample["resps"][0][0])
    logprobs = [float(answers[0][0]) for answers in sample["resps"]]
    if task.OUTPUT_TYPE == "multiple_choice":
        likeliest = max(range(len(logprobs)), key=logprobs.__getitem__)
        return str(sample["arguments"][likeliest][1])
    return f"log-likelihood {logprobs[0]:.6f}"


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn any exception of the harness into a one-line EvaluationError that names the task."""
    try:
        yield
    except EvaluationError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise EvaluationError(
            f"{where}: {type(error).__name__}: {text:.400}; correct the task file or its data"
        ) from error
