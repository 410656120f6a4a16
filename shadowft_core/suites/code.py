"""`scorer: code` of a task file: the answers are programs, judged by running them in the sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_core.errors import DataError, EvaluationError
from shadowft_core.sandbox import grade, require
from shadowft_core.sandbox.benchmarks import require_tests


def run_answers(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task that have its answers run: `filter_list` and `process_results`.

    A filter judges all answers of the task at once, as many side by side as there are CPUs.
    Raises EvaluationError for a task with other filters or several answers, and where there is no sandbox.
    """
    if config.get("filter_list"):
        raise EvaluationError(f"task {name}: scorer code runs the answers as they are; remove filter_list")
    if config.get("repeats", 1) != 1:
        raise EvaluationError(f"task {name}: repeats: {config['repeats']}; scorer code judges one greedy answer, set 1")
    require()
    prefilled = "```" in str(config.get("gen_prefix") or "")

    def run_all(answers: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        found = grade(rows, [answer for [answer] in answers], prefilled=prefilled)
        return [
            {"strict": float(one.strict), "lenient": float(one.lenient), "parsed": float(one.parsed)} for one in found
        ]

    def results(row: Mapping[str, Any], judged: Sequence[dict[str, float]]) -> dict[str, float]:
        return judged[0]

    return {
        "process_results": results,
        "filter_list": [{"name": "code", "filter": [{"function": "custom", "filter_fn": run_all}]}],
    }


def require_rows(name: str, task: Any) -> None:
    """Raise EvaluationError for a row whose tests cannot be run, before any model answers."""
    for row in task.eval_docs:
        try:
            require_tests(row)
        except DataError as error:
            raise EvaluationError(f"task {name}: {error}") from None
