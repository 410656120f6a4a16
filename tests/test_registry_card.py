"""The description of a version: its text, and that every way to make a version sets it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core import promotion
from shadowft_core import registry as room
from shadowft_core.errors import RegistrationPendingError
from shadowft_core.files import canonical_json
from shadowft_core.registry.card import LARGEST, MODEL, NUMBER, card
from shadowft_core.registry.registration import Registration
from shadowft_core.verdict import judge
from tests.fixtures.arms import ARMS, PARAMS, arena
from tests.fixtures.runs import Run

A, B, C, D = (f"sha256:{letter * 64}" for letter in "abcd")
VERDICT = {
    "reasons": ["on the domain no better than `direct` | a tie", "guard <arith> lost 0.08, more than *0.03*"],
    "arms": {
        "instruct": {
            "scale": 0.0,
            "domain": {"mean": 0.5, "interval": [0.4, 0.6], "n": 80},
            "guards": {"mean": 0.75, "interval": [0.7, 0.8], "n": 40},
            "overall": {"mean": 0.6, "interval": [0.5, 0.7], "n": 120},
        },
        "shadow_scaled": {
            "scale": 0.75,
            "domain": {"mean": 0.51234, "interval": [0.41, 0.61], "n": 80},
            "guards": None,
            "overall": {"mean": 0.51234, "interval": [0.41, 0.61], "n": 80},
        },
    },
}
RECIPE = {
    "base": {"ref": "hf:team/Base@" + "0" * 40, "label": "synthetic base", "digest": A},
    "instruct": {"ref": "/models/in`struct", "label": "", "digest": B},
    "deltas": [{"digest": C, "scale": 0.75}],
    "lineage": {"data": D, "lock": A},
    "store": {"uri": "s3://team/deltas", "endpoint": "https://s3.team.example", "region": None},
}
EXPECTED = """\
**Decision: hold**

- on the domain no better than \\`direct\\` \\| a tie
- guard \\<arith\\> lost 0.08, more than \\*0.03\\*

| arm | scale | domain | guards | items |
|---|---|---|---|---|
| instruct | 0.0 | 0.500 (0.400 to 0.600) | 0.750 (0.700 to 0.800) | 120 |
| shadow\\_scaled | 0.75 | 0.512 (0.410 to 0.610) | none | 80 |

[Read the report](#/experiments/7/runs/f00/artifacts/report.html) before you sign: `report.html` of run `f00`, next to \
`verdict.json`, `receipt.json`, `params.yaml` and `dvc.lock`.

**Made of**

- Base: `hf:team/Base@0000000000000000000000000000000000000000` (synthetic base), `sha256:aaaaaaaaaaaa`
- Instruct: `/models/in'struct`, `sha256:bbbbbbbbbbbb`
- Data: `my rows.jsonl`, `sha256:dddddddddddd`; rows: 10 train, 3 test
- Delta: `sha256:cccccccccccc` at scale 0.75, in `s3://team/deltas`

**Licence.** The weights inherit the licences of the Base, the Instruct and the data. Nothing here grants one: check \
their sources before you share the model.

**Load it** where Shadow-FT is installed. The deltas are read from the store that you name, never from a server that \
only a recipe names:

```
export SHADOWFT_STORE_URI=s3://team/deltas
export SHADOWFT_STORE_ENDPOINT=https://s3.team.example
shadowft materialize models:/my-model/{version} --out my_model
mlflow models serve -m models:/my-model/{version} --env-manager local
```

**Promote it** with `shadowft promote my-model {version}`; **roll back** to the previous champion with \
`shadowft rollback my-model --reason "..."`. Loading refuses an alias that was moved here by hand.

The tags below have its scale, its decision, its git state, and the digests of its ingredients.
"""


def registration(verdict: dict[str, Any] = VERDICT, **recipe: Any) -> Registration:
    return Registration(
        name="my-model",
        key=A,
        decision="hold",
        recipe=RECIPE | recipe,
        tags={},
        params={"prepare.data": "my rows.jsonl"},
        metrics={},
        datasets=[{"name": "data/train", "rows": "10"}, {"name": "data/test", "rows": "3"}],
        files={"verdict.json": canonical_json(verdict)},
    )


def test_the_description_has_the_expected_text() -> None:
    assert card(registration(), "7", "f00") == EXPECTED


def test_the_description_of_a_folder_store_and_an_empty_verdict() -> None:
    text = card(registration({}, store={"uri": "var/store", "endpoint": None, "region": None}), "7", "f00")
    assert "export" not in text
    assert "- no reason was recorded\n\nNo arms were recorded." in text


def test_the_description_of_any_verdict_fits_into_the_database() -> None:
    reasons = [f"guard {number} " + "*" * 900 for number in range(40)]
    text = card(registration(VERDICT | {"reasons": reasons}), "7", "f00")
    assert len(text) <= LARGEST
    shown = text.count("- guard ")
    assert 0 < shown < 40
    assert f"- and {40 - shown} more, in the report" in text
    assert "**roll back**" in text
    assert NUMBER not in card(registration(VERDICT | {"reasons": [f"use {NUMBER}"]}), "7", "f00").partition("arm")[0]
    assert len(MODEL) <= LARGEST


def test_every_way_to_make_a_version_sets_the_description(
    run: Run, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    up = run.params.registry
    run.params = run.params.model_copy(
        update={"registry": up.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"})}
    )
    with pytest.raises(RegistrationPendingError):
        run.register()
    (first,) = room.register_pending(up, run.pending)  # one that waited
    page = client.get_model_version(first.name, "1").description
    experiment = client.get_experiment_by_name(first.name).experiment_id
    assert page.startswith("**Decision: promote**\n\n- ")
    assert f"(#/experiments/{experiment}/runs/{first.run_id}/artifacts/report.html)" in page
    assert f"shadowft materialize models:/{first.name}/1 --out" in page
    assert NUMBER not in page
    assert client.get_registered_model(first.name).description == MODEL

    run.params = run.params.model_copy(update={"registry": up})
    client.update_model_version(first.name, "1", "words of a person")
    assert not run.register().new
    assert client.get_model_version(first.name, "1").description == "words of a person"
    client.update_model_version(first.name, "1", "")
    assert not run.register().new
    assert client.get_model_version(first.name, "1").description == page, "an attempt was cut off before the page"

    promotion.promote(up, run.params.store, "1")
    client.delete_model_version(first.name, "1")
    again = promotion.reconcile(up, run.params.store).number
    assert client.get_model_version(first.name, str(again)).description == re.sub(
        rf"(models:/{first.name}/|shadowft promote {first.name} )1\b", rf"\g<1>{again}", page
    )


def test_a_real_verdict_fills_the_table() -> None:
    """Arms and reasons as `shadowft verdict` writes them."""
    items = {name: np.full(40, 0.25 * place) for place, name in enumerate(ARMS)}
    verdict = judge(arena(items), PARAMS, candidate="shadow_scaled")
    text = card(registration(verdict), "7", "f00")
    rows = re.findall(r"^\| (\S+) \| 1\.0 \| (\d\.\d{3}) \(\S+ to \S+\) \| (\d\.\d{3}) \(.*\) \| (\d+) \|$", text, re.M)
    assert [name.replace("\\", "") for name, *_ in rows] == ARMS
    assert [float(mean) for _, mean, _, _ in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {total for *_, total in rows} == {"440"}
    assert text.count("\n- ") >= len(verdict["reasons"]) + 4
