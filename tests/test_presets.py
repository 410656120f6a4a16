"""Presets: each a complete params.yaml that the params models, DVC and `fetch` read as the paper sets it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from shadowft_core.errors import InputError
from shadowft_core.pair import fetch
from shadowft_core.params import load_params
from shadowft_core.presets import REVISION, Preset, preset, presets, show
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import Pair
from tests.servers.hub import REVISION as COMMIT
from tests.servers.hub import Hub

ROOT = Path(__file__).parent.parent
ALL = {found.name: found for found in presets()}


@pytest.mark.parametrize("name", ALL)
def test_a_preset_is_a_complete_params_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(show(name), encoding="utf-8")
    params = load_params(file)
    assert params.train == ALL[name].train
    raw = yaml.safe_load(file.read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    for dotted in {name for stage in stages for name in stage.get("do", stage).get("params", [])}:
        section, _, field = dotted.partition(".")
        assert section in raw, dotted
        assert not field or "$" in field or field in raw[section], dotted
    assert max(map(len, file.read_text().splitlines())) <= 120


def test_the_settings_are_those_of_the_authors() -> None:
    for found in ALL.values():
        train, full = found.train, found.name.endswith("-full")
        assert train.batch_size * train.accumulation == 32
        assert (train.schedule, train.warmup, train.max_length, train.epochs) == ("cosine", 0.1, 4096, 1)
        assert train.method == ("full" if full else "lora")
        assert train.lora.alpha == 2 * train.lora.rank
        if full:
            assert train.learning_rate == 1e-5
    rates = {name: (ALL[name].train.lora.rank, ALL[name].train.learning_rate) for name in ALL if "lora" in name}
    unusual = {name: settings for name, settings in rates.items() if settings != (128, 2e-4)}
    assert unusual == {
        "qwen3-32b-lora": (256, 5e-5),
        "qwen2.5-32b-lora": (256, 5e-5),
        "qwen3-30b-a3b-lora": (256, 1e-4),
    }


@pytest.mark.parametrize("name", ALL)
def test_fetch_names_what_the_preset_leaves_open(name: str, tmp_path: Path) -> None:
    """The revision; or the Base, if none is public. Needs no network."""
    file = tmp_path / "params.yaml"
    file.write_text(show(name), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        fetch(load_params(file).fetch, tmp_path / "pair")
    if base := ALL[name].base:
        assert str(refused.value).startswith(
            f"hf:{base}@{REVISION}: not pinned; use hf:OWNER/NAME@REVISION with the 40"
        )
    else:
        assert str(refused.value).startswith("path/to/Qwen3-32B-Base: no such folder")


def test_a_pair_without_a_public_base_says_so() -> None:
    assert [name for name in ALL if ALL[name].base is None] == ["qwen3-32b-lora"]
    assert "# No Base of this pair is public" in show("qwen3-32b-lora")
    assert "No Base" not in show("qwen3-14b-lora")


def test_published_figures_are_shown_or_said_to_be_missing() -> None:
    found = {name: " ".join(show(name).replace("\n#  ", "").split()) for name in ("qwen3-8b-lora", "qwen3-14b-lora")}
    assert "direct 71.2, Shadow-FT 77.4" in found["qwen3-8b-lora"]
    assert "not published in the sources that we have" in found["qwen3-14b-lora"]


def test_an_unknown_name_is_answered_with_those_near_it() -> None:
    with pytest.raises(InputError, match=r"'qwen3-8b': unknown; near it are .*qwen3-8b-lora"):
        preset("qwen3-8b")


RESOLVE = """
import sys
from shadowft_core import presets
from shadowft_core.remote.hub import current_commit
from huggingface_hub import constants
try:
    print(presets.show("qwen3-8b-lora", lambda repo: current_commit(sys.argv[1] + repo.split("/")[1])))
finally:
    assert constants.HF_HUB_OFFLINE, "the offline switch must be down again"
"""


@pytest.mark.parametrize(("owner", "answer"), [("owner/", COMMIT), ("nobody/", None)])
def test_resolve_asks_the_hub_for_the_commits(tiny_llama_pair: Pair, owner: str, answer: str | None) -> None:
    """Against a hub on loopback, which serves the two names under another owner."""
    hub = Hub({"Qwen3-8B-Base": tiny_llama_pair.base, "Qwen3-8B": tiny_llama_pair.instruct})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, owner],
            env=os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        hub.shutdown()
        hub.server_close()
    if answer:
        assert f"base: hf:Qwen/Qwen3-8B-Base@{COMMIT}\n" in done.stdout, done.stderr
        assert f"instruct: hf:Qwen/Qwen3-8B@{COMMIT}\n" in done.stdout
    else:
        assert "InputError: hf:nobody/Qwen3-8B-Base: the hub failed" in done.stderr


def test_list_names_every_preset(shadowft: Shadowft) -> None:
    listed = json.loads(shadowft("preset", "list", "--json").out)["presets"]
    assert [row["name"] for row in listed] == list(ALL)
    lines = shadowft("preset", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(ALL)
    shown = shadowft("preset", "show", "llama-3.2-1b-full")
    assert (shown.code, shown.out) == (0, show("llama-3.2-1b-full"))
    shadowft("preset", "show", "nothing").refused(3, "preset 'nothing': unknown")


def test_the_text_is_the_same_each_time() -> None:
    first: Preset = preset("gemma-3-4b-vision-lora")
    assert first.images
    assert "tower and projector stay as they are" in show(first.name)
    assert show(first.name) == show(first.name)
