"""The journal: every answer is kept as it arrives, so a killed run resumes, and equal models are asked once.

The harness asks for all answers to a task in one call. Each call has a file below SHADOWFT_CACHE, named by the digest
of all that the answers depend on. As only whole batches are kept, the harness, which sorts the requests that are left,
forms the same batches as in an undisturbed run, hence the same bits.
"""

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

from shadowft_core import loading
from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import engines
from shadowft_core.evaluate.answersfile import AnswersFile, encoded, open_answers
from shadowft_core.evaluate.engines import Arm, Engine
from shadowft_core.evaluate.progress import Progress
from shadowft_core.files import bytes_digest, canonical_json, file_digest
from shadowft_core.params import Generation


class Journals:
    """The journals and the progress of one run."""

    def __init__(self, instruct: Path, template_digest: str, generation: Generation, progress: Progress) -> None:
        self.progress = progress
        self._digests = dict[int, tuple[Any, str]]()  # every arm is asked the same objects
        self._facts = {"template": template_digest, "generation": generation.model_dump(), **_surroundings(instruct)}
        self._engine: Engine | None = None

    def expect(self, engine: Engine, arms: int) -> None:
        """This engine will score `arms` models; from now on their answers are kept."""
        self._engine, self.progress.arms = engine, arms

    def lm(self, arm: Arm, label: str, task: str) -> "Journal":
        """The LM of an arm for one task; `label` names the arm to the user."""
        self.progress.begin(label, task)
        return Journal(arm.lm, self._about(arm, task), self.progress, self._digests)

    def aside(self, arm: Arm, task: str) -> "Journal":
        """The LM of an arm for requests that are no part of its scores: answers are kept, progress is not shown."""
        unseen = Progress({task: 0}, StringIO())
        unseen.begin("", task)
        return Journal(arm.lm, self._about(arm, task), unseen, {})

    def _about(self, arm: Arm, task: str) -> dict[str, Any] | None:
        if self._engine is None:
            return None
        return {"model": arm.digest, "engine": dict(self._engine.identity), "task": task, **self._facts}


def _surroundings(instruct: Path) -> dict[str, str]:
    """Digests of the files beside the Instruct's weights (config, tokenizer), and of the code that asks a model."""
    beside = [path for path in instruct.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    code = [*Path(engines.__file__).parent.glob("*.py"), Path(loading.__file__)]
    return {
        name: bytes_digest(canonical_json({path.name: file_digest(path) for path in paths}))
        for name, paths in {"files": beside, "code": code}.items()
    }


class Journal:
    """An LM for the harness around that of an engine; it answers from the journal, and keeps what it has to ask for.

    `about` is what the answers depend on besides the requests; None to keep nothing. `digests` has those of arguments
    by their `id`, and the arguments, so that no other object gets that `id`.
    """

    def __init__(
        self,
        lm: Any,
        about: Mapping[str, Any] | None,
        progress: Progress,
        digests: dict[int, tuple[Any, str]],
    ) -> None:
        self._lm, self._about, self._progress, self._digests = lm, about, progress, digests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """The answers as `Reply`, in the order of the requests."""
        return self._answer("generate_until", requests)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """The answers as (sum in nats, is greedy), in the order of the requests."""
        return self._answer("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """The answers as sums in nats, in the order of the requests."""
        return self._answer("loglikelihood_rolling", requests)

    def _answer(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """Raises EvaluationError if the engine reports other answers than it returns."""
        self._progress.expect(len({request.doc_id for request in requests}), len(requests))
        with self._opened(kind, requests) as file:
            if file.answers:
                earlier = "an interrupted" if len(file.answers) < len(requests) else "an earlier"
                self._progress.say(f"{len(file.answers)} of {len(requests)} answers from {earlier} run")
                self._progress.answered(len(file.answers), kept=True)
            if left := [at for at in range(len(requests)) if at not in file.answers]:
                hook = _Hook(self._lm, kind, {at: requests[at].args for at in left}, file, self._progress)
                with hook.listening():
                    given = getattr(self._lm, kind)([requests[at] for at in left])
                hook.finish(dict(zip(left, given, strict=True)))
            return [file.answers[at] for at in range(len(requests))]

    def _opened(self, kind: str, requests: Sequence[Any]) -> AbstractContextManager[AnswersFile]:
        if self._about is None:
            return nullcontext(AnswersFile())
        digests = [self._digest(kind, request.args) for request in requests]
        about = {**self._about, "kind": kind, "requests": bytes_digest(canonical_json(digests))}
        return open_answers(about, self._progress.say)

    def _digest(self, kind: str, arguments: Any) -> str:
        if id(arguments) not in self._digests:
            self._digests[id(arguments)] = arguments, _digest(kind, arguments)
        return self._digests[id(arguments)][1]


def _digest(kind: str, arguments: Any) -> str:
    """The harness's digest of a request, images included."""
    from lm_eval.api.model import hash_args

    return str(hash_args(kind, arguments))


def _text_of(arguments: Any) -> tuple[str, ...]:
    """What an LM tells of a request: its text, and the continuation or, as JSON, the settings."""
    return tuple(one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in arguments[:2])


class _Hook:
    """What an LM of the harness calls with each answer. It knows the request by its text, so equal ones queue up."""

    def __init__(self, lm: Any, kind: str, left: Mapping[int, Any], file: AnswersFile, progress: Progress) -> None:
        self._lm, self._kind, self._file, self._progress = lm, kind, file, progress
        self._queues: dict[tuple[str, ...], deque[int]] = {}
        images: dict[tuple[str, ...], set[str]] = {}
        for at, arguments in left.items():
            text = _text_of(arguments)
            self._queues.setdefault(text, deque()).append(at)
            images.setdefault(text, set()).add(_digest(kind, arguments) if len(arguments) > 2 else "")
        self._in_batches = getattr(lm, "in_batches", False)
        if any(len(several) > 1 for several in images.values()):
            self._queues = {}  # an answer may belong to either of two images, so all are kept at the end
        self._batch: dict[int, Any] = {}
        self._told, self._lock = 0, threading.Lock()  # an engine may have several requests in flight

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Have the LM call this hook in the block."""
        before = self._lm.cache_hook
        self._lm.set_cache_hook(self)
        try:
            yield
        finally:
            self._lm.set_cache_hook(before)

    def add_partial(self, attr: str, arguments: Any, answer: Any) -> None:
        """Take one answer."""
        text = _text_of(arguments)
        with self._lock:
            if attr != self._kind or not self._queues.get(text):
                return
            self._batch[self._queues[text].popleft()] = answer
            self._told += 1
            self._progress.answered(1, kept=False)
        if not self._in_batches:
            self.whole_batch()

    def whole_batch(self) -> None:
        """Keep the answers since the last call."""
        with self._lock:
            if self._batch:
                self._file.append(self._batch)
            self._batch = {}

    def finish(self, given: Mapping[int, Any]) -> None:
        """Check and complete the kept answers by those that the LM returned."""
        self.whole_batch()
        kept = self._file.answers
        for at, answer in given.items():
            if at not in kept:
                self._batch[at] = answer
        if self._told < len(given):
            self._progress.answered(len(given) - self._told, kept=False)
        self.whole_batch()
        if all(encoded(kept[at]) == encoded(answer) for at, answer in given.items()):
            return
        told, returned = (sorted(json.dumps(encoded(source[at])) for at in given) for source in (kept, given))
        if told != returned:
            one = next(pair for pair in zip(told, returned, strict=True) if pair[0] != pair[1])
            raise EvaluationError(
                f"the engine reported the answer {one[0]:.100} and returned {one[1]:.100}; report this fault, and "
                f"remove {self._file.path}"
            )
