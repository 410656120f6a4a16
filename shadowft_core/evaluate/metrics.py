"""Which metric of a task decides, and what the others say: the harness's logged samples to scores."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.suites.names import some
from shadowft_core.suites.scorers import METRICS as SCORER_METRICS

PER_BYTE = "logprob_per_byte"
PARSED = "parsed"
"""a metric by which a task's `process_results` says whether it found an answer in the output"""
INVALID = "[invalid]"  # what the harness's regex filters give if they find nothing

WHOLE = ("f1", "mcc", "bleu", "chrf", "ter", "brier_score", "likelihood", "perplexity")
"""metrics of the harness that collect pairs for an aggregation, and so score no item"""

Sample = Mapping[str, Any]


class Metrics:
    """The metric that decides a task, and the filter whose answers it judges. Made from all logged samples of one arm.

    Raises EvaluationError for a metric that the task does not compute.
    """

    def __init__(self, name: str, task: Any, samples: Sequence[Sample], wanted: str | None) -> None:
        self._name = name
        self.filter, named = decisive(name, task, wanted)
        computed: list[str] = next(list(one["metrics"]) for one in samples if one["filter"] == self.filter)
        if named not in computed and named != PER_BYTE:
            fresh = [one for one in computed if one not in _listed(task)]  # pass_at_k becomes pass@1
            if named is not None and (wanted or not fresh or callable(task.config.process_results)):
                raise _unknown(name, self.filter, named, computed)
            named = str((fresh or computed)[0])
        self.metric: str = named
        self._invalid = _fallbacks(task, self.filter)
        self._further: dict[Any, dict[str, float]] = {}
        for sample in samples:
            prefix = "" if sample["filter"] == self.filter else f"{sample['filter']}/"
            values = {f"{prefix}{metric}": _number(sample.get(metric)) for metric in sample["metrics"]}
            numeric = {metric: value for metric, value in values.items() if value is not None}
            self._further.setdefault(sample["doc_id"], {}).update(numeric)

    def score(self, sample: Sample) -> float:
        """Nats per UTF-8 byte of the reply for PER_BYTE, else the metric, which must be in [0, 1]."""
        if self.metric == PER_BYTE:
            return float(sample["filtered_resps"][0][0]) / len(sample["arguments"][0][1].encode("utf-8"))
        value = sample.get(self.metric)
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise EvaluationError(
                f"task {self._name}: {self.metric} is {value!r:.80} for an item, expected a number from 0 to 1; list "
                "first, or name in evaluate.metrics, a metric that scores each item"
            )
        return number

    def others(self, sample: Sample) -> dict[str, float]:
        """The further metrics of the item that are numbers, of other filters as FILTER/METRIC."""
        found = self._further[sample["doc_id"]]
        return {metric: found[metric] for metric in sorted(found) if metric not in (self.metric, PARSED)}

    def of_task(self, aggregated: Mapping[str, Any]) -> dict[str, float]:
        """The further metrics as the harness aggregates them over the task, from its keys METRIC,FILTER."""
        found = {}
        for key, value in aggregated.items():
            metric, _, its_filter = key.rpartition(",")
            number = _number(value)
            if metric and number is not None and metric != PARSED:
                label = metric if its_filter == self.filter else f"{its_filter}/{metric}"
                found[label] = number
        found.pop(self.metric, None)
        return found

    def parsed(self, sample: Sample) -> bool | None:
        """Whether an answer was found in the output; None if neither filter nor task looks for one."""
        if PARSED in sample["metrics"]:
            return bool(sample[PARSED])
        if not self._invalid:
            return None
        value = sample["filtered_resps"][0]
        value = value[0] if isinstance(value, list) and value else value
        return bool(value) and value not in self._invalid


def decisive(name: str, task: Any, wanted: str | None) -> tuple[str, str | None]:
    """Filter and metric that decide a task, as far as its task file says.

    The metric is `wanted`, METRIC or FILTER/METRIC; else the first that the task file lists; else None, the first that
    the task computes. A log-likelihood task without a list is scored by PER_BYTE. Of several filters the first decides,
    unless `wanted` names one.

    Raises EvaluationError for a filter or metric that the task does not have, a metric of which lower is better, and
    one that gives no score per item.
    """
    filters, listed, better = [one.name for one in task._filters], _listed(task), task.higher_is_better()
    likelihood, own = task.OUTPUT_TYPE == "loglikelihood", callable(task.config.process_results)
    its_filter = filters[0]
    metric: str | None = wanted or (listed[0] if listed else PER_BYTE if likelihood and not own else None)
    if wanted and "/" in wanted and wanted not in better:
        its_filter, _, metric = wanted.partition("/")
    known = [*better, *([PER_BYTE] if likelihood else [])]
    if its_filter not in filters:
        raise EvaluationError(
            f"task {name}: evaluate.metrics names the filter {its_filter}, but the filters are {', '.join(filters)}; "
            "name one of these"
        )
    scorer = set(listed) == set(SCORER_METRICS)  # its process_results gives these and no others
    expands = (own and not scorer) or any(callable(one["metric"]) for one in task.config.metric_list or ())
    if wanted and metric not in known and not expands:
        raise _unknown(name, its_filter, str(metric), known)
    named = metric or next(iter(better), "")
    lower = not better.get(named, True)
    if lower or task.OUTPUT_TYPE == "loglikelihood_rolling" or (named in WHOLE and not own):
        why = f"lower {named} is better" if lower else f"only a whole task has a score {named}, an item has none"
        usable = [one for one in known if better.get(one, True) and one not in WHOLE] or ["it has none that can decide"]
        raise EvaluationError(
            f"task {name}: {why}; list first, or name in evaluate.metrics, another metric: {', '.join(usable)}"
        )
    return its_filter, metric


def _listed(task: Any) -> list[str]:
    return [str(getattr(one["metric"], "__name__", one["metric"])) for one in task.config.metric_list or ()]


def _unknown(name: str, its_filter: str, metric: str, computed: Sequence[str]) -> EvaluationError:
    place = "it" if its_filter == "none" else f"filter {its_filter}"  # the harness's name for no filter
    return EvaluationError(
        f"task {name}: evaluate.metrics or the task file asks for the metric {metric:.100}, but {place} has "
        f"{some(computed, 300)}; name one of these in evaluate.metrics"
    )


def _fallbacks(task: Any, name: str) -> set[str]:
    """What the regex filters of a filter give if they find nothing; empty without such filters."""
    for one in task.config.filter_list or ():
        if one["name"] == name:
            return {str(f.get("fallback", INVALID)) for f in one["filter"] if "regex" in str(f["function"])}
    return set()


def _number(value: Any) -> float | None:
    """A finite number; None for anything else, such as a pair that only its aggregation understands."""
    if isinstance(value, numbers.Real) or (type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0):
        return float(value) if math.isfinite(value) else None
    return None
