"""Common mistakes in a task file, each in one line that says what to correct."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.suites.configs import data_patterns
from shadowft_core.suites.names import close_to, some

_UNFIT = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, SyntaxError, OSError)
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


@contextmanager
def explained(name: str, path: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Say what is wrong with a task file from which the harness could not build the task.

    Raises EvaluationError: for an unknown key, a split without data, and a missing doc_to_text or doc_to_target with
    what to correct, for any other value that the harness does not take with the harness's own words.
    """
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from pyarrow import ArrowException

    try:
        yield
    except (*_UNFIT, TemplateError, DatasetsError, ArrowException, OSError) as error:
        found = _mistake(error, config) if isinstance(error, KeyError | TypeError) else None
        if found is None:
            said = " ".join(str((isinstance(error, DatasetsError) and error.__cause__) or error).split())
            found = f"the harness cannot build it: {type(error).__name__}: {said:.300}; correct the file or its data"
        raise EvaluationError(f"task {name} ({path}): {found}") from error


def _mistake(error: Exception, config: Mapping[str, Any]) -> str | None:
    if isinstance(error, KeyError):
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        there = sorted(files) if isinstance(files, dict) else ["train"]  # what the datasets library calls unnamed files
        for key in SPLITS if any(data_patterns(files)) else ():
            if config.get(key) == error.args[0] and config[key] not in there:
                return f"{key} is {config[key]!r:.60}, but data_files has {some(there)}; correct one of them"
        return None
    keyword = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if keyword and keyword[1] in config:
        from lm_eval.api.task import TaskConfig

        close = close_to(keyword[1], TaskConfig.__dataclass_fields__)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"the key {keyword[1]:.60} is unknown; {hint}correct or remove it"
    missing = [key for key in ("doc_to_text", "doc_to_target") if config.get(key) is None]
    return f"has no {' and no '.join(missing)}; add it" if missing and not str(error) else None
