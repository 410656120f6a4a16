"""Shared fixtures. Child processes have no network either: proxies point to a closed port, loopback is exempt."""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
    os.environ[_name] = "http://127.0.0.1:9"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# A test runner started in the background ignores Ctrl-C, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each after those it imports.
PLUGINS = ("models", "data", "evaluation", "serving", "pico", "prefect", "s3", "runs", "training", "cli", "package")
pytest_plugins = [f"tests.fixtures.{name}" for name in PLUGINS]


@pytest.fixture(autouse=True)
def environment_as_it_was(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Restore the environment: verbs that run in this process and MLflow set variables. Each test has its own cache."""
    before = dict(os.environ)
    os.environ["SHADOWFT_CACHE"] = str(tmp_path_factory.mktemp("cache") / "shadowft")
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
