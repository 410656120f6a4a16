"""Shared fixtures. Children of tests find no network either: proxies point at a closed port, loopback is exempt."""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
    os.environ[_name] = "http://127.0.0.1:9"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# A runner that was started in the background has Ctrl-C ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import shadowft_core  # noqa: E402, F401  switches telemetry off before anything else is imported

pytest_plugins = [f"tests.fixtures.{name}" for name in ("models", "pico", "s3", "runs", "prefect", "training", "cli")]


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """A verb that runs in this process may set variables, and so does MLflow: the next test must not see them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
