"""Task files: finds the tasks of a folder and builds them for the harness, without a network."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from shadowft_core.errors import EvaluationError
from shadowft_core.limits import ITEMS
from shadowft_core.suites.catalogue import suites
from shadowft_core.suites.configs import Function, data_patterns, is_local, read_config
from shadowft_core.suites.consent import isolate_templates, require_consent
from shadowft_core.suites.datafiles import absolute, require_rows
from shadowft_core.suites.harness import harness_leaves, import_functions, unknown
from shadowft_core.suites.images import with_images
from shadowft_core.suites.mistakes import explained
from shadowft_core.suites.names import Leaf, leaves_of
from shadowft_core.suites.scorers import with_scorer

NOTHING: Mapping[str, Any] = MappingProxyType({})
BUILT_IN = Path(__file__).parent / "tasks"  # heldout and heldout_dev, which are always available


class TaskFiles:
    """All tasks and groups that the *.yaml files of a folder define, and the built-in tasks.

    Raises EvaluationError for a missing folder, an unreadable file, or a name that two files define.
    """

    def __init__(self, folder: Path, *, allow_code: bool = False) -> None:
        """`allow_code`: tasks may run programs in the sandbox, and Python files that task files name."""
        self._allow_code = allow_code
        if not folder.is_dir():
            raise EvaluationError(f"{folder}: no such task folder; set evaluate.tasks in params.yaml")
        self._folder, self._paths, self.groups = folder, dict[str, Path](), dict[str, dict[str, Any]]()
        for path in [*sorted(BUILT_IN.rglob("*.yaml")), *sorted(folder.rglob("*.yaml"))]:
            config = read_config(path)
            group, task = config.get("group"), config.get("task")
            is_task = isinstance(task, str) and ("dataset_path" in config or "class" in config)
            is_group = isinstance(group, str) and not is_task
            name = group if is_group else task
            if not isinstance(name, str):
                continue  # a file that others include
            if name in self._paths:
                kind = "group" if is_group else "task"
                raise EvaluationError(
                    f"{path}: {kind} {name} is also defined in {self._paths[name]}; rename one of them"
                )
            self._paths[name] = path
            if is_group:
                self.groups[name] = config

    @property
    def tasks(self) -> Mapping[str, Path]:
        """The files of all tasks, by name."""
        return {name: path for name, path in self._paths.items() if name not in self.groups}

    def resolve(self, names: Iterable[str]) -> dict[str, Leaf]:
        """The tasks that these names stand for, sorted: of a task itself, of a group all tasks below it.

        Raises EvaluationError for an unknown name, and for a task that two names reach.
        """
        leaves: dict[str, Leaf] = {}
        for name in names:
            for leaf in leaves_of(name, self.tasks, self.groups) or self._unknown(name):
                if leaf.task in leaves:
                    raise EvaluationError(
                        f"task {leaf.task}: named twice in params.yaml, by {leaves[leaf.task].named} and {name}; "
                        "remove one of them"
                    )
                leaves[leaf.task] = leaf
        return dict(sorted(leaves.items()))

    def path(self, name: str) -> Path:
        """The file of a task. Raises EvaluationError if there is none."""
        return self._paths[name] if name in self._paths else self._unknown(name)

    def _unknown(self, name: str) -> NoReturn:
        if name in suites() and harness_leaves(name) is None:
            raise EvaluationError(
                f"task {name}: its data is not in {self._folder}; fetch it with `shadowft suite fetch {name}`"
            )
        raise EvaluationError(unknown(name, self._folder, self._paths))

    def is_heldout(self, name: str) -> bool:
        """Whether a task is a built-in one, whose items are the rows that `prepare` held out."""
        return self.path(name).is_relative_to(BUILT_IN)

    def ends_at_delimiter(self, name: str) -> bool:
        """Whether answers end at what sets few-shot examples apart, an empty line, as the task names no stop texts."""
        config = read_config(self.path(name))
        written = config.get("output_type", "generate_until") == "generate_until" and "class" not in config
        return written and "scorer" not in config and "until" not in (config.get("generation_kwargs") or {})

    def build(self, name: str, data: Path, cache: Path, overrides: Mapping[str, Any] = NOTHING) -> Any:
        """Build the harness's task with absolute data file paths, `{data}` replaced, and the datasets cache in `cache`.

        `overrides` replace keys of the task file. Raises EvaluationError for items that are on a hub, a data file that
        is missing or empty, a package that the task needs and that is not installed, a task that samples instead of
        decoding greedily, and what `require_consent`, `with_scorer` and `with_images` raise.
        """
        from lm_eval.tasks import TaskManager

        path = self.path(name)
        config = read_config(path) | dict(overrides) | {"task": name}
        require_consent(name, path, config, self._allow_code)
        isolate_templates()
        options = dict(config.get("dataset_kwargs") or {})
        places = [
            str(path.resolve().parent / str(file).replace("{data}", str(data.resolve())))
            for file in data_patterns(options.get("data_files"))
        ]
        if "data_files" in options:
            options["data_files"] = absolute(options["data_files"], path.resolve().parent, data.resolve())
            for file in data_patterns(options["data_files"]):
                require_rows(name, file, str(config.get("dataset_path")), "field" in options)
        if not any(isinstance(config.get(key), Function) for key in ("custom_dataset", "class")):
            if not is_local(config):
                raise EvaluationError(
                    f"task {name}: its items are on a hub ({config.get('dataset_path')}), and an evaluation uses no "
                    f"network; if the task is one of the harness, remove {path} and run `shadowft suite fetch {name}`; "
                    "else download the data and name its files in `dataset_kwargs: {data_files: ...}`"
                )
            options["cache_dir"] = str(cache)
        config["dataset_kwargs"] = options or None
        config, bind = with_scorer(name, path, config)
        config, check = with_images(name, path, import_functions(name, config), places, cache)
        with explained(name, path, config):
            task = TaskManager(include_defaults=False).load([config])["tasks"][name]
        if (count := len(task.eval_docs)) > ITEMS:
            raise EvaluationError(f"task {name}: {count} items, the limit is {ITEMS}; shorten its data files")
        bind(task)
        check(task)
        generation = task.config.generation_kwargs or {}
        if generation.get("do_sample") or generation.get("temperature"):
            raise EvaluationError(
                f"task {name}: samples ({generation}), but scores need greedy decoding; "
                "remove do_sample and temperature"
            )
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        return task
