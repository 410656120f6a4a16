"""Further routes in params.yaml: their names, the settings that they change, and the verb that applies them."""

import re
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import ParamsError
from shadowft_core.params import Params, load_params
from tests.fixtures.checkouts import edit_params, two_routes
from tests.fixtures.cli import Shadowft

WRITTEN = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")
OSF = {"model": "instruct", "graft": "--onto-base", "train": {"method": "osf", "osf": {"preserved": 0.25}}}


def with_routes(folder: Path, **routes: Any) -> Path:
    """The routes shadow and direct, and these."""
    (folder / "params.yaml").write_text(WRITTEN, encoding="utf-8")
    two_routes(folder)
    edit_params(folder, routes=routes)
    return folder / "params.yaml"


def read(folder: Path, **routes: Any) -> Params:
    return load_params(with_routes(folder, **routes))


def test_a_further_route_changes_the_fields_that_it_names(tmp_path: Path) -> None:
    lora = {"model": "base", "train": {"lora": {"rank": 4}, "learning_rate": 0.5, "max_steps": 3}}
    params = read(tmp_path, direct_osf=OSF, small=lora)
    assert list(params.routes) == ["direct", "direct_osf", "shadow", "small"]
    assert params.train_for("shadow") == params.train_for("direct") == params.train
    osf = params.train.model_copy(
        update={"method": "osf", "osf": params.train.osf.model_copy(update={"preserved": 0.25})}
    )
    assert params.train_for("direct_osf") == osf
    small = params.train_for("small")
    assert small.lora == params.train.lora.model_copy(update={"rank": 4})  # its other fields are those of the section
    assert (small.learning_rate, small.max_steps, small.batch_size) == (0.5, 3, params.train.batch_size)
    with pytest.raises(ParamsError, match=r"routes\.other: no such route; known routes are direct, direct_osf, shadow"):
        params.train_for("other")


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        ({"far": {"model": "base", "train": {"optimiser": "adam"}}}, r"routes\.far\.train\.optimiser: no such field"),
        ({"far": {"model": "base", "train": {"lora": {"r": 8}}}}, r"routes\.far\.train\.lora\.r: no such field"),
        ({"far": {"model": "base", "train": {"lora": 8}}}, r"routes\.far\.train\.lora: .*found 8"),
        ({"far": {"model": "base", "train": {"epochs": "1"}}}, r"routes\.far\.train\.epochs: .*number.*found '1'"),
        (
            {"far": {"model": "base", "train": {"validation": {"patience": 2}}}},
            r"routes\.far\.train\.validation: patience and keep: best .*set steps",
        ),
        ({"far": {"model": "base", "train": [1]}}, r"routes\.far\.train: .*`name: value` pairs"),
        ({"far": {"model": "base", "rate": 1}}, r"routes\.far\.rate: no such field"),
        (
            {"far": {"model": "instruct"}},
            r"routes\.far\.graft is '', a route that tunes the instruct needs '--onto-base'",
        ),
        ({"far": {"model": "base", "graft": "--onto-base"}}, r"routes\.far\.graft is '--onto-base', .* needs ''"),
        (
            {"shadow": {"model": "base", "graft": "", "train": {"seed": 1}}},
            r"routes\.shadow\.train changes seed, it must",
        ),
        (
            {"direct": OSF},
            r"routes\.direct\.train changes method, osf, it must be empty: shadow and direct share all settings",
        ),
        ({"shadow": {"model": "instruct", "graft": "--onto-base"}}, r"routes\.shadow must be"),
        ({"direct": {"model": "base"}}, r"routes\.direct must be"),
        *(
            ({name: {"model": "base"}}, re.escape(f"'{name}' cannot name a route: use a-z, 0-9 and _"))
            for name in ("instruct", "far_scaled", "Far", "1far", "a-b", "a/b", "", "_x", "a" * 41, "$(touch ran)")
        ),
    ],
)
def test_a_route_that_cannot_be_is_refused_with_its_field(tmp_path: Path, routes: Any, problem: str) -> None:
    with pytest.raises(ParamsError, match=problem) as refused:
        read(tmp_path, **routes)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / 'params.yaml'}: ")


@pytest.mark.parametrize(
    ("words", "replayed", "rate"),
    [
        ((), True, 0.002),
        (("--no-replay",), False, 0.002),
        (("--route", "shadow"), True, 0.002),
        (("--route", "far"), False, 0.5),
        (("--route", "far", "--replay"), False, 0.5),
        (("--route", "near"), True, 0.25),
        (("--route", "near", "--no-replay"), False, 0.25),
    ],
)
def test_the_verb_applies_the_settings_and_the_replay_of_a_route(
    shadowft: Shadowft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, replayed: bool, rate: float
) -> None:
    """The training itself is replaced: the arguments that it would get are compared."""
    from shadowft_core import train as room

    params = with_routes(
        tmp_path,
        far={"model": "base", "replay": False, "train": {"learning_rate": 0.5}},
        near={"model": "base", "train": {"learning_rate": 0.25}},
    )
    got: dict[str, Any] = {}
    monkeypatch.setattr(room, "train", lambda *given, **named: got.update(settings=given[3], **named))
    given = ("--model", "a", "--instruct", "b", "--data", "c", "--out", "d", "--params", params)
    assert shadowft("train", *given, *words).code == 0
    assert (got["replay"], got["settings"].learning_rate) == (replayed, rate)


def test_the_verb_refuses_an_unknown_route(shadowft: Shadowft, tmp_path: Path) -> None:
    given = ("--model", "a", "--instruct", "b", "--data", "c", "--out", "d", "--params", with_routes(tmp_path))
    shadowft("train", *given, "--route", "far").refused(3, "routes.far: no such route; known routes are direct, shadow")
