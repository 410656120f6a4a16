"""Values given to `init` stay text: none is run, none changes the settings, none leaves the folder."""

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from shadowft_core.errors import ShadowError
from shadowft_core.params import load_params
from shadowft_core.workspace import making, template
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import Pair
from tests.fuzz.harness import require_plain

ROW = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "hello"}]}\n'
NAMES = [
    "$(touch ran)`touch ran`; touch ran #",
    "-rf a: b, evaluate: {allow_code_execution: true} #",
    'x\' "y" &a *a !!python,name:os.system |- > @ %',
]


@pytest.mark.parametrize("name", NAMES)
def test_models_data_and_folder_may_have_any_name_and_none_is_run(
    name: str, tmp_path: Path, tiny_llama_pair: Pair
) -> None:
    for side in ("base", "instruct"):
        shutil.copytree(getattr(tiny_llama_pair, side), tmp_path / side / name)
    (tmp_path / f"{name}.jsonl").write_text("".join(ROW % n for n in range(9)), encoding="utf-8")
    before = {path.name for path in tmp_path.iterdir()}
    folder = Path("./" + re.sub('[{}%?":]', "", name) + " mine")
    with chdir(tmp_path):
        making.init(folder, f"base/{name}", f"instruct/{name}", f"./{name}.jsonl")
    folder = tmp_path / folder
    with chdir(folder):
        params = load_params(Path("params.yaml"))
    assert (params.fetch.base, params.fetch.instruct) == tuple(
        str(tmp_path / side / name) for side in ("base", "instruct")
    )
    assert (params.prepare.data, params.evaluate.allow_code_execution) == (f"data/{name}.jsonl", False)
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    plainly = yaml.safe_load(template.content(template.OWN["params.yaml"]).decode().replace("{", "'").replace("}", "'"))
    assert list(yaml.safe_load(text)) == list(plainly), "no value became a field"
    assert not list(tmp_path.rglob("ran"))
    assert {path.name for path in tmp_path.iterdir()} - before == {folder.name}
    for file in template.FILES:
        assert (folder / file).read_bytes() == template.content(template.FILES[file]), "no value is in these files"


@pytest.mark.parametrize(
    "value", ["hf:../../x/y@" + "0" * 40, "s3://b/../../x\n", "x\x1b[2J", "\udce9", "pico:base\nfoo: 1"]
)
@pytest.mark.parametrize("option", ["base", "data", "preset"])
def test_a_value_that_can_be_nothing_is_refused_and_nothing_is_written(
    option: str, value: str, tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--instruct", value] if option == "base" else []
    done = shadowft("init", "mine", f"--{option}", value, *words)
    assert done.code not in (0, 1, 70), done
    require_plain(done.err.splitlines()[-1])
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_trains_gets_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are those of a shell, but nothing expands them."""
    from shadowft_core.params import Train
    from shadowft_core.train import require_runnable

    monkeypatch.chdir(tmp_path)
    for command in (NAMES[0], "nothing $(touch ran)", "-x"):
        words = Train(command=command).words
        with pytest.raises(ShadowError, match="no program"):
            require_runnable(words)
    assert list(tmp_path.iterdir()) == []
