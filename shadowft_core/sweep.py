"""The stage sweep: choose the scale of a delta on dev items. Scales are grafted in memory; no weights are written."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shadowft_core.delta import open_delta
from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import TaskScore, open_bench, open_engine
from shadowft_core.files import bytes_digest, canonical_json, write_json_atomically
from shadowft_core.grafting import ONTO_BASE, Options, multiplied
from shadowft_core.params import Evaluate, Render, Sweep
from shadowft_core.selection import choose
from shadowft_core.suites import TaskFiles

RENDER = Render()


def sweep(
    instruct: Path, delta: Path, data: Path, params: Sweep, evaluate: Evaluate, out: Path, render: Render = RENDER
) -> None:
    """Score the Instruct (scale 0) and every scale on the dev tasks; write the sweep file of docs/architecture.md.

    The route is the name of the delta's folder. `domain` and `guards` of a point are means over the names in params;
    every name has the same weight, regardless of its number of tasks and items.

    `params.factors` multiply every scale for the tensors that their patterns match.

    Raises EvaluationError when a task is in `sweep` and in `evaluate` or two factors match one tensor, and what
    `graft.grafted_tensors`, `open_bench`, `open_engine` and `Bench.score` raise.
    """
    files = TaskFiles(Path(evaluate.tasks))
    judged = files.resolve(dict.fromkeys((*evaluate.domain, *evaluate.guards)))
    if both := sorted(files.resolve(dict.fromkeys((*params.domain, *params.guards))).keys() & judged.keys()):
        raise EvaluationError(
            f"task {', '.join(both)}: is in sweep and in evaluate; choose the scale on other items than those it is "
            "judged on"
        )
    scales = sorted(set(params.scales))
    factors = list(params.factors.items())
    _require_apart(open_delta(delta).names, params.factors)

    def options_at(scale: float) -> Options:
        # The direct delta is swept on its own Base, hence the waiver; the stage graft records it.
        return Options(params.scope, scale_for=multiplied(scale, factors), waivers=(ONTO_BASE,))

    with (
        open_bench(instruct, data, evaluate, params.domain, params.guards, render) as bench,
        open_engine(instruct, bench.tokenizer, evaluate) as engine,
    ):
        engine.check([(delta, scales[-1])], options_at(scales[-1]), bench.likelihood)
        bench.journals.expect(engine, 1 + sum(scale != 0 for scale in scales))
        with engine.arm([], Options()) as arm:
            base_scores = bench.score(arm, "scale 0", untouched=True)
        curve = []
        for scale in scales:
            if scale == 0:
                scores = base_scores
            else:
                with engine.arm([(delta, scale)], options_at(scale)) as arm:
                    scores = bench.score(arm, f"scale {scale:g}")
            curve.append(point(scale, scores))
    untouched = point(0.0, base_scores)
    tie = one_item(base_scores)
    chosen, reason = choose(curve, untouched, params.tolerance, tie)
    if factors:
        listed = ", ".join(f"{factor:g} for {pattern}" for pattern, factor in factors)
        reason += f" Every scale is multiplied by {listed}."
    write_json_atomically(
        out,
        {
            "format": 1,
            "route": delta.resolve().name,
            "scope": params.scope,
            "factors": factors,
            "scale": chosen,
            "curve": curve,
            "instruct": untouched,
            "tie": tie,
            "items": bytes_digest(canonical_json({name: [i.item for i in s.items] for name, s in base_scores.items()})),
            "reason": reason,
        },
    )


def _require_apart(names: Iterable[str], factors: Mapping[str, float]) -> None:
    """Raise EvaluationError if two patterns give one tensor different factors: their order in params.yaml is nothing
    that DVC watches."""
    for name in names:
        found = [pattern for pattern in factors if fnmatchcase(name, pattern)]
        if len({factors[pattern] for pattern in found}) > 1:
            matched = " and ".join(f"{pattern!r} ({factors[pattern]:g})" for pattern in found)
            raise EvaluationError(f"sweep.factors: {name} matches {matched}; write patterns that do not overlap")


def point(scale: float, scores: Mapping[str, TaskScore]) -> dict[str, Any]:
    """One point of the curve: means of the domain and of the guard tasks (`guards` is None without guard tasks)."""

    def mean(role: str) -> float | None:
        share = weights(scores, role)
        return math.fsum(weight * scores[task].mean for task, weight in share.items()) if share else None

    return {
        "scale": scale,
        "domain": mean("domain"),
        "guards": mean("guard"),
        "tasks": {name: score.summary() for name, score in scores.items()},
    }


def weights(scores: Mapping[str, TaskScore], role: str) -> dict[str, float]:
    """The share of each task in the mean of a role: every name in params.yaml weighs the same.

    The members of a group weigh the same, or by their number of items if the group says so.
    """
    return _shares({task: score for task, score in scores.items() if score.role == role}, 0)


def _shares(scores: Mapping[str, TaskScore], depth: int) -> dict[str, float]:
    members: dict[str, dict[str, TaskScore]] = {}
    for task, score in scores.items():
        name = score.groups[depth].name if depth < len(score.groups) else task
        members.setdefault(name, {})[task] = score
    holder = next((score.groups[depth - 1] for score in scores.values()), None) if depth else None
    by_size = holder is not None and holder.by_size
    sizes = [sum(len(one.items) for one in inside.values()) if by_size else 1 for inside in members.values()]
    found: dict[str, float] = {}
    for (name, inside), size in zip(members.items(), sizes, strict=True):
        inner = {name: 1.0} if inside.keys() == {name} else _shares(inside, depth + 1)
        found |= {task: size / sum(sizes) * share for task, share in inner.items()}
    return found


def one_item(scores: Mapping[str, TaskScore]) -> float:
    """The most by which one item, if right instead of wrong, changes the domain mean; 0 if a score is not 0 or 1."""
    share = weights(scores, "domain")
    if any(item.score not in (0, 1) for task in share for item in scores[task].items):
        return 0.0
    return max(share[task] / len(scores[task].items) for task in share)
