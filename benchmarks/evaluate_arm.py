"""One evaluation in a process of its own: `python -m benchmarks.evaluate_arm ARM PLACE REPORT SETTINGS`.

PLACE has tasks/, data/ and delta/; SETTINGS is JSON. The arms: `bare` is lm_eval.simple_evaluate, `ours` is
`shadowft_core.evaluate.evaluate`, `sweep` the sweep over all scales, `generation` what the harness's model needs to
answer at the same scales, one loaded graft after the other. `killed` is `ours`, killed before batch number
`kill_at`; `resumed` is the same command once more. Libraries are imported before the clock starts.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.models.huggingface
import lm_eval.tasks
import torch
import transformers

from shadowft_core.evaluate.engines.batches import BatchedLM
from shadowft_core.grafting import Options
from shadowft_core.params import Evaluate, Limits, Sweep
from shadowft_core.sweep import sweep


class Clock:
    """Seconds and bytes since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu, self._written = time.perf_counter(), time.process_time(), written()

    def read(self) -> dict[str, float]:
        return {
            "wall": time.perf_counter() - self._wall,
            "cpu": time.process_time() - self._cpu,
            "written": written() - self._written,
        }


def written() -> int:
    """Bytes that this process has passed to the system to write: to files, pipes and terminals."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def params(place: Path, settings: dict[str, Any]) -> Evaluate:
    generated, likelihood = settings["tasks"]
    return Evaluate(
        tasks=str(place / "tasks"),
        domain=(generated,),
        guards=(likelihood,),
        batch_size=settings["batch_size"],
        limits=Limits(cut=1),  # a model that was not trained to stop
        kl_answers=0,  # the harness has no such measurement
    )


def bare_lm(model: Any, settings: dict[str, Any]) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["instruct"])
    return lm_eval.models.huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=settings["batch_size"], add_bos_token=False
    )


def simple_evaluate(place: Path, lm: Any, settings: dict[str, Any]) -> dict[str, Any]:
    manager = lm_eval.tasks.TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        lm,
        tasks=settings["tasks"],
        task_manager=manager,
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
    )
    return found


def bare(place: Path, settings: dict[str, Any]) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(settings["instruct"], dtype=torch.float32)
    found = simple_evaluate(place, bare_lm(model, settings), settings)
    (place / "samples.json").write_text(json.dumps(found["samples"], default=str))
    return {"means": means_of(found, settings)}


def means_of(found: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    generated, likelihood = settings["tasks"]
    results = found["results"]
    return {generated: results[generated]["exact_match,none"], likelihood: results[likelihood]["acc,none"]}


def ours(place: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from shadowft_core.evaluate import evaluate

    out = place / "scores"
    evaluate(Path(settings["instruct"]), place / "data", None, None, "shadow", params(place, settings), out)
    scores = json.loads((out / "instruct" / "scores.json").read_text())
    return {"means": {name: scores["tasks"][name]["mean"] for name in settings["tasks"]}}


def swept(place: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Both tasks are dev tasks here. The task of the evaluation is another, which is not run."""
    generated, likelihood = settings["tasks"]
    judged = params(place, settings).model_copy(update={"domain": ("heldout",), "guards": ()})
    chosen = Sweep(scales=tuple(settings["scales"]), domain=(generated,), guards=(likelihood,))
    sweep(Path(settings["instruct"]), place / "delta", place / "data", chosen, judged, place / "sweep.json")
    curve = json.loads((place / "sweep.json").read_text())["curve"]
    return {"means": [{name: at["tasks"][name]["mean"] for name in settings["tasks"]} for at in curve]}


def generation(place: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds in the harness's model alone, for all scales: what eleven evaluations cannot do without."""
    from shadowft_core.evaluate import load_folder, load_grafted

    answering = {"wall": 0.0, "cpu": 0.0, "written": 0.0}
    means = []
    for scale in settings["scales"]:
        deltas, waived = [(place / "delta", scale)], Options(waivers=("onto-base",))
        instruct = Path(settings["instruct"])
        lm = bare_lm(load_grafted(instruct, deltas, waived)[0] if scale else load_folder(instruct), settings)
        for name in ("generate_until", "loglikelihood"):
            setattr(lm, name, _timed(getattr(lm, name), answering))
        found = simple_evaluate(place, lm, settings)
        means.append(means_of(found, settings))
    return {**answering, "means": means}


def _timed(act: Any, total: dict[str, float]) -> Any:
    def timed(*given: Any, **named: Any) -> Any:
        clock = Clock()
        found = act(*given, **named)
        for name, value in clock.read().items():
            total[name] += value
        return found

    return timed


ARMS = {"bare": bare, "ours": ours, "killed": ours, "resumed": ours, "sweep": swept, "generation": generation}


def main(arm: str, place: Path, report: Path, settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    config = transformers.AutoConfig.from_pretrained(settings["instruct"])
    assert transformers.AutoModelForCausalLM._model_mapping[type(config)]  # imports the model's class
    clock, batches = Clock(), list[float]()
    answer = BatchedLM.answer

    def state() -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**clock.read(), "peak": peak, "batches": len(batches), "start": batches[0] if batches else None}

    def noted(lm: Any, kind: str, batch: list[Any]) -> list[Any]:
        if arm == "killed" and len(batches) == settings["kill_at"]:
            report.write_text(json.dumps(state()))
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(clock.read()["cpu"])
        found: list[Any] = answer(lm, kind, batch)
        return found

    BatchedLM.answer = noted  # type: ignore[method-assign]
    facts = ARMS[arm](place, settings)
    report.write_text(json.dumps({**state(), **facts}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
