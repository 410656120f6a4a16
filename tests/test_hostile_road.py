"""The whole road with hostile names: no shell runs a part of a name, and no code of a model folder runs.

The same run with plain names gives the weights to expect.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from shadowft_core.weights import open_checkpoint
from tests.fixtures.checkouts import ROOT, commit, ran, run
from tests.test_loading import edit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUNS = "$(touch PWNED)`touch PWNED`"
PLACE = f"a b {RUNS} 'x' y ;& touch PWNED | > *"
BASE = f"-base {RUNS} 'b' \"c\" ;touch PWNED; [*] ünï"
INSTRUCT = f"-rf {RUNS} && touch PWNED || 'i' > PWNED #"
ROWS = f"-r {RUNS}; 'd' \"e\" |&>*.jsonl"
TASKS = f"-t {RUNS} & 't' \"u\" \\ ~ $HOME"
STORE = f"-s {RUNS};'s' | *"
CODE = "import pathlib\npathlib.Path({!r}).mkdir(exist_ok=True)\nclass Own: pass\ndef generate(model, **_): pass\n"
OWN = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own", "AutoModel": "modeling_own.Own"}
FILES = ("modeling_own.py", "tokenizer.py", "tokenization_own.py", "chat_template.py", "custom_generate/generate.py")
SETTINGS = {"train": {"max_steps": 4}, "evaluate": {"limit": 8, "kl_answers": 0}, "sweep": {"scales": [0.5, 1.0]}}


def shadowft(folder: Path, *words: str, code: int = 0) -> str:
    return run(folder, sys.executable, "-m", "shadowft_core.cli", *words, code=code)


def armed(model: Path, to: Path, marker: Path) -> Path:
    """A copy of a model with every file that a loader may take for code, and settings that ask to trust it."""
    shutil.copytree(model, to)
    for name in FILES:
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_text(CODE.format(str(marker)), encoding="utf-8")
    edit(to, "config.json", auto_map=OWN, trust_remote_code=True)
    edit(to, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own"] * 2}, trust_remote_code=True)
    edit(to, "generation_config.json", custom_generate="custom_generate/generate.py", trust_remote_code=True)
    return to


class Place:
    """Folders beside each other: both models, the data, and what a run makes."""

    def __init__(self, top: Path, pair: Path, hostile: bool) -> None:
        self.top, self.marker = top, top / "PWNED"
        self.mine = top / (PLACE if hostile else "mine")
        self.base, self.instruct = (top / name for name in ((BASE, INSTRUCT) if hostile else ("base", "instruct")))
        self.rows, self.tasks = (ROWS, TASKS) if hostile else ("rows.jsonl", "asked")
        for side, place in (("base", self.base), ("instruct", self.instruct)):
            armed(pair / side, place, self.marker) if hostile else shutil.copytree(pair / side, place)
        rows = json.loads((ROOT / "shadowft_core/demo/pico/data/train_alpaca.json").read_text(encoding="utf-8"))
        text = "".join(json.dumps(row) + "\n" for row in rows[:200])
        (top / self.rows).write_text(text, encoding="utf-8")

    def init(self, code: int = 0) -> str:
        """Give every name relative to the folder above."""
        models = (f"--base=./{self.base.name}", f"--instruct=./{self.instruct.name}")
        return shadowft(self.top, "init", self.mine.name, *models, f"--data={self.rows}", code=code)

    def settle(self, store: str) -> None:
        file = self.mine / "params.yaml"
        params = yaml.safe_load(file.read_text(encoding="utf-8"))
        del params["routes"]["direct"]
        for name, values in {**SETTINGS, "store": {"uri": store}}.items():
            params[name] |= values
        params["evaluate"]["tasks"] = self.tasks
        file.write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
        (self.mine / "tasks").rename(self.mine / self.tasks)
        run(self.mine, "git", "config", "user.name", "Someone")
        run(self.mine, "git", "config", "user.email", "someone@example.org")
        commit(self.mine, "settings")

    def graft(self) -> str:
        return open_checkpoint(self.mine / "work/grafted/shadow").digest()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Place:
    """A run with plain names and models without code, by the flow."""
    place = Place(tmp_path_factory.mktemp("plain"), pico_pair, hostile=False)
    place.init()
    place.settle("var/store")
    shadowft(place.mine, "run")
    return place


def unharmed(place: Place, beside: set[str]) -> None:
    """Nothing ran, and nothing was written beside the folders that were named."""
    assert not [path for path in (*place.top.rglob("PWNED*"), *place.top.rglob("PWNED*/")) if path != place.mine]
    assert not [name for name in ("PWNED", "HOME") if Path(name).exists() or (Path.home() / name).exists()]
    assert {entry.name for entry in place.top.iterdir()} == beside


def test_a_run_with_hostile_names_is_the_run_with_plain_names(
    plain: Place, tmp_path_factory: pytest.TempPathFactory, pico_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path_factory.mktemp("road"), pico_pair, hostile=True)
    cache = place.top / f"cache {RUNS};"
    monkeypatch.setenv("SHADOWFT_CACHE", str(cache))
    beside = {place.base.name, place.instruct.name, place.rows}

    # A model that only its own code could load is refused before anything is made.
    config = (place.instruct / "config.json").read_bytes()
    edit(place.instruct, "config.json", model_type="own", architectures=["Own"])
    said = place.init(code=3)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "code that comes with a model is never run" in errors[0]
    unharmed(place, beside)
    (place.instruct / "config.json").write_bytes(config)

    assert "auto_map" in place.init()
    place.settle(f"../{STORE}")
    (place.instruct / "config.json").write_bytes(config.replace(b'"qwen3"', b'"own"'))
    assert "code that comes with a model is never run" in run(place.mine, "dvc", "repro", code=255)
    said = shadowft(place.mine, "run", code=1)
    assert "code that comes with a model is never run" in said.splitlines()[-1], said
    assert not (place.mine / "work/pair").exists()
    (place.instruct / "config.json").write_bytes(config)

    # DVC makes the first half, the flow the rest; then nothing is left to do for DVC.
    stages = ran(run(place.mine, "dvc", "repro", "graft"))
    assert {"prepare", "train@shadow", "graft@shadow"} <= set(stages)
    assert place.graft() == plain.graft()
    shadowft(place.top, "run", place.mine.name)
    commit(place.mine, "a run")
    assert ran(run(place.mine, "dvc", "repro")) == []
    assert place.graft() == plain.graft()
    for arm in ("instruct/instruct", "shadow/shadow", "shadow/shadow_scaled"):
        both = [json.loads((of.mine / f"work/scores/{arm}/scores.json").read_bytes()) for of in (place, plain)]
        assert both[0]["tasks"] == both[1]["tasks"]

    # The rest of the road: a champion, its store, its model, its history.
    name = yaml.safe_load((place.mine / "params.yaml").read_text(encoding="utf-8"))["registry"]["name"]
    reason = f"{RUNS}; touch PWNED"
    shadowft(place.mine, "promote", name, "1", "--override", reason)
    assert reason in shadowft(place.mine, "history", name)
    out = f"-champion {RUNS};"
    shadowft(place.mine, "materialize", f"models:/{name}@champion", f"--out=../{out}")
    shadowft(place.mine, "store", "check")
    shadowft(place.mine, "doctor")
    unharmed(place, {*beside, place.mine.name, cache.name, STORE, out})


def test_the_verbs_with_hostile_paths_make_the_same_weights(
    plain: Place, tmp_path_factory: pytest.TempPathFactory, pico_pair: Path
) -> None:
    """Every path of every stage by its option, one verb after the other."""
    place = Place(tmp_path_factory.mktemp("verbs"), pico_pair, hostile=True)
    place.mine.mkdir()
    params = yaml.safe_load((plain.mine / "params.yaml").read_text(encoding="utf-8"))
    params["fetch"] = {"base": f"../{place.base.name}", "instruct": f"../{place.instruct.name}"}
    params["prepare"]["data"], params["evaluate"]["tasks"] = f"../{place.rows}", place.tasks
    params["store"]["uri"] = STORE
    settings = f"-p {RUNS};.yaml"
    (place.mine / settings).write_text(yaml.safe_dump(params), encoding="utf-8")
    (place.mine / place.tasks).mkdir()
    beside = {entry.name for entry in place.top.iterdir()}
    at = {stage: f"-{stage} {RUNS} '\";|" for stage in ("pair", "data", "start", "tuned", "delta", "out", "seeds")}

    def verb(*words: str) -> None:
        shadowft(place.mine, *words)

    file = f"--params={settings}"
    pair, data, start = at["pair"], at["data"], at["start"]
    verb("fetch", f"--origin=-o {RUNS}", file)
    verb("fetch", "--out", pair, file)
    verb("prepare", "--out", data, file)
    verb("start", "--pair", f"{pair}/pair.json", "--out", start, file)
    verb("preflight", "--pair", pair, "--data", data, "--out", f"-f {RUNS}.json", file)
    instruct = ("--instruct", f"{pair}/instruct")
    scores, sweeps = f"work {RUNS}/scores", f"-sweeps {RUNS}"
    verb("evaluate", *instruct, "--data", data, "--out", f"{scores}/instruct", file)
    tuned, delta, grafted = (f"{at[name]}/shadow" for name in ("tuned", "delta", "out"))
    there = ("--model", f"{pair}/base", *instruct, "--data", data, "--start", start, "--route", "shadow", file)
    verb("train", *there, "--out", tuned)
    verb("extract", "--base", f"{pair}/base", "--tuned", tuned, "--out", delta, file)
    sweep = f"{sweeps}/shadow.json"
    verb("sweep", *instruct, "--delta", delta, "--data", data, "--out", sweep, file)
    verb("graft", *instruct, "--delta", delta, "--sweep", sweep, "--out", grafted, file)
    assert open_checkpoint(place.mine / grafted).digest() == plain.graft()
    arms = ("--delta", delta, "--grafted", grafted, "--route", "shadow", "--data", data)
    verb("evaluate", *instruct, *arms, "--out", f"{scores}/shadow", file)
    verb("seeds", *there, "--grafted", grafted, "--out", f"{at['seeds']}/shadow")
    candidate, seen = f"-c {RUNS}.json", f"-l {RUNS}.json"
    verb("select", "--sweeps", sweeps, "--out", candidate, file)
    verb("look", "--scores", scores, "--candidate", candidate, "--out", seen, file)
    judged = ("--scores", scores, "--candidate", candidate, "--run", seen, "--seeds", at["seeds"], file)
    verb("verdict", *judged, "--out", f"-v {RUNS}", "--metrics", f"-m {RUNS}", "--junit", f"-j {RUNS}")
    verb("compare", f"{scores}/instruct/instruct", f"{scores}/shadow/shadow", f"--html=-h {RUNS}")
    verb("store", "publish", "--delta", delta, file)
    unharmed(place, beside)
    assert not os.path.lexists(place.mine / "PWNED")
