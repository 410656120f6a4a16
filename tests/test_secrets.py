"""No password leaves the process: not in a message, a log, a record, a database or an object."""

from pathlib import Path

import pytest
import yaml

from shadowft_core.errors import ParamsError, RegistryError, StoreError, without_passwords
from shadowft_core.objects import open_objects
from shadowft_core.params import Store, load_params, located

ROOT = Path(__file__).parent.parent
SECRET = "hunter2"

MASKED = {  # what is written -> what is shown
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
SHOWN = [  # no secret in it: left alone
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
def test_what_is_no_password_stays(text: str) -> None:
    assert without_passwords(text) == text


@pytest.mark.parametrize(
    "content",
    [
        "registry: {tracking_uri: postgresql://a_rather_long_name_of_a_user_of_the_database:hunter2@host: x}",
        "? http://user:hunter2@host\n: x",
        "evaluate: {guards: [a, 'http://user:hunter2@host']}",
        "store: {endpoint: http://user:hunter2@host, nonsense: 1}",
    ],
)
def test_a_params_file_that_cannot_be_used_is_not_quoted(content: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ParamsError) as e:
        load_params(tmp_path / "params.yaml")
    assert SECRET not in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT"])
def test_the_store_takes_no_password_from_the_environment_either(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would work, for S3 servers ignore it, and it would be written into every recipe."""
    monkeypatch.setenv(name, "http://user:hunter2@127.0.0.1:8333")
    with pytest.raises(ParamsError, match=rf"{name}: http://\*\*\*@127.*AWS_ACCESS_KEY_ID") as e:
        located(Store())
    assert SECRET not in str(e.value)


def test_an_address_from_the_command_line_is_not_quoted_with_its_password() -> None:
    for uri in ("s3://key:hunter2@bucket/prefix", "http://user:hunter2@host"):
        with pytest.raises(StoreError, match=r"\*\*\*@") as e:
            open_objects(uri)
        assert SECRET not in str(e.value)
