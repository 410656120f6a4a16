"""A registered recipe is data from elsewhere: it decides neither whom we send credentials to nor what is believed."""

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import registry as room
from shadowft_core.checkpoint import canonical_json, read_json_object
from shadowft_core.cli import app
from shadowft_core.errors import RegistryError, ShadowError, StoreError
from shadowft_core.params import Store
from shadowft_core.promotion import promote
from tests.fixtures.runs import Run
from tests.test_objects_secure import Recorder

EVIL = "http://evil.example:9000"
AWS = Store(uri="s3://team/deltas")
OURS = Store(uri="s3://team/deltas", endpoint="https://s3.team.example/", bucket_owner="123456789012")


@pytest.mark.parametrize(
    ("named", "configured", "environment", "expected"),
    [
        (Store(uri="/shared/deltas"), None, {}, Store(uri="/shared/deltas")),
        (Store(uri="/shared/deltas"), OURS, {}, Store(uri="/shared/deltas")),
        (Store(uri="/shared/deltas"), None, {"URI": "s3://ours/x"}, Store(uri="s3://ours/x")),
        (AWS, AWS, {}, AWS),
        (Store(uri="s3://other/deltas"), AWS, {}, Store(uri="s3://other/deltas")),
        (
            Store(uri="s3://other/deltas", endpoint="HTTPS://S3.team.example"),
            OURS,
            {},
            Store(uri="s3://other/deltas", endpoint=OURS.endpoint, bucket_owner=OURS.bucket_owner),
        ),
        (Store(uri="s3://team/x", endpoint=EVIL), None, {"URI": "s3://ours/x"}, Store(uri="s3://ours/x")),
        (Store(uri="s3://team/x", endpoint=EVIL), OURS, {"URI": "s3://y/x"}, OURS.model_copy(update={"uri": "s3://y/x"})),
        (
            Store(uri="s3://team/x", endpoint=EVIL),
            None,
            {"ENDPOINT": "http://127.0.0.1:1"},
            Store(uri="s3://team/x", endpoint="http://127.0.0.1:1"),
        ),
        (AWS, None, {}, "s3://team/deltas at AWS, configured is no S3 store.*set SHADOWFT_STORE_URI=s3://team/deltas$"),
        (AWS, Store(uri="var/store"), {}, "at AWS, configured is no S3 store"),
        (AWS, OURS, {}, "at AWS, configured is s3://team/deltas at https://s3.team.example: credentials"),
        (
            Store(uri="s3://team/deltas", endpoint=EVIL),
            AWS,
            {},
            "at http://evil.example:9000, configured is s3://team/deltas at AWS.*SHADOWFT_STORE_ENDPOINT=http://evil",
        ),
        (Store(uri="s3://team/x", endpoint=EVIL), OURS, {"URI": "", "ENDPOINT": ""}, "at http://evil.example:9000"),
        (Store(uri="s3://team/x", endpoint="http://s3.team.example"), OURS, {}, "at http://s3.team.example, configured"),
        (
            Store(uri="s3://team/x", endpoint="https://s3.team.example:444"),
            OURS,
            {},
            "at https://s3.team.example:444, configured",
        ),
    ],
)
def test_a_recipe_names_no_endpoint(
    named: Store, configured: Store | None, environment: dict[str, str], expected: Store | str, monkeypatch: Any
) -> None:
    for field in ("URI", "ENDPOINT"):
        monkeypatch.delenv(f"SHADOWFT_STORE_{field}", raising=False)
        if field in environment:
            monkeypatch.setenv(f"SHADOWFT_STORE_{field}", environment[field])
    recipe = {"store": named.model_dump(exclude_defaults=True)}
    if isinstance(expected, Store):
        assert room.store_for(recipe, configured) == expected
    else:
        with pytest.raises(StoreError, match=expected) as error:
            room.store_for(recipe, configured)
        assert "\n" not in str(error.value)


def test_a_recipe_without_a_usable_store_is_one_line() -> None:
    for store in (None, 3, {}, {"uri": ""}, {"uri": "x", "strange": 1}):
        with pytest.raises(StoreError, match="names no usable store") as error:
            room.store_for({"store": store} if store != {} else {})
        assert "\n" not in str(error.value)
