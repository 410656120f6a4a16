"""params.yaml is read as DVC reads it: duplicate keys are refused, and types are not converted."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from shadowft_core.errors import ParamsError
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.params import Graft, Train, default_params, load_params

WRITTEN = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")


def edited(folder: Path, old: str, new: str) -> Path:
    assert WRITTEN.count(old) >= 1
    file = folder / "params.yaml"
    file.write_text(WRITTEN.replace(old, new, 1), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("old", "new", "key", "lines"),
    [
        ("store:\n", "store: {uri: s3://other}\nstore:\n", "store", "lines 73 and 74"),
        ("  margin: 0.03", "  margin: 0.03\n  seed: 1", "verdict.seed", "lines 68 and 72"),
        ("rank: 16,", "rank: 16, 'rank': 8,", "train.lora.rank", "line 32"),
        ("rank: 16,", "<<: {rank: 8}, rank: 16,", "train.lora.rank", "line 32"),
        ("rank: 16,", "<<: [{rank: 8}, {rank: 16}],", "train.lora.rank", "line 32"),
        ("rank: 16,", "<<: [&a {rank: 8}, *a],", "train.lora.rank", "line 32"),
        ("rank: 16,", "<<: {rank: 8}, <<: {alpha: 16},", "train.lora.<<", "line 32"),
        ("[pico_domain_dev]", "[{a: 1, a: 2}]", "sweep.domain.a", "line 50"),
    ],
)
def test_a_duplicate_key_is_named_with_both_lines(tmp_path: Path, old: str, new: str, key: str, lines: str) -> None:
    with pytest.raises(ParamsError) as refused:
        load_params(edited(tmp_path, old, new))
    assert f"params.yaml: duplicate key {key}, in {lines};" in str(refused.value)


def test_an_alias_and_a_merge_without_a_second_value_are_read(tmp_path: Path) -> None:
    file = edited(tmp_path, "{rank: 16, alpha: 32, rslora: false}", "{<<: {rank: 8}, alpha: &a 32}\n  batch_size: *a")
    file.write_text(file.read_text().replace("  batch_size: 16\n", ""), encoding="utf-8")
    train = load_params(file).train
    assert (train.lora.rank, train.lora.alpha, train.batch_size) == (8, 32, 32)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("batch_size: 16", "batch_size: '16'", "train.batch_size: .*integer .*found '16'"),
        ("batch_size: 16", "batch_size: 16.0", "train.batch_size: .*integer .*found 16.0"),
        ("batch_size: 16", "batch_size: true", "train.batch_size: .*integer .*found True"),
        ("batch_size: 16", "batch_size: 0:16", "train.batch_size: .*integer .*found '0:16'"),
        ("rslora: false", "rslora: on", "train.lora.rslora: .*boolean .*found 'on'"),
        ("rslora: false", "rslora: 1", "train.lora.rslora: .*boolean .*found 1"),
        ("alpha: 32", "alpha: true", "train.lora.alpha: .*number .*found True"),
        ("epochs: 3", "epochs: .inf", "train.epochs: .*finite"),
        ("valid: 0.05", "valid: .nan", "prepare.valid: .*finite"),
        ("margin: 0.03", "margin: -.inf", "verdict.margin"),
        ("name: shadowft-pico", "name: 12", "registry.name: .*string .*found 12"),
        ("uri: var/store", "uri: null", "store.uri: .*string"),
        ("scale: sweep", "scale: auto", "params.yaml: graft.scale: .*'sweep' .*; graft.scale: .*number .*found 'auto'"),
        ("ignore: []", "ignore: mtp.*", "extract.ignore: .*a list .*found 'mtp"),
        (
            "dtype: instruct",
            "dtyp: float32",
            "graft.dtyp: no such field; did you mean `dtype`\\? correct or remove it$",
        ),
        (
            "  data: shadowft",
            "  dato: shadowft",
            "prepare.dato: no such field.*; missing: prepare.data; `shadowft preset show NAME` prints a complete file$",
        ),
        (
            "accumulation: 1",
            "launch: {processes: 2}",
            "params.yaml: train: accumulation is 1, .* same 16 sequences per step$",
        ),
        (
            "graft: --onto-base, replay",
            "graft: '', replay",
            "params.yaml: routes.direct must be .*: it is the control$",
        ),
        ("[pico_domain_dev]", "&a [*a]", "an alias inside its own anchor"),
        ("routes:", "? [a, b]\n: 1\nroutes:", "not readable as YAML"),
        ("routes:", "a: !!python/name:os.system\nroutes:", "not readable as YAML"),
        ("routes:", "a: 1\n---\nroutes:", "not readable as YAML"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(ParamsError, match=problem) as refused:
        load_params(edited(tmp_path, old, new))
    assert "\n" not in str(refused.value)


# DVC puts the values into paths and compares them between commits, so the verbs must read the same values.
SCALARS = """
1e-4 1.5e3 .5 +1 yes no on off y True FALSE 0 0x1F 12:30 1:30.5 ~ null Null nan .nan .inf -.INF 1.0e-05 _1
'on' "1" a:b 1e 0.0 -0 1.
"""


@pytest.mark.parametrize("scalar", SCALARS.split())
def test_scalars_are_read_as_dvc_reads_them(tmp_path: Path, scalar: str) -> None:
    (tmp_path / "p.yaml").write_text(f"a: {scalar}\n", encoding="utf-8")
    value, expected = read_yaml(tmp_path / "p.yaml")["a"], parse_yaml(f"a: {scalar}\n", "p.yaml")["a"]
    assert (type(value), repr(value)) == (type(expected), repr(expected))


def test_a_written_file_is_read_unchanged(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "rate": 1e-5,
        "text": "yes",
        "number": "12",
        "path": "a: b #c",
        "none": None,
        "flag": True,
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert read_yaml(tmp_path / "p.yaml") == values


def test_without_a_file_defaults_apply_and_a_section_without_them_is_named() -> None:
    params = default_params()
    assert (params.train, params.graft, list(params.routes)) == (Train(), Graft(), ["shadow", "direct"])
    assert params.store.uri == "var/store"
    for section in ("fetch", "prepare", "sweep", "evaluate"):
        with pytest.raises(ParamsError, match=f"no such file, but `{section}` is needed"):
            getattr(params, section)
