"""What answers on the network or the disk: the store and the registry of params.yaml, Prefect, the usual ports."""

import json
import os
import socket
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from shadowft_core.doctor.finding import FAIL, OK, WARN, Finding
from shadowft_core.doctor.machine import writable
from shadowft_core.errors import ShadowError, without_passwords

ANSWER_SECONDS = 5
PREFECT = "PREFECT_API_URL"
SERVERS = {  # the servers of infra/README.md: port, path that tells whether one answers, how to choose another port
    "prefect": (4200, "/api/health", "prefect server start --port 4201"),
    "mlflow": (5000, "/health", "mlflow server --port 5001"),
}


def store(params: Path) -> list[Finding]:
    """The store of params.yaml, or of SHADOWFT_STORE_URI: a folder that can be written, or a bucket that answers."""
    from shadowft_core.params import load_params
    from shadowft_core.store import open_store

    if not params.is_file():
        return [Finding("store", OK, f"not examined: there is no {params} here")]
    try:
        where = load_params(params).store
    except ShadowError as error:
        return [Finding("params", FAIL, str(error), f"correct {params}")]
    if not where.uri.startswith("s3:"):
        folder = Path(where.uri.removeprefix("file://"))
        return [writable("store", folder, "set store.uri to a folder of your own, or to s3://BUCKET/PREFIX")]
    try:
        backend = open_store(where)
        backend.read("probe/write", 100)
    except ShadowError as error:
        remedy = "start it, or correct the section store and the AWS credentials"
        return [Finding("store", FAIL, str(error), remedy)]
    return [Finding("store", OK, f"{backend.location} answers; `shadowft store probe` tests what it promises")]


def registry(params: Path) -> list[Finding]:
    """The MLflow of params.yaml, or of MLFLOW_TRACKING_URI."""
    from shadowft_core.params import load_params
    from shadowft_core.registry.connection import connected, database_of, may_exist, uri_of

    if not params.is_file():
        return [Finding("registry", OK, f"not examined: there is no {params} here")]
    try:
        where = load_params(params).registry
    except ShadowError:
        return []  # `store` reports it
    uri = without_passwords(uri_of(where))
    if not may_exist(where):
        file = database_of(uri_of(where))
        found = writable("registry", file.parent, "correct registry.tracking_uri")
        if found.state == OK:
            return [Finding("registry", OK, f"{file}: not there yet; the first registration creates it")]
        return [found]
    try:
        with connected(where, create=False) as client:
            client.search_experiments(max_results=1)
    except ShadowError as error:
        return [Finding("registry", FAIL, str(error), "start it; until then registrations wait in var/pending")]
    return [Finding("registry", OK, f"{uri} answers")]


def ports(params: Path) -> list[Finding]:
    """The Prefect server that PREFECT_API_URL names, and the ports at which servers of Prefect and MLflow listen."""
    found = []
    named = os.environ.get(PREFECT)
    if named:
        shown = without_passwords(named)
        if _answers(f"{named.rstrip('/')}/health"):
            found.append(Finding("prefect", OK, f"{shown} answers"))
        else:
            remedy = f"start it, or unset {PREFECT}: a run then starts a server of its own"
            found.append(Finding("prefect", FAIL, f"{PREFECT}: {shown} does not answer", remedy))
    for name, (port, path, elsewhere) in SERVERS.items():
        if named and name == "prefect" and urlsplit(named).port == port:
            continue
        if not _taken(port):
            found.append(Finding(f"port {port}", OK, f"free for a {name} server"))
        elif _answers(f"http://127.0.0.1:{port}{path}"):
            found.append(Finding(f"port {port}", OK, f"a {name} server answers"))
        else:
            said = f"taken by another program, so a {name} server cannot listen there"
            found.append(Finding(f"port {port}", WARN, said, f"end that program, or choose a port: {elsewhere}"))
    return found


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, for ports of ended connections
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _answers(url: str) -> bool:
    """Whether a server of Prefect (`true`) or MLflow (`OK`) answers at its health page."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 the user's own URL, or loopback
            said = answer.read(100)
    except (OSError, ValueError, HTTPException):  # HTTPException: what listens there does not speak HTTP
        return False
    return said.strip() == b"OK" or _is_true(said)


def _is_true(said: bytes) -> bool:
    try:
        return json.loads(said) is True
    except ValueError:
        return False
