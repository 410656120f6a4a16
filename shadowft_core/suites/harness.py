"""The tasks, groups and tags of the installed lm-evaluation-harness, by name."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError, ShadowError
from shadowft_core.files import bytes_digest, cache_folder, read_json_object, write_json_atomically
from shadowft_core.suites.configs import Function, functions, harness_folder, imported, read_config
from shadowft_core.suites.names import Leaf, close_to, leaves_of, some

EXTRAS = {  # package that a task imports: the extra of this project that brings it
    "math_verify": "math",
    "sympy": "math",
    "antlr4": "math",
    "immutabledict": "ifeval",
    "langdetect": "ifeval",
    "nltk": "ifeval",
}


Index = dict[str, tuple[str, str, tuple[str, ...]]]  # name: kind, file below the harness's task files, members of a tag


@cache
def _index() -> Index:
    """Every name of the harness. Making it reads 14,000 files in some seconds, so it is cached."""
    record = distribution("lm_eval").read_text("RECORD")  # the digests of all installed files
    if not record:
        return _made_index()
    place = cache_folder() / "harness" / f"{bytes_digest(record.encode()).removeprefix('sha256:')}.json"
    with suppress(OSError, ValueError, ShadowError):
        return {name: (kind, file, tuple(inside)) for name, (kind, file, inside) in read_json_object(place).items()}
    made = _made_index()
    with suppress(OSError):  # a cache that cannot be written costs time only
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(place, made)
    return made


def _made_index() -> Index:
    import logging

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it warns of its own duplicate names
    try:
        from lm_eval.tasks import TaskManager

        entries = TaskManager().task_index
    finally:
        logger.setLevel(level)
    return {
        name: (
            entry.kind.name,
            Path(entry.yaml_path).resolve().relative_to(harness_folder()).as_posix() if entry.yaml_path else "",
            tuple(sorted(entry.tags)) if entry.kind.name == "TAG" else (),
        )
        for name, entry in entries.items()
    }


class _Groups(Mapping[str, Mapping[str, Any]]):
    """The configs of the harness's groups and tags, each read when it is asked for."""

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        kind, file, members = _index()[name]
        if kind == "TAG":
            return {"group": name, "task": list(members)}
        if kind != "GROUP":
            raise KeyError(name)
        return read_config(harness_folder() / file)

    def __iter__(self) -> Iterator[str]:
        return (name for name, (kind, _, _) in _index().items() if kind in ("TAG", "GROUP"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in _index() and _index()[str(name)][0] in ("TAG", "GROUP")


def harness_leaves(name: str) -> list[Leaf] | None:
    """The tasks of the harness that a name stands for; None if it is no task, group or tag of it."""
    groups = _Groups()
    return leaves_of(name, [task for task in _index() if task not in groups], groups)


def harness_task_file(task: str) -> str:
    """The file of a task, below the harness's task files."""
    return _index()[task][1]


def unknown(name: str, folder: Path, local: Mapping[str, Path]) -> str:
    """What to say of a name that the task folder does not have. At most 1,000 characters."""
    if name in _index():
        kind = "task" if "TASK" in _index()[name][0] else "group"
        return (
            f"{kind} {name}: is in the installed lm-evaluation-harness, but its data is not in {folder}; "
            f"fetch it with `shadowft suite fetch {name}`"
        )
    close = close_to(name, [*local, *_index()])
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return (
        f"task {name:.100}: unknown; {hint}{folder} and the built-in tasks have {some(local)}; "
        "`shadowft suite list` shows what can be fetched"
    )


def import_functions(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config with its functions imported.

    Raises EvaluationError for a package or data that they need and that is not installed; nothing is downloaded.
    """
    needed = list(functions(config))
    for function in needed:
        _require_sentences(task, function)
    try:
        whole: dict[str, Any] = imported(config)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".", maxsplit=1)[0]
        extra = EXTRAS.get(package)
        raise EvaluationError(
            f"task {task}: needs the Python package {package}, which is not installed; "
            + (f"pip install 'shadowft[{extra}]'" if extra else f"install {package}")
        ) from None
    return whole


def _require_sentences(task: str, function: Function) -> None:
    """Some modules of the harness download nltk's data when they are imported. Refuse if it is missing."""
    modules = function.folder.glob("*.py") if function.of_harness else ()
    if not any(b"nltk.download" in module.read_bytes() for module in modules):
        return
    if importlib.util.find_spec("nltk") is None:
        return  # the import names the package
    import nltk  # type: ignore[import-untyped]

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise EvaluationError(
            f"task {task}: needs nltk's sentence data punkt_tab, which is not in {nltk.data.path[0]} or NLTK_DATA; "
            "where there is a network run `python -m nltk.downloader -d FOLDER punkt_tab`, copy FOLDER here, and set "
            "the environment variable NLTK_DATA to it"
        ) from None


def harness_names() -> list[str]:
    """Every task, group and tag of the harness."""
    return list(_index())
