"""KL(Instruct || arm) per token, on the Instruct's own greedy answers: how far training moved it where it was right.

At each token of an answer, and at the one that follows the answer (its end), both models read the same text, and their
distributions of the next token are compared: sum over the vocabulary of p_instruct * (log p_instruct - log p_arm), in
nats.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.bench import Bench
from shadowft_core.evaluate.engines import Arm, NotMeasured

BYTES = 1 << 30  # the Instruct's log-probabilities that are held in memory
TOKENS = 64  # at most, of an answer to the prompt of an item that is scored by log-likelihood
REST = 1e-7  # smallest probability of all tokens that are not among the likeliest, as these are rounded

Exact = NDArray[np.float32]
Likeliest = Sequence[Mapping[int, float]]


@dataclass(frozen=True)
class Own:
    """An answer of the Instruct, after its prompt, and the positions at which the next token is compared."""

    task: str
    ids: tuple[int, ...]
    at: tuple[int, ...]


class Divergence:
    """The entry `kl` of scores.json for every arm of a run (docs/evaluation.md)."""

    def __init__(self, bench: Bench, count: int) -> None:
        """On at most `count` answers; none for 0."""
        self._bench, self._count = bench, count
        self._reference: Reference | None = None
        self._reason: str | None = None

    def refer(self, instruct: Callable[[], AbstractContextManager[Arm]]) -> None:
        """Have the Instruct answer. If that cannot be measured, says so, and every arm's entry has the reason."""
        if not self._count:
            return
        try:
            with instruct() as arm:
                self._reference = refer(self._bench, arm, self._count)
        except NotMeasured as error:
            self._reason = str(error)
            self._bench.journals.progress.note(f"KL to the Instruct is not measured: {error}")

    def of(self, arm: Arm) -> dict[str, Any] | None:
        """The entry for an arm. Raises EvaluationError if it is not a number."""
        if self._reason is not None:
            return {"not_measured": self._reason}
        return None if self._reference is None else self._reference.against(arm.lm)


class Reference:
    """The Instruct's answers, and its distributions at their tokens."""

    def __init__(self, lm: Any, answers: Sequence[Own], prompts: str) -> None:
        """`lm` is the Instruct. If the distributions need more than BYTES, tokens at equal distances are compared."""
        self._prompts = prompts
        self._of_tokens = sum(len(own.at) for own in answers)
        self._answers = _thinned(answers, _room(lm, answers))
        self._rows: dict[int, Exact | Likeliest] = dict(lm.next_logprobs(self._asked))

    @property
    def tokens(self) -> int:
        """The tokens that are compared."""
        return sum(len(own.at) for own in self._answers)

    @property
    def _asked(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [(own.ids, own.at) for own in self._answers]

    def against(self, lm: Any) -> dict[str, Any]:
        """The entry `kl` of scores.json for the arm `lm` (docs/evaluation.md).

        Raises EvaluationError if it is not a number.
        """
        by_answer: dict[int, NDArray[np.float64]] = {}
        for number, others in lm.next_logprobs(self._asked):
            by_answer[number] = _divergences(self._rows[number], others)
        mark = "" if isinstance(self._rows[0], np.ndarray) else "_lower_bound"
        values = np.concatenate([by_answer[number] for number in range(len(self._answers))])
        found: dict[str, list[NDArray[np.float64]]] = {}
        for number, own in enumerate(self._answers):
            found.setdefault(own.task, []).append(by_answer[number])
        if not np.isfinite(values).all():
            raise EvaluationError(
                f"KL to the Instruct is {values[~np.isfinite(values)][0]} at a token: the arm rules out a token that "
                "the Instruct does not; its weights are damaged, or set evaluate.kl_answers: 0"
            )
        return {
            "prompts": self._prompts,
            "of_tokens": self._of_tokens,
            **_summary(values, len(self._answers), mark),
            f"max{mark}": float(values.max()),
            "tasks": {task: _summary(np.concatenate(parts), len(parts), mark) for task, parts in sorted(found.items())},
        }


def _divergences(p: Exact | Likeliest, q: Any) -> NDArray[np.float64]:
    """At each token of an answer, exact or bounded."""
    if isinstance(p, np.ndarray):
        return divergence(p, q)
    return np.array([lower_bound(*pair) for pair in zip(p, q, strict=True)])


def refer(bench: Bench, arm: Arm, count: int) -> Reference:
    """The Instruct `arm` on its own greedy answers to at most `count` items, the first by digest.

    The items are those of all tasks that generate; if none does, the Instruct answers the prompts of the others, with
    at most TOKENS tokens, where the context has room for them. Raises NotMeasured if there is nothing to compare, or
    the engine has no log-probabilities of the next token.
    """
    kind, asked = "generate", [one for one in bench.requests if one[2].request_type == "generate_until"]
    if not asked:
        kind, asked = "likelihood", _prompts(bench, arm.lm.max_length)
    asked = sorted(asked, key=lambda one: (one[1], one[0]))[:count]
    by_task: dict[str, list[Any]] = {}
    for task, _, request in asked:
        by_task.setdefault(task, []).append(request)
    texts = [
        (task, str(request.args[0]), str(reply))
        for task, requests in sorted(by_task.items())
        for request, reply in zip(requests, bench.replies(arm, task, requests), strict=True)
    ]
    answers = own_answers(texts, bench.tokenizer, arm.lm.max_length - 1)  # a server generates one more
    if not answers:
        raise NotMeasured("no task has a prompt of text that leaves room for an answer")
    reference = Reference(arm.lm, answers, kind)
    bench.journals.progress.note(f"KL to the Instruct: {len(answers)} of its answers, {reference.tokens} tokens")
    return reference


def _prompts(bench: Bench, context: int) -> list[tuple[str, str, Any]]:
    """One request for an answer to each item that is scored by log-likelihood."""
    from lm_eval.api.instance import Instance

    tokens = min(TOKENS, context // 2)
    settings = {"until": [], "do_sample": False, "max_gen_toks": tokens}
    found = {}
    for task, digest, request in bench.requests:
        prompt = request.args[0]
        if (task, digest) in found or not prompt:
            continue
        if len(bench.tokenizer(prompt, add_special_tokens=False)["input_ids"]) + tokens <= context:
            about = (task, request.doc_id, 1)
            found[task, digest] = Instance("generate_until", request.doc, (prompt, settings), 0, about)
    return [(task, digest, one) for (task, digest), one in found.items()]


def divergence(p: Exact, q: Exact) -> NDArray[np.float64]:
    """KL of each row of log-probabilities, [tokens]; exactly 0 for equal rows, and never below 0."""
    if p.shape != q.shape:
        raise EvaluationError(
            f"the vocabulary of the arm has {q.shape[-1]} tokens, that of the Instruct {p.shape[-1]}; set "
            "evaluate.kl_answers: 0"
        )
    values = np.empty(len(p))
    for row, (before, after) in enumerate(zip(p, q, strict=True)):
        possible = before > -np.inf  # p log p is 0 where p is 0
        log_p = before[possible].astype(np.float64)
        with np.errstate(invalid="ignore"):  # a NaN is reported
            values[row] = np.sum(np.exp(log_p) * (log_p - after[possible]))
    return np.maximum(values, 0)


def lower_bound(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    """The KL of two distributions known at their likeliest tokens: those in both, and all other tokens as one outcome.

    By the log-sum inequality, joining outcomes never increases a KL.
    """
    known = p.keys() & q.keys()
    terms = [math.exp(p[token]) * (p[token] - q[token]) for token in sorted(known)]
    rest_p, rest_q = (max(REST, 1 - math.fsum(math.exp(one[token]) for token in known)) for one in (p, q))
    return max(0.0, math.fsum([*terms, rest_p * (math.log(rest_p) - math.log(rest_q))]))


def own_answers(asked: Sequence[tuple[str, str, str]], tokenizer: Any, context: int) -> list[Own]:
    """The positions of (task, prompt, answer); what is longer than `context` tokens is not compared."""
    found = []
    for task, prompt, answer in asked:
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"][:context]
        if at := range(max(0, min(start, len(ids)) - 1), len(ids)):
            found.append(Own(task, tuple(ids), tuple(at)))
    return found


def _room(lm: Any, answers: Sequence[Own]) -> int:
    """The tokens whose distributions fit into BYTES."""
    [(_, row)] = lm.next_logprobs([(answers[0].ids[:1], (0,))])
    return max(1, BYTES // row.nbytes) if isinstance(row, np.ndarray) else BYTES


def _thinned(answers: Sequence[Own], room: int) -> list[Own]:
    """The answers with at most `room` positions in all, at equal distances."""
    places = [(number, at) for number, own in enumerate(answers) for at in own.at]
    if len(places) > room:
        places = [places[(2 * index + 1) * len(places) // (2 * room)] for index in range(room)]
    kept: dict[int, list[int]] = {}
    for number, at in places:
        kept.setdefault(number, []).append(at)
    return [Own(answers[number].task, answers[number].ids, tuple(at)) for number, at in kept.items()]


def _summary(values: NDArray[np.float64], answers: int, mark: str) -> dict[str, Any]:
    return {"answers": answers, "tokens": len(values), f"mean{mark}": math.fsum(values) / len(values)}
