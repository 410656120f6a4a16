"""The harness's model `local-completions`, strict: prompts as token ids, answers with their end, no invented answer.

Prompts are encoded here, with the tokenizer of the Instruct, exactly as for the engine `hf`. The answers of a
server that returns token ids (vLLM) are decoded here, too, as `hf` decodes them.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeGuard

from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines.door import NotMeasured, Reply
from shadowft_core.evaluate.engines.endpoint import Endpoint, run
from shadowft_core.evaluate.engines.following import Following
from shadowft_core.evaluate.items import Finish

SEED = 0
LIKELIEST, TOKEN_ID = 20, "token_id:"  # vLLM's default of --max-logprobs, and its names of tokens
NO_LIMIT = -9999.0  # vLLM sends this for a log-probability of minus infinity or NaN
Job = tuple[int, Callable[[Any], Coroutine[Any, Any, Any]]]  # tokens of a prompt, and what asks in an HTTP session
OF_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")  # without effect on greedy decoding


class Completions(LocalCompletionsAPI):  # type: ignore[misc]
    """A model of a server as the harness takes it. `generate_until` gives Replies."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        tokenizer: Any,
        context: int,
        stop_ids: Sequence[int],
        repetition_penalty: float,
    ) -> None:
        """`context` is the most tokens of prompt and answer together; `stop_ids` end an answer, as in `hf`."""
        super().__init__(
            base_url=f"{endpoint.url}/completions",
            model=model,
            tokenizer_backend=None,  # ours is set below; the harness would load one by name
            num_concurrent=endpoint.concurrency,
            seed=SEED,
            max_length=context,
        )
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = tokenizer, "huggingface", True
        self.max_length = context
        self._endpoint, self._penalty = endpoint, repetition_penalty
        self._stop_ids = sorted({*stop_ids, tokenizer.eos_token_id} - {None})
        self._task = "?"

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Reply]:
        """A Reply for each request, in their order.

        Raises EvaluationError for a prompt that with its answer exceeds the server's context, settings of generation
        that a server cannot honour, and what `Endpoint.post` raises.
        """
        jobs = []
        for request in requests:
            self._note(request)
            if len(request.args) != 2:
                raise EvaluationError(f"task {self._task}: has images, but the engine server sends text; use hf")
            context, settings = request.args
            jobs.append(self._generation(context, settings))
        return self._all(jobs)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum in nats, is greedy) for each request.

        Raises as `generate_until`, and EvaluationError when the server scores no prompts.
        """
        for request in requests[:1]:
            self._note(request)
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def next_logprobs(self, asked: Sequence[Following]) -> Iterator[tuple[int, list[dict[int, float]]]]:
        """As `Arm.lm` says, of the likeliest tokens. Raises NotMeasured if the server does not send token ids."""
        try:
            return enumerate(self._all([self._following(*one) for one in asked]))
        except EvaluationError as error:
            raise NotMeasured(f"the server sends no log-probabilities by token id: {error}") from None

    def _following(self, ids: Sequence[int], at: Sequence[int]) -> Job:
        body = self._create_payload(list(ids), generate=False, seed=SEED)
        body |= {"logprobs": LIKELIEST, "return_tokens_as_token_ids": True}

        async def job(session: Any) -> list[dict[int, float]]:
            choice, _ = self._choice(await self._endpoint.post(session, "/completions", body), ids)
            tops = (choice.get("logprobs") or {}).get("top_logprobs") or []
            return [_by_id(tops[one + 1] if one + 1 < len(tops) else None) for one in at]

        return len(ids), job

    def require_likelihood(self, tasks: Sequence[str]) -> None:
        """Raise EvaluationError, naming the tasks, if the server scores no prompts."""
        ids = [self.prefix_token_id] * 2
        try:
            self._all([(2, lambda session: self._scored(session, None, ids[:1], ids[1:]))])
        except EvaluationError as error:
            raise EvaluationError(f"task {', '.join(tasks)}: is scored by log-likelihood, but {error}") from None

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        jobs: list[Job] = []
        for key, context, continuation in requests:
            self._check_length(len(context) + len(continuation), 1, "")
            if not context or not continuation:
                raise EvaluationError(
                    f"task {self._task}: {key!r:.200} has {len(context)} and {len(continuation)} tokens, expected one "
                    "or more of each; repair the item"
                )

            def job(session: Any, key: Any = key, left: Any = context, right: Any = continuation) -> Any:
                return self._scored(session, key, left, right)

            jobs.append((len(context) + len(continuation), job))
        return self._all(jobs)

    def _note(self, request: Any) -> None:
        self._task = request.task_name or "?"

    def _generation(self, context: str, settings: dict[str, Any]) -> Job:
        ids = self.tok_encode(context)
        wanted = dict(normalize_gen_kwargs(settings, self._max_gen_toks))
        until = handle_stop_sequences(wanted.pop("until", None), eos=self.eos_string)
        tokens = int(wanted.pop("max_gen_toks"))
        penalty = wanted.pop("repetition_penalty", self._penalty)
        if odd := sorted(wanted.keys() - set(OF_SAMPLING)):
            raise EvaluationError(
                f"task {self._task}: generation_kwargs has {', '.join(odd)}, which the engine server cannot honour; "
                "remove it or set evaluate.engine.kind to hf"
            )
        self._check_length(len(ids), tokens, context)
        stop_ids = sorted({*self._stop_ids, *self._special_ids(until)})
        body = self._create_payload(ids, generate=True, gen_kwargs={"until": until, "max_gen_toks": tokens}, seed=SEED)
        body |= {"stop_token_ids": stop_ids, "repetition_penalty": penalty, "return_token_ids": True}
        if not ids:
            raise EvaluationError(f"task {self._task}: an item has an empty prompt; repair it")

        async def job(session: Any) -> Reply:
            choice, usage = self._choice(await self._endpoint.post(session, "/completions", body), ids)
            reply = self._reply(choice, usage, until, stop_ids)
            self.cache_hook.add_partial("generate_until", (context, settings), reply)
            return reply

        return len(ids), job

    def _special_ids(self, until: Sequence[str]) -> list[int]:
        """The stop texts that are one special token: servers leave those out of the text that they search."""
        special = self.tokenizer.added_tokens_encoder
        return [special[text] for text in until if text in special]

    def _reply(self, choice: dict[str, Any], usage: Any, until: Sequence[str], stop_ids: Sequence[int]) -> Reply:
        text, ids, reason = choice.get("text"), choice.get("token_ids"), choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise EvaluationError(
                f"{self.base_url}: task {self._task}: an answer ended with finish_reason {reason!r}, expected stop or "
                "length; read the server's log"
            )
        finish: Finish = reason
        if _is_ids(ids):
            end = next((at for at, token in enumerate(ids) if token in stop_ids), None)
            finish, ids = (finish, ids) if end is None else ("stop", ids[: end + 1])
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not isinstance(text, str):
            raise EvaluationError(
                f"{self.base_url}: task {self._task}: an answer's text is {text!r:.80}; read the server's log"
            )
        whole, text = text, postprocess_generated_text(generation=text, stop=until, think_end_token=None)
        if len(text) < len(whole):
            finish = "stop"
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        tokens = len(ids) if _is_ids(ids) else counted if isinstance(counted, int) else len(self.tok_encode(whole))
        return Reply(text, finish, tokens)

    async def _scored(
        self, session: Any, key: Any, context: Sequence[int], continuation: Sequence[int]
    ) -> tuple[float, bool]:
        """(sum of the continuation's log-probabilities in nats, whether each of its tokens is the likeliest)."""
        ids = [*context, *continuation]
        body = self._create_payload(ids, generate=False, seed=SEED)
        choice, _ = self._choice(await self._endpoint.post(session, "/completions", body), ids)
        found = choice.get("logprobs")
        found = found if isinstance(found, dict) else {}
        lists = [
            one if isinstance(one, list) else [] for one in (found.get("token_logprobs"), found.get("top_logprobs"))
        ]
        for one in lists:
            self._require_aligned(one, len(ids))
        values, tops = (one[len(context) : len(ids)] for one in lists)
        if min(len(values), len(tops)) < len(continuation) or not all(top and isinstance(top, dict) for top in tops):
            raise EvaluationError(
                f"{self.base_url} sends no log-probabilities of the prompt (`echo` with `logprobs`); use a server that "
                "does, such as vLLM, or evaluate.engine.kind: hf"
            )
        for value in (*values, *(value for top in tops for value in top.values())):
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= NO_LIMIT:
                raise EvaluationError(
                    f"{self.base_url}: task {self._task}: a log-probability is {value}, expected a finite number; the "
                    "weights of the model are damaged, or overflow in the server's dtype"
                )
        answer = math.fsum(values), all(value >= max(top.values()) for value, top in zip(values, tops, strict=True))
        if key is not None:  # a window of loglikelihood_rolling has none
            self.cache_hook.add_partial("loglikelihood", key, answer)
        return answer

    def _require_aligned(self, one: Sequence[Any], prompt: int) -> None:
        """Raise EvaluationError if log-probabilities may be those of the tokens next to them.

        Aligned are one entry for each token of the prompt and of the one token that is generated, or of the prompt
        alone; then the first, which has no context, is null. A list without an entry for the first token has that
        length, too.
        """
        if one and len(one) >= prompt and len(one) != prompt + 1 and (len(one) != prompt or one[0] is not None):
            raise EvaluationError(
                f"{self.base_url}: task {self._task}: sends {len(one)} log-probabilities, beginning with "
                f"{one[0]!r:.60}, for a prompt of {prompt} tokens and 1 answered, expected {prompt + 1}: they belong "
                "to other tokens; use a server with OpenAI's `echo`, such as vLLM, or evaluate.engine.kind: hf"
            )

    def _choice(self, found: Any, ids: Sequence[int]) -> tuple[dict[str, Any], Any]:
        """The one choice of an answer, and its usage. Raises EvaluationError if it is for other tokens than `ids`."""
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise EvaluationError(
                f"{self.base_url}: task {self._task}: {found!r:.200} does not have exactly one choice; is it "
                "an OpenAI-compatible server? Read its log"
            )
        usage = found.get("usage")
        seen, count = (
            choices[0].get("prompt_token_ids"),
            usage.get("prompt_tokens") if isinstance(usage, dict) else None,
        )
        if (_is_ids(seen) and list(seen) != list(ids)) or (isinstance(count, int) and count != len(ids)):
            raise EvaluationError(
                f"{self.base_url}: task {self._task}: sent a prompt of {len(ids)} tokens, the server read "
                f"{count if not _is_ids(seen) else len(seen)}; it changes prompts, for instance by a second BOS: "
                "switch that off in the server"
            )
        return choices[0], usage

    def _check_length(self, prompt: int, answer: int, shown: str) -> None:
        if prompt + answer > self.max_length:
            raise EvaluationError(
                f"task {self._task}: a prompt of {prompt} tokens and {answer} for the answer exceed the context of "
                f"{self.max_length} that {self.base_url} has; raise it in the server (--max-model-len), lower "
                f"generation.max_tokens, or shorten the items{f': ...{shown[-80:]!r}' if shown else ''}"
            )

    def _all(self, jobs: Sequence[Job]) -> list[Any]:
        """Run the jobs, the longest prompts first, at most `concurrency` at a time; the first error ends all."""

        async def work() -> list[Any]:
            free = asyncio.Semaphore(self._endpoint.concurrency)

            async def one(job: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
                async with free:
                    return await job(session)

            async with self._endpoint.session() as session:
                order = sorted(range(len(jobs)), key=lambda at: -jobs[at][0])
                tasks = {at: asyncio.create_task(one(jobs[at][1])) for at in order}
                try:
                    await asyncio.gather(*tasks.values())
                finally:
                    for task in tasks.values():
                        task.cancel()
                return [tasks[at].result() for at in range(len(jobs))]

        return run(work())


def _by_id(top: Any) -> dict[int, float]:
    """Log-probabilities by token id, from those by `token_id:ID`."""
    found = {key: value for key, value in (top or {}).items() if str(key).startswith(TOKEN_ID)}
    if not found or len(found) < len(top):
        raise NotMeasured(f"top_logprobs of a position are {top!r:.100}, expected {TOKEN_ID}NUMBER: log-probability")
    return {int(key.removeprefix(TOKEN_ID)): float(value) for key, value in found.items()}


def _is_ids(found: Any) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(isinstance(one, int) for one in found)
