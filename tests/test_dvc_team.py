"""DVC in a team, on a whole run: push, clone, pull and repro on another machine; comparing runs."""

import json
from pathlib import Path

import pytest

from tests.fixtures.checkouts import ROOT, checkout, commit, edit_params, ran, run, two_routes
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COSTLY = ("train", "extract", "sweep", "evaluate", "seeds")
CHEAP = {"fetch", "graft@shadow", "graft@direct", "verdict", "report"}


def build_kernel(place: Path, mark: bytes) -> None:
    """The compiled kernel as another compiler would make it: the same functions in other bytes."""
    name = "shadowft_core/kernels/libbf16.so"
    (place / name).write_bytes((ROOT / name).read_bytes() + mark)


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Path:
    """A finished run on the embedded pair, committed: few steps, few items."""
    place = checkout(tmp_path_factory.mktemp("author"))
    build_kernel(place, b"one compiler")
    two_routes(place)
    edit_params(
        place,
        train={"max_steps": 4},
        sweep={"scales": [0.5, 1.0]},
        evaluate={"limit": 8},
        verdict={"resamples": 999},
    )
    run(place, "dvc", "repro")
    commit(place, "a run")
    return place


def test_a_colleague_trains_nothing_again(
    author: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another path and compiler: only what is not pushed (the pair, the grafted models) is made again."""
    act_as(monkeypatch, s3_server.user)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):  # DVC does not accept /dev/null here
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    s3_server.create_bucket("team")
    run(author, "dvc", "remote", "add", "-f", "-d", "team", "s3://team/dvc")
    run(author, "dvc", "remote", "modify", "team", "endpointurl", s3_server.endpoint)
    commit(author, "a remote")
    run(author, "dvc", "push")

    clone = tmp_path / "else where" / "clone"
    run(tmp_path, "git", "clone", "-q", str(author), str(clone))
    build_kernel(clone, b"another compiler")
    run(clone, "dvc", "pull")
    for file in ("verdict.json", "report.html", "metrics.json", "plots/arms-domain.json"):
        assert (clone / "work" / file).read_bytes() == (author / "work" / file).read_bytes()
    again = ran(run(clone, "dvc", "repro"))
    assert not [stage for stage in again if stage.startswith(COSTLY)]
    assert set(again) <= CHEAP
    assert "fetch" in again
    assert run(clone, "git", "status", "--porcelain") == ""  # dvc.lock is unchanged: the same bytes came out


def test_an_experiment_is_compared_with_the_run(author: Path, tmp_path: Path) -> None:
    """`dvc exp run --temp` in a separate folder, without ignored files; then every command that compares runs."""
    output = run(author, "dvc", "exp", "run", "--temp", "--name", "fixed", "-S", "graft.scale=1.0")
    again = ran(output)
    assert not [stage for stage in again if stage.startswith(("train", "extract", "sweep"))]
    assert "graft@shadow" in again

    params = json.loads(run(author, "dvc", "params", "diff", "HEAD", "fixed", "--json"))
    assert params == {"params.yaml": {"graft.scale": {"old": "sweep", "new": 1.0}}}
    metrics = json.loads(run(author, "dvc", "metrics", "diff", "--all", "HEAD", "fixed", "--json"))["work/metrics.json"]
    before = json.loads((author / "work/metrics.json").read_bytes())
    assert {name: value["old"] for name, value in metrics.items()} == before
    for arm in ("domain.shadow", "guards.shadow", "domain.direct", "guards.direct"):  # the scaled arms are at 1 now
        assert metrics[f"{arm}_scaled"]["new"] == before[arm]

    shown = json.loads(run(author, "dvc", "exp", "show", "--json"))
    assert [group["revs"][0]["name"] for row in shown for group in row["experiments"] or ()] == ["fixed"]
    drawn = json.loads(run(author, "dvc", "plots", "diff", "HEAD", "fixed", "--json"))
    assert set(drawn["data"]) == {"arms, domain", "arms, guards", "scale, domain", "scale, guards", "training loss"}
    assert not drawn.get("errors")
    page = run(author, "dvc", "plots", "show", "-o", str(tmp_path / "plots")).strip()
    assert (tmp_path / "plots" / "index.html").is_file(), page
