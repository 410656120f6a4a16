"""What every engine is: models that answer the prompts of the harness."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.items import Finish
from shadowft_core.grafting import Options

Deltas = Sequence[tuple[Path, float]]


class Reply(str):
    """A generated answer, and how it ended. The harness hands it on as text.

    The defaults are for the harness, which casts a reference to the type of the answer that it compares it with.
    """

    finish: Finish
    """`stop`: by an end token or a stop text; `length`: at the token limit"""
    tokens: int
    """generated, up to and with the end token, or the token that completed the stop text"""

    def __new__(cls, text: str, finish: Finish = "stop", tokens: int = 0) -> "Reply":
        reply = super().__new__(cls, text)
        reply.finish, reply.tokens = finish, tokens
        return reply


class NotMeasured(EvaluationError):
    """An engine cannot measure something that scores do not depend on."""


class Arm(Protocol):
    """A model that can answer."""

    @property
    def digest(self) -> str:
        """Model digest of its weights."""
        ...

    @property
    def lm(self) -> Any:
        """The harness's model: `generate_until` gives a Reply per request, `loglikelihood` (sum in nats, is greedy).

        It calls `cache_hook.add_partial(kind, arguments, answer)` as soon as it has an answer, with the object that it
        returns. If its attribute `in_batches` is true, the answers of a batch depend on each other; then it calls
        `cache_hook.whole_batch()`, if there is one, after the answers of each batch.

        `next_logprobs(asked)` yields (number, rows) for each (ids, at) of `asked`, in any order: for each position of
        `at`, the natural log-probabilities of the token after `ids[: position + 1]`. Rows are those of all tokens,
        [len(at), vocabulary] in float32, or dicts of the likeliest token ids. Raises NotMeasured if it has neither.
        """
        ...


class Engine(Protocol):
    """One Instruct, ready to be scored with deltas added."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, versions and settings that the answers can depend on."""
        ...

    def check(self, deltas: Deltas, options: Options, likelihood: Sequence[str]) -> None:
        """Raise, before anything is scored, what this engine cannot do: an arm, or tasks scored by log-likelihood."""
        ...

    def arm(self, deltas: Deltas, options: Options) -> AbstractContextManager[Arm]:
        """The Instruct with `scale * delta` added by the rules of graft; without deltas, the untouched Instruct.

        One arm at a time. Raises what `graft.grafted_tensors` raises.
        """
        ...
