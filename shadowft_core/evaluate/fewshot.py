"""Few-shot examples that never show an item its own answer.

The harness leaves an item out of its own examples only if these are drawn from the test split by that name
(EleutherAI/lm-evaluation-harness#4145), and only if both documents are equal in every field.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.documents import normal, question_of


class Examples:
    """Takes the place of a task's sampler. Draws as it does, then replaces an example that is the item itself.

    An example is the item if their documents are equal, or the texts of their questions. Other examples are those that
    the harness alone would show; the replacement depends on nothing but the item's question and the pool.
    """

    def __init__(self, name: str, task: Any) -> None:
        self._name, self._task, self._inner = name, task, task.sampler
        self._doc: Any = None
        self._questions: dict[int, set[str]] = {}
        self.drawn = self.replaced = 0

    def ask(self, doc: Any) -> None:
        """The item whose examples are drawn next."""
        self._doc = doc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sample(self, n: int, *args: Any, **options: Any) -> Sequence[Any]:
        """Raises EvaluationError if fewer than `n` documents of the pool are other questions than the item."""
        self.drawn += 1
        try:
            drawn = list(self._inner.sample(n, *args, **options))
        except (ValueError, AssertionError):
            if (there := len(list(self._inner.fewshot_docs()))) >= n:
                raise
            raise EvaluationError(
                f"task {self._name}: num_fewshot is {n}, but there are only {there} few-shot examples; lower "
                "num_fewshot, or add examples (fewshot_split)"
            ) from None
        asked = None if getattr(self._task, "MULTIMODAL", False) else question_of(self._task, self._doc)
        kept = [one for one in drawn if not self._is_item(one, asked)]
        if len(kept) == n:
            return drawn
        pool = [one for one in self._inner.fewshot_docs() if one not in kept and not self._is_item(one, asked)]
        if len(pool) < n - len(kept):
            raise EvaluationError(
                f"task {self._name}: of its few-shot examples only {len(kept) + len(pool)} are other questions than "
                f"the item {str(asked)[:100]!r}, expected {n}; set fewshot_split to another split, or lower num_fewshot"
            )
        self.replaced += 1
        generator = random.Random(str(asked))  # noqa: S311  no secret
        fresh = iter(pool if self._in_order() else generator.sample(pool, n - len(kept)))
        return [next(fresh) if self._is_item(one, asked) else one for one in drawn]

    def _in_order(self) -> bool:
        from lm_eval.api.samplers import FirstNSampler

        return isinstance(self._inner, FirstNSampler)

    def _is_item(self, example: Any, asked: str | None) -> bool:
        return bool(example == self._doc) or (asked is not None and asked in self._texts(example))

    def _texts(self, example: Mapping[str, Any]) -> set[str]:
        """The texts of an example's question, by the task and by its few-shot settings."""
        if id(example) not in self._questions:
            found = set[str | None]()
            with suppress(Exception):  # written examples need not have the fields of the items
                found.add(question_of(self._task, example))
            if (own := self._task.fewshot_cfg.doc_to_text) is not None:
                found.add(normal(self._task.doc_to_text(example, own)))
            self._questions[id(example)] = {text for text in found if text}
        return self._questions[id(example)]


def guard(name: str, task: Any) -> Examples | None:
    """Put `Examples` in the place of the task's sampler; None if the task shows no examples.

    Raises EvaluationError for a task in Python that draws its examples without a sampler.
    """
    if not task.config.num_fewshot:
        return None
    if not hasattr(task, "sampler"):
        raise EvaluationError(
            f"task {name}: draws its few-shot examples in Python, so it cannot be checked that no item is among "
            "its own examples; set num_fewshot: 0"
        )
    examples, context = Examples(name, task), task.fewshot_context

    def watched(doc: Any, *args: Any, **options: Any) -> Any:
        examples.ask(doc)
        return context(doc, *args, **options)

    task.sampler, task.fewshot_context = examples, watched
    return examples
