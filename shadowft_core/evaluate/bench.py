"""Tasks and scores, through lm-evaluation-harness.

A `Bench` builds its tasks and their requests once. Every model gets the same items, rendered prompts and chat template,
greedy decoding and the same seeds, so the scores of two models can be paired item by item.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shadowft_core.errors import EvaluationError, TrainError, say
from shadowft_core.evaluate.counts import tell_left_out, told
from shadowft_core.evaluate.engines import Arm
from shadowft_core.evaluate.engines.finite import NotFinite
from shadowft_core.evaluate.heldout import render_heldout
from shadowft_core.evaluate.items import SHOWN, Asked, Item, Role, TaskScore
from shadowft_core.evaluate.journal import Journals
from shadowft_core.evaluate.metrics import Metrics, decisive
from shadowft_core.evaluate.pictures import placing, require_images
from shadowft_core.evaluate.progress import Progress
from shadowft_core.evaluate.prompts import Prompts
from shadowft_core.evaluate.questions import Questions, finite
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.evaluate.templates import compiled_once
from shadowft_core.files.stopping import stoppable
from shadowft_core.loading import load
from shadowft_core.params import Evaluate, Render
from shadowft_core.rendering import Renderer, load_renderer
from shadowft_core.suites import Leaf, TaskFiles

SEED = 0
RENDER = Render()
STOPPED = (
    "evaluation stopped by {signal}: nothing was written, the answers so far are kept; "
    "run the same command again to go on"
)
FATAL_WARNINGS = ("truncat", "label index", "removing the system role")  # the harness only warns of a wrong score


class Bench:
    """Tasks, tokenizer and chat template of one run. Made by `open_bench`."""

    def __init__(
        self,
        renderer: Renderer,
        questions: Mapping[str, Questions],
        roles: Mapping[str, Role],
        params: Evaluate,
        prompts: Prompts,
        leaves: Mapping[str, Leaf],
        journals: Journals,
    ) -> None:
        self.tokenizer, self._questions, self._roles, self._params = renderer.tokenizer, questions, roles, params
        self._prompts, self._leaves, self.journals = prompts, leaves, journals
        self.template_digest = renderer.template_digest
        found = Counter(one for asked in questions.values() for one in asked.about.values())
        self._shared = {one for one, times in found.items() if times > 1}
        self.generation = params.generation.model_dump()
        """the settings of `evaluate.generation`, for scores.json"""

    @property
    def likelihood(self) -> list[str]:
        """The tasks that are scored by log-likelihood."""
        return [name for name, one in self._questions.items() if one.task.OUTPUT_TYPE != "generate_until"]

    @property
    def asked(self) -> dict[str, Asked]:
        """What every arm is asked, by task."""
        found = {}
        for name, one in self._questions.items():
            group, metric = self._leaves[name].named, decisive(name, one.task, one.wanted)[1]
            items, about = tuple(one.digests.values()), tuple(one.about[at] for at in one.digests)
            found[name] = Asked(self._roles[group], group, metric, items, about)
        return found

    @property
    def requests(self) -> list[tuple[str, str, Any]]:
        """What every arm is asked about text: (task, digest of the item, request of the harness)."""
        return [(name, digest, one) for name, asked in self._questions.items() for digest, one in asked.requests]

    def replies(self, arm: Arm, name: str, requests: Sequence[Any]) -> list[str]:
        """An arm's answers to requests of one task, before a thought is taken off."""
        with _one_line(f"task {name}"), quiet():
            return list(self.journals.aside(arm, name).generate_until(requests))

    def score(self, arm: Arm, label: str, *, untouched: bool = False, role: Role | None = None) -> dict[str, TaskScore]:
        """Score one model on every task, or on those of one role; `label` names it in the progress lines. `untouched`:
        it is the Instruct.

        Raises EvaluationError when a task fails or gives no usable score per item, when logits are not finite, and when
        more of the Instruct's answers are in doubt than `evaluate.limits` allows.
        """
        names = [name for name in self._questions if role in (None, self._roles[self._leaves[name].named])]
        return {name: self._score(arm, label, name, untouched) for name in names}

    def _score(self, arm: Arm, label: str, name: str, untouched: bool) -> TaskScore:
        questions, leaf = self._questions[name], self._leaves[name]
        task = questions.task
        with _one_line(f"task {name}"):
            samples, aggregated = self._run(self.journals.lm(arm, label, name), questions)
            metrics = Metrics(name, task, samples, questions.wanted)
            items = []
            for sample in samples:
                if sample["filter"] != metrics.filter:
                    continue
                at, reply = sample["doc_id"], sample["resps"][0][0]
                items.append(
                    Item(
                        item=questions.digests[at],
                        score=metrics.score(sample),
                        prompt=str(sample["arguments"][0][0])[-SHOWN:],
                        output=_output(task, sample)[:SHOWN],
                        about=(about := questions.about[at]),
                        cluster=about if about in self._shared else "",
                        finish=getattr(reply, "finish", None),
                        tokens=getattr(reply, "tokens", None),
                        parsed=metrics.parsed(sample),
                        others=metrics.others(sample),
                        copies=questions.copies[at],
                        slice=questions.slices[at],
                    )
                )
        found = TaskScore(
            self._roles[leaf.named],
            metrics.metric,
            tuple(sorted(items, key=lambda item: item.item)),
            group=leaf.named,
            groups=leaf.groups,
            generated=task.OUTPUT_TYPE == "generate_until",
            others=metrics.of_task(aggregated),
            left_out=questions.left_out,
            replaced=questions.replaced,
        )
        self.journals.progress.end()
        return told(f"{label} {name}", found, self._params.limits, refuse=untouched)

    def _run(self, lm: Any, questions: Questions) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Score one task; returns its logged samples, and its metrics as the harness aggregates them.

        Calls `lm_eval.evaluate` because `simple_evaluate` also lists the installed packages, runs git and queries a
        hub.
        """
        import lm_eval

        name, task = questions.name, questions.task
        task.apply_filters = lambda: _filtered(questions, self._prompts)
        _seed(task)
        try:
            with quiet() as warnings:
                results = lm_eval.evaluate(
                    lm=lm,
                    task_dict={"tasks": {name: task}},
                    bootstrap_iters=0,
                    log_samples=True,
                )
        except NotFinite as error:
            asked = questions.asked(list(error.ids), self.tokenizer)
            raise EvaluationError(f"task {name}, {asked}: {error}") from None
        for warning in warnings:
            if any(text in warning.lower() for text in FATAL_WARNINGS):
                raise EvaluationError(
                    f"task {name}: {warning:.300}; the score would be wrong, shorten or repair the items"
                )
        return results["samples"][name], results["results"][name]


@contextmanager
def open_bench(
    instruct: Path, data: Path, params: Evaluate, domain: Sequence[str], guards: Sequence[str], render: Render = RENDER
) -> Iterator[Bench]:
    """Build the named tasks and groups, and what every arm is asked, with tokenizer and chat template of the Instruct.

    `{data}` in a task file means `data`, the folder made by `prepare`. The datasets library uses a temporary cache,
    which is deleted when the block ends.

    Raises EvaluationError if `data` is no folder, for a tokenizer without chat template, an unknown task, a task named
    as both domain and guard, a missing or empty data file, a task that samples, a setting of `evaluate.generation` or
    `evaluate.metrics` that cannot be honoured, and what `Questions.build` raises; StoppedError when SIGTERM or SIGINT
    ends the block.
    """
    if not data.is_dir():
        raise EvaluationError(
            f"{data}: no such folder; name the one that `shadowft prepare` wrote with --data; in a workspace "
            "`dvc repro prepare` writes it"
        )
    roles: dict[str, Role] = dict.fromkeys(guards, "guard")
    for name in domain:
        if name in roles:
            raise EvaluationError(
                f"task {name}: is named both as domain and as guard; keep one of the two in params.yaml"
            )
        roles[name] = "domain"
    files = TaskFiles(Path(params.tasks), allow_code=params.allow_code_execution)
    leaves = files.resolve(roles)
    for name in params.metrics:
        files.path(name)  # a name that is unknown is refused, not ignored
    with stoppable(STOPPED), compiled_once(), TemporaryDirectory(prefix="shadowft-") as cache:
        renderer, rendered = _renderer(instruct, render), Path(cache, "rendered")
        prompts, context = Prompts(renderer, params.generation), _context(instruct, renderer.tokenizer)
        left_out: dict[str, dict[str, list[str]]] = {}
        if any(map(files.is_heldout, leaves)):
            left_out = render_heldout(renderer, data, rendered)
        questions = {}
        for name, leaf in leaves.items():
            with _one_line(f"task {name} ({files.path(name)})"), quiet():
                held = files.is_heldout(name)
                task = files.build(name, rendered if held else data, Path(cache), leaf.overrides)
                wanted = params.metrics.get(name, params.metrics.get(leaf.named))
                decisive(name, task, wanted)
                out = left_out.get("dev" if name.endswith("_dev") else "test") if held else None
                questions[name] = Questions(name, task, wanted, out)
                _seed(task)
                chat = None if held else prompts.chat(name, task.OUTPUT_TYPE)
                if getattr(task, "MULTIMODAL", False):
                    require_images(name, instruct, renderer, params)
                    chat = placing(prompts.chat(name, task.OUTPUT_TYPE))
                questions[name].build(prompts, renderer.tokenizer, context, params.limit, chat)
        for line in () if all(map(files.is_heldout, leaves)) else prompts.notes:
            say(line)
        for name, one in questions.items():
            tell_left_out(one, files.ends_at_delimiter(name))
        items = {name: len(one.docs) or len(one.task.eval_docs) for name, one in questions.items()}
        with Progress(items, sys.stderr) as progress:
            journals = Journals(instruct, renderer.template_digest, params.generation, progress)
            yield Bench(renderer, questions, roles, params, prompts, leaves, journals)


def _renderer(instruct: Path, render: Render) -> Renderer:
    try:
        with quiet():
            return load_renderer(instruct, render)
    except TrainError as error:
        raise EvaluationError(str(error)) from None


def _context(instruct: Path, tokenizer: Any) -> int:
    """The tokens that the Instruct can read, as the harness finds them."""
    with quiet():
        from lm_eval.models.utils import resolve_max_length
        from transformers import AutoConfig

        return int(resolve_max_length(load(AutoConfig, instruct), tokenizer))


def _seed(task: Any) -> None:
    """Start all generators that tasks use from SEED, for the same examples in every run."""
    import random

    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)  # the generator that task files use
    torch.manual_seed(SEED)
    task.set_fewshot_seed(seed=SEED)


def _filtered(questions: Questions, prompts: Prompts) -> None:
    """Check the answers of a task, take thoughts off, and apply its filters."""
    task = questions.task
    for one in task.instances:
        if one.request_type == "generate_until":
            until = task.config.generation_kwargs or {}
            one.resps = [prompts.answer(one.args[0], reply, until) for reply in one.resps]
        elif one.request_type == "loglikelihood":
            for logprob, _ in one.resps:
                finite(questions.name, questions.digests[one.doc_id], logprob)
    type(task).apply_filters(task)


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
