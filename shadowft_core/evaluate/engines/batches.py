"""The harness's model around one of transformers: its own batches, one at a time, and answers that say how they ended.

A batch is answered as a whole, by the harness's code. So the bits of an answer do not depend on who answers the other
batches, or when.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator

from shadowft_core.evaluate.engines.door import Reply
from shadowft_core.evaluate.engines.following import NEXT, Following, Rows, next_logprobs
from shadowft_core.evaluate.items import Finish

TEXT, LIKELIHOOD = "generate_until", "loglikelihood"
ENCODED = 1 << 14  # texts whose token ids are kept, 4 bytes for each token
Answering = Callable[[str, list[list[Any]]], Iterator[tuple[int, list[Any]]]]
"""(kind, batches) -> (number of a batch, its answers), in any order"""


class BatchedLM(HFLM):  # type: ignore[misc]  # lm_eval is not typed
    """HFLM, with the same prompts, batches and numbers. `generate_until` returns `Reply` objects.

    The hook for answers is called once a batch is complete, with each of its answers; then its `whole_batch`, if any.
    """

    in_batches = True

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, answering: Answering | None = None) -> None:
        """`answering` answers the batches in place of `model`, which then needs no weights."""
        self._ids = lru_cache(ENCODED)(self._encode)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            add_bos_token=False,  # as in training, ids are those of the rendered text
            trust_remote_code=False,
        )
        self.cache_hook: Any = CacheHook(None)
        self._answering = answering or self._here
        self._ends: list[tuple[Finish, int]] = []

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Reply]:
        asked = [request.args for request in requests]
        return self._in_batches(TEXT, asked, text_batches(asked, self.tok_encode, self.batch_size))

    def tok_encode(self, *text: Any, **how: Any) -> list[int]:
        """As HFLM's. The harness encodes a prompt several times, to sort and to ask, and again for every arm."""
        return self._ids(*text, **how).tolist()

    def _encode(self, *text: Any, **how: Any) -> "array[int]":
        return array("i", super().tok_encode(*text, **how))

    def next_logprobs(self, asked: Sequence[Following]) -> Iterator[tuple[int, Rows]]:
        """As `Arm.lm` says, of all tokens."""
        for number, [rows] in self._answering(NEXT, [[one] for one in asked]):
            yield number, rows

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return self._in_batches(LIKELIHOOD, requests, likelihood_batches(requests, self.batch_size))

    def _in_batches(self, kind: str, asked: Sequence[Any], batches: list[list[int]]) -> list[Any]:
        answers: list[Any] = [None] * len(asked)
        for number, given in self._answering(kind, [[asked[at] for at in batch] for batch in batches]):
            for at, answer in zip(batches[number], given, strict=True):
                answers[at] = answer
                key = asked[at][:2] if kind == TEXT else asked[at][0]
                if key is not None:  # a part of a longer text, which the harness adds up
                    self.cache_hook.add_partial(kind, key, answer)
            getattr(self.cache_hook, "whole_batch", lambda: None)()
        return answers

    def _here(self, kind: str, batches: list[list[Any]]) -> Iterator[tuple[int, list[Any]]]:
        return ((number, self.answer(kind, batch)) for number, batch in enumerate(batches))

    def answer(self, kind: str, batch: list[Any]) -> list[Any]:
        """The answers to one batch of `text_batches` or `likelihood_batches`, by this process's model; or the rows of
        `next_logprobs`."""
        if kind == NEXT:
            return [next_logprobs(self.model, *one) for one in batch]
        hook, self.cache_hook = self.cache_hook, CacheHook(None)
        try:
            if kind == LIKELIHOOD:
                likelihoods: list[Any] = super()._loglikelihood_tokens(batch, disable_tqdm=True)
                return likelihoods
            instances = [Instance(TEXT, {}, tuple(arguments), at) for at, arguments in enumerate(batch)]
            texts = super().generate_until(instances, disable_tqdm=True)
        finally:
            self.cache_hook = hook
        return [Reply(text, *end) for text, end in zip(texts, self._ends, strict=True)]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        output = super()._model_generate(context, max_length, stop, **generation_kwargs)
        self.note_ends(output[:, context.shape[1] :].tolist(), stop)
        return output

    def note_ends(self, rows: list[list[int]], stop: Sequence[str]) -> None:
        """Take down how each row of generated ids ended, for the Replies of the batch."""
        end = self.model.generation_config.eos_token_id
        ids = {end} if isinstance(end, int) else set(end or ())
        self._ends = [self._end(row, ids, stop) for row in rows]

    def _end(self, row: list[int], end_ids: set[int], stop: Sequence[str]) -> tuple[Finish, int]:
        """How a row of generated ids ended, and its tokens: up to and with the end token, or the one that completes a
        stop text. What generation adds afterwards, while other rows of the batch go on, does not count."""
        ended = next((at for at, token in enumerate(row) if token in end_ids), None)
        kept = row if ended is None else row[: ended + 1]
        if self._stops(kept, stop):
            low, high = 1, len(kept)
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._stops(kept[:middle], stop) else (middle + 1, high)
            return "stop", low
        return ("length" if ended is None else "stop"), len(kept)

    def _stops(self, tokens: list[int], stop: Sequence[str]) -> bool:
        """Whether the text has a stop text; the harness looks at both texts, with special tokens and without."""
        texts = [self.tok_decode(tokens, skip_special_tokens=skip) for skip in (False, True)]
        return any(term in text for term in stop if term for text in texts)


def text_batches(asked: Sequence[tuple[str, Any]], encode: Callable[[str], list[int]], size: int) -> list[list[int]]:
    """The batches that HFLM makes of (prompt, settings): one list of positions for each, in its order."""
    numbered = [(at, prompt, settings) for at, (prompt, settings) in enumerate(asked)]
    order = Collator(
        numbered,
        sort_fn=lambda one: (-len(encode(one[1])), one[1]),
        group_by="gen_kwargs",
        group_fn=lambda one: one[2],
    )
    return [[at for at, _, _ in batch] for batch in order.get_batched(n=size)]


def likelihood_batches(asked: Sequence[tuple[Any, list[int], list[int]]], size: int) -> list[list[int]]:
    """The same for (texts, ids of the context, ids of the continuation). Requests that differ only in the last token
    are answered by one row, so they are in one batch."""

    def shared(one: tuple[Any, list[int], list[int]]) -> list[int]:
        return one[1] + one[2][:-1]

    together: dict[tuple[int, ...], list[int]] = {}
    for at, request in enumerate(asked):
        together.setdefault(tuple(shared(request)), []).append(at)
    order = Collator(
        [(at, context, continuation) for at, (_, context, continuation) in enumerate(asked)],
        sort_fn=lambda one: (-len(one[1] + one[2]), tuple(one[1] + one[2])),
        group_by="contexts",
        group_fn=shared,
    )
    return [[at for one in batch for at in together[tuple(shared(one))]] for batch in order.get_batched(n=size)]
