"""The key `scorer` of a task file: answers judged by `shadowft_core.answers` or run as programs, strict and lenient."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.answers import FORMS, KINDS, judge, require_reference
from shadowft_core.errors import EvaluationError
from shadowft_core.suites.code import require_rows, run_answers

METRICS = ("strict", "lenient", "parsed")
"""what a scorer gives for each item, 0 or 1; the one that the task file lists first decides, else `strict`"""
LETTERS = "ABCDEFGHIJ"
CODE = "code"


def with_scorer(name: str, path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], None]]:
    """A task's config with its key `scorer` turned into the harness's `process_results` and `metric_list`.

    Also returns a function, to be called with the task that the harness builds: it knows references (`doc_to_target`)
    and choices (`doc_to_choice`). `scorer: number` asks for the kind's own form, `scorer: {kind: number, form: boxed}`
    for another. `scorer: code` runs the answers in the sandbox.

    Raises EvaluationError for a scorer or metric that is unknown, for keys of the task that contradict it, and what
    `run_answers` raises. The function raises what `require_reference` or `require_rows` raises.
    """
    if "scorer" not in config:
        return config, lambda task: None
    kind, form = _read(path, config["scorer"])
    kept = {key: value for key, value in config.items() if key != "scorer"}
    if kept.get("process_results") is not None:
        raise EvaluationError(f"{path}: scorer and process_results both judge the answers; remove one of them")
    if kept.get("output_type", "generate_until") != "generate_until":
        raise EvaluationError(
            f"{path}: scorer judges texts, but output_type is {kept['output_type']}; set it to generate_until"
        )
    kept |= {"output_type": "generate_until", "metric_list": _listed(path, kept)}
    # The harness would end answers at the first empty line, because few-shot examples are set apart by one.
    kept["generation_kwargs"] = {"until": [], "do_sample": False} | dict(kept.get("generation_kwargs") or {})
    if kind == CODE:
        kept.pop("unsafe_code", None)
        kept.setdefault("doc_to_target", "")  # the tests judge
        return kept | run_answers(name, kept), lambda task: require_rows(name, task)
    tasks: list[Any] = []

    def process_results(doc: Any, results: Sequence[Any]) -> dict[str, float]:
        return _judged(name, tasks[0], doc, str(results[0]), kind, form)

    kept["process_results"] = process_results

    def bind(task: Any) -> None:
        tasks.append(task)
        for doc in task.eval_docs:
            choices = _choices(task, doc)
            for one in _references(name, task, doc, choices):
                require_reference(kind, one, choices)

    return kept, bind


def _read(path: Path, scorer: Any) -> tuple[str, str | None]:
    given = {"kind": scorer} if isinstance(scorer, str) else scorer
    if not isinstance(given, dict) or set(given) - {"kind", "form"} or given.get("kind") not in (*KINDS, CODE):
        raise EvaluationError(
            f"{path}: scorer is {scorer!r:.100}; expected one of {', '.join(KINDS)}, {CODE}, "
            "or {kind: number, form: boxed}"
        )
    form = given.get("form")
    if form is not None and (form not in FORMS or given["kind"] == CODE):
        raise EvaluationError(f"{path}: scorer has the form {form!r:.60}; expected one of {', '.join(FORMS)}")
    return given["kind"], form


def _listed(path: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics, those that the task lists first."""
    named = [one.get("metric") if isinstance(one, dict) else one for one in config.get("metric_list") or ()]
    for metric in named:
        if metric not in METRICS:
            raise EvaluationError(
                f"{path}: metric_list names {metric!r:.60}, but a scorer gives {', '.join(METRICS)}; correct it"
            )
    order = dict.fromkeys([*named, *METRICS])
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in order]


def _judged(name: str, task: Any, doc: Any, output: str, kind: str, form: str | None) -> dict[str, float]:
    """The metrics of one answer; right if it is right for any of the references."""
    choices = _choices(task, doc)
    references = _references(name, task, doc, choices)
    found = [judge(kind, output, one, form=form, choices=choices) for one in references]
    return {
        "strict": float(any(one.strict for one in found)),
        "lenient": float(any(one.lenient for one in found)),
        "parsed": float(any(one.parsed for one in found)),
    }


def _choices(task: Any, doc: Any) -> list[str]:
    return [] if task.config.doc_to_choice is None else [str(one) for one in task.doc_to_choice(doc)]


def _references(name: str, task: Any, doc: Any, choices: Sequence[str]) -> list[str]:
    """The references of an item as texts; the number of a choice becomes its letter."""
    target = task.doc_to_target(doc)
    targets = target if isinstance(target, list) else [target]
    if not targets:
        raise EvaluationError(f"task {name}: an item has no reference; correct doc_to_target")
    numbered = bool(choices) and all(isinstance(one, int) and 0 <= one < len(choices) for one in targets)
    return [LETTERS[one] if numbered else str(one) for one in targets]
