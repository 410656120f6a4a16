"""Which metric of a task decides, and what the others say: the harness's logged samples to scores."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_core.errors import EvaluationError

PER_BYTE = "logprob_per_byte"
PARSED = "parsed"
"""a metric by which a task's `process_results` says whether it found an answer in the output"""
INVALID = "[invalid]"  # what the harness's regex filters give if they find nothing

Sample = Mapping[str, Any]


class Metrics:
    """The metric that decides a task, and the filter whose answers it judges. Made from all logged samples of one arm.

    The metric is `wanted`, METRIC or FILTER/METRIC; else the first that the task file lists; else, without a list, the
    first that the task computes. A log-likelihood task without a list is scored by PER_BYTE. Of several filters the
    first decides, unless `wanted` names one.

    Raises EvaluationError for a metric that the task does not compute, or of which lower is better.
    """

    def __init__(self, name: str, task: Any, samples: Sequence[Sample], wanted: str | None) -> None:
        self._name, self._task = name, task
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        self.filter, self.metric = filters[0], wanted or self._listed(samples[0])
        if wanted and "/" in wanted and wanted not in samples[0]["metrics"]:
            self.filter, _, self.metric = wanted.partition("/")
        of_filter = [sample for sample in samples if sample["filter"] == self.filter]
        computed = list(of_filter[0]["metrics"]) if of_filter else []
        if self._task.OUTPUT_TYPE == "loglikelihood":
            computed.append(PER_BYTE)
        if self.metric not in computed:
            found = ", ".join(computed) or f"no such filter; its filters are {', '.join(filters)}"
            raise EvaluationError(
                f"task {name}: evaluate.metrics or the task file asks for the metric {self.metric} of filter "
                f"{self.filter}, which has {found:.300}; name one of these in evaluate.metrics"
            )
        if not task.higher_is_better().get(self.metric, True):
            raise EvaluationError(
                f"task {name}: lower {self.metric} is better; list first, or name in evaluate.metrics, a metric where "
                "higher is better"
            )
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
            if metric and number is not None and not metric.endswith("_stderr") and metric != PARSED:
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

    def _listed(self, first: Sample) -> str:
        listed = [getattr(one["metric"], "__name__", one["metric"]) for one in self._task.config.metric_list or ()]
        if not listed:
            return PER_BYTE if self._task.OUTPUT_TYPE == "loglikelihood" else str(first["metrics"][0])
        if listed[0] in first["metrics"] or callable(self._task.config.process_results):
            return str(listed[0])
        expanded = [metric for metric in first["metrics"] if metric not in listed]  # pass_at_k becomes pass@1
        return str(expanded[0] if expanded else listed[0])


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
