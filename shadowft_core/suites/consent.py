"""What a task file may run without `evaluate.allow_code_execution`: functions of the installed harness alone."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.suites.configs import Function, functions, harness_folder
from shadowft_core.suites.names import close_to

FLAG = "allow it with --allow-code-execution, or evaluate.allow_code_execution in params.yaml"
# Modules of the harness that run programs, evaluate text as Python, or load code from a hub.
RUNS = re.compile(
    rb"(?<![\w.])(?:eval|exec|parse_expr|sympify|__import__)\(|\bsubprocess\b|\bos\.system\b|evaluate\.load\(|code_eval"
    rb"|\bload_metric\(|\btrust_remote_code\s*=\s*True"
)


def require_consent(name: str, path: Path, config: Mapping[str, Any], allowed: bool) -> None:
    """Refuse a task that would run code, unless that is allowed. Runs and imports nothing of the task.

    Raises EvaluationError, naming task, file and flag, for answers that are programs (`scorer: code`), functions whose
    file is not one of the installed harness, a metric that the harness would load from elsewhere, and `use_prompt`.
    Programs that would run outside the sandbox (`unsafe_code`) are refused in any case.
    """
    scorer = config.get("scorer")
    runs = (scorer.get("kind") if isinstance(scorer, dict) else scorer) == "code"
    if config.get("unsafe_code") and not runs:
        raise EvaluationError(
            f"task {name} ({path}): unsafe_code: the harness would run the answers as programs, without a sandbox; set "
            "`scorer: code` in the task file"
        )
    if allowed:
        return
    if runs:
        raise EvaluationError(f"task {name} ({path}): the answers are programs, which are run in a sandbox; {FLAG}")
    for function in functions(config):
        if not of_harness(function):
            raise EvaluationError(
                f"task {name} ({path}): !function {function.spec} runs Python code of {function.folder}; read it, then "
                f"{FLAG}"
            )
    for key, what, hint in _loaded(config):
        raise EvaluationError(f"task {name} ({path}): {key}: {what:.100} {hint}may load code; {FLAG}")


def of_harness(function: Function) -> bool:
    """Whether the file of a function is, byte for byte, one of the harness's own task folders that runs no text."""
    module = function.spec.rpartition(".")[0].replace(".", "/")
    root = harness_folder()
    file = (function.folder / f"{module}.py").resolve()
    if not file.is_file():  # the harness then imports the module by name
        file = (root.parent.parent / f"{module}.py").resolve()
    if file.is_relative_to(root):
        own = [file]
    else:
        data = file.read_bytes() if file.is_file() else None
        own = [twin for twin in root.rglob(file.name) if twin.read_bytes() == data]
    return any(not _runs_text(one.parent) for one in own)


def _runs_text(folder: Path) -> bool:
    return any(RUNS.search(file.read_bytes()) for file in folder.glob("*.py"))


def _loaded(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys and values of a config for which the harness looks for code outside itself, and what may be meant."""
    from lm_eval.api import metrics  # noqa: F401 (fills the registry)
    from lm_eval.api.registry import metric_registry

    found = [("use_prompt", str(config["use_prompt"]), "")] if config.get("use_prompt") else []
    judged = config.get("scorer") or config.get("process_results")  # then the names are only names
    for one in () if judged else config.get("metric_list") or ():
        metric = one.get("metric") if isinstance(one, dict) else one
        if isinstance(metric, str) and metric not in metric_registry:
            close = close_to(metric, metric_registry)
            hint = f" (did you mean {' or '.join(close)}?)" if close else ""
            found.append(("metric", metric, f"is none of the harness{hint} and "))
        elif isinstance(metric, str) and isinstance(one, dict) and one.get("hf_evaluate"):
            found.append(("metric", metric, ""))
    return found


def isolate_templates() -> None:
    """Have the harness render templates of task files in a sandbox, where they cannot reach Python, within limits."""
    from lm_eval import utils

    from shadowft_core.files.templates import LimitedEnvironment, limited

    if not isinstance(utils.env, LimitedEnvironment):
        utils.env = limited(utils.env)
