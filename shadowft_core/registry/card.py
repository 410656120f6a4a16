"""The description of a version in MLflow: the decision and its reasons, the ingredients, and the commands to use it.

The same registration gives the same text. It shows as many reasons as fit.
"""

import json
import re
from typing import Any

from shadowft_core.registry.registration import Registration

NUMBER = "{version}"  # placeholder for the version's number, which MLflow assigns
MODEL = (
    "Chat models made by Shadow-FT: a weight delta, that of the tuned Base or of the tuned Instruct, is grafted on the "
    "Instruct. A version is a recipe of a few kB and the code to load it, without weights. `challenger` is the version "
    "registered last; the ledger in the delta store decides which is `champion`, and the alias follows it. A version's "
    "page has the decision, its reasons, and the command to load it."
)
LARGEST = 5000  # characters that fit in a description in MLflow's database
_ARMS = ("instruct", "direct", "direct_scaled", "shadow", "shadow_scaled")  # JSON objects come sorted by name
_REASONS, _TEXT = 8, 200  # most reasons shown, most characters of each


def card(registration: Registration, experiment: str, run_id: str) -> str:
    """The description in Markdown, with NUMBER in place of the version's number. `experiment` and `run_id` locate the
    report that a person should read before signing."""
    most = (_card(registration, experiment, run_id, shown) for shown in range(_REASONS, -1, -1))
    return next((text for text in most if len(text) <= LARGEST - 100), "The page is too long; read report.html.")


def _card(registration: Registration, experiment: str, run_id: str, shown: int) -> str:
    recipe, name = registration.recipe, registration.name
    version = f"models:/{name}/{NUMBER}"
    return f"""\
**Decision: {_escaped(registration.decision)}**

{_reasons(registration, shown)}

{_arms(registration)}

[Read the report](#/experiments/{experiment}/runs/{run_id}/artifacts/report.html) before you sign: `report.html` of \
run `{run_id}`, next to `verdict.json`, `receipt.json`, `params.yaml` and `dvc.lock`.

**Made of**

{_tuned(recipe)}
- Instruct: {_model(recipe["instruct"])}
- Data: {_data(registration)}
- Delta: {_deltas(recipe)}, in {_code(recipe["store"]["uri"])}

**Licence.** The weights inherit the licences of the Base, the Instruct and the data. Nothing here grants one: check \
their sources before you share the model.

**Load it** where Shadow-FT is installed. The deltas are read from the store that you name, never from a server that \
only a recipe names:

```
{_store(recipe["store"])}shadowft materialize {version} --out my_model
mlflow models serve -m {version} --env-manager local
```

**Promote it** with `shadowft promote {name} {NUMBER}`; **roll back** to the previous champion with \
`shadowft rollback {name} --reason "..."`. Loading refuses an alias that was moved here by hand.

The tags below have its scale, its decision, its git state, and the digests of its ingredients.
"""


def _reasons(registration: Registration, shown: int) -> str:
    reasons = [f"- {_escaped(reason)}" for reason in _verdict(registration).get("reasons", [])]
    if len(reasons) > shown:
        reasons[shown:] = [f"- and {len(reasons) - shown} more, in the report"]
    return "\n".join(reasons) or "- no reason was recorded"


def _arms(registration: Registration) -> str:
    """A table of the verdict's arms: means with their intervals."""
    arms = _verdict(registration).get("arms") or {}
    if not arms:
        return "No arms were recorded."
    rows = ["| arm | scale | domain | guards | items |", "|---|---|---|---|---|"]
    for name in sorted(arms, key=lambda name: (_ARMS.index(name) if name in _ARMS else len(_ARMS), name)):
        arm = arms[name]
        items = (arm.get("overall") or {}).get("n", "")
        cells = (
            _escaped(name),
            f"{arm.get('scale', '')}",
            _mean(arm.get("domain")),
            _mean(arm.get("guards")),
            f"{items}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _mean(found: dict[str, Any] | None) -> str:
    if not found:
        return "none"
    low, high = found["interval"]
    return f"{found['mean']:.3f} ({low:.3f} to {high:.3f})"


def _tuned(recipe: dict[str, Any]) -> str:
    arm = f"- Arm: {_code(recipe['arm'])}\n" if "arm" in recipe else ""
    if recipe["base"]["digest"] == recipe["instruct"]["digest"]:
        return f"{arm}- Base: none, the Instruct itself was tuned"
    return f"{arm}- Base: {_model(recipe['base'])}"


def _model(model: dict[str, Any]) -> str:
    label = f" ({_escaped(model['label'])})" if model.get("label") else ""
    return f"{_code(model['ref'])}{label}, {_short(model['digest'])}"


def _data(registration: Registration) -> str:
    rows = ", ".join(f"{one['rows']} {one['name'].removeprefix('data/')}" for one in registration.datasets)
    digest = _short(registration.recipe["lineage"]["data"])
    return f"{_code(registration.params['prepare.data'])}, {digest}" + (f"; rows: {rows}" if rows else "")


def _deltas(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{_short(delta['digest'])} at scale {delta['scale']:g}" for delta in recipe["deltas"])


def _store(store: dict[str, Any]) -> str:
    """The shell lines that name an S3 store; empty for a folder."""
    if not str(store["uri"]).startswith("s3://"):
        return ""
    named = {"URI": store["uri"], "ENDPOINT": store.get("endpoint")}
    return "".join(f"export SHADOWFT_STORE_{field}={value}\n" for field, value in named.items() if value)


def _verdict(registration: Registration) -> dict[str, Any]:
    found = json.loads(registration.files["verdict.json"])
    return found if isinstance(found, dict) else {}


def _short(digest: str) -> str:
    return f"`{digest[:19]}`" if digest.startswith("sha256:") else _escaped(digest)


def _escaped(text: Any) -> str:
    """Untrusted text as one line of Markdown, escaped: no table, link, tag or emphasis."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|~#&])", r"\\\1", line if len(line) <= _TEXT else f"{line[: _TEXT - 3]}...")


def _code(text: Any) -> str:
    line = re.sub(r"[`{}]", "'", " ".join(str(text).split()))
    return f"`{line if len(line) <= _TEXT else f'{line[: _TEXT - 3]}...'}`"
