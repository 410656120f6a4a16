"""What the files of another trainer tell of a training: transformers, TRL, LLaMA-Factory, axolotl, PEFT.

Only plain text is read: trainer_state.json, all_results.json and train_results.json, adapter_config.json, config.json,
the README.md and the YAML settings beside the weights. training_args.bin is a pickle, which could run code, and stays
closed. Nothing that is kept has a path, a time or a host name, so equal trainings give equal records.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from shadowft_core.errors import CheckpointError, say
from shadowft_core.files import read_json_object, read_regular
from shadowft_core.limits import CONFIG_BYTES, SETTINGS_BYTES, SETTINGS_FILES, TEXT_CHARACTERS
from shadowft_core.weights.entries import leads_out

STATE, CARD = "trainer_state.json", "README.md"
LARGEST = 1e300  # of a number that is a fact
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_RESULTS = ("all_results.json", "train_results.json")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_NAMES = {"axolotl": "axolotl", "llama-factory": "LLaMA-Factory", "unsloth": "unsloth", "trl": "TRL"}
_LIBRARY = re.compile(r"^- (TRL|PEFT|Transformers|Pytorch)[: ]+([\w.+-]{1,99})\s*$", re.MULTILINE | re.IGNORECASE)
_SETTING = re.compile(r"^- (seed|learning_rate|num_epochs): ([\d.eE+-]+)\s*$", re.MULTILINE)
_AXOLOTL = re.compile(r"axolotl version: `([\w.+-]{1,99})`\s*```yaml\n")
_NONE = ("", "null", "Null", "NULL", "~")  # of YAML, whose scalars are read as text
UNKNOWN = {  # what a reader would ask for, and the facts of which one answers it
    "starting model": ("model_digest",),
    "data": ("data_digest",),
    "how rows were rendered": ("template_digest",),
    "seed": ("seed",),
    "steps": ("steps",),
    "losses": ("last_loss", "mean_loss"),
}
Facts = dict[str, Any]


class Told(NamedTuple):
    """What the files beside the result of a training tell."""

    trainer: dict[str, Any] | None
    """`{"name": of the trainer or null, "facts", "not_known": [...], "unreadable": [file names]}`; None if they tell
    nothing. The facts are `base` (what the starting model was called, never a path), `seed`, `steps`, `epochs`,
    `tokens`, `first_loss`, `last_loss`, `mean_loss`, `valid_loss`, `learning_rate`, `method`, `rank`, `alpha`,
    `datasets` (names on a hub) and `versions`, each only if a file has it."""
    start: str
    """the name or path of the starting model as it was written; empty if no file has it"""
    named_in: Path
    """the file that has `start`"""


def read_told(folder: Path, weights: Path, record: Mapping[str, Any] | None = None) -> Told:
    """Read the files of a run in `folder`, whose adapter or model is in `weights`.

    `record` is the content of train.json; what it answers is not listed as unknown. A file that cannot be read is
    printed and named.
    """
    reading = _Reading()
    for place in dict.fromkeys([folder, weights]):
        reading.read(place)
    if CHECKPOINT.fullmatch(folder.name):  # the settings of a run lie beside its checkpoints
        reading.read_settings(folder.parent)
    trainer = {
        "name": reading.name,
        "facts": reading.facts,
        "not_known": not_known(reading.facts | dict(record or {})),
        "unreadable": reading.unreadable,
    }
    return Told(trainer if reading.facts or reading.unreadable else None, reading.start, reading.named_in)


def not_known(facts: Mapping[str, Any]) -> list[str]:
    """What a reader would ask for and these facts do not answer."""
    return [what for what, names in UNKNOWN.items() if all(facts.get(name) is None for name in names)]


def losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of a trainer's log as `{"step", "loss" or "valid_loss", ...}`, one for each step; empty without one."""
    state = _Reading().json_object(_newest_state(folder)) or {}
    lines: dict[int, dict[str, Any]] = {}
    for entry in _entries(state):
        line = lines.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        for ours, theirs in (("loss", "loss"), ("valid_loss", "eval_loss"), ("learning_rate", "learning_rate")):
            if (value := _number(entry.get(theirs))) is not None:
                line[ours] = value
    return [line for _, line in sorted(lines.items()) if len(line) > 1]


class _Reading:
    """Collects facts; the first file that has one wins."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.facts: Facts = {}
        self.unreadable: list[str] = []
        self.start, self.named_in = "", Path()

    def read(self, folder: Path) -> None:
        self._read_state(folder)
        self._read_adapter(folder)
        self.read_settings(folder)
        config = self.json_object(folder / "config.json") or {}
        if isinstance(version := config.get("transformers_version"), str) and _is_short(version):
            self._add(versions={"transformers": version})

    def read_settings(self, folder: Path) -> None:
        """Read the README and the YAML files of a run."""
        self._read_card(folder / CARD)
        for number, path in enumerate(sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])):
            if number == SETTINGS_FILES:
                self._unreadable(path, ValueError(f"more than {SETTINGS_FILES} YAML files"))
                break
            if settings := self._parsed(path, self._text(path, SETTINGS_BYTES)):
                self._add_settings(settings, path)
        if (folder / "trainer_log.jsonl").is_file() and self.name in (None, "TRL"):
            self.name = "LLaMA-Factory"

    def json_object(self, path: Path) -> dict[str, Any] | None:
        """A JSON object; None if there is no such file, or it is named as unreadable."""
        if not path.is_file():
            return None
        try:
            _require_inside(path)
            return read_json_object(path)
        except CheckpointError as error:
            self._unreadable(path, error)
            return None

    def _read_state(self, folder: Path) -> None:
        results: Facts = {}
        for name in _RESULTS:
            results = (self.json_object(folder / name) or {}) | results
        state = self.json_object(_newest_state(folder))
        if state is None and not results:
            return
        self.name = self.name or "transformers"
        log = list(_entries(state or {}))
        trained = [value for entry in log if (value := _number(entry.get("loss"))) is not None]
        validated = [value for entry in log if (value := _number(entry.get("eval_loss"))) is not None]
        steps = _whole((state or {}).get("global_step"))
        counts = [entry.get("num_tokens") for entry in log if steps and entry["step"] == steps]  # TRL's, so far
        tokens = (state or {}).get("num_input_tokens_seen") or results.get("num_input_tokens_seen")
        self._add(
            steps=steps,
            epochs=_number((state or {}).get("epoch", results.get("epoch"))),
            tokens=_whole(tokens) or next(filter(None, map(_whole, counts)), None),
            first_loss=trained[0] if trained else None,
            last_loss=trained[-1] if trained else None,
            mean_loss=_number(results.get("train_loss")),
            valid_loss=validated[-1] if validated else _number(results.get("eval_loss")),
        )

    def _read_adapter(self, folder: Path) -> None:
        config = self.json_object(folder / "adapter_config.json")
        if config and (config.get("base_model_name_or_path") or self.facts):
            self._add_base(config.get("base_model_name_or_path"), folder / "adapter_config.json")
            dora = " (DoRA)" if config.get("use_dora") else ""
            kind = config.get("peft_type")
            self._add(method=f"{kind.lower()}{dora}" if isinstance(kind, str) else None, rank=_whole(config.get("r")))
            self._add(alpha=_number(config.get("lora_alpha")))

    def _read_card(self, path: Path) -> None:
        text = self._text(path, CONFIG_BYTES)
        end = text.find("\n---", 4) if text.startswith("---\n") else -1
        card = self._parsed(path, text[4:end]) if end > 0 else None
        named = (card or {}).get("tags")
        tags = " ".join(tag for tag in named if isinstance(tag, str)).lower() if isinstance(named, list) else ""
        axolotl = _AXOLOTL.search(text)
        end = text.find("\n```", axolotl.end()) if axolotl else -1
        axolotl = axolotl if end > 0 else None
        versions = {library.lower(): version for library, version in _LIBRARY.findall(text)}
        if "pytorch" in versions:
            versions["torch"] = versions.pop("pytorch")
        if axolotl:
            versions["axolotl"] = axolotl[1]
        trainer = next((name for tag, name in _NAMES.items() if tag in tags.split()), None)
        if axolotl or trainer:
            self.name = "axolotl" if axolotl else trainer
        elif "generated_from_trainer" in tags:
            self.name = self.name or "transformers"
        if axolotl and (settings := self._parsed(path, text[axolotl.end() : end])):
            self._add_settings(settings, path)
        if card:
            base = card.get("base_model")
            self._add_base(base[0] if isinstance(base, list) and base else base, path)
            datasets = card.get("datasets")
            known = [name for name in datasets[:99] if is_hub_name(name)] if isinstance(datasets, list) else []
            self._add(datasets=known or None)
        for name, value in _SETTING.findall(text):
            ours = {"num_epochs": "epochs"}.get(name, name)
            self._add(**{ours: _whole(value) if name == "seed" else _number(value)})
        if versions:
            self._add(versions=versions)

    def _add_settings(self, settings: Mapping[str, Any], path: Path) -> None:
        """Facts from the settings file of LLaMA-Factory or axolotl; any other file has none."""
        if "model_name_or_path" in settings and {"finetuning_type", "stage"} & settings.keys():
            self.name = "LLaMA-Factory"
            self._add_base(settings["model_name_or_path"], path)
        elif "base_model" in settings and {"datasets", "adapter", "sequence_len"} & settings.keys():
            self.name = "axolotl"
            self._add_base(settings["base_model"], path)
        else:
            return
        self._add(seed=_whole(settings.get("seed")), learning_rate=_number(settings.get("learning_rate")))

    def _add_base(self, name: object, path: Path) -> None:
        if isinstance(name, str) and name not in _NONE and len(name) <= TEXT_CHARACTERS and not self.start:
            self.start, self.named_in = name, path
            self._add(base=name if is_hub_name(name) else "a local folder")

    def _add(self, **facts: object) -> None:
        for name, value in facts.items():
            if value is not None and (not isinstance(value, str) or _is_short(value)):
                self.facts.setdefault(name, value)

    def _text(self, path: Path, largest: int) -> str:
        """The text of a file; "" if there is no such file, or it is named as unreadable."""
        if not path.is_file():
            return ""
        try:
            _require_inside(path)
            return read_regular(path, largest).decode("utf-8")
        except (CheckpointError, ValueError) as error:
            self._unreadable(path, error)
            return ""

    def _parsed(self, path: Path, text: str) -> dict[str, Any] | None:
        """A YAML mapping, its scalars as text: no tag of another type is constructed, and no mapping merged."""
        try:
            if len(text) > SETTINGS_BYTES:
                raise ValueError(f"{len(text)} characters of YAML, the limit is {SETTINGS_BYTES}")
            found = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 it constructs text, lists and mappings only
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self._unreadable(path, error)
            return None
        return found if isinstance(found, dict) else None

    def _unreadable(self, path: Path, error: Exception) -> None:
        if path.name not in self.unreadable:
            why = " ".join(str(error).split()).removeprefix(f"{path}: ")
            say(f"extract: {path}: left out of the training's facts: {why:.200}")
            self.unreadable.append(path.name)


def checkpoints(folder: Path) -> list[str]:
    """The names of the folders checkpoint-N in a folder, by N."""
    names = [place.name for place in folder.iterdir()] if folder.is_dir() else []
    found = [(int(match[1]), name) for name in names if (match := CHECKPOINT.fullmatch(name))]
    return [name for _, name in sorted(found)]


def _newest_state(folder: Path) -> Path:
    """trainer_state.json of a run: in its folder, else that of its newest checkpoint."""
    places = [folder, *(folder / name for name in reversed(checkpoints(folder)))]
    return next((place / STATE for place in places if (place / STATE).is_file()), folder / STATE)


def _entries(state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    log = state.get("log_history")
    for entry in log if isinstance(log, list) else ():
        if isinstance(entry, dict) and _whole(entry.get("step")) is not None:
            yield entry


def _require_inside(path: Path) -> None:
    if leads_out(path):
        raise CheckpointError("a link that leads out of its folder")


def _is_short(text: str) -> bool:
    """Whether a text fits into a record, on one line."""
    return 0 < len(text) <= TEXT_CHARACTERS and text.isprintable()


def is_hub_name(name: object) -> bool:
    """Whether a name has the form OWNER/NAME."""
    return isinstance(name, str) and len(name) < 200 and _HUB_NAME.fullmatch(name) is not None


def _parsed_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _number(value: object) -> float | None:
    if isinstance(value, str):  # of YAML
        value = _parsed_number(value)
    return float(value) if isinstance(value, int | float) and -LARGEST < value < LARGEST else None


def _whole(value: object) -> int | None:
    if isinstance(value, str):
        value = _parsed_number(value)
    return int(value) if isinstance(value, int | float) and -(2**63) < value < 2**63 and value == int(value) else None
