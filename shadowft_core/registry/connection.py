"""A connection to MLflow: bounded waits, one line per failure, and MLflow's process-wide settings restored."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import RegistryError, ShadowError, without_passwords
from shadowft_core.files import make_folder, make_private_file
from shadowft_core.params import Registry

_SETTINGS = {  # by default a call blocks for four minutes when the server is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for the output of a verb
    "MLFLOW_UV_AUTO_DETECT": "false",  # a version records its own requirements, not those of the current folder
}
_TRACKING, _REGISTRY = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"


@contextmanager
def connected(registry: Registry, create: bool = True) -> Iterator[Any]:
    """An MLflow client with bounded waits. Errors of MLflow or its database become a one-line RegistryError.

    Inside the block, MLflow's own functions use the same registry; afterwards they use the caller's again. Blocks may
    be nested, and threads may open them for one registry at once. A missing database file is created; with
    `create=False` it raises RegistryError.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    uri = uri_of(registry)
    if not create and not may_exist(registry):
        raise RegistryError(
            f"registry at {uri}: no such database; the first run of a workspace makes it, so go to the folder of the "
            "workspace, or check registry.tracking_uri and MLFLOW_TRACKING_URI"
        )
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if uri.startswith("sqlite:///"):
            _make_database(uri)
        with _in_use(uri):
            yield mlflow.MlflowClient()
    except ShadowError:
        raise
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise RegistryError(
            f"registry at {uri}: {one_line(error)}; check that it runs and that registry.tracking_uri is right"
        ) from None
    except ModuleNotFoundError as error:  # SQLAlchemy imports a database driver on first use
        raise RegistryError(
            f"registry at {uri}: its driver {error.name} is not installed; for PostgreSQL install shadowft[postgres]"
        ) from None


@dataclass(frozen=True)
class _Uris:
    """The URIs that MLflow uses in this process; None for one that is not set."""

    tracking: str | None
    registry: str | None
    tracking_variable: str | None
    registry_variable: str | None

    @classmethod
    def current(cls) -> "_Uris":
        import mlflow

        variables = os.environ.get(_TRACKING), os.environ.get(_REGISTRY)
        tracking = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        registry = mlflow.get_registry_uri()
        return cls(
            None if tracking == variables[0] else tracking,  # MLflow reads the variable where nothing else is set
            None if registry == (variables[1] or mlflow.get_tracking_uri()) else registry,
            *variables,
        )

    def apply(self) -> None:
        import mlflow

        mlflow.set_tracking_uri(self.tracking)
        mlflow.set_registry_uri(self.registry)
        for name, value in ((_TRACKING, self.tracking_variable), (_REGISTRY, self.registry_variable)):
            if value is None:  # MLflow exports the URI it is given; a later block would take it for the user's setting
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(eq=False)
class _Block:
    """An open block and the settings to restore when it ends."""

    before: _Uris


_lock = threading.Lock()
_making = threading.Lock()
_open: list[_Block] = []


@contextmanager
def _in_use(uri: str) -> Iterator[None]:
    """Make MLflow use `uri`, and restore its settings when the last open block ends, also if threads overlap."""
    with _lock:
        before = _Uris.current()
        _open.append(block := _Block(before))
        _Uris(uri, uri, before.tracking_variable, before.registry_variable).apply()
    try:
        yield
    finally:
        with _lock:
            place = _open.index(block)
            _open.remove(block)
            if place == len(_open):  # opened last
                block.before.apply()
            else:  # the next block restores the settings that this one would have
                _open[place].before = block.before


def _make_database(uri: str) -> None:
    """Make the database of an SQLite URI, under a name of its own first, unless it exists.

    MLflow makes the tables one by one, for seconds, and cannot use a database whose process ended meanwhile.
    """
    import mlflow

    place = database_of(uri)
    with _making:
        if _exists(uri):
            return
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            make_folder(place.parent)
            folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)  # against other processes
                if not _exists(uri):
                    make_private_file(partial)
                    begun = f"sqlite:///{partial}"
                    mlflow.MlflowClient(begun, begun).search_experiments(max_results=1)
                    os.replace(partial, place)
            finally:
                partial.unlink(missing_ok=True)
                os.close(folder)
        except OSError as error:
            raise RegistryError(
                f"registry at {uri}: {error.filename}: {error.strerror}; correct registry.tracking_uri"
            ) from None


def one_line(error: Exception) -> str:
    return without_passwords(" ".join(str(error).split()))[:300]


def uri_of(registry: Registry) -> str:
    """The URI of the registry in effect, with an absolute path.

    MLflow caches open databases by URI. With a relative path, a second workspace in one process would silently write
    to the database of the first.
    """
    uri = os.environ.get(_TRACKING) or registry.tracking_uri
    if uri.startswith("sqlite:///"):
        path, mark, query = uri.removeprefix("sqlite:///").partition("?")
        return uri if path in ("", ":memory:") else f"sqlite:///{Path(path).absolute()}{mark}{query}"
    return uri if ":" in uri or uri.startswith("databricks") else Path(uri).absolute().as_uri()


def may_exist(registry: Registry) -> bool:
    """False when the registry is a database file that does not exist, or has no content yet."""
    return _exists(uri_of(registry))


def _exists(uri: str) -> bool:
    if not uri.startswith("sqlite:///") or uri.partition("?")[0] in ("sqlite:///", "sqlite:///:memory:"):
        return True
    return database_of(uri).is_file() and database_of(uri).stat().st_size > 0


def database_of(uri: str) -> Path:
    """The file of an SQLite URI."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])
