"""Task files: finds the tasks of a folder and builds them for the harness, without a network."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError, ParamsError
from shadowft_core.files.yamlfile import check_keys

BUILT_IN = Path(__file__).parent / "tasks"  # heldout and heldout_dev, which are always available


class TaskFiles:
    """All tasks that the *.yaml files of a folder define, and the built-in ones.

    Raises EvaluationError for a missing folder, an unreadable file, or a name that two files define.
    """

    def __init__(self, folder: Path) -> None:
        from lm_eval.tasks._yaml_loader import load_yaml

        if not folder.is_dir():
            raise EvaluationError(f"{folder}: no such task folder; set evaluate.tasks in params.yaml")
        self._folder, self._paths = folder, dict[str, Path]()
        for path in [*sorted(BUILT_IN.rglob("*.yaml")), *sorted(folder.rglob("*.yaml"))]:
            try:
                name = load_yaml(path, resolve_func=False).get("task")
                check_keys(path)
            except ParamsError as error:
                raise EvaluationError(str(error)) from None
            except Exception as error:
                raise EvaluationError(
                    f"{path}: not a task file: {' '.join(str(error).split()):.300}; correct or remove it"
                ) from error
            if not isinstance(name, str):
                continue  # a group, or a file that others include
            if name in self._paths:
                raise EvaluationError(f"{path}: task {name} is also defined in {self._paths[name]}; rename one of them")
            self._paths[name] = path

    def path(self, name: str) -> Path:
        """The file of a task. Raises EvaluationError, listing the known names, if there is none."""
        if name not in self._paths:
            raise EvaluationError(
                f"task {name}: unknown; {self._folder} and the built-in tasks have {', '.join(sorted(self._paths))}"
            )
        return self._paths[name]

    def is_heldout(self, name: str) -> bool:
        """Whether a task is a built-in one, whose items are the rows that `prepare` held out."""
        return self.path(name).is_relative_to(BUILT_IN)

    def build(self, name: str, data: Path, cache: Path) -> Any:
        """Build the harness's task with absolute data file paths, `{data}` replaced, and the datasets cache in `cache`.

        Raises EvaluationError for a data file that is missing or empty, and a task that samples instead of decoding
        greedily.
        """
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml

        path = self.path(name)
        config = load_yaml(path)
        options = dict(config.get("dataset_kwargs") or {})
        if "data_files" in options:
            options["data_files"] = _absolute(options["data_files"], path.resolve().parent, data.resolve())
            for file in _flat(options["data_files"]):
                _check_rows(name, file)
        if "custom_dataset" not in config and "class" not in config:
            options["cache_dir"] = str(cache)
        config["dataset_kwargs"] = options or None
        task = TaskManager(include_defaults=False).load([config])["tasks"][name]
        generation = task.config.generation_kwargs or {}
        if generation.get("do_sample") or generation.get("temperature"):
            raise EvaluationError(
                f"task {name}: samples ({generation}), but scores need greedy decoding; "
                "remove do_sample and temperature"
            )
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        return task


def _absolute(files: Any, folder: Path, data: Path) -> Any:
    """The data files, escaped, because the datasets library reads every path as a glob, even a folder `runs [2]`."""
    if isinstance(files, dict):
        return {split: _absolute(part, folder, data) for split, part in files.items()}
    if isinstance(files, list):
        return [_absolute(part, folder, data) for part in files]
    if (file := folder / str(files).replace("{data}", str(data))).is_file():
        return glob.escape(str(file))
    pattern = str(files).replace("{data}", glob.escape(str(data)))
    return str(Path(glob.escape(str(folder))) / pattern)


def _flat(files: Any) -> Iterator[str]:
    if isinstance(files, str):
        yield files
    else:
        for part in files.values() if isinstance(files, dict) else files:
            yield from _flat(part)


def _check_rows(name: str, file: str) -> None:
    """Raise EvaluationError for missing or empty data files; a split of share 0, for instance, is empty."""
    paths = [Path(file)] if Path(file).is_file() else [Path(found) for found in sorted(glob.glob(file))]
    if not paths:
        raise EvaluationError(f"task {name}: {file}: no such data file; correct data_files or run `shadowft prepare`")
    if all(_is_empty(path) for path in paths):
        raise EvaluationError(
            f"task {name}: {file}: has no rows, expected 1 or more; for held-out rows raise prepare.dev or prepare.test"
        )


def _is_empty(path: Path) -> bool:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return bool(pyarrow.parquet.read_metadata(path).num_rows == 0)
    return path.stat().st_size == 0
