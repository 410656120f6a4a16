"""The forms in which a registration and a page read the files of all stages: what each refuses."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from shadowft_core.errors import EvaluationError
from shadowft_core.files import parse_record
from shadowft_core.registry import forms as registered
from shadowft_core.report import forms as shown

DIGEST = f"sha256:{'0' * 64}"
SIDE = {"ref": "r", "digest": "d"}
RECIPE = {"format": 1, "digest": DIGEST, "instruct": SIDE, "base": SIDE, "deltas": [{"digest": DIGEST, "scale": 1.0}]}
RECIPE |= {
    "files": {},
    "store": {},
    "verdict": {"digest": "d", "decision": "hold"},
    "lineage": {"lock": "", "data": ""},
}
DATA = {"rows_read": 1, "rows_used": 1, "rows_dropped": {}, "splits": {}, "digest": "d"}
RECEIPT = {"classes": {"grafted": 1, "untouched": 0, "left_out": 0}}
NORMS = {"weight_norm": 1.0, "delta_norm": 1.0}
DELTA = {"kind": "lora", "base": {"digest": "d"}, "tensors": {}}

CASES: list[tuple[type[BaseModel], dict[str, Any], dict[str, Any], str]] = [
    (registered.RegisteredRecipe, RECIPE, {"format": 2}, "format: .*found 2"),
    (registered.RegisteredRecipe, RECIPE, {"digest": "../../x"}, "digest: String should match"),
    (registered.RegisteredRecipe, RECIPE, {"digest": DIGEST + "\n"}, "digest: String should match"),
    (registered.RegisteredRecipe, RECIPE, {"deltas": []}, "deltas: .*at least 1 item"),
    (registered.RegisteredRecipe, RECIPE, {"deltas": RECIPE["deltas"] * 1001}, "deltas: .*at most 1000 items"),
    (
        registered.RegisteredRecipe,
        RECIPE,
        {"files": dict.fromkeys(map(str, range(10_001)), "d")},
        "files: .*at most 10000",
    ),
    (registered.RegisteredRecipe, RECIPE, {"base": {"ref": 1, "digest": "d"}}, r"base\.ref: .*found 1"),
    (registered.RegisteredRecipe, RECIPE, {"instruct": {"ref": "r", "digest": 1}}, r"instruct\.digest: .*found 1"),
    (registered.Graft, RECIPE, {"deltas": []}, "deltas: .*at least 1 item"),
    (registered.DataReport, DATA, {"splits": {"other": 1}}, r"splits\.other"),
    (registered.DataReport, DATA, {"splits": {"train": -1}}, r"splits\.train: .*found -1"),
    (registered.DataReport, DATA, {"splits": {"train": 1 << 54}}, r"splits\.train: .*found 18014398509481984"),
    (registered.Preflight, {"sigma": {"overall": 1.0}}, {"cosine": 1e51}, "cosine: .*found 1e.51"),
    (registered.Preflight, {"sigma": {"overall": 1.0}}, {"loss": {"base": -1e51}}, r"loss\.base: .*found -1e.51"),
    (shown.Data, DATA, {"rows_read": -1}, "rows_read: .*found -1"),
    (shown.Data, DATA, {"splits": {"a": 1 << 54}}, r"splits\.a: .*found 18014398509481984"),
    (shown.Preflight, {"sigma": {"overall": 1.0}, "not_measured": "x"}, {"cosine": 1e51}, "cosine: .*found 1e.51"),
    (shown.Receipt, RECEIPT, {"retention": NORMS | {"delta_norm": -1.0}}, r"retention\.delta_norm: .*found -1"),
    (shown.Receipt, RECEIPT, {"retention": NORMS | {"weight_norm": 1e51}}, r"retention\.weight_norm: .*found 1e.51"),
    (shown.Recipe, {"scope": "all", "dtype": "f"}, {"scope": "some"}, "scope"),
    (shown.Recipe, {"scope": ["a"], "dtype": "f"}, {"scope": [1]}, "scope"),
    (shown.Delta, DELTA, {"tensors": []}, "tensors"),
]


@pytest.mark.parametrize(("form", "sound", "change", "said"), CASES)
def test_a_form_names_the_field(
    form: type[BaseModel], sound: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    assert parse_record(json.dumps(sound).encode(), form, "file.json", "run it again", error=EvaluationError)
    with pytest.raises(EvaluationError, match=rf"^file\.json: {said}.*; run it again$"):
        parse_record(json.dumps(sound | change).encode(), form, "file.json", "run it again", error=EvaluationError)
