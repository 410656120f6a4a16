"""Task files as data: includes merged, `harness:` followed, and `!function` kept as a name that nothing has run."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files.yamlfile import Loader, read_yaml
from shadowft_core.limits import INCLUDES, PARAMS_BYTES

LOCAL = ("json", "csv", "parquet", "arrow", "text")  # values of dataset_path for which data_files names the data
FORMS: dict[str, tuple[type, ...]] = {  # what this package reads of a task file
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs"), (dict,)),
    **dict.fromkeys(("group", "dataset_path", "output_type", "test_split", "validation_split"), (str,)),
    "aggregate_metric_list": (list, dict),
    "metric_list": (list,),
    "scorer": (str, dict),
    "task": (str, list),
}
NAMES: dict[type, str] = {dict: "a mapping", list: "a list", str: "text"}
TAGS = frozenset({"!function", *(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))})


@dataclass(frozen=True)
class Function:
    """`!function MODULE.NAME` of a task file; the module is searched next to that file first."""

    folder: Path
    spec: str

    @property
    def of_harness(self) -> bool:
        """Whether the task file that names it is one of the installed harness."""
        return self.folder.is_relative_to(harness_folder())


@cache
def harness_folder() -> Path:
    """The task files of the installed harness. Does not import it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise EvaluationError("lm_eval: not installed; install shadowft with its dependencies")
    return Path(spec.submodule_search_locations[0], "tasks").resolve()


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a task file, on top of those that `include` and `harness` name.

    `harness: gsm8k/gsm8k.yaml` is a task file of the installed harness, by its path below the harness's task files.
    Keys of the file win; null takes a key away from what was included or inherited.

    Raises EvaluationError for a file that cannot be read, has a key twice, includes itself, or has no mapping. Files
    of the installed harness may have a key twice: the last one counts, as in the harness.
    """
    config = dict(_read(Path(os.path.realpath(path)), (), {}))
    for key, kinds in FORMS.items():
        found = config.get(key)
        if found is not None and not isinstance(found, (*kinds, Function)):
            expected = " or ".join(NAMES[kind] for kind in kinds)
            raise EvaluationError(f"{path}: {key}: expected {expected}, found {found!r:.80}; correct it")
    for file in data_patterns((config.get("dataset_kwargs") or {}).get("data_files")):
        if "\0" in file:
            raise EvaluationError(f"{path}: data_files: {file!r:.80} is no path; correct it")
    metrics = config.get("aggregate_metric_list")
    if isinstance(metrics, list) and not all(isinstance(one, dict) for one in metrics):
        raise EvaluationError(f"{path}: aggregate_metric_list: expected mappings, found {metrics!r:.80}; correct it")
    return config


def _read(path: Path, above: tuple[Path, ...], done: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    if path in done:
        return done[path]
    if path in above:
        raise EvaluationError(f"{path}: includes itself; remove the include")
    if len(above) > INCLUDES:
        raise EvaluationError(f"{path}: included by more than {INCLUDES} files, each by the next; write it into one")
    own = path.is_relative_to(harness_folder())
    config = read_yaml(path, PARAMS_BYTES, EvaluationError, loader=_loader(path.parent), tags=TAGS, repeated=own)
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise EvaluationError(
            f"{path}: not a task file: expected a mapping with names as keys, found {type(config).__name__}; correct "
            "or remove it"
        )
    bases = config.pop("include", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and "\0" not in base for base in bases):
        raise EvaluationError(f"{path}: include: expected paths of files, found {bases!r:.80}; correct it")
    places = [path.parent / base for base in bases]
    if inherited := config.pop("harness", None):
        places.append(harness_file(path, str(inherited)))
    merged: dict[str, Any] = {}
    for place in places:
        included = _read(Path(os.path.realpath(place)), (*above, path), done)
        merged |= {key: value for key, value in included.items() if key != "task_list"}
    merged |= config
    done[path] = {key: value for key, value in merged.items() if value is not None or key not in config or not places}
    return done[path]


def harness_file(path: Path, name: str) -> Path:
    """A task file of the installed harness that the task file `path` names. Raises EvaluationError without one."""
    file = (harness_folder() / name.replace("\0", "")).resolve()
    if not file.is_relative_to(harness_folder()) or not file.is_file():
        raise EvaluationError(
            f"{path}: harness: {name}: the installed lm-evaluation-harness has no such task file; name one by its path "
            "below lm_eval/tasks, such as gsm8k/gsm8k.yaml"
        )
    return file


def functions(value: Any) -> Iterator[Function]:
    """Every `!function` in a config."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from functions(inner)


def imported(value: Any) -> Any:
    """A config with every `!function` imported, which runs the module that it names."""
    from lm_eval.tasks._yaml_loader import _import_func_in_yml

    if isinstance(value, Function):
        return _import_func_in_yml(value.spec, value.folder)
    if isinstance(value, dict):
        return {key: imported(inner) for key, inner in value.items()}
    return [imported(inner) for inner in value] if isinstance(value, list) else value


def data_patterns(files: Any) -> Iterator[str]:
    """The names and patterns in `data_files`, of all splits."""
    if isinstance(files, dict | list | tuple):
        for part in files.values() if isinstance(files, dict) else files:
            yield from data_patterns(part)
    elif files is not None:
        yield str(files)


def is_local(config: dict[str, Any]) -> bool:
    """Whether the items of a task are in files that its config names."""
    patterns = list(data_patterns((config.get("dataset_kwargs") or {}).get("data_files")))
    return config.get("dataset_path") in LOCAL and bool(patterns) and not any("://" in one for one in patterns)


@cache
def _loader(folder: Path) -> Any:
    class TaskLoader(Loader):
        """Keeps `!function` as a Function."""

    TaskLoader.add_constructor("!function", lambda loader, node: Function(folder, str(loader.construct_scalar(node))))
    return TaskLoader
