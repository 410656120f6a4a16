"""params.yaml from elsewhere: YAML that grows, hides or means two things; text and numbers that nothing should get."""

import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from shadowft_core.errors import ParamsError
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.limits import MESSAGE_CHARACTERS, PARAMS_BYTES, YAML_VALUES
from shadowft_core.params import Params, Store, Train, load_params, located
from tests.fuzz.harness import require_plain
from tests.fuzz.odd import LAUGHS

PARAMS = Path(__file__).parents[1] / "params.yaml"
FILES = {  # content: what the error says
    LAUGHS: "line 6: its aliases expand to more than",
    "a: &a [*a]": "line 1: an alias inside its own anchor",
    "a: &a\n  b: *a": "an alias inside its own anchor",
    "a: " + "[" * 65 + "]" * 65: "line 1: more than 64 levels",
    "a: " + "[" * 64 + "]" * 64: "line 1: more than 64 levels",
    "a: " + "[" * 100_000: "line 1: more than 64 levels",
    "".join(f"a{n}: &a{n} [*a{n - 1}]\n" if n else "a0: &a0 [x]\n" for n in range(99)): "or 64 levels",
    f"a: [{'1,' * YAML_VALUES}]": "line 1: more than 100000 values",
    f"a: {'1' * 65}": "line 1, column 4: a whole number of 65 digits, the limit is 64",
    f"a: {'1' * 5_000}": "line 1, column 4: a whole number of 5000 digits, the limit is 64",
    f"a: 0x{'f' * 5_000}": "a whole number of 5002 digits, the limit is 64",
    "a: 1e400": "line 1, column 4: 1e400 is more than float64 can hold",
    "a: 1_000": "line 1: '1_000' is a number or date to some readers of YAML; put it in quotes",
    "a: 2024-01-01": "line 1: '2024-01-01' is a number or date",
    "a: 0b1": "line 1: '0b1' is a number or date",
    "a: 010": "line 1: '010' is a number or date",
    "a: 08": "line 1: '08' is a number or date",
    "a: -007": "line 1: '-007' is a number or date",
    "a: 0o17": "line 1: '0o17' is a number or date",
    "a: -0x1": "line 1: '-0x1' is a number or date",
    "a: =": "line 1: '=' is a number or date",
    "a: !!binary aGk=": "line 1: the tag !!binary is not accepted; write the plain value",
    "a: !!python/object/apply:os.system [touch ran]": "line 1: the tag !!python/object/apply:os.system is not",
    f"a: !{'x' * 5_000} b": f"line 1: the tag !{'x' * 79} is not accepted",
    "%TAG ! tag:own,2000:\n---\na: 1": "line 1: a directive (%YAML, %TAG) changes how readers read the file",
    "a: !own {b: 1}": "line 1: the tag !own is not accepted",
    "a: !!str 1": "line 1: the tag !!str is not accepted",
    "%YAML 1.1\n---\na: on": "line 1: a directive (%YAML, %TAG) changes how readers read the file",
    "a: 1\n---\nb: 2": "but found another document",
    "a: {1_000: 2}": "line 1: '1_000' is a number or date",
    "a: {1: 2}": "line 1: the key '1' is not text; put it in quotes",
    "true: 1": "line 1: the key 'true' is not text",
    "? [a]\n: 1": "line 1: a list or mapping as a key",
    "a: {b: 1, 'b': 2}": "duplicate key a.b, in line 1",
    "a: {1: 1, '1': 2}": "duplicate key a.1, in line 1",
    "a: x\nb: a\0b": "line 2: the character U+0000 may not be in a YAML file",
    "a: \x1b[2J": "line 1: the character U+001B may not be in a YAML file",
    'a: 1\nb: {c: [1, {d: 2}], e: "x\\ud800"}': "character escape code, at or after the field b.e; correct it",
    b"a: 1\nb: \xff": "line 2: byte 0xff is not UTF-8",
    "a: 1\n".encode("utf-16"): "line 1: byte 0xff is not UTF-8",
    b"#" * (PARAMS_BYTES + 1): "1048577 bytes, the limit is 1048576",
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: str(content)[:24])
def test_a_file_that_readers_could_not_hold_or_read_alike_is_refused(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ParamsError) as refused:
        read_yaml(file, PARAMS_BYTES)
    assert str(refused.value).startswith(f"{file}: ")
    assert FILES[content] in str(refused.value)
    require_plain(str(refused.value))


def test_a_file_at_the_limits_is_read(tmp_path: Path) -> None:
    held = {"long": "x" * (1 << 20), "digits": 10**63, "deep": "[" * 63 + "]" * 63}
    (tmp_path / "p.yaml").write_text("".join(f"{name}: {value}\n" for name, value in held.items()))
    assert {**read_yaml(tmp_path / "p.yaml"), "deep": held["deep"]} == held


def test_a_mark_of_byte_order_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbf" + PARAMS.read_bytes().replace(b"\n", b"\r\n"))
    assert load_params(tmp_path / "p.yaml") == load_params(PARAMS)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_only_a_regular_file_is_read(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    with pytest.raises(ParamsError, match=r"expected a regular file|no such file"):
        load_params(file)


TREE = yaml.safe_load(PARAMS.read_bytes())
TREE["evaluate"]["engine"] = {"kind": "server", "server": {"model": "m", "command": ["{model} {name} {port}"]}}
TREE["evaluate"] |= {"metrics": {"a": "b"}, "generation": {"system": "be brief"}}
TREE["sweep"]["factors"] = {"a": 1.0}
TREE["prepare"] |= {"columns": {"a": "b"}, "newest": {"by": "date"}}
TREE["extract"]["ignore"] = ["a"]
TREE["verdict"]["require"] = ["a > b"]
TREE["train"] |= {"command": "x"}
TREE["train"]["lora"] |= {"targets": ["a"], "modules_to_save": ["a"]}
TREE["plan"] = {"device": "cpu"}
TREE["store"] |= {"endpoint": "http://h", "region": "r", "sse": "aws:kms", "sse_kms_key": "k"}


def texts(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field that takes free text, in lists and mappings, too."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        if inner := [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]:
            if name not in ("routes", "metrics"):
                yield from texts(inner[0], (*above, name))
        elif "str" in str(field.annotation) and "Literal['" not in str(field.annotation).replace("Literal['all", ""):
            yield (*above, name)


FIELDS = [path for path in texts(Params) if path[-1] not in ("digest", "name", "bucket_owner", "url")]
LINES = {("train", "command"), ("evaluate", "generation", "system"), ("evaluate", "engine", "server", "command")}
HOSTILE = ["a\0b", "a\x1b[2Jb", "a\u202eb", "a\u009bb", "x" * 200_000, "a\nb"]


def replaced(tree: Any, path: tuple[str, ...], value: str) -> Any:
    """The tree with the text at a path, or the first in a list or mapping there, replaced."""
    if path:
        return {**tree, path[0]: replaced(tree.get(path[0]) or {}, path[1:], value)}
    if isinstance(tree, list) and tree:
        return [value, *tree[1:]]
    return {value: next(iter(tree.values()))} if isinstance(tree, dict) and tree else value


def test_the_fields_with_text_are_found() -> None:
    assert len(FIELDS) >= 28, FIELDS
    assert {("fetch", "base"), ("store", "sse_kms_key"), ("train", "lora", "targets"), *LINES} <= set(FIELDS)


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_no_text_has_control_characters_or_any_length(path: tuple[str, ...]) -> None:
    for value in HOSTILE:
        if path in LINES and value == "a\nb":
            continue
        with pytest.raises(ValueError, match=r"may not be in it|at most|Input should be") as refused:
            Params.model_validate_json(json.dumps(replaced(TREE, path, value)))
        assert path[0] in str(refused.value)


NUMBERS = ["seeds", "max_steps", "batch_size", "accumulation", "max_length", "threads", "epochs", "learning_rate"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**30, -1, 2**63])
def test_no_number_is_beyond_use(name: str, value: int) -> None:
    with pytest.raises(ValueError, match="Input should be"):
        Train.model_validate({name: [value] if name == "seeds" else value})


def test_the_environment_is_checked_as_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", "s3://b/\x1b[2J")
    with pytest.raises(ParamsError, match=r"SHADOWFT_STORE_URI: uri: .*U\+001B"):
        located(Store())


def test_an_error_never_has_the_whole_value(tmp_path: Path) -> None:
    long = "z" * 4_097
    (tmp_path / "p.yaml").write_text(PARAMS.read_text().replace("pico:base", long).replace("pico:instruct", long))
    with pytest.raises(ParamsError) as refused:
        load_params(tmp_path / "p.yaml")
    assert "fetch.base" in str(refused.value)
    assert "z" * 80 not in str(refused.value)
    assert len(str(refused.value)) < MESSAGE_CHARACTERS
