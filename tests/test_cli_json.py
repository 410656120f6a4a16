"""What --json prints: one envelope for the answers of all verbs and for every error, as docs/json.md lists them."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.files import canonical_json
from tests.fixtures.checkouts import run
from tests.fixtures.cli import Shadowft, leaf_verbs
from tests.fixtures.runs import Released

ROOT = Path(__file__).parent.parent
LINES = {  # a command line for each verb that has --json, in an order that works: the kind of its answer
    "doctor": "doctor",
    "pair --base {base} --instruct {instruct} --full --aggregations": "pair",
    "extract --base {base} --tuned {work}/../tuned --out delta": "delta",
    "graft --instruct {instruct} --delta delta --scale 0.5 --out grafted": "recipe",
    "receipt grafted": "receipt",
    "compare {judged}/scores/instruct/instruct {judged}/scores/shadow/shadow_scaled": "comparison",
    "diff grafted grafted": "diff",
    "preset list": "preset.list",
    "suite list --out {work}": "suite.list",
    "suite show arc_easy --out {work}": "suite.show",
    "suite fetch hellaswag --from {suites} --out suites": "suite.fetch",
    "plan --preset qwen3-8b-lora --device H100": "plan",
    "power --params {asked} --instruct {model} --data {data} --look 1": "power",
    "data show {data}": "data.show",
    "data diff {data} {data}": "data.diff",
    "regraft --recipe grafted/recipe.json --delta delta --instruct {other} --out regrafted": "recipe",
    "data add rows.jsonl --version 1": "data.add",
    "store probe": "store.probe",
    "store publish --delta delta": "store.publish",
    "store ls": "store.ls",
    "store fetch {digest} --out fetched": "store.fetch",
    "store check": "store.check",
    "store prune --dry-run": "store.prune",
    "register --pending": "registration",
    "promote {name} 1": "promotion",
    "promote {name} 2": "promotion",
    "rollback {name}": "promotion",
    "reconcile {name}": "reconciliation",
    "history {name}": "history",
    "history {name} --looks": "looks",
    "who-was {name} --at 2999-01-01T00:00Z": "champion",
    "materialize models:/{name}/1 --instruct {instruct} --out rebuilt": "model",
    "export models:/{name}/1 --instruct {instruct} --for merged --out exported": "export",
}


def documented() -> dict[str, set[str]]:
    """Fields by kind, from the table of docs/json.md."""
    rows = re.findall(r"^\| `([a-z.]+)` \|[^|]*\|([^|]*)\|$", (ROOT / "docs/json.md").read_text("utf-8"), re.MULTILINE)
    return {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}


def answer(out: str, kind: str) -> dict[str, Any]:
    """The fields of the one answer on stdout, after a check of its envelope."""
    found: dict[str, Any] = json.loads(out)
    assert out == canonical_json(found).decode() + "\n"
    assert (found.pop("format"), found.pop("kind")) == (1, kind)
    return found


def test_every_answer_has_the_envelope_and_the_documented_fields(
    shadowft: Shadowft,
    materials: dict[str, str],
    empty_folder: Path,
    released: Released,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    run(empty_folder, "dvc", "init", "--no-scm")
    shutil.copy(materials["rows"], "rows.jsonl")
    fields = documented()
    tried = set()
    for line, kind in LINES.items():
        words = [word.format(**materials, name=released.name) for word in line.split()]
        done = shadowft(*words, "--json")
        assert done.code == 0, (line, done.err)
        assert set(answer(done.out, kind)) <= fields[kind], line
        tried.add(" ".join(words[: 2 if words[0] in ("store", "data", "preset", "suite") else 1]))
    answering = {verb for verb, command in leaf_verbs().items() if any(o.name == "as_json" for o in command.params)}
    assert tried == answering
    assert {*LINES.values(), "error"} == set(fields)


def test_an_answer_may_come_with_an_exit_code(
    shadowft: Shadowft, materials: dict[str, str], empty_folder: Path, released: Released
) -> None:
    code, out, err = shadowft("diff", materials["instruct"], materials["other"], "--json")
    assert (code, answer(out, "diff")["equal"], err) == (1, False, "")
    objects = sorted(Path(released.store.uri, "objects").rglob("*"))
    damaged = next(path for path in objects if path.is_file())
    damaged.write_bytes(b"damaged")
    code, out, err = shadowft("store", "check", "--store", released.store.uri, "--json")
    assert code == 8
    assert len(answer(out, "store.check")["bad"]) >= 1
    assert json.loads(err.splitlines()[-1])["error"] == "StoreCorruptError"


@pytest.mark.parametrize(
    ("line", "code", "error", "part"),
    [
        ("receipt absent", 3, "CheckpointError", "absent"),
        ("extract --base {base} --tuned {base} --out out", 5, "ZeroDeltaError", "the delta is zero"),
        ("history a/b", 3, "ParamsError", "'a/b'"),
        ("pair --base {instruct} --instruct {base}", 4, "SwappedError", "swapped"),
        ("diff {base}", 2, "UsageError", "Missing argument"),
        ("export --for vllm --out out", 3, "InputError", "pass either"),
        ("graft --instruct {base} --out out", 2, "UsageError", "pass --delta, or --base and --tuned together"),
        ("graft --instruct {base} --out out --scale x", 2, "UsageError", "--scale"),
        ("no-such-verb", 2, "UsageError", "no-such-verb"),
        ("store no-such-verb", 2, "UsageError", "no-such-verb"),
        ("store gc", 2, "UsageError", "use `store prune`"),
        ("fetch --out out", 2, "UsageError", "--json"),  # it prints no answer, so it has no such option
        ("store publish --delta {work}/delta/shadow --store /dev/null/x", 1, "NotADirectoryError", "/dev/null/x"),
    ],
)
def test_every_error_has_the_envelope(
    line: str, code: int, error: str, part: str, shadowft: Shadowft, materials: dict[str, str], empty_folder: Path
) -> None:
    words = [word.format(**materials) for word in line.split()]
    shadowft(*words, "--json").refused_as_json(code, error, part)
    assert not (empty_folder / "out").exists()


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("store verify", "store check"),
        ("store gc --dry-run", "store prune"),
        ("store ls --uri here", "--store"),
        ("store ls --uri=here", "--store"),
        ("extract --base a --tuned b --out c --store float32", "--storage"),
        ("export --for merged --recipe models:/a@b --out c", "export models:/NAME@ALIAS"),
        ("promote 3", "VERSION"),
    ],
)
def test_an_old_spelling_is_refused_with_the_new_one(line: str, new: str, shadowft: Shadowft) -> None:
    code, out, err = shadowft(*line.split())
    assert (code, out) == (2, "")
    assert new in " ".join(err.replace("│", "").split())


def test_an_old_verb_may_be_the_name_of_a_folder(shadowft: Shadowft, empty_folder: Path) -> None:
    shadowft("store", "publish", "--delta", "gc").refused(5, "gc: no delta.json")


def test_a_file_name_that_is_no_text_is_printed_with_escapes(shadowft: Shadowft, empty_folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shadowft("receipt", name).refused(3, r"caf\udce9: has no recipe.json")
    shadowft("receipt", name, "--json").refused_as_json(3, "CheckpointError", r"caf\udce9: has no recipe.json")
