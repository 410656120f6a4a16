"""No password appears in a message, a log, a record, a database or an object."""

import base64
import contextlib
import os
import re
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from shadowft_core.errors import ParamsError, RegistrationPendingError, RegistryError, StoreError, without_passwords
from shadowft_core.params import Registry, Store, load_params, located
from shadowft_core.store.backends import open_backend
from tests.fixtures.runs import Run
from tests.fixtures.workspace import make_workspace
from tests.servers.mlflow_server import MLflowServer
from tests.servers.seaweedfs import S3Server

ROOT = Path(__file__).parent.parent
SECRET = "hunter2"

MASKED = {  # text -> as shown
    "http://user:hunter2@host:5000/x": "http://***@host:5000/x",
    "https://hunter2@host/x": "https://***@host/x",
    "HTTPS://user:hunter2@HOST": "HTTPS://***@HOST",
    "postgresql+psycopg2://user:hunter2/a@b@host:5432/db": "postgresql+psycopg2://***@host:5432/db",
    "postgresql://host/db?user=me&password=hunter2&sslmode=require": (
        "postgresql://host/db?user=me&password=***&sslmode=require"
    ),
    "postgresql://host/db?sslpassword=hunter2": "postgresql://host/db?sslpassword=***",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dhunter2": "mssql+pyodbc:///?odbc_connect=***",
    "https://host/x?X-Amz-Signature=hunter2&y=1": "https://host/x?X-Amz-Signature=***&y=1",
    "https://host/x?access_token=hunter2": "https://host/x?access_token=***",
    "s3://key:hunter2@bucket/prefix": "s3://***@bucket/prefix",
    "failed at http://u:hunter2@a: see 'http://u:hunter2@b/c'.": "failed at http://***@a: see 'http://***@b/c'.",
}
SHOWN = [  # without a secret, so unchanged
    "postgresql://user@host/db",
    "sqlite:////data/team@work/mlflow.db",
    "file:///c:/a@b",
    "http://host:5000/a@b",
    "http://[::1]:5000/a",
    "models:/name@champion",
    "hf:owner/name@0123abc",
    "git@host:owner/name.git",
    "ssh://git@host:22/owner/name",
    "smollm2:base?steps=400&text=input/text.txt",
    "s3://bucket/prefix",
]


@pytest.mark.parametrize("text", MASKED)
def test_a_password_is_masked_in_text_in_every_error_and_refused_in_params(text: str, tmp_path: Path) -> None:
    assert without_passwords(text) == MASKED[text]
    assert str(RegistryError(f"{text} does not answer")) == f"{MASKED[text]} does not answer"
    if " " in text:
        return
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, field in (("registry", "tracking_uri"), ("store", "endpoint"), ("store", "uri"), ("fetch", "base")):
        changed = raw | {section: raw[section] | {field: text}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
        with pytest.raises(ParamsError, match=rf"{section}\.{field}: .* holds a password.*MLFLOW_TRACKING_URI") as e:
            load_params(tmp_path / "params.yaml")
        assert SECRET not in str(e.value)


@pytest.mark.parametrize("text", SHOWN)
def test_text_without_a_password_is_unchanged(text: str) -> None:
    assert without_passwords(text) == text


@pytest.mark.parametrize(
    "content",
    [
        "registry: {tracking_uri: postgresql://a_rather_long_name_of_a_user_of_the_database:hunter2@host: x}",
        "? http://user:hunter2@host\n: x",
        "evaluate: {guards: [a, 'http://user:hunter2@host']}",
        "store: {endpoint: http://user:hunter2@host, nonsense: 1}",
        "store: {secret_key: hunter2}",
    ],
)
def test_an_unusable_params_file_is_not_quoted(content: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ParamsError) as e:
        load_params(tmp_path / "params.yaml")
    assert SECRET not in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT"])
def test_a_store_address_with_a_password_in_the_environment_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 servers would ignore it, and it would be copied into every recipe."""
    monkeypatch.setenv(name, "http://user:hunter2@127.0.0.1:8333")
    with pytest.raises(ParamsError, match=rf"{name}: http://\*\*\*@127.*AWS_ACCESS_KEY_ID") as e:
        located(Store())
    assert SECRET not in str(e.value)


def test_a_command_line_address_is_quoted_without_its_password() -> None:
    for uri in ("s3://key:hunter2@bucket/prefix", "http://user:hunter2@host"):
        with pytest.raises(StoreError, match=r"\*\*\*@") as e:
            open_backend(uri)
        assert SECRET not in str(e.value)


@pytest.mark.parametrize("option", ["--store", "--endpoint"])
def test_the_flow_refuses_an_address_with_a_password(option: str, tmp_path: Path) -> None:
    """Prefect would store it with the parameters of the flow."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    words = ["--workspace", str(tmp_path), option, "s3://user:hunter2@host/x"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.retrain", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert f"error: {option}: s3://***@host/x" in done.stderr
    assert SECRET not in done.stderr


class Canary:
    """A password in every encoding that could appear."""

    def __init__(self, user: str, password: str) -> None:
        self.words = {password, quote(password, safe=""), quote(quote(password, safe=""), safe="")}
        for plain in (password, f"{user}:{password}"):
            self.words |= {base64.b64encode(plain.encode()).decode().rstrip("="), plain.encode().hex()}

    def seen_in(self, content: bytes) -> bool:
        return any(word.encode() in content for word in self.words)

    def files_below(self, folder: Path) -> list[str]:
        """Files, including databases and their journals, that contain it."""
        return [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and self.seen_in(path.read_bytes())]


@pytest.mark.slow
def test_runs_with_a_password_leave_it_nowhere(
    tmp_path: Path, s3_server: S3Server, s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whole runs as a person starts them: MLflow is down, then up and gets what waits.

    The URL of MLflow holds a password, the store has its secret key; nothing but the process's environment knows them.
    """
    password = "c4n/ry:&pass"
    canary = Canary("someone", password)
    secret = Canary(s3_server.user.access_key, s3_server.user.secret_key)
    workspace = make_workspace(tmp_path / "workspace", store=s3_store)
    for name in ("mlflow", "home", "tmp"):
        (tmp_path / name).mkdir()
    server = MLflowServer(tmp_path / "mlflow")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": server.uri.replace("//", f"//someone:{quote(password, safe='')}@"),
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.retrain", "--workspace", str(workspace)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def shadowft(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from shadowft_core.cli import main; main()", *words]
        return subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)

    waited = run()
    assert waited.returncode == RegistrationPendingError.exit_code == 11, waited.stderr
    assert "waiting: shadowft-pico (verdict hold) in var/pending/000001-" in waited.stdout
    assert re.search(r"error: hold: registry at http://\*\*\*@127.*Waiting: shadowft-pico", waited.stderr)
    assert states(workspace) == [("Waiting", "FAILED")]
    server.start()
    try:
        sent = run()
        assert sent.returncode == 0, sent.stderr
        assert "models:/shadowft-pico/1" in sent.stdout
        assert states(workspace) == [("Waiting", "FAILED"), ("Completed", "COMPLETED")]
        assert list((workspace / "var/pending").iterdir()) == []
        told = [
            shadowft(*words)
            for words in (("promote", "shadowft-pico", "challenger", "--override", "why"), ("history", "shadowft-pico"))
        ]
        assert [done.returncode for done in told] == [0, 0], [done.stderr for done in told]
        artifacts = [path.name for path in (tmp_path / "mlflow" / "artifacts").rglob("*")]
        assert {"params.yaml", "recipe.json", "verdict.json"} <= set(artifacts)
        for one in (canary, secret):
            assert one.files_below(tmp_path) == []
            assert [
                done.args for done in (waited, sent, *told) if one.seen_in((done.stdout + done.stderr).encode())
            ] == []
            backend = open_backend(s3_store.uri, s3_store.endpoint, s3_store.region)
            keys = list(backend.list(""))
            assert len(keys) > 4
            assert [key for key in keys if one.seen_in((backend.read(key, 1 << 24) or (b"",))[0])] == []
    finally:
        server.kill()

    var = workspace / "var"
    assert mode(var) == 0o700
    databases = [path for path in var.rglob("*") if path.suffix == ".db"]
    assert {path.name for path in databases} == {"prefect.db"}
    assert {mode(path) for path in databases} == {0o600}


def states(workspace: Path) -> list[tuple[str, str]]:
    """Name and type of the final state of every run of the flow, oldest first, from Prefect's database."""
    with contextlib.closing(sqlite3.connect(f"file:{workspace}/var/prefect/prefect.db?mode=ro", uri=True)) as database:
        return database.execute("select state_name, state_type from flow_run order by start_time").fetchall()


def test_only_the_owner_can_read_databases(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    try:
        registry = Registry(name="modes", tracking_uri="sqlite:///var/mlflow/mlflow.db")
        run.params = run.params.model_copy(update={"registry": registry})
        run.register()
    finally:
        os.umask(before)
    assert mode(tmp_path / "var") == 0o700
    assert mode(tmp_path / "var/mlflow/mlflow.db") == 0o600


@pytest.mark.parametrize("maker", ["store", "pending", "durations"])
def test_var_is_created_for_its_owner_only(
    maker: str, finished_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shadowft_core.pipeline.clock import Clock
    from shadowft_core.registry.registration import Registration, keep
    from shadowft_core.store import publish

    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    try:
        if maker == "store":
            publish(finished_work / "delta" / "shadow", Store(uri="var/store"))
        elif maker == "pending":
            keep(Registration("name", "sha256:0", "hold", {}, {}, {}, {}, [], {"file": b""}), Path("var/pending"))
        else:
            Clock({"step": 1}, Path("var/durations.json")).record("step", 1)
    finally:
        os.umask(before)
    assert mode(tmp_path / "var") == 0o700


def test_the_next_run_restricts_an_open_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shadowft_core.pipeline import steps

    (tmp_path / "var").mkdir()
    (tmp_path / "var").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError):
        steps.preflight(Path("params.yaml"), None)
    assert mode(tmp_path / "var") == 0o700


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
