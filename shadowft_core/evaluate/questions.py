"""What the arms are asked in one task: built once, so that every arm gets the same items and prompts."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.documents import PLACE, about, has_reference, item_digest, slices
from shadowft_core.evaluate.fewshot import guard
from shadowft_core.evaluate.prompts import Prompts

OVERLONG = "longer than the context"
NO_REPLY = "the reply is empty"
NO_REFERENCE = "the reference is empty, or a negative label"
LEFT_OUT = 0.5  # largest share of rows that may be left out, as in training by default
_BYTES = 8  # a text with fewer bytes than the context has tokens, divided by this, is not measured


class Questions:
    """The requests of one task. Takes the place of the task's own way to build them.

    `left_out` has the rows that no arm is asked, by reason. Equal documents with equal prompts are asked once.
    """

    def __init__(
        self, name: str, task: Any, wanted: str | None = None, left_out: Mapping[str, list[str]] | None = None
    ) -> None:
        """`wanted` is the metric that params.yaml names. `left_out` are rows left out before the task was built."""
        self.name, self.task, self.wanted = name, task, wanted
        self.left_out = dict(left_out or {})
        self.replaced = 0
        self._asked: list[Any] = []
        self.docs: dict[int, Any] = {}
        self.digests: dict[int, str] = {}
        self.copies: dict[int, int] = {}
        self.about: dict[int, str] = {}
        self.slices: dict[int, str] = {}

    def build(self, prompts: Prompts, tokenizer: Any, context: int, limit: int | None, chat: Any | None) -> None:
        """Build the requests, with the function `chat` for prompts of turns; without it, prompts are texts as they are.

        Raises EvaluationError if no item is left, or more than LEFT_OUT of the rows are longer than `context` tokens or
        have no reply to score or no reference, and what `fewshot.guard` and `documents.about` raise.
        """
        task = self.task
        empty = len(self.left_out.get(NO_REPLY, ()))
        examples = guard(self.name, task)
        task.build_all_requests(
            limit=limit,
            system_instruction=prompts.system if chat else None,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            chat_template=chat,
        )
        if examples is not None and not examples.drawn:
            raise EvaluationError(
                f"task {self.name}: has few-shot examples that the harness's sampler does not draw, so it cannot be "
                "checked that no item is among its own examples; set num_fewshot: 0"
            )
        self.replaced = examples.replaced if examples else 0
        by_doc: dict[int, list[Any]] = {}
        for instance in task.instances:
            if instance.request_type == "generate_until":
                prompt, kwargs, *more = instance.args
                instance.arguments = (prompt, prompts.settings(kwargs), *more)
            by_doc.setdefault(instance.doc_id, []).append(instance)
        first: dict[str, int] = {}
        for at, instances in by_doc.items():
            if reason := self._unfit(instances, tokenizer, context):
                self.left_out.setdefault(reason, []).append(_named(instances[0].doc, at))
                continue
            images = [image for one in instances for more in one.args[2:] for image in more["visual"]]
            digest = item_digest(instances[0].doc, [one.args[0] for one in instances], images)
            if digest in first:
                self.copies[first[digest]] += 1
                continue
            first[digest] = at
            self.docs[at], self.digests[at], self.copies[at] = instances[0].doc, digest, 1
            self._asked += instances
        self._require_enough(len(by_doc) + empty, context)
        docs = list(self.docs.values())
        self.about = dict(zip(self.docs, about(self.name, task, docs), strict=True))
        self.slices = dict(zip(self.docs, slices(self.name, task, docs), strict=True))
        task.doc_iterator = self._documents
        task.build_all_requests = self._ask_again

    @property
    def requests(self) -> list[tuple[str, Any]]:
        """Fresh requests, each with the digest of its item."""
        return [(self.digests[one.doc_id], one) for one in map(_fresh, self._asked)]

    def asked(self, ids: list[int], tokenizer: Any) -> str:
        """Names the item whose prompt these token ids begin with, as far as it can be told."""
        for instance in self._asked:
            prompt = tokenizer(str(instance.args[0]), add_special_tokens=False)["input_ids"]
            if prompt and ids[: len(prompt)] == prompt:
                return f"item {self.digests[instance.doc_id]} ({_named(instance.doc, instance.doc_id)})"
        return "an item"

    def _ask_again(self, **_: Any) -> None:
        self.task._instances = list(map(_fresh, self._asked))

    def _documents(self, **_: Any) -> Iterator[tuple[int, Any]]:
        yield from self.docs.items()

    def _unfit(self, instances: list[Any], tokenizer: Any, context: int) -> str | None:
        if not has_reference(self.task, instances[0].doc):
            return NO_REFERENCE
        for one in instances:
            if one.request_type == "generate_until":
                text, room = one.args[0], context - one.args[1]["max_gen_toks"]
            elif one.request_type == "loglikelihood":
                if not one.args[1]:
                    return NO_REPLY
                text, room = "".join(one.args[:2]), context + 1  # the last token of a reply is scored, not read
            else:
                continue
            if len(text.encode("utf-8")) * _BYTES > room and _tokens(tokenizer, text) > room:
                return OVERLONG
        return None

    def _require_enough(self, total: int, context: int) -> None:
        out = {reason: rows for reason in (OVERLONG, NO_REPLY, NO_REFERENCE) if (rows := self.left_out.get(reason))}
        count = sum(map(len, out.values()))
        if self.docs and count <= LEFT_OUT * total:
            return
        if not count:
            raise EvaluationError(
                f"task {self.name}: no items, expected 1 or more; check its test_split and process_docs"
            )
        why = "; ".join(f"{len(rows)} {reason}, such as {rows[0]}" for reason, rows in out.items())
        answers = [one.args[1]["max_gen_toks"] for one in self.task.instances if one.request_type == "generate_until"]
        asked = f" less the {max(answers)} of an answer (max_gen_toks)" if answers else ""
        raise EvaluationError(
            f"task {self.name}: {count} of {total} rows are left out ({why}; the context has {context} tokens{asked}), "
            f"at most {LEFT_OUT:.0%} may be; shorten the rows or the answers, or show fewer examples"
        )


def _fresh(instance: Any) -> Any:
    """The same request, without the answers of another arm."""
    one = copy.copy(instance)
    one.resps, one.filtered_resps = [], {}
    return one


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _named(doc: Any, at: int) -> str:
    source = doc.get(PLACE[0]) if isinstance(doc, dict) else None
    return str(source or f"document {at}")


def finite(name: str, digest: str, logprob: float) -> None:
    """Raises EvaluationError for a log-likelihood that is NaN or infinite."""
    if not math.isfinite(logprob):
        raise EvaluationError(
            f"task {name}: the log-likelihood of item {digest} is {logprob}; the model's weights are damaged"
        )
